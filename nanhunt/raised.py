"""A step that raises: where in the user's code, in which module, and whether bad numbers are what it complains of."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from nanhunt.probes.event import OpEvent, Terminal
from nanhunt.probes.probe import is_hookable
from nanhunt.probes.source import SourceLine, is_user_file, place
from nanhunt.replay import Replayed, device_is_lost
from nanhunt.trace.schema import Onset, Phase
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step

__all__ = ["complains_of_numbers", "complaint", "located", "raising_module", "user_line"]

#: What torch's own checks, and guards in user code, say of a number that is not finite.
_OF_NUMBERS = re.compile(
    r"\bnans?\b|\binf\b|infinit|not finite|non-?finite|isfinite|constraint|invalid values|diverge|explod|"
    r"positive.definite|singular|converge|blew up|bad loss|bad gradient",
    re.IGNORECASE,
)


def located(run: TrainingRun, replayed: Replayed, detail: str, *, module: str = "") -> tuple[Onset, dict[str, Any]]:
    """Locate an exception of the user's code: the innermost frame that is theirs; `module` was running.

    Returns the onset and the body of the exception's note.
    """
    error, step = replayed.error, replayed.step
    assert error is not None
    line = user_line(error)
    source = place(line, run.root) if line else None
    body: dict[str, Any] = {
        "step": step,
        "type": type(error).__name__,
        "message": str(error)[:500],
        "module": module,
        "source": source,
        "traceback": "".join(traceback.format_exception(error))[-4000:],
    }
    onset = Onset(
        kind="exception",
        step=step,
        phase=Phase.FORWARD.value,
        module=module,
        source=source,
        detail=detail,
    )
    return onset, body


def complaint(error: BaseException, events: Sequence[OpEvent], micro: int) -> Terminal | None:
    """Return what the exception complains of as something that must be finite: the last bad output before it was raised.

    None where it is about something else, such as an index: the -inf of a mask would be there too.
    """
    bad = [e for e in events[-200:] if any(o.nan for o in e.outputs)]
    asked = any(s.nan for e in events[-6:] for s in e.inputs)
    if not (complains_of_numbers(error) or asked):
        return None
    bad = bad or [e for e in events[-200:] if e.bad_outputs and not e.constant]
    if not bad:
        return None
    last = bad[-1]
    nan = any(o.nan for o in last.outputs)
    return Terminal("exception", type(error).__name__, Phase.FORWARD, micro, last.index, nan)


def complains_of_numbers(error: BaseException) -> bool:
    """Whether an exception says of numbers that they are not finite, or not what a routine can work with."""
    return _OF_NUMBERS.search(f"{type(error).__name__} {error}") is not None


def user_line(error: BaseException) -> SourceLine | None:
    """Return the innermost line of the user's own code that an exception came through.

    None of a lost device: it says so at a later call, whichever that is, unless launches wait for their kernels.
    """
    if device_is_lost(error) and os.environ.get("CUDA_LAUNCH_BLOCKING") != "1":
        return None
    frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)]
    return next((f for f in reversed(frames) if is_user_file(f[0])), None)


def raising_module(run: TrainingRun, step: int) -> str:
    """Run the step once more and return the innermost module whose forward the exception came out of.

    By the exception itself: one that the model catches inside leads nowhere.
    """
    raised: dict[BaseException, str] = {}

    def leaving(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            error = sys.exc_info()[1]
            if error is not None:
                raised.setdefault(error, name)

        return hook

    modules = [(name, module) for name, module in run.model.named_modules() if is_hookable(module)]
    handles = [module.register_forward_hook(leaving(name), always_call=True) for name, module in modules]
    error: BaseException | None = None
    try:
        train_step(run, step, StepWatch())
    except Exception as caught:  # the very exception that is being located
        error = caught
    finally:
        for handle in handles:
            handle.remove()
    module = ""
    while error is not None:  # an exception that was raised anew in the place of another leads to that one's module
        module = raised.get(error, module)
        error = error.__cause__ or error.__context__
    return module
