"""A comparison in words: what every page of it says, said once."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import islice

from nanhunt.comparison.comparison import Alone, Comparison, DepthRow, Difference, StepRow
from nanhunt.comparison.observed import EXACT
from nanhunt.report import words

__all__ = [
    "CURVES", "STEPS", "alone", "around", "beyond", "counts", "curves", "growth", "headline", "inherited", "looked",
    "next_steps", "others", "place", "settings", "share", "stage", "story", "told", "unequal", "verdict_word",
]  # fmt: skip

#: Curves by step: key, and what a page calls it.
CURVES = (("outputs", "outputs"), ("gradients", "gradients"), ("weights", "weights"), ("loss", "loss"))
#: Rows of a table by step.
STEPS = 60
#: Letters of a name: a trace may have names of any length, and a page ends.
_NAME = 160
#: A ratio that two digits would call 1 says less than that it is just beyond.
_JUST = 1.95
#: Bounds beyond rounding's own by this factor are mostly what the causes differ by.
_MOSTLY = 2.0
#: Two operands with 11 significant bits, each half a unit off: no trace says that they were.
_TF32 = 2.0**-11
#: Rows of depth before the first difference that a page shows.
_BEFORE = 3
#: Rows by step before the first difference that a page shows.
_LEAD = 5
_WORDS = {"identical": "same", "agree": "agree", "part": "part"}


def verdict_word(comparison: Comparison) -> str:
    """Return the outcome in a word: same, agree or part."""
    return _WORDS[comparison.outcome]


def headline(comparison: Comparison) -> str:
    """Return the whole answer in one sentence."""
    first, seen = comparison.first, looked(comparison)
    if comparison.outcome == "identical":
        partly = any(side.steps or side.rows for side in (comparison.alone_a, comparison.alone_b))
        return f"the same{' as far as both reach' if partly else ''}: every statistic is equal to the bit, {seen}"
    if first is None:
        before = " and the differences before it explain" if comparison.inherited else " explains"
        return f"no difference is larger than {comparison.rounding}'s rounding{before}, {seen}"
    where = f" ({words.printable(first.source)})" if first.source else ""
    micro = f", micro-batch {first.micro}" if first.micro else ""
    return f"parts {_when(first)}{micro}, {stage(first)}, {place(first)}{where}: {told(first)}, {beyond(first, comparison.rounding)}"


def stage(row: Difference | DepthRow) -> str:
    """Return the phase, and of which rank; of the first rank the phase alone."""
    return f"rank {row.rank}, {row.phase}" if row.rank else row.phase


def _when(first: Difference) -> str:
    """Return the step, and the steps between which what was not observed has its cause."""
    before, behind = first.between or (None, None)
    if before is None:
        return f"at step {first.step}"
    return f"between steps {before} and {first.step if behind is None else behind}, seen at step {first.step}"


def unequal(comparison: Comparison) -> str:
    """Return the first observation that is not equal to the bit, where that tells more than the first beyond its bound; ''."""
    found, first = comparison.unequal, comparison.first
    if found is None or (
        first is not None and (found.step, stage(found), place(found)) == (first.step, stage(first), place(first))
    ):
        return ""
    micro = f", micro-batch {found.micro}" if found.micro else ""
    where = f"step {found.step}{micro}, {stage(found)}, {place(found)}"
    return f"equal to the bit up to {where}: {told(found)}. Of one code in one format on one machine, this is where it differs"


def looked(comparison: Comparison) -> str:
    """Return how much was held together."""
    return f"{comparison.observations} observations of {words.counted(comparison.steps, 'step')}"


def place(row: Difference | DepthRow) -> str:
    """Return what was observed: a module for its output, else what of it."""
    name = _name(row.module, row.name)
    if row.role == "output":
        return name
    if row.role == "grad_output":
        return f"gradient of {name}'s output"
    said = {
        "weight": "",
        "scalar": "",
        "batch": "field ",
        "buffer": "buffer ",
        "grad": "gradient of ",
        "update": "update of ",
    }
    return f"{said.get(row.role, f'{row.role} of ')}{name}"


def _name(module: str, name: str = "") -> str:
    """Return a tensor's full name; of a very long one the middle goes."""
    whole = words.place(module, name)
    return whole if len(whole) <= _NAME else f"{whole[: _NAME // 3]}…{whole[1 - 2 * _NAME // 3 :]}"


def told(difference: Difference) -> str:
    """Return the statistic in both, and how far these lie apart."""
    a, b = (words.number(value) for value in (difference.a, difference.b))
    if difference.statistic == "non-finite":
        return f"{a} non-finite elements against {b}"
    if difference.statistic in ("zeros", "NaN", "Inf"):
        return f"{a} {difference.statistic} against {b}"
    if not (math.isfinite(difference.a) and math.isfinite(difference.b)):
        return f"{a} against {b}"
    if a == b:  # what four digits do not tell apart
        a, b = f"{difference.a:.9g}", f"{difference.b:.9g}"
    name = "" if difference.statistic == "value" else f"{difference.statistic} "
    of = " of the rms" if difference.statistic == "mean" else ""
    return f"{name}{a} against {b}, {share(difference.apart)}{of}"


def beyond(difference: Difference, rounding: str) -> str:
    """Return how far the difference is beyond its bound, and what this bound is."""
    if difference.role == "scalar" and difference.name in EXACT:
        return "which is a setting"
    if not math.isfinite(difference.ratio):
        return "which no rounding explains"
    causes = (
        " and the differences before it explain" if difference.bound > _MOSTLY * difference.rounding else " explains"
    )
    if difference.phase in ("load", "batch"):  # it has been through no op, through a cast at most
        cast = (
            f", {_times(difference.ratio)} what its cast explains" if difference.dtype_a != difference.dtype_b else ""
        )
        return f"before anything is computed{cast}"
    whose = f"{rounding}'s rounding"
    return f"{_times(difference.ratio)} what {whose}{causes}"


def _times(ratio: float) -> str:
    return "just beyond" if ratio < _JUST else f"{words.number(float(f'{ratio:.2g}'))} ×"


def share(part: float) -> str:
    """Return a relative difference as a percentage, or as a power of ten where that tells 10⁻⁷ from 10⁻⁵."""
    if math.isnan(part):  # of what is not judged
        return "—"
    if not math.isfinite(part):
        return words.number(part)
    return words.percent(part) if part == 0 or part >= 1e-4 else f"{part:.0e}".replace("e-0", "e-")


def counts(comparison: Comparison) -> str:
    """Return how the judged observations divide."""
    born = len(comparison.born)
    parts = [f"{comparison.judged} judged"]
    parts += [f"{words.counted(born, 'place')} where a difference is born"] if born else []
    parts += [f"{comparison.inherited} differences inherited"] if comparison.inherited else []
    return ", ".join(parts)


def story(comparison: Comparison, limit: int) -> tuple[list[DepthRow], int]:
    """Return the rows of depth worth a line, and how many are left out.

    Of more than `limit` rows those from shortly before the first difference on; without one, those nearest to their bounds.
    """
    rows = list(comparison.depth)
    if len(rows) <= limit:
        return rows, 0
    at = next((i for i, row in enumerate(rows) if row.verdict == "born"), None)
    if at is None:
        nearest = sorted(range(len(rows)), key=lambda i: _taken(rows[i]), reverse=True)[:limit]
        return [rows[i] for i in sorted(nearest)], len(rows) - len(nearest)
    start = max(at - _BEFORE, 0)
    # what follows at once, and behind it the growth in as many steps as there is room for
    rest = rows[at + 1 :]
    room = max(limit - (at - start) - 1, 1)
    stride = max(-(-len(rest) // room), 1)
    near = rest[: max(room // 2, 1)]
    far = list(islice(rest[len(near) :], 0, None, stride))[: room - len(near)]
    kept = rows[start : at + 1] + near + far
    return kept, len(rows) - len(kept)


def _taken(row: DepthRow) -> float:
    """Return how much of what rounding explains a difference takes; 0 of what is not judged, which no order has a place for."""
    part = row.apart / row.bound if row.bound > 0 else 0.0
    return 0.0 if math.isnan(part) else part


def growth(comparison: Comparison, limit: int = STEPS) -> tuple[list[StepRow], int]:
    """Return the rows by step worth a line, and how many are left out.

    Shown are both ends, the steps around the first difference, and the others at even distances.
    """
    rows = comparison.by_step
    if len(rows) <= limit:
        return list(rows), 0
    kept = {0, len(rows) - 1}
    if comparison.first is not None:
        at = bisect_left(rows, comparison.first.step, key=lambda row: row.step)
        kept.update(range(max(at - _LEAD, 0), min(at + limit // 3, len(rows))))
    rest, room = [i for i in range(len(rows)) if i not in kept], limit - len(kept)
    kept.update(rest[i * len(rest) // room] for i in range(room))
    return [rows[i] for i in sorted(kept)], len(rows) - len(kept)


def inherited(comparison: Comparison) -> str:
    """Return what of the differences behind the first needs no cause of its own; '' without any."""
    if not comparison.inherited or comparison.first is None:
        return ""
    what = words.counted(comparison.inherited, "later difference")
    return f"{what} beyond rounding: none larger than what its causes differ by makes of it"


def others(comparison: Comparison, limit: int) -> Iterator[str]:
    """Yield the further places in which a difference is born."""
    for difference in comparison.born[1 : 1 + limit]:
        often = f" and {words.counted(difference.steps - 1, 'more step')}" if difference.steps > 1 else ""
        yield f"step {difference.step}{often}, {stage(difference)}, {place(difference)}: {told(difference)}"
    more = len(comparison.born) - 1 - limit
    if more > 0:
        yield f"and {words.counted(more, 'more place')}"


def settings(comparison: Comparison, limit: int | None = None) -> Iterator[tuple[str, str, str]]:
    """Yield (name, a, b) of what differs around the runs."""
    for setting in comparison.settings[:limit]:
        yield _name(setting.name), words.printable(setting.a), words.printable(setting.b)


def alone(comparison: Comparison, limit: int) -> Iterator[str]:
    """Yield what one of the traces has and the other has not."""
    for mark, side in (("A", comparison.alone_a), ("B", comparison.alone_b)):
        if side.steps:
            yield f"{_steps(side)} {'is' if len(side.steps) == 1 else 'are'} in {mark} alone"
        if side.sites:
            names = [f"{_name(module, name)} ({role})" for role, module, name in side.sites]
            yield f"{words.counted(len(names), 'site')} in {mark} alone: {words.listed(names, limit=limit)}"
        elif side.rows:
            yield f"{words.counted(side.rows, 'observation')} of the shared steps in {mark} alone"
    for a, b in comparison.renamed[:limit]:
        yield f"{_name(a)} of A stands where {_name(b)} does in B: a new name, perhaps; they are not held together"
    if len(comparison.renamed) > limit:
        yield f"and {words.counted(len(comparison.renamed) - limit, 'more module')} under a new name, perhaps"


def _steps(side: Alone) -> str:
    steps: Sequence[int] = side.steps
    if len(steps) == 1:
        return f"step {steps[0]}"
    whole = steps[-1] - steps[0] + 1 == len(steps)
    return f"steps {steps[0]} to {steps[-1]}" if whole else f"{len(steps)} steps from {steps[0]} to {steps[-1]}"


def curves(comparison: Comparison) -> dict[str, tuple[list[int], list[float]]]:
    """Return the relative differences by step: of outputs, gradients, weights, and of the loss."""
    found: dict[str, tuple[list[int], list[float]]] = {name: ([], []) for name, _ in CURVES}
    for row in comparison.by_step:
        loss = None
        if row.loss_a is not None and row.loss_b is not None:
            size = max(abs(row.loss_a), abs(row.loss_b))
            loss = abs(row.loss_a - row.loss_b) / size if size else 0.0
        for name, value in (
            ("outputs", row.outputs),
            ("gradients", row.gradients),
            ("weights", row.weights),
            ("loss", loss),
        ):
            if value is not None:
                found[name][0].append(row.step)
                found[name][1].append(value)
    return {name: series for name, series in found.items() if series[0]}


def around(comparison: Comparison) -> str:
    """Return the two traces by their marks."""
    return f"A {words.printable(comparison.a)} · B {words.printable(comparison.b)}"


def next_steps(comparison: Comparison) -> list[tuple[str, str]]:
    """Return what to do next: a command or a place, and why."""
    first = comparison.first
    if first is None:
        return []
    a, b = (_quoted(path) for path in (comparison.a, comparison.b))
    found = [_look(first)] if not _are_others(comparison) else []
    if _may_be_tf32(comparison, first):
        found.append(
            ("torch.backends.cudnn.allow_tf32", "is on by default: a GPU's convolutions round fp32 operands to TF32")
        )
    if first.statistic in ("non-finite", "NaN", "Inf"):
        side = a if first.a > first.b else b  # of more of them
        found.append((f"nanhunt report {side}", "says which op made the first non-finite value, and why"))
    else:
        found += [
            (f"nanhunt report {path}", f"has what else was seen in {mark}") for mark, path in (("A", a), ("B", b))
        ]
    return [*found, (f"nanhunt diff {a} {b} -o diff.html", "draws the curves by depth and by step")]


def _are_others(comparison: Comparison) -> bool:
    """Whether the runs are of different models or batches: where they part first then says nothing of the code there."""
    return any(text.startswith(("not the same model", "not the same batches")) for text in comparison.prefaces)


def _may_be_tf32(comparison: Comparison, first: Difference) -> bool:
    """Whether a GPU beside a CPU, both in fp32, part by no more than TF32's operands make of an output."""
    devices = next(({s.a, s.b} for s in comparison.settings if s.name == "device"), set())
    is_gpu = any(device.startswith("cuda") for device in devices)
    return is_gpu and first.role == "output" and comparison.rounding == "fp32" and first.apart < _TF32


def _quoted(path: str) -> str:
    text = words.printable(path)
    return f"'{text}'" if " " in text else text


def _look(first: Difference) -> tuple[str, str]:
    """Return where to look, by where the first difference stands."""
    name = place(first)
    if first.phase == "load":
        return name, "the runs start from other values: `nanhunt inspect CKPT --reference OTHER` says what moved"
    if first.role == "batch":
        return name, "give both runs the same batches, a batches.pt for one: until then later differences mean little"
    if first.role == "scalar" and first.name in EXACT:
        return name, "compare optimizer, schedule and scaler of both runs"
    if first.role == "weight":
        return (
            name,
            "its update agrees and the weight behind it does not: what writes into weights outside of the optimizer",
        )
    if first.role == "update":
        return name, "its gradient agrees and its update does not: the optimizer's own settings, order and state"
    if first.role == "scalar" and first.between:
        return name, "no output of its step is in both traces: `--every 1` from the step before says where it begins"
    if first.role == "scalar":
        return name, "what it is computed from agrees: how it is computed is what differs"
    where = f"{first.source} in both" if first.source else "its code in both"
    if first.role == "grad_output":
        made = "what uses that output makes it: a backward of your own, a mask, a kernel"
        return where, f"all that was observed before {name} agrees, and {made}"
    here = "here, or in what is called before it and has no output of its own in the traces"
    return (
        where,
        f"all that was observed before {name} agrees: a constant, an epsilon, a mask, a kernel, a random draw, {here}",
    )
