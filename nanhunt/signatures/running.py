"""Commands that run the user's code, or get it ready to run.

Torch, pandas and pyarrow are imported inside the commands that need them, so that `--help` takes a tenth of a second.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from nanhunt.signatures.options import Config, ExitCode, Quiet, ReportFormat, TrustPickle, Verbose

__all__ = ["Run", "demo", "init", "replay", "run"]


def replay(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="checkpoint from before the fault")],
    config: Config = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="the trace to write")] = Path("trace.parquet"),
    steps: Annotated[int | None, typer.Option(min=1, help="optimizer steps", show_default="train.steps")] = None,
    every: Annotated[int, typer.Option(min=1, help="record every K-th step; detection runs on each")] = 1,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 …", show_default="cuda where there is one, else cpu")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="a precision recipe in place of the config's: fp32, bf16, fp8-hybrid … (an unknown name lists them)",
            show_default="precision: in the config",
        ),
    ] = None,
    start_step: Annotated[
        int | None, typer.Option(min=0, help="number of the first step", show_default="the checkpoint's own, else 0")
    ] = None,
    no_zoom: Annotated[bool, typer.Option("--no-zoom", help="do not run the bad step again op by op")] = False,
    trials: Annotated[bool, typer.Option("--trials/--no-trials", help="try causes by intervention")] = True,
    trial: Annotated[
        list[str] | None,
        typer.Option(
            help="also run this trial (see `nanhunt trials`); repeatable", show_default="those that suspects ask for"
        ),
    ] = None,
    trials_budget: Annotated[
        float | None, typer.Option(min=0, help="seconds for trials", show_default="4 times the replay's, at least 20")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="CKPT", help="another checkpoint of the run, to restore weights from", show_default="none"
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="print what would be done, run one step to tell how long it takes, write nothing"
        ),
    ] = False,
    trust_pickle: TrustPickle = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="seed where the checkpoint has no random state", show_default="train.seed")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite a trace")] = False,
    exit_code: ExitCode = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Replay training from CKPT under watch and write a trace."""
    from nanhunt.commands.replay import ReplayOptions
    from nanhunt.commands.replay import replay as run

    options = ReplayOptions(
        checkpoint=checkpoint,
        config=config,
        out=out,
        steps=steps,
        every=every,
        device=device,
        precision=precision,
        start_step=start_step,
        zoom=not no_zoom,
        trials=trials,
        trial_names=tuple(trial or ()),
        trials_budget=trials_budget,
        reference=reference,
        dry_run=dry_run,
        trust_pickle=trust_pickle,
        seed=seed,
        force=force,
        quiet=quiet,
    )
    onset = run(options)
    if exit_code and onset is not None:
        raise typer.Exit(1)


def init(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(metavar="[CKPT]", help="the checkpoint to fit the config to; without it a general one"),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="the config to write")] = Path("nanhunt.yaml"),
    force: Annotated[bool, typer.Option("--force", help="overwrite a config")] = False,
    trust_pickle: TrustPickle = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no questions; print the next command alone")] = False,
    verbose: Verbose = False,
) -> None:
    """Write a nanhunt.yaml that fits CKPT, and say what it could not know; at a terminal, ask for it."""
    from nanhunt.commands.init import InitOptions
    from nanhunt.commands.init import init as run

    run(InitOptions(checkpoint=checkpoint, out=out, force=force, trust_pickle=trust_pickle, quiet=quiet))


class Run(TyperCommand):
    """`run`, whose options end with the script or module: what stands behind is that one's own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options that stand before."""
        for place, word in enumerate(args):
            if word == "--" or not word.startswith("-"):
                is_value = place > 0 and args[place - 1] in ("--out", "-o", "--every", "--keep")
                if not is_value:
                    break
            elif word in ("-m", "--module"):
                args = [*args[: place + 2], "--", *args[place + 2 :]]
                break
        return list(super().parse_args(ctx, args))


def run(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="SCRIPT ARGS…", help="the script, and what it is given")
    ] = None,
    module: Annotated[
        str | None, typer.Option("--module", "-m", metavar="MODULE", help="run a module, as `python -m` does")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="the folder of bundles")] = Path("nanhunt-bundle"),
    every: Annotated[int, typer.Option(min=1, help="steps between two snapshots of the model")] = 100,
    keep: Annotated[int, typer.Option(min=2, help="snapshots that are kept")] = 2,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="replay a fault and report it when the script has ended")
    ] = True,
    quiet: Quiet = False,
) -> None:
    """Run a training script, unmodified, under the recorder; replay and report what breaks."""
    from nanhunt.commands.run import RunOptions
    from nanhunt.commands.run import run as start

    options = RunOptions(
        command=tuple(command or ()), module=module, out=out, every=every, keep=keep, report=report, quiet=quiet
    )
    code = start(options)
    if code < 0:  # by a signal: this process ends by the same, as whoever started it expects
        import signal

        sys.stdout.flush()
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    raise typer.Exit(code)


def demo(
    fault: Annotated[str | None, typer.Argument(metavar="[FAULT]", help="a planted fault (see --list)")] = None,
    list_faults: Annotated[bool, typer.Option("--list", help="list the planted faults")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="folder for project, checkpoint and trace")] = None,
    format: ReportFormat = None,
    quiet: Quiet = False,
) -> None:
    """Train a small GPT with a planted fault, then replay and report it."""
    from nanhunt.commands.demo import demo as run
    from nanhunt.commands.demo import demo_list

    if list_faults:
        print(demo_list(), end="")
        return
    run(fault, folder=out, quiet=quiet, format=format)
