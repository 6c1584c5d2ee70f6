"""Options that several commands have, with one meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Config", "ExitCode", "Format", "Out", "Quiet", "ReportFormat", "TrustPickle", "Verbose"]

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="the config", show_default="./nanhunt.yaml, then beside CKPT")
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format", "-f", help="terminal, json or markdown", show_default="the suffix of --out, else terminal"
    ),
]
ReportFormat = Annotated[
    str | None,
    typer.Option(
        "--format", "-f", help="terminal, json, markdown or html", show_default="the suffix of --out, else terminal"
    ),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="write to this file; its suffix chooses the format")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress on stderr")]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="load a checkpoint that needs pickle: it can run any code")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="more detail; tracebacks of bad input")]
ExitCode = Annotated[bool, typer.Option("--exit-code", help="exit with 1 where a fault was found")]
