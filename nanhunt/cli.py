"""The command line: the list of commands, and the one place that catches."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from nanhunt.errors import NanhuntError, UserCodeError
from nanhunt.inert import printable_lines
from nanhunt.signatures import reading, running

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


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    """Find out why a training run produced a NaN, an Inf or a loss spike."""
    if version:
        from nanhunt import __version__

        print(f"nanhunt {__version__}")
        raise typer.Exit


app.command()(running.replay)
app.command()(reading.report)
app.command()(reading.formats)
app.command()(reading.explain)
app.command()(reading.trials)
app.command()(reading.inspect)
app.command()(running.init)
# what stands behind the script is the script's
app.command(cls=running.Run, context_settings={"allow_interspersed_args": False})(running.run)
app.command()(reading.diff)
app.command()(reading.watch)
app.command()(reading.export)
app.command()(running.demo)


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
