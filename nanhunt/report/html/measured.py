"""The page's lower half: what was measured of the optimizer, the batch and the number formats, and what was assumed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.report import precision, reading, words
from nanhunt.report.advice import advice_lines
from nanhunt.report.headroom import format_lines
from nanhunt.report.html.element import Markup, code, prose, tag
from nanhunt.report.html.parts import bullets, definitions, section, spark, table

__all__ = ["adam", "assumptions", "formats", "next_steps", "others", "sample"]

#: Per scalar of Adam's health: what it is, and whether the largest (or the smallest) is the worst.
_HEALTH = {
    "rms_t": ("gradient in units of its second moment, after the update: near 1 in a steady state", max),
    "v_stale": ("the same against the second moment that stood before the gradient came", max),
    "kappa_eps": ("√v̂ over ε: below some 10 the ε decides the step", min),
    "v_zero": ("share of elements with v = 0 and m ≠ 0: their update is m/ε", max),
    "v_stuck": ("share of elements whose v keeps its bits against β₂: its format takes no decay", max),
    "frozen": ("share of elements with a gradient whose weight did not change by a bit", max),
    "update_lr": ("rms of the update over the learning rate: 0.23 to 1 in ordinary training", max),
}
_SHARES = ("v_zero", "v_stuck", "frozen")
#: Samples, and fields of a batch, that are shown.
_SAMPLES = 4
#: Share of one token, and repetitions of a phrase, that are worth a line.
_SAME, _REPEATED = 0.5, 8
#: Tokens that are shown of a sample.
_AROUND = 64


def adam(diagnosis: Diagnosis) -> Markup | None:
    """Return the optimizer's health, the worst parameter of each measure; None where none was taken."""
    health = diagnosis.recording.health if diagnosis.recording else {}
    if not health:
        return None
    onset = diagnosis.onset.step if diagnosis.onset else None
    taken = (step for series in health.values() for of in series.values() for step in of)
    last = max((step for step in taken if onset is None or step <= onset), default=None)
    if last is None:
        return None
    rows = [row for key, series in health.items() for row in _health_row(key, series, last)]
    made_by = str(diagnosis.recording.optimizer.get("class", "")) if diagnosis.recording else ""
    columns = ("measure", "worst parameter", "over the steps", f"at step {last}", "median of all", "what it says")
    title = f"Optimizer health: {made_by}" if made_by else "Optimizer health"
    return section("adam", title, table(columns, rows, number=(3, 4)))


def _health_row(key: str, series: dict[str, dict[int, float]], last: int) -> Iterator[tuple[object, ...]]:
    """Yield the row of a measure: the parameter that is worst in a step."""
    says, worst = _HEALTH[key]
    there = {name: of[last] for name, of in series.items() if math.isfinite(of.get(last, math.nan))}
    if not there:
        return
    name = worst(there, key=lambda parameter: there[parameter])
    middle = sorted(there.values())[len(there) // 2]
    told = words.percent if key in _SHARES else words.number
    curve = spark([series[name][step] for step in sorted(series[name]) if step <= last])
    yield code(key), code(name), curve, told(there[name]), told(middle), says


def sample(diagnosis: Diagnosis) -> Markup | None:
    """Return the samples that carry the fault: position, tokens and label, and the batch's fields; None without one."""
    onset, recording = diagnosis.onset, diagnosis.recording
    if onset is None or recording is None or not onset.samples:
        return None
    fields = recording.batch
    blocks = [_one_sample(diagnosis, number, fields) for number in onset.samples[:_SAMPLES]]
    rest = len(onset.samples) - _SAMPLES
    more = tag("p", f"and {words.counted(rest, 'more sample')}", class_="note") if rest > 0 else None
    title = "The bad sample" if len(onset.samples) == 1 else "The bad samples"
    return section("sample", title, *blocks, more, _fields(fields))


def _one_sample(diagnosis: Diagnosis, number: int, fields: list[dict[str, Any]]) -> Markup:
    places = dict(diagnosis.positions).get(number, ())
    losses = diagnosis.recording.sample_losses if diagnosis.recording else []
    facts: list[tuple[str, object]] = [
        ("sample", f"number {number} of {reading.whose_batch(diagnosis)}, counted from 0")
    ]
    if places:
        facts.append(("position", f"{words.listed(places, limit=12)} of its sequence"))
    if number < len(losses):
        among = sorted(losses)[len(losses) // 2]
        facts.append(("loss alone", f"{words.number(losses[number])}, median of the batch {words.number(among)}"))
    for field in fields:
        name = str(field["field"])
        facts += [(name, said)] if (said := "; ".join(_said_of(field, number))) else []
        facts += [(name, _tokens(e, places)) for e in field.get("excerpts", []) if e["sample"] == number]
    return tag("div", definitions(facts), class_="sample")


def _said_of(field: dict[str, Any], number: int) -> Iterator[str]:
    """Yield what a field's facts say of one sample."""
    of = {key: values[number] for key, values in field.items() if key.startswith("sample_") and number < len(values)}
    if of.get("sample_nonfinite"):
        yield words.counted(int(of["sample_nonfinite"]), "non-finite value")
    if "sample_amax" in of:
        yield f"largest magnitude {words.number(float(of['sample_amax']))}"
    if of.get("sample_ignored"):
        yield words.counted(int(of["sample_ignored"]), "ignored label")
    if of.get("sample_top_share", 0.0) > _SAME:
        yield f"{words.percent(float(of['sample_top_share']))} are one and the same token"
    if of.get("sample_repeats", 0) > _REPEATED:
        yield f"a phrase repeats {int(of['sample_repeats'])} times in a row"


def _tokens(excerpt: dict[str, Any], places: tuple[int, ...]) -> Markup:
    """Return the values of a sample in a row, bad positions marked."""
    values, bad = excerpt["values"], next(iter(places), 0)
    # what leads up to the first bad position, and a little of what follows
    start = max(min(bad - _AROUND // 2, len(values) - _AROUND), 0)
    cells = [
        tag("b" if i in places and excerpt["of"] > 1 else "span", str(values[i]), title=f"position {i}")
        for i in range(start, min(start + _AROUND, len(values)))
    ]
    before = tag("i", f"{start} before") if start else None
    rest = excerpt["of"] - start - len(cells)
    after = tag("i", f"{rest} more") if rest > 0 else None
    return tag("div", before, *cells, after, class_="tokens")


def _fields(fields: list[dict[str, Any]]) -> Markup | None:
    if not fields:
        return None
    rows = [
        (
            code(f["field"]),
            f.get("dtype", ""),
            " × ".join(str(n) for n in f.get("shape", [])),
            f"{words.number(f['min'])} to {words.number(f['max'])}" if "min" in f else words.number(f.get("amax")),
            words.counted(int(f.get("nan", 0)) + int(f.get("inf", 0)), "value") if f.get("nan") or f.get("inf") else "",
            str(f["ignored"]) if f.get("ignored") else "",
        )
        for f in fields
    ]
    columns = ("field of the batch", "dtype", "shape", "range, or amax", "non-finite", "ignored labels")
    return table(columns, rows, number=(3, 4, 5))


def formats(diagnosis: Diagnosis) -> Markup | None:
    """Return the verdict of each number format, what decides it, and the advice."""
    lines = format_lines(diagnosis.verdicts, diagnosis.headroom)
    told = [tag("p", tag("strong", topic), " ", prose(text)) for topic, text in advice_lines(diagnosis)]
    if not lines and not told:
        return None
    verdicts = [
        (code(line.format), tag("span", line.mark, class_=f"level {line.level}"), prose(line.text)) for line in lines
    ]
    rows = [
        (code(line.format), code(words.place(t.module, t.name)), t.role, f"{t.text} {t.per}".rstrip(), t.scale)
        for line in lines
        for t in line.tensors
    ]
    columns = ("format", "tensor that decides", "role", "number", "best scale")
    deciding = tag("details", tag("summary", "The tensors that decide"), table(columns, rows)) if rows else None
    recipe = _precision(diagnosis)
    return section(
        "formats", "Number formats", table(("format", "fits", "verdict"), verdicts) if verdicts else None,
        deciding, tag("div", *told, class_="advice") if told else None, recipe,
    )  # fmt: skip


def _precision(diagnosis: Diagnosis) -> Markup | None:
    facts = diagnosis.precision
    if facts is None:
        return None
    lines = [precision.headline(facts), *map(precision.step_beside, facts.beside)]
    lines += [precision.worst_gradients(facts.beside[-1])] if facts.beside else []
    breaks = precision.first_break(facts)
    lines += [f"{'holds' if precision.holds(facts) else 'breaks first'}: {breaks}"] if breaks else []
    rows = [(code(weight), *rest) for weight, *rest in map(precision.operand_cells, facts.worst)]
    columns = ("operand of", "role", "format", "norm lost", "flushed", "cut off")
    worst = table(columns, rows) if rows else None
    return tag("div", tag("h3", "The precision recipe"), bullets(line for line in lines if line), worst)


def others(diagnosis: Diagnosis) -> Markup | None:
    """Return the causes that could not be judged, and those that were looked at and are innocent."""
    untold = [(code(slug), prose(reason)) for slug, reason in diagnosis.untold]
    cleared = [tag("li", code(slug)) for slug in diagnosis.cleared]
    if not untold and not cleared:
        return None
    innocent = f"{words.counted(len(cleared), 'cause')} looked at, and innocent" if cleared else ""
    return section(
        "others", "Could not tell, and cleared",
        table(("could not tell", "because"), untold) if untold else None,
        tag("details", tag("summary", innocent), tag("ul", *cleared, class_="slugs")) if cleared else None,
    )  # fmt: skip


def assumptions(diagnosis: Diagnosis) -> Markup | None:
    """Return whatever the replay took for granted."""
    if not diagnosis.assumptions:
        return None
    return section("assumptions", "Assumptions", bullets(map(words.prose, diagnosis.assumptions), class_="plain"))


def next_steps(diagnosis: Diagnosis) -> Markup:
    """Return the commands to type next."""
    rows = [
        tag("div", tag("dt", tag("code", command)), tag("dd", why)) for command, why in reading.next_commands(diagnosis)
    ]
    return section("next", "Next", tag("dl", *rows, class_="commands"))
