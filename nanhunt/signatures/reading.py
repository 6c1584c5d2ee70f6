"""Commands that read what is there: a trace, a checkpoint, the catalogues.

Torch, pandas and pyarrow are imported inside the commands that need them, so that `--help` takes a tenth of a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nanhunt.errors import UsageError
from nanhunt.signatures.options import ExitCode, Format, Out, Quiet, ReportFormat, TrustPickle, Verbose

__all__ = ["diff", "explain", "export", "formats", "inspect", "report", "trials", "watch"]


def report(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="trace.parquet, or a .partial of it")],
    format: ReportFormat = None,
    out: Out = None,
    top: Annotated[int, typer.Option(min=1, help="suspects and headroom rows shown")] = 5,
    repro: Annotated[
        Path | None, typer.Option(help="also write a script of the culprit op with its real operands: repro.py")
    ] = None,
    exit_code: ExitCode = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Rank suspected root causes from a trace alone."""
    from nanhunt.commands.report import ReportOptions
    from nanhunt.commands.report import report as run

    options = ReportOptions(trace=trace, format=format, out=out, top=top, verbose=verbose, repro=repro, quiet=quiet)
    diagnosis = run(options)
    if exit_code and diagnosis.outcome == "fault":
        raise typer.Exit(1)


def formats(
    dtype: Annotated[list[str] | None, typer.Option(help="a format's name: bf16, e4m3fn, nvfp4 … (repeatable)")] = None,
    value: Annotated[list[str] | None, typer.Option(help="show this value's fate: 70000, 2^-25 (repeatable)")] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="show what formats would do to the tensors of this trace")
    ] = None,
    format: Format = None,
    out: Out = None,
) -> None:
    """Show what number formats can hold, and what becomes of a value, or of a run's tensors."""
    from nanhunt.commands.formats import formats as run
    from nanhunt.commands.formats import formats_of_trace

    if trace is not None:
        if value:
            raise UsageError("--value and --trace: one of them", hint="a value's fate depends on no trace")
        formats_of_trace(trace, list(dtype or ()), format=format, out=out)
        return
    run(list(dtype or ()), list(value or ()), format=format, out=out)


def explain(
    cause: Annotated[str | None, typer.Argument(metavar="[CAUSE]", help="a cause's slug: adam-v-collapse")] = None,
    format: Format = None,
) -> None:
    """List the root causes, or print the page of one."""
    from nanhunt.commands.explain import explain as run

    print(run(cause, format=format), end="")


def trials(
    trace: Annotated[Path | None, typer.Argument(metavar="[TRACE]", help="show what was tried in this trace")] = None,
) -> None:
    """List the interventions that a replay can try, or those of a trace."""
    from nanhunt.commands.trials import trials as run

    print(run(trace), end="")


def inspect(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="checkpoint file or folder, whole or a part")],
    reference: Annotated[
        Path | None, typer.Option(metavar="CKPT", help="an earlier checkpoint of the run: what changed since")
    ] = None,
    format: Format = None,
    out: Out = None,
    top: Annotated[int, typer.Option(min=1, help="findings and tensors shown")] = 10,
    trust_pickle: TrustPickle = False,
    exit_code: ExitCode = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Scan a checkpoint for poison, flipped bits, torn writes and sick optimizer state: no code, no model."""
    from nanhunt.commands.inspect import InspectOptions
    from nanhunt.commands.inspect import inspect as run

    options = InspectOptions(
        checkpoint=checkpoint,
        reference=reference,
        format=format,
        out=out,
        top=top,
        trust_pickle=trust_pickle,
        quiet=quiet,
        verbose=verbose,
    )
    inspection = run(options)
    if exit_code and inspection.outcome == "fault":
        raise typer.Exit(1)


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="trace.parquet, or a rank's file in a trace's folder")],
    b: Annotated[Path, typer.Argument(metavar="B", help="the trace of what should be the same run")],
    format: ReportFormat = None,
    out: Out = None,
    top: Annotated[int, typer.Option(min=1, help="settings, places and rows of depth shown")] = 5,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find where two traces of what should be the same run part, by more than rounding explains."""
    from nanhunt.commands.diff import DiffOptions
    from nanhunt.commands.diff import diff as run

    run(DiffOptions(a=a, b=b, format=format, out=out, top=top, verbose=verbose))


def watch(
    trace: Annotated[
        Path, typer.Argument(metavar="TRACE", help="trace.parquet.partial of a running replay, or its final name")
    ],
    once: Annotated[bool, typer.Option("--once", help="print one frame of what is there, and end")] = False,
    interval: Annotated[float, typer.Option(min=0.05, metavar="SECONDS", help="seconds between two looks")] = 1.0,
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="seconds to wait for a trace that is not there yet")
    ] = 60.0,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show a running replay: curves, the tensors with the least room, alarms. It ends when the run does."""
    from nanhunt.commands.watch import WatchOptions
    from nanhunt.commands.watch import watch as run

    run(WatchOptions(trace=trace, once=once, interval=interval, wait=wait, quiet=quiet))


def export(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="trace.parquet, or a .partial of it")],
    to: Annotated[str, typer.Option(metavar="KIND", help="tensorboard, csv or json; wandb, mlflow or trackio")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="file or folder [default: beside the trace; a tracker's own place]; - is stdout"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite what is there")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a trace where people already look: TensorBoard with histograms, CSV, JSON, an experiment tracker."""
    from nanhunt.commands.export import export as run

    run(trace, to, out, force=force, quiet=quiet)
