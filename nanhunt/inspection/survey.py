"""Survey a checkpoint: read every tensor once, in the order of the file's names, and leave the facts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from nanhunt.inspection.averages import average_facts, marked
from nanhunt.inspection.compare import compared
from nanhunt.inspection.contents import Contents, Held, place
from nanhunt.inspection.facts import Facts, Role, TensorFacts
from nanhunt.inspection.moments import optimizer_facts
from nanhunt.inspection.pages import Pages
from nanhunt.inspection.scan import scan
from nanhunt.inspection.state_facts import LogFacts, OptimizerFacts, ScalerFacts, SchedulerFacts, finite_or_inf
from nanhunt.training.trainer_state import hidden_nans, logged_steps

__all__ = ["survey"]

#: Zero rows whose second moments are looked at, and logged steps that are told.
_MOST_ROWS, _LAST = 64, 5


def survey(
    contents: Contents, *, earlier: Contents | None = None, on_read: Callable[[str, int], None] | None = None
) -> Facts:
    """Return what the checkpoint shows, and what changed since an earlier one.

    `on_read` hears each tensor's name and bytes before it is read, of those that are compared twice.
    """
    for each in (contents, earlier) if earlier is not None else (contents,):
        each.tensors = marked(each.tensors, trained=_trained(each))
    names = _names(contents)
    pages = Pages(sum(h.tensor.numel() * h.tensor.element_size() for h in contents.tensors if h.role is Role.WEIGHT))
    seen: dict[tuple[Any, ...], str] = {}
    tensors: list[TensorFacts] = []
    for held, parameter, key in [*((h, "", "") for h in contents.tensors), *_moments(contents, names)]:
        if on_read is not None:
            on_read(held.name, held.tensor.numel() * held.tensor.element_size())
        first = seen.setdefault(place(held.tensor), held.name) if held.tensor.numel() else held.name
        found = scan(held, pages, parameter=parameter, key=key) if first == held.name else _tied(held, first)
        tensors.append(found)
    flips = {t.name: t.flips for t in tensors if t.flips}
    reference = compared(contents, earlier, known=flips, on_read=on_read) if earlier is not None else None
    return Facts(
        path=str(contents.path),
        container=contents.container,
        bytes=contents.bytes,
        step=contents.step,
        epoch=contents.epoch,
        averages=tuple(average_facts(contents.tensors, flips)),
        tensors=tuple(_with_moved_rows(tensors, contents, names)),
        twins=tuple(pages.twins()),
        optimizers=tuple(facts for facts, _ in names.values()),
        scaler=_scaler(contents.scaler),
        schedulers=tuple(map(_scheduler, contents.schedulers)),
        log=_log(contents.trainer),
        reference=reference,
        notes=contents.notes,
    )


def _trained(contents: Contents) -> int:
    """Return how many parameters the optimizers have."""
    groups = (group for state in contents.optimizers.values() for group in state.get("param_groups") or ())
    return sum(len(group.get("params") or ()) for group in groups)


_Named = dict[str, tuple[OptimizerFacts, dict[Any, str]]]


def _names(contents: Contents) -> _Named:
    models: dict[str, dict[str, Tensor]] = {}
    seen: set[tuple[Any, ...]] = set()
    for held in contents.tensors:
        if held.role is Role.WEIGHT and place(held.tensor) not in seen:
            seen.add(place(held.tensor))
            models.setdefault(held.owner, {})[held.name] = held.tensor
    every = {name: tensor for weights in models.values() for name, tensor in weights.items()}
    candidates: Sequence[Mapping[str, Tensor]] = [*models.values(), *([every] if len(models) > 1 else [])]
    return {label: optimizer_facts(label, state, candidates) for label, state in contents.optimizers.items()}


#: what is a parameter's own state, and of no dimension where the parameter has none: a CLIP's logit_scale
_OF_A_SCALAR = {
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "acc_delta", "sum",
}  # fmt: skip


def _moments(contents: Contents, names: _Named) -> list[tuple[Held, str, str]]:
    """Return the tensors of the optimizers' states; counters of one element are told with their groups."""
    found = []
    for label, state in contents.optimizers.items():
        _, named = names[label]
        for number, entry in (state.get("state") or {}).items():
            for key, tensor in entry.items() if isinstance(entry, Mapping) else ():
                if isinstance(tensor, Tensor) and (tensor.dim() or key in _OF_A_SCALAR):
                    parameter = named.get(number, "")
                    told = f"{key} of {parameter or f'parameter {number}'}"
                    told = told if label == "optimizer" else f"{label}: {told}"
                    found.append((Held(name=told, tensor=tensor.detach(), role=Role.MOMENT), parameter, str(key)))
    return found


def _tied(held: Held, first: str) -> TensorFacts:
    tensor = held.tensor
    return TensorFacts(
        name=held.name, role=held.role, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape),
        numel=tensor.numel(), bytes=tensor.numel() * tensor.element_size(), tied_to=first,
    )  # fmt: skip


def _with_moved_rows(tensors: list[TensorFacts], contents: Contents, names: _Named) -> list[TensorFacts]:
    """Note of rows that are zero which of them have a second moment that is not: gradients came, and should have moved them."""
    squares = {
        parameter: held.tensor
        for held, parameter, key in _moments(contents, names)
        if key == "exp_avg_sq" and parameter
    }
    return [
        replace(t, moved_zero_rows=_moved(t.zero_rows_at, squares[t.name]))
        if 0 < t.zero_rows <= _MOST_ROWS and t.name in squares and tuple(squares[t.name].shape) == t.shape
        else t
        for t in tensors
    ]


def _moved(rows: Sequence[int], squares: Tensor) -> tuple[int, ...]:
    return tuple(row for row in rows if bool((squares[row] > 0).any()))


def _scaler(state: Mapping[str, Any] | None) -> ScalerFacts | None:
    scale = _number((state or {}).get("scale"))
    if state is None or scale is None:
        return None
    tracker, interval = (_number(state.get(key)) for key in ("_growth_tracker", "growth_interval"))
    return ScalerFacts(scale=scale, growth_tracker=_whole(tracker), growth_interval=_whole(interval))


def _scheduler(state: Mapping[str, Any]) -> SchedulerFacts:
    return SchedulerFacts(
        last_epoch=_whole(_number(state.get("last_epoch"))),
        last_lr=_numbers(state.get("_last_lr")),
        base_lrs=_numbers(state.get("base_lrs")),
    )


def _log(trainer: Mapping[str, Any]) -> LogFacts:
    steps = logged_steps(trainer)
    return LogFacts(
        last=tuple((s.step, s.loss, s.grad_norm) for s in steps[-_LAST:]),
        hidden=tuple((s.step, s.grad_norm) for s in hidden_nans(steps) if s.grad_norm is not None),
    )


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 else None
    return finite_or_inf(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _numbers(values: Any) -> tuple[float, ...]:
    numbers = map(_number, values) if isinstance(values, (list, tuple)) else ()
    return tuple(n for n in numbers if n is not None)


def _whole(value: float | None) -> int | None:
    return int(value) if value is not None and math.isfinite(value) else None
