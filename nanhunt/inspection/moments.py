"""Read an optimizer's state: its groups' settings and counters, and whether Adam's two moments can belong together.

How it is told that they cannot. m and v are averages of the same gradients, m = Σ (1-β1) β1^i g and v = Σ (1-β2) β2^i g².
By Cauchy and Schwarz, whatever the gradients were, at any step:

    |m| ≤ C √v,    C = (1-β1) / √((1-β2) (1 - β1²/β2)),    7.3 for (0.9, 0.999), 1.2 for (0.9, 0.95)

So an element with |m| beyond C (√v + eps) has a v that is not its own: collapsed to zero in a narrow format, reset, or
another parameter's. eps stands in it because below it v does no harm. Twice C is allowed, for betas that a schedule moves
(one-cycle: 0.85 to 0.95) and for rounding. Where β1² ≥ β2 there is no such bound, and nothing is said; nor of optimizers
that keep other averages under these keys: ADOPT averages g/√v, SOAP keeps v in another basis than m.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nanhunt.inspection.naming import foreign_shapes, names_of
from nanhunt.inspection.state_facts import GroupFacts, MomentHealth, OptimizerFacts, finite_or_inf
from nanhunt.stats.torch_kernel import is_measurable

__all__ = ["adam_ceiling", "health_of", "optimizer_facts"]

#: Settings that are switches of an implementation, and say nothing of the training.
_DULL = {"params", "foreach", "capturable", "differentiable", "maximize", "param_names", "decoupled_weight_decay"}
_SLACK = 2.0
#: What an Adam keeps of a parameter, and settings of groups that average something else than gradients.
_ADAMS = {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "mu_product"}
_NO_ADAMS = {"clip_exp", "clip_lambda", "decouple", "precondition_frequency", "initial_accumulator"}
#: Elements of a piece: two of them in fp32 stay in a cache.
_CHUNK = 1 << 17


def optimizer_facts(
    label: str, state: Mapping[str, Any], models: Sequence[Mapping[str, Tensor]]
) -> tuple[OptimizerFacts, dict[Any, str]]:
    """Return the facts of one optimizer's state dict, and the names of its parameters where they are known.

    `models` are the weights of each module in its own order, buffers and second names of one memory left out.
    """
    groups = [g for g in state.get("param_groups", ()) if isinstance(g, Mapping)]
    entries = {k: v for k, v in (state.get("state") or {}).items() if isinstance(v, Mapping)}
    names, naming = names_of(groups, entries, models)
    grouped = {key for group in groups for key in _params(group)}
    tensors = [(k, n, t) for k, e in entries.items() for n, t in e.items() if isinstance(t, Tensor) and t.numel() > 1]
    facts = OptimizerFacts(
        label=label,
        groups=tuple(_group(i, group, entries) for i, group in enumerate(groups)),
        health=tuple(_healths(groups, entries, names)),
        naming=naming,
        keys=tuple(dict.fromkeys(str(name) for _, name, _ in tensors)),
        dtypes=tuple(dict.fromkeys(str(t.dtype).removeprefix("torch.") for _, _, t in tensors)),
        orphans=len(set(entries) - grouped) if grouped else 0,
        foreign_shapes=foreign_shapes(entries, [t for weights in models for t in weights.values()]),
    )
    return facts, names


def adam_ceiling(beta1: float, beta2: float) -> float:
    """Return the largest |m| / √v that any gradients leave; infinite where there is no bound."""
    if not (0.0 <= beta1 < 1.0 and 0.0 < beta2 < 1.0) or beta1 * beta1 >= beta2:
        return math.inf
    return (1.0 - beta1) / math.sqrt((1.0 - beta2) * (1.0 - beta1 * beta1 / beta2))


def _params(group: Mapping[str, Any]) -> list[Any]:
    params = group.get("params", ())
    return [p for p in params if isinstance(p, (int, str))] if isinstance(params, (list, tuple)) else []


def _group(index: int, group: Mapping[str, Any], entries: Mapping[Any, Mapping[str, Any]]) -> GroupFacts:
    params = _params(group)
    states = [entries[p] for p in params if entries.get(p)]
    counters = [s["step"] for s in states if isinstance(s.get("step"), (int, float, Tensor))]
    single = [c for c in counters if not isinstance(c, Tensor) or c.numel() == 1]
    steps = Counter(finite_or_inf(c.item() if isinstance(c, Tensor) else c) for c in single)
    narrow = {str(c.dtype).removeprefix("torch.") for c in single if isinstance(c, Tensor) and c.dtype in _NARROW}
    return GroupFacts(
        index=index,
        parameters=len(params),
        with_state=len(states),
        settings={k: _plain(v) for k, v in group.items() if k not in _DULL and v is not None},
        steps=tuple(steps.most_common()),
        step_dtype=min(narrow, default=""),
    )


_NARROW = (torch.float16, torch.bfloat16)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else tuple(value.shape)
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 63:
        return finite_or_inf(value)
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _healths(
    groups: Iterable[Mapping[str, Any]], entries: Mapping[Any, Mapping[str, Any]], names: Mapping[Any, str]
) -> Iterable[MomentHealth]:
    for group in groups:
        betas, eps = _plain(group.get("betas")), _plain(group.get("eps"))
        if (
            not isinstance(betas, tuple)
            or len(betas) != 2
            or not all(isinstance(n, (int, float)) for n in (*betas, eps))
        ):
            continue
        if _NO_ADAMS & group.keys():
            continue
        for param in _params(group):
            entry = entries.get(param, {})
            m, v = (entry.get(key) if entry.keys() <= _ADAMS else None for key in ("exp_avg", "exp_avg_sq"))
            if isinstance(m, Tensor) and isinstance(v, Tensor) and m.shape == v.shape:
                yield health_of(names.get(param, f"parameter {param}"), m, v, betas=betas, eps=float(eps))


def health_of(parameter: str, m: Tensor, v: Tensor, *, betas: tuple[float, float], eps: float) -> MomentHealth:
    """Return how many elements of a pair cannot be, or are ruled by eps; non-finite and negative ones are left out."""
    ceiling = adam_ceiling(float(betas[0]), float(betas[1]))
    # g² of gradients below 1e-19 is lost in fp32 itself: v is 0 beside an m that is not, and nothing is wrong
    floor = max(eps, 0.0 if v.dtype == torch.float16 else 1e-18)
    v_zero = below_eps = beyond = 0
    worst = 0.0
    for x, root in _pairs(m, v):
        if not float(root.min()) >= eps:  # also where it is NaN
            small = (root < eps) & (x != 0)
            below_eps += int(small.sum())
            v_zero += int((small & (root == 0)).sum()) if eps else int(((root == 0) & (x != 0)).sum())
        ratio = x.div_(root.add_(floor)).nan_to_num_(0.0, 0.0, 0.0)
        furthest = float(ratio.max())
        worst = max(worst, furthest)
        beyond += int((ratio > _SLACK * ceiling).sum()) if furthest > _SLACK * ceiling else 0
    return MomentHealth(
        parameter=parameter,
        numel=m.numel(),
        worst=worst,
        ceiling=ceiling,
        v_zero=v_zero,
        below_eps=below_eps,
        beyond=beyond,
    )


def _pairs(m: Tensor, v: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield |m| and √v in pieces that stay in a cache, in fp32 or wider; nothing of what has no plain numbers."""
    if not all(is_measurable(t) and t.is_floating_point() and t.layout is torch.strided for t in (m, v)):
        return
    wide = torch.float64 if torch.float64 in (m.dtype, v.dtype) else torch.float32
    flat = [t.detach().reshape(-1) for t in (m, v)]
    for begin in range(0, m.numel(), _CHUNK):
        x, y = (t[begin : begin + _CHUNK].to(wide) for t in flat)
        yield x.abs(), y.sqrt()
