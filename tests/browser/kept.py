"""The kept traces of six small faults, and how they came about: `python -m tests.browser.kept` writes them again.

Kept, because six hunts take a minute and a page needs none of them; and as traces of an older nanhunt, which a report
has to go on reading. Each is a demo's, of a GPT of a layer or two.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["FAULTS", "trace_of"]

FOLDER = Path(__file__).with_name("traces")
#: An overflow, a sample, an optimizer, silence, a spike and a backward pass.
FAULTS = ("fp16-overflow", "bad-sample", "adam-v-collapse", "gradient-underflow", "lr-spike", "sqrt-zero")


def trace_of(fault: str) -> Path:
    """Return the kept trace of a fault."""
    return FOLDER / f"{fault}.parquet"


def write(fault: str) -> None:
    """Train the fault's small GPT, replay it, and keep the trace; the paths in it are those of an empty folder."""
    from nanhunt.commands.replay import ReplayOptions, replay
    from nanhunt.demo import FAULTS as PLANTED
    from nanhunt.demo import Size, prepare

    planted = next(f for f in PLANTED if f.name == fault)
    # a spike needs something learnt that it can spoil
    layers, width = (2, 64) if fault in ("lr-spike", "adam-v-collapse") else (1, 32)
    size = Size(layers=layers, width=width, heads=2, context=32, batch=8)
    with TemporaryDirectory() as folder:
        before, arguments = Path.cwd(), sys.argv
        os.chdir(folder)
        sys.argv = ["nanhunt", "replay", f"{fault}/ckpt.pt"]  # the trace keeps the command
        try:
            project = prepare(planted, Path(fault), size=size)
            trace = Path(fault) / "trace.parquet"
            replay(
                ReplayOptions(
                    checkpoint=project.checkpoint, config=project.config, out=trace, quiet=True, announce=False
                )
            )
            shutil.copyfile(trace, trace_of(fault))
        finally:
            os.chdir(before)
            sys.argv = arguments


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in FAULTS:
        write(name)
