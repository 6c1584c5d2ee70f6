"""The page's lower half: what was measured of the optimizer, the batch and the number formats, and what was assumed."""

from __future__ import annotations

from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.report import precision, reading, words
from nanhunt.report.advice import advice_lines
from nanhunt.report.fold import folded
from nanhunt.report.headroom import format_lines
from nanhunt.report.health import health_of
from nanhunt.report.html.element import Markup, code, prose, tag
from nanhunt.report.html.parts import bullets, definitions, section, spark, table
from nanhunt.report.sample import FIELD_COLUMNS, Excerpt, bad_samples, field_rows

__all__ = ["adam", "assumptions", "formats", "next_steps", "others", "sample"]

#: Points of a curve of a few letters' width.
_SPARK = 120


def adam(diagnosis: Diagnosis) -> Markup | None:
    """Return the optimizer's health, the worst parameter of each measure; None where none was taken."""
    found = health_of(diagnosis)
    if found is None:
        return None
    rows = [
        (
            row.label,
            code(row.parameter),
            spark(folded(row.steps, row.values, points=_SPARK)[1]),
            row.worst,
            row.median,
            row.says,
        )
        for row in found.rows
    ]
    columns = ("measure", "worst parameter", "over the steps", f"at step {found.step}", "median of all", "what it says")
    title = f"Optimizer health: {found.optimizer}" if found.optimizer else "Optimizer health"
    return section("adam", title, table(columns, rows, number=(3, 4)))


def sample(diagnosis: Diagnosis) -> Markup | None:
    """Return the samples that carry the fault: position, tokens and label, and the batch's fields; None without one."""
    samples, rest = bad_samples(diagnosis)
    if not samples:
        return None
    blocks = [
        tag("div", definitions([("sample", one.which), *((n, _shown(fact)) for n, fact in one.facts)]), class_="sample")
        for one in samples
    ]
    more = tag("p", f"and {words.counted(rest, 'more sample')}", class_="note") if rest > 0 else None
    title = "The bad sample" if len(samples) == 1 else "The bad samples"
    rows = [(code(field), *cells) for field, *cells in field_rows(diagnosis)]
    return section("sample", title, *blocks, more, table(FIELD_COLUMNS, rows, number=(3, 4, 5)) if rows else None)


def _shown(fact: str | Excerpt) -> str | Markup:
    return _tokens(fact) if isinstance(fact, Excerpt) else fact


def _tokens(excerpt: Excerpt) -> Markup:
    """Return the values of a sample in a row, bad positions marked."""
    cells = [
        tag("b" if is_bad else "span", value, title=f"position {i}")
        for i, (value, is_bad) in enumerate(excerpt.values, start=excerpt.start)
    ]
    before = tag("i", f"{excerpt.start} before") if excerpt.start else None
    after = tag("i", f"{excerpt.rest} more") if excerpt.rest else None
    return tag("div", before, *cells, after, class_="tokens")


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
