"""The culprit op: the one call that shows the fault, and how to see that it does.

A call that was handed a NaN shows nothing: then there is a reason in its place. What counts as the fault is a `Check`,
which the replay and the script that is written of the call share by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanhunt.probes.certificate import bad_mask, tensor_arguments, worst_output
from nanhunt.probes.closer import Closer
from nanhunt.probes.event import Capture, OpEvent
from nanhunt.trace.schema import Phase
from nanhunt.training.tree import tensors_of

__all__ = ["Check", "Culprit", "called", "culprit_of", "failing", "raised_culprit", "silent_culprit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What is wrong with the output named `output`.

    `kind` is "non-finite" or "nan" (where an infinity went in), a kind of `survey` ("pinned", "erased" …) or
    "exception". `end` is the largest number of the format that values are pinned at, `error` the exception's class.
    """

    kind: str
    output: str = ""
    end: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Culprit:
    """One call with its operands as they were before it; of a backward op, its forward op and what that one's node got."""

    capture: Capture
    check: Check
    forward: Capture | None = None
    incoming: tuple[Tensor | None, ...] = ()


def culprit_of(event: OpEvent | None, closer: Closer, inherited: str) -> Culprit | str:
    """Return the call of a root's op, or why there is none that shows the fault by itself."""
    if inherited:
        return f"no op broke it: what was not finite was there before the step ({inherited})"
    if event is None:
        return "no op was seen to break it"
    capture = event.capture
    if capture is None:
        return f"the operands of {event.op} were not kept: they take more than 1 GiB, or have no plain values"
    kind = "non-finite"
    for _, given in tensor_arguments(capture):
        bad = bad_mask(given)
        if bool(bad.any()):
            kind = "nan"
            if bool(torch.isnan(_numbers(given)).any()):
                return f"{event.op} was given a NaN: by itself it breaks nothing"
    name, made = worst_output(capture)
    if not bool(bad_mask(made).any()):
        return f"{event.op} was finite when it was looked at closely"
    if kind == "nan" and not bool(torch.isnan(_numbers(made)).any()):
        kind = "non-finite"  # a mask's -inf that got out
    forward = slope = None
    if event.phase is Phase.BACKWARD and event.forward is not None:
        forward, slope = closer.captures.get(event.forward), closer.slopes.get(event.forward)
    return Culprit(
        capture=capture,
        check=Check(kind=kind, output=name),
        forward=forward if slope is not None else None,
        incoming=slope.incoming if slope is not None else (),
    )


def raised_culprit(call: Capture | None, error: Exception | None) -> Culprit | str:
    """Return the call that raised, or why there is none."""
    if call is None or error is None:
        return "no op of torch raised: the exception is the code's own"
    return Culprit(capture=call, check=Check(kind="exception", error=type(error).__name__))


def silent_culprit(capture: Capture | None, body: Mapping[str, Any]) -> Culprit | str:
    """Return the call that loses values, by the body of its note."""
    if capture is None:
        return f"{body['op']} was not met again when the step was looked at once more"
    name, made = worst_output(capture)
    if bool(bad_mask(made).any()):  # an infinity that a later division makes zeros of
        return Culprit(capture=capture, check=Check(kind="non-finite", output=name))
    check = Check(kind=str(body["kind"]), output=capture.outputs[0][0], end=float(body.get("end", 0.0)))
    return Culprit(capture=capture, check=check)


def called(capture: Capture) -> dict[str, Tensor]:
    """Run a call and return its outputs by name, and the arguments as they are after it."""
    args, kwargs = _copied(capture.args), {k: _copied(v) for k, v in capture.kwargs.items()}
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        made = dict(tensors_of(capture.func(*args, **kwargs), "output"))
    after = Capture(capture.func, args, kwargs, [])
    return dict(tensor_arguments(after)) | made


def failing(check: Check, capture: Capture, made: Tensor) -> Tensor | None:
    """Return which elements of the output show the fault; None where no element does by itself."""
    given = dict(tensor_arguments(capture))
    source = given.get("src", given.get("self"))
    numbers = _numbers(made)
    if check.kind == "non-finite":
        return bad_mask(made)
    if check.kind == "nan":
        return torch.isnan(numbers)
    if source is None or source.shape != made.shape:
        return numbers == 0 if check.kind in ("flushed", "erased") else None
    if check.kind == "pinned":
        return _numbers(source).abs() > check.end
    if check.kind in ("flushed", "erased"):
        return (numbers == 0) & (_numbers(source) != 0)
    return numbers == _numbers(source) if check.kind in ("absorbed", "unmoved") else None


def _numbers(tensor: Tensor) -> Tensor:
    """Return the tensor in a format that torch can compare in: 8-bit ones it cannot."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _copied(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(v) for v in value)
    return value.detach().clone() if isinstance(value, Tensor) else value
