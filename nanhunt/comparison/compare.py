"""Compare two traces: read, pair, bound, judge, and put what came out into words' reach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nanhunt.comparison.bounds import rounding
from nanhunt.comparison.comparison import Alone, Comparison, Difference
from nanhunt.comparison.conditioning import steepness
from nanhunt.comparison.growth import by_depth, by_step
from nanhunt.comparison.inheritance import inherited
from nanhunt.comparison.judged import KINDS, Judged, judged
from nanhunt.comparison.measured import Measured, measured, relative
from nanhunt.comparison.observed import LOSS_SCALE, Observed, Sites, read_observed
from nanhunt.comparison.pairs import Pairs, paired
from nanhunt.comparison.restart import continued, unloaded
from nanhunt.comparison.roundoff import Arithmetic, unit_roundoff
from nanhunt.comparison.settings import are_ranks_of_one_run, differing
from nanhunt.errors import TraceError, UsageError
from nanhunt.trace.columns import codes
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import NoteKind, Phase, Role

__all__ = ["compare"]

_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]

#: Columns in which traces of one and the same run do not differ by a bit.
_EQUAL = ("numel", "nan", "posinf", "neginf", "zero", "amax", "mean", "std", "l2", "value")


def compare(a: Trace, b: Trace) -> Comparison:
    """Return where two traces of what should be the same run part.

    Raises UsageError where one has more ranks than the other, TraceError where they have no observation in common.
    """
    if a.rank_count != b.rank_count:
        raise UsageError(
            f"{a.path} has {a.rank_count} ranks and {b.path} has {b.rank_count}",
            hint="name one file of each: trace.parquet/rank-0000.parquet",
        )
    sites, by_rank = Sites(), a.rank_count > 1
    rows_a, rows_b = (read_observed(trace, sites, by_rank=by_rank) for trace in (a, b))
    rows_a, rows_b = continued(rows_a, rows_b, sites), continued(rows_b, rows_a, sites)
    pairs = paired(rows_a, rows_b, sites)
    if not len(pairs):
        raise TraceError(f"{a.path} and {b.path} have no observation in common", hint=_reach(rows_a, rows_b))
    sides = Arithmetic.of(a), Arithmetic.of(b)
    scales = a.scalars("loss_scale"), b.scalars("loss_scale")
    pairs, ranks = _comparable(a, b, pairs)
    if not len(pairs):
        raise TraceError(
            "these ranks share nothing that can be held together",
            hint="each has batches of its own; hold one rank against the same rank of another run",
        )
    got = measured(pairs, *scales)
    steep = steepness(pairs, got)
    came = inherited(pairs, got, steep)
    found = judged(pairs, got, rounding(pairs, got, steep, *sides), came)
    born = _born(pairs, got, found)
    is_same = _equal(pairs)
    closest = next(_differences(pairs, got, found, np.array([int(np.argmax(found.ratio))])), None) if not born else None
    first = replace(born[0], source=_source(a, born[0].module) or _source(b, born[0].module)) if born else None
    step = born[0].step if born else int(pairs.step.max())
    beyond = (found.ratio <= 1.0) & (found.alone > 1.0)
    alone_a, alone_b = _alone(rows_a, pairs.alone_a, rows_b, pairs), _alone(rows_b, pairs.alone_b, rows_a, pairs)
    return Comparison(
        a=str(a.path), b=str(b.path), outcome="identical" if is_same else "part" if born else "agree",
        prefaces=(*ranks, *_strange(pairs, alone_a, alone_b), *_prefaces(pairs, found), *unloaded(pairs)), settings=differing(a, b),
        rounding=_coarsest(pairs, sides), steps=len(np.unique(pairs.step)), observations=len(pairs),
        judged=int(np.count_nonzero(found.is_judged)), inherited=int(np.count_nonzero(beyond)),
        born=(first, *born[1:]) if first else (), depth=by_depth(pairs, got, found, step), depth_step=step,
        by_step=by_step(pairs, got, found, a.scalars("loss"), b.scalars("loss")),
        alone_a=alone_a, alone_b=alone_b, renamed=_renamed(pairs), closest=closest,
        unequal=next(_differences(pairs, got, found, _first_unequal(pairs)), None),
    )  # fmt: skip


def _reach(a: Observed, b: Observed) -> str:
    told = [f"{r.step.min()} to {r.step.max()}" if len(r) else "none" for r in (a, b)]
    return f"steps {told[0]} against {told[1]}; the same checkpoint and `--every` give traces that can be held together"


def _comparable(a: Trace, b: Trace, pairs: Pairs) -> tuple[Pairs, tuple[str, ...]]:
    """Return the pairs that should agree: of two ranks of one run, only what replicas share where their batches differ."""
    if not are_ranks_of_one_run(a, b):
        return pairs, ()
    batches = pairs.is_of(Role.BATCH)
    same_batch = bool(batches.any()) and _same(pairs, batches)
    parts = {name for t in (a, b) for note in t.notes_of(NoteKind.SHARDS) for name in note["tensors"]}
    qualified = [f"{module}.{name}" if module else name for _, _, module, name in pairs.sites]
    in_parts = np.array([name in parts for name in qualified], bool)[pairs.site]
    own = pairs.is_in(Phase.BATCH, Phase.FORWARD, Phase.BACKWARD) & (not same_batch)
    kept = pairs.without(own | in_parts)
    ranks = f"ranks {a.manifest.rank} and {b.manifest.rank} of one run"
    whose = "each on batches of its own" if batches.any() else "whose batches are not in the traces"
    told = "on the same batches" if same_batch else f"{whose}: only what replicas share is held together"
    return kept, (f"{ranks}, {told}",)


def _same(pairs: Pairs, which: _Bools) -> bool:
    return all(
        np.array_equal(pairs.of_a(n)[which], pairs.of_b(n)[which], equal_nan=True) for n in ("amax", "l2", "mean")
    )


def _equal(pairs: Pairs) -> bool:
    """Whether every statistic of every pair is equal, histograms, dtypes and shapes too."""
    if pairs.is_reshaped.any() or _are_apart(pairs).any():
        return False
    (words_a, at_a), (words_b, at_b) = pairs.a.dtypes, pairs.b.dtypes
    same_dtype = np.array_equal(np.array(words_a)[at_a[pairs.at_a]], np.array(words_b)[at_b[pairs.at_b]])
    bins_a, bins_b = (rows.counts[rows.bins(at)[1]] for rows, at in ((pairs.a, pairs.at_a), (pairs.b, pairs.at_b)))
    return same_dtype and np.array_equal(bins_a, bins_b)


def _are_apart(pairs: Pairs) -> _Bools:
    """Return which pairs differ in a number."""
    apart = np.zeros(len(pairs), bool)
    for name in _EQUAL:
        a, b = pairs.of_a(name), pairs.of_b(name)
        apart |= (a != b) & ~(np.isnan(a) & np.isnan(b))
    return apart


def _first_unequal(pairs: Pairs) -> _Ints:
    """Return the first pair that is not equal to the bit, behind outputs that are; [] where all are, or none before it.

    Two runs of one code in one format differ by rounding nowhere. So this is where their codes part, or a kernel's order.
    """
    apart = _are_apart(pairs)
    in_order = np.argsort(pairs.moment, kind="stable")
    behind = int(np.argmax(apart[in_order])) if apart.any() else 0
    first = in_order[behind : behind + 1] if apart.any() else in_order[:0]
    (words_a, at_a), (words_b, at_b) = pairs.a.dtypes, pairs.b.dtypes
    if any(words_a[at_a[pairs.at_a[row]]] != words_b[at_b[pairs.at_b[row]]] for row in first.tolist()):
        return first[:0]
    return first if pairs.is_of(Role.OUTPUT)[in_order[:behind]].any() else first[:0]


def _born(pairs: Pairs, got: Measured, found: Judged) -> tuple[Difference, ...]:
    """Return the first difference that is born in each place."""
    rows = np.flatnonzero(found.ratio > 1.0)
    _, first, counts = np.unique(pairs.line[rows], return_index=True, return_counts=True)
    # ranks run side by side: what one of them does in a phase comes before another's next phase; and another loss scale
    # alone explains nothing of what else is born
    order = np.lexsort((first, pairs.moment[rows[first]], pairs.is_named(LOSS_SCALE)[rows[first]]))
    differences = _differences(pairs, got, found, rows[first[order]])
    return tuple(replace(d, steps=int(n)) for d, n in zip(differences, counts[order], strict=True))


def _differences(pairs: Pairs, got: Measured, found: Judged, rows: _Ints) -> Iterator[Difference]:
    whole = np.maximum(got.numel, 1.0)
    of_a, of_b, by_a, by_b = pairs.of_a, pairs.of_b, got.unscaled_a, got.unscaled_b
    statistics = {
        "rms": (got.rms_a, got.rms_b, relative(got.rms_apart, got.scale)),
        "mean": (of_a("mean") * by_a, of_b("mean") * by_b, relative(got.mean_apart, got.scale)),
        "amax": (of_a("amax") * by_a, of_b("amax") * by_b, relative(got.amax_apart, got.amax)),
        "zeros": (of_a("zero"), of_b("zero"), got.zero_apart / whole),
        "non-finite": (got.bad_a, got.bad_b, got.bad_apart / whole),
        "NaN": (of_a("nan"), of_b("nan"), got.bad_apart / whole),
        "Inf": (of_a("posinf"), of_b("posinf"), got.bad_apart / whole),
        "value": (of_a("value"), of_b("value"), relative(got.rms_apart, got.scale)),
    }
    (words_a, at_a), (words_b, at_b) = pairs.a.dtypes, pairs.b.dtypes
    for row in rows.tolist():
        kind = KINDS[found.kind[row]]
        if kind == "non-finite":
            kind = _kind(pairs, got, row)
        a, b, apart = (float(values[row]) for values in statistics[kind])
        phase, role, module, name = pairs.sites[pairs.site[row]]
        ratio = float(found.ratio[row])
        yield Difference(
            step=int(pairs.step[row]), micro=int(pairs.a.micro[pairs.at_a[row]]), rank=int(pairs.a.rank[pairs.at_a[row]]),
            phase=phase, role=role, module=module, name=name, statistic=kind, a=a, b=b, apart=apart,
            bound=apart / ratio if ratio else 0.0, ratio=ratio,
            rounding=float(np.nan_to_num(found.bulk[row])), dtype_a=words_a[at_a[pairs.at_a[row]]], dtype_b=words_b[at_b[pairs.at_b[row]]],
            between=_between(pairs, row),
        )  # fmt: skip


def _between(pairs: Pairs, row: int) -> tuple[int | None, int | None] | None:
    """Return the steps around a pair of which outputs were observed; None where its own is one."""
    if pairs.is_seen[pairs.turn[row]]:
        return None
    steps, own = pairs.step[pairs.is_of(Role.OUTPUT)], pairs.step[row]
    before, behind = steps[steps < own], steps[steps > own]
    return int(before.max()) if before.size else None, int(behind.min()) if behind.size else None


def _kind(pairs: Pairs, got: Measured, row: int) -> str:
    """Return which count of elements that are not finite to show: that of all, unless one kind stands in another's place."""
    if not got.numel[row]:
        return "value"
    if got.bad_a[row] != got.bad_b[row]:
        return "non-finite"
    return "NaN" if pairs.of_a("nan")[row] != pairs.of_b("nan")[row] else "Inf"


def _prefaces(pairs: Pairs, found: Judged) -> Iterator[str]:
    """Yield what is not the same before the first op runs."""
    yield from _reshaped(pairs)
    loaded, beyond = pairs.is_in(Phase.LOAD), found.ratio > 1.0
    for role, said in ((Role.WEIGHT, "starting weights"), (Role.BUFFER, "starting buffers")):
        which = loaded & pairs.is_of(role)
        if (which & beyond).any():
            yield f"not the same {said}: {int((which & beyond).sum())} of {int(which.sum())} tensors differ as loaded"
    which = loaded & pairs.is_of(Role.EXP_AVG, Role.EXP_AVG_SQ)
    if (which & beyond).any():
        yield f"not the same optimizer state: {int((which & beyond).sum())} of {int(which.sum())} moments differ as loaded"
    which = pairs.is_of(Role.BATCH)
    if (which & beyond).any():
        steps = np.unique(pairs.step[which & beyond])
        of = len(np.unique(pairs.step[which]))
        yield f"not the same batches: those of {len(steps)} of {of} steps differ, from step {steps[0]} on"


def _strange(pairs: Pairs, alone_a: Alone, alone_b: Alone) -> Iterator[str]:
    """Yield what makes two traces those of different runs: of most places one side alone, of their batches no field."""
    strange, common = len(alone_a.sites) + len(alone_b.sites), len(np.unique(pairs.site))
    if strange > common:
        yield f"not the same model: {strange} places are in one trace alone, and {common} in both"
    has_batches = all(any(role == Role.BATCH.value for role, *_ in side.sites) for side in (alone_a, alone_b))
    if has_batches and not pairs.is_of(Role.BATCH).any():
        yield "not the same batches: they have no field in common, and what goes in was not compared"


def _coarsest(pairs: Pairs, sides: tuple[Arithmetic, Arithmetic]) -> str:
    """Return the coarsest format of either side, by the name that the run or its tensors have for it."""
    outputs = pairs.is_of(Role.OUTPUT, Role.WEIGHT)
    names = {side.name for side in sides if side.name}
    for rows, at in ((pairs.a, pairs.at_a), (pairs.b, pairs.at_b)):
        words, places = rows.dtypes
        names |= {words[i] for i in np.unique(places[at[outputs]])}
    name = max(names, key=unit_roundoff, default="float32")
    return {"float32": "fp32", "float64": "fp64", "float16": "fp16", "bfloat16": "bf16"}.get(name, name)


def _reshaped(pairs: Pairs) -> Iterator[str]:
    """Yield how many tensors have another shape: the first kind of them, which makes the others."""
    for role, said in ((Role.WEIGHT, "weights"), (Role.BATCH, "fields of batches"), (Role.OUTPUT, "outputs")):
        which = pairs.is_of(role)
        tensors, other = (len(np.unique(pairs.tensor[of])) for of in (which, which & pairs.is_reshaped))
        if other:
            yield f"not the same shapes: those of {other} of {tensors} {said} differ"
            return


def _source(trace: Trace, module: str) -> str | None:
    """Return the first source line that a zoom saw in a module."""
    table = trace.table(["source"], roles=[Role.OP], passes=["zoom"], modules=[module])
    words, places = codes(table.column("source"))
    return next((words[i] for i in places.tolist() if words[i]), None)


def _alone(own: Observed, rows: _Ints, other: Observed, pairs: Pairs) -> Alone:
    """Return what one side has alone, of the steps that both have apart from whole steps."""
    steps = np.setdiff1d(own.step, other.step)
    inside = rows[~np.isin(own.step[rows], steps)]
    known = np.unique(other.site)
    strange = [int(s) for s in dict.fromkeys(own.site[inside].tolist()) if s not in known]
    return Alone(
        steps=tuple(steps.tolist()), rows=len(inside), sites=tuple(pairs.sites[s][1:] for s in strange)
    )  # fmt: skip


def _renamed(pairs: Pairs) -> tuple[tuple[str, str], ...]:
    """Return modules that only one side has and that stand in each other's place: as many, alike in size, in one order."""
    lists = []
    for own, rows, other in ((pairs.a, pairs.alone_a, pairs.b), (pairs.b, pairs.alone_b, pairs.a)):
        known = {pairs.sites[s][2] for s in np.unique(other.site)}
        sizes: dict[str, float] = {}
        for row in rows.tolist():
            _, role, module, _ = pairs.sites[own.site[row]]
            if role == Role.OUTPUT and module not in known:
                sizes.setdefault(module, float(own.column["numel"][row]))
        lists.append(sizes)
    if len(lists[0]) != len(lists[1]) or list(lists[0].values()) != list(lists[1].values()):
        return ()
    there = zip(*lists, strict=True)
    # of a renamed module either the name or the place stays
    return tuple((a, b) for a, b in there if set(a.rpartition(".")[::2]) & set(b.rpartition(".")[::2]))
