"""Torn and repeated writes: stretches of one value, stretches that stand twice, and rows of zeros that had gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator

from nanhunt.inspection.facts import Facts, Role, Run, TensorFacts, Twin
from nanhunt.inspection.finding import Finding, Severity

__all__ = ["examine"]

#: A write tears in one place, or a few: more stretches are how the tensor is made.
_MOST_RUNS = 8
#: Zeros among the other elements, as a share: above it the tensor is sparse, and stretches of zeros are no surprise.
_SPARSE = 0.01
#: Steps, and the least rate, after which a weight that has gradients is no longer exactly zero.
_STEPS, _RATE = 3, 1e-6
#: Rows of a table that a loop may set to zero behind each update, because they stand for padding.
_PADDING = 2
#: Words of names whose rows may be equal or zero: tables of tokens and positions.
_TABLES = ("emb", "wte", "wpe", "tok", "vocab", "pos", "lookup", "table", "lm_head")
_FIX = (
    "restore the tensor from an earlier checkpoint or a replica, and check the disk: a write tore, or a copy went wrong"
)
_NEXT = "nanhunt inspect CKPT --reference EARLIER_CKPT"


def examine(facts: Facts) -> Iterator[Finding]:
    """Yield torn stretches, repeated regions, and zeros that moments contradict."""
    for t in facts.of_role(Role.WEIGHT):
        torn = [run for run in t.runs if _is_torn(t, run)]
        if torn and len(torn) <= _MOST_RUNS and _zeros_elsewhere(t, torn) < _SPARSE:
            yield _torn(t, torn)
        if t.zero_rows and not t.moved_zero_rows and _is_odd(t):
            yield _zero_rows(t)
    widths = {t.name: t.shape[-1] for t in facts.tensors if len(t.shape) > 1}
    odd = (twin for twin in facts.twins if not _is_table(twin) and not _is_shifted(twin, widths.get(twin.first, 0)))
    yield from map(_twin, odd)
    yield from _contradicted(facts)


def _is_torn(t: TensorFacts, run: Run) -> bool:
    """Whether the stretch ends inside of rows; in a vector, whether it is no equal part of it, as one of q, k and v is."""
    length = run.stop - run.start
    if len(t.shape) < 2:
        return t.numel % length != 0 or run.start % length != 0
    return not run.whole_rows


def _zeros_elsewhere(t: TensorFacts, runs: list[Run]) -> float:
    assert t.stats is not None
    covered = sum(run.stop - run.start for run in runs)
    zeros = t.stats.zero - sum(run.stop - run.start for run in runs if run.value == 0.0)
    return zeros / max(t.numel - covered, 1)


def _torn(t: TensorFacts, runs: list[Run]) -> Finding:
    size = t.bytes // max(t.numel, 1)
    elements = sum(run.stop - run.start for run in runs)
    return Finding(
        severity=Severity.FAULT,
        kind="torn-block",
        cause="poisoned-state",
        tensor=t.name,
        claim=f"{t.name} holds {elements * size} bytes in a row of {_spelt(runs[0].value)} inside otherwise dense values",
        value=float(elements * size),
        threshold=4096.0,
        evidence=tuple(
            f"elements {run.start} to {run.stop - 1}, from inside one row to inside another"
            + (", on page boundaries" if run.on_pages else "")
            for run in runs[:4]
        ),
        fix=_FIX,
        next=_NEXT,
    )


def _is_odd(t: TensorFacts) -> bool:
    """Whether rows of zeros are rare in such a tensor: no table, few, neither its first rows nor its last."""
    rows, row_bytes = t.shape[0], t.bytes // max(t.shape[0], 1)
    at = t.zero_rows_at
    is_padding = at[0] < 4 or (t.zero_rows == len(at) and at == tuple(range(rows - len(at), rows)))
    return not _named_table(t.name) and t.zero_rows <= len(at) and row_bytes >= 4096 and not is_padding


def _zero_rows(t: TensorFacts) -> Finding:
    return Finding(
        severity=Severity.NOTICE,
        kind="zero-rows",
        cause="poisoned-state",
        tensor=t.name,
        claim=f"{t.zero_rows} of {t.shape[0]} rows of {t.name} {'is' if t.zero_rows == 1 else 'are'} exactly zero",
        value=float(t.zero_rows),
        threshold=0.0,
        evidence=(f"rows {', '.join(map(str, t.zero_rows_at))}, of {t.bytes // t.shape[0]} bytes each",),
        fix="pruned or never used, it is meant; else a write tore",
        next=_NEXT,
    )


def _is_table(twin: Twin) -> bool:
    """Whether equal rows are how the tensor is made: heads repeated for grouped queries, tokens that began as a mean."""
    return twin.whole_rows and (_named_table(twin.first) or _named_table(twin.second))


def _is_shifted(twin: Twin, width: int) -> bool:
    """Whether a matrix repeats each row one element further on, as biases by distance do (ALiBi)."""
    distance = twin.at[1] - twin.at[0]
    return twin.first == twin.second and width > 2 and (distance % (width + 1) == 0 or distance % (width - 1) == 0)


def _named_table(name: str) -> bool:
    return any(word in name.lower() for word in _TABLES)


def _twin(twin: Twin) -> Finding:
    where = f"{twin.second} from element {twin.at[1]}" if twin.second != twin.first else f"its element {twin.at[1]} on"
    return Finding(
        severity=Severity.NOTICE if twin.whole_rows else Severity.FAULT,
        kind="duplicated-block",
        cause="poisoned-state",
        tensor=twin.first,
        claim=f"{twin.bytes} bytes of {twin.first} stand a second time in {where}",
        value=float(twin.bytes),
        threshold=4096.0,
        evidence=(
            f"{twin.elements} elements from element {twin.at[0]} on; the rest of the two tensors differs",
            "whole rows: heads that were repeated, or rows with one initial value, are meant"
            if twin.whole_rows
            else "they begin or end inside of rows, as no model repeats them",
        ),
        fix=_FIX,
        next=_NEXT,
    )


def _contradicted(facts: Facts) -> Iterator[Finding]:
    """Yield weights, or rows of them, that are exactly zero though gradients came and a rate was there to move them."""
    if not any(
        (o.step or 0) >= _STEPS and all((g.number("lr") or 0) > _RATE for g in o.groups) for o in facts.optimizers
    ):
        return
    squares = {t.parameter: t for t in facts.tensors if t.key == "exp_avg_sq" and t.parameter}
    for t in facts.of_role(Role.WEIGHT):
        v = squares.get(t.name)
        has_gradients = v is not None and v.stats is not None and v.stats.amax > 0.0 and not v.is_poisoned
        if has_gradients and t.constant == 0.0 and t.numel > 1:
            yield _moved(t, f"all {t.numel} elements of {t.name}")
        elif len(t.moved_zero_rows) > (_PADDING if _named_table(t.name) else 0):
            rows = ", ".join(map(str, t.moved_zero_rows))
            yield _moved(t, f"{len(t.moved_zero_rows)} rows of {t.name} ({rows})")


def _moved(t: TensorFacts, what: str) -> Finding:
    return Finding(
        severity=Severity.FAULT,
        kind="zeroed",
        cause="poisoned-state",
        tensor=t.name,
        claim=f"{what} are exactly zero, and their second moments are not",
        value=float(len(t.moved_zero_rows) or t.numel),
        threshold=0.0,
        evidence=(
            "gradients came and the learning rate is not 0: an update leaves no exact zeros, unless a mask follows it",
        ),
        fix=_FIX,
        next=_NEXT,
    )


def _spelt(value: float) -> str:
    return "zeros" if value == 0.0 else f"{value:.4g}" if math.isfinite(value) else str(value)
