"""The command line: signatures, help, and the one place that catches.

Torch, pandas and pyarrow are imported inside the commands that need them, so that `--help` takes a tenth of a second.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from nanhunt.errors import NanhuntError, UsageError, UserCodeError
from nanhunt.inert import printable_lines

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """The commands. Typer ends with 1 on a closed pipe and says nothing of an interrupt: both are caught before it."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the line names."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a reader that has gone shows here, not when the interpreter ends
        except KeyboardInterrupt as error:
            _leave("\n".join(["interrupted", *_notes(error)]), 130)
        except BrokenPipeError:
            # what is still buffered goes nowhere, else Python complains about it on its way out
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        return result


app = typer.Typer(
    name="nanhunt",
    cls=_Commands,
    help="Find out why a training run produced a NaN, an Inf or a loss spike.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    """Find out why a training run produced a NaN, an Inf or a loss spike."""
    if version:
        from nanhunt import __version__

        print(f"nanhunt {__version__}")
        raise typer.Exit


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def explain(
    cause: Annotated[str | None, typer.Argument(metavar="[CAUSE]", help="a cause's slug: adam-v-collapse")] = None,
    format: Format = None,
) -> None:
    """List the root causes, or print the page of one."""
    from nanhunt.commands.explain import explain as run

    print(run(cause, format=format), end="")


@app.command()
def trials(
    trace: Annotated[Path | None, typer.Argument(metavar="[TRACE]", help="show what was tried in this trace")] = None,
) -> None:
    """List the interventions that a replay can try, or those of a trace."""
    from nanhunt.commands.trials import trials as run

    print(run(trace), end="")


@app.command()
def inspect(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="checkpoint file or folder, whole or a part")],
    reference: Annotated[
        Path | None, typer.Option(metavar="CKPT", help="an earlier checkpoint of the run: what changed since")
    ] = None,
    format: Format = None,
    out: Out = None,
    top: Annotated[int, typer.Option(min=1, help="findings and tensors shown")] = 10,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="load a checkpoint that needs pickle: it can run any code")
    ] = False,
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


@app.command()
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


class _Run(TyperCommand):
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


@app.command(cls=_Run, context_settings={"allow_interspersed_args": False})
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


@app.command()
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


@app.command()
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


@app.command()
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


def main() -> None:
    """Run the command line; with `_Commands`, the only place that catches."""
    try:
        app()
    except NanhuntError as error:
        if _is_verbose():
            import traceback

            print(printable_lines(traceback.format_exc()), file=sys.stderr, end="")
        elif isinstance(error, UserCodeError):
            _print_user_traceback(error)
        hint = [f"hint: {error.hint}"] if error.hint else []
        _leave("\n".join([f"error: {error.message}", *hint, *_notes(error)]), error.exit_code)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            # wherever a path is asked for first: of an option, the config, a checkpoint's index
            _leave(f"error: {str(error.filename)[:60]}…: {error.strerror}", 2)
        import traceback

        print(printable_lines(traceback.format_exc()), file=sys.stderr, end="")
        _leave("this is a defect in nanhunt: please report it with the lines above", 70)


def _print_user_traceback(error: UserCodeError) -> None:
    """Print what the user's code raised, cut to their frames."""
    from nanhunt.training.user_code import user_traceback

    if error.__cause__ is not None:
        print(printable_lines(user_traceback(error.__cause__, root=Path.cwd())), file=sys.stderr)


def _notes(error: BaseException) -> list[str]:
    """Return what was added to an exception on its way here: where the trace lies, say."""
    return list(getattr(error, "__notes__", []))


def _is_verbose() -> bool:
    return any(a in ("-v", "--verbose") for a in sys.argv[1:])


def _leave(message: str, code: int) -> NoReturn:
    # a message quotes names out of files: those of tensors, keys, paths
    print(printable_lines(message), file=sys.stderr)
    sys.exit(code)
