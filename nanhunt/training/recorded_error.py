"""What a recorded run raised in its last step, raised again where the replay comes to that and does not raise it itself.

A replay runs the model, the loss and the update: a check that the script makes of its own is no part of those. It ends
the replayed step as it ended the run's, by its class's name, its message and its line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from nanhunt.training.taped_line import at_line

__all__ = ["RecordedError", "caught", "raise_again", "recorded_error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedError:
    """An exception by its class's name, its message, and the innermost line of the user's code; "" and 0 without one."""

    type: str
    message: str
    file: str = ""
    line: int = 0
    #: "forward"; "backward" behind a backward pass of the step
    phase: str = "forward"
    #: the step that it ended
    step: int = -1

    def body(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)


def recorded_error(fault: Mapping[str, Any]) -> RecordedError | None:
    """Return the exception that a recording's fault tells of; None where it tells of none."""
    body, step = fault.get("raised"), fault.get("step")
    if not isinstance(body, Mapping) or not isinstance(body.get("type"), str):
        return None
    line = body.get("line", 0)
    return RecordedError(
        type=body["type"][:100],
        message=str(body.get("message", ""))[:500],
        file=str(body.get("file", "")),
        line=line if isinstance(line, int) else 0,
        phase="backward" if body.get("phase") == "backward" else "forward",
        step=step if isinstance(step, int) else -1,
    )


def raise_again(recorded: RecordedError) -> NoReturn:
    """Raise it, as if it stood at its line."""
    error = type(recorded.type, (RuntimeError,), {})(recorded.message)
    at_line({"at": [recorded.file, recorded.line]} if recorded.file else {}, _throw, error)
    raise error


def caught(recorded: RecordedError) -> Exception:
    """Return it, with the traceback of its line."""
    try:
        raise_again(recorded)
    except RuntimeError as error:
        return error


def _throw(error: Exception) -> NoReturn:
    raise error
