"""The report for an issue or a pull request: verdict, suspects and fixes in view, the rest folded away."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import ClassVar

from nanhunt.diagnosis.cause import Diagnosis, Grade, Suspect
from nanhunt.report import original, precision, reading, words
from nanhunt.report.advice import advice_lines
from nanhunt.report.headroom import format_lines
from nanhunt.report.options import Options

__all__ = ["MarkdownRenderer", "bullets", "escape", "span", "table"]

#: signs that mean something to GitHub's Markdown anywhere in a line; `$` opens a formula
_SIGNS = re.compile(r"([\\`*_\[\]~$])")
#: and those that do at the start of a list item
_STARTS = re.compile(r"^(\d+(?=[.)](?:\s|$))|(?=[-+#]))")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


class MarkdownRenderer(Options):
    """GitHub's Markdown; text from the trace is escaped, names stand in code spans."""

    __slots__ = ()
    name: ClassVar[str] = "markdown"
    suffix: ClassVar[str] = ".md"

    def render(self, diagnosis: Diagnosis) -> str:
        """Return the report."""
        blocks = [
            *_verdict(diagnosis),
            *_where(diagnosis),
            *_suspects(diagnosis, self.top),
            *_folded("Precision", _precision(diagnosis)),
            *_folded("Headroom", _headroom(diagnosis)),
            *_folded("Precision advice", _advice(diagnosis)),
            *_folded("Trials", _trials(diagnosis)),
            *_folded("Ranks", _ranks(diagnosis)),
            *_folded("Lineage", _lineage(diagnosis)),
            *_folded("Offending elements", _elements(diagnosis)),
            *_folded("Could not tell", [bullets(f"{span(slug)}: {escape(why)}" for slug, why in diagnosis.untold)]),
            *_folded("Cleared", [", ".join(span(slug) for slug in diagnosis.cleared)]),
            *_folded("Assumptions", [bullets(escape(text) for text in diagnosis.assumptions)]),
            *_run(diagnosis),
        ]
        return "\n\n".join(blocks) + "\n"


def _verdict(diagnosis: Diagnosis) -> Iterable[str]:
    headline = f"**{escape(reading.headline(diagnosis))}**"
    yield f"{headline} · {escape(diagnosis.summary)}" if diagnosis.summary else headline
    why = reading.why_incomplete(diagnosis)
    if why:
        yield f"The trace ends early: {escape(why)}"
    found = reading.cure(diagnosis)
    suspect = reading.leading_suspect(diagnosis)
    lines = [f"**Cure:** {escape(found[1])}"] if found else []
    lines += [f"**Fix:** {escape(suspect.fixes[0])}"] if suspect and suspect.fixes else []
    if lines:
        yield bullets(lines)
    beware = original.warning(diagnosis)
    if beware:
        said = "" if original.is_verdict(diagnosis) else f"The replay {escape(original.follows(diagnosis))}. "
        yield f"{said}**Check:** {escape(beware)}"


def _where(diagnosis: Diagnosis) -> Iterable[str]:
    onset = diagnosis.onset
    if onset is None:
        return
    lead = "" if onset.lead_step in (None, onset.step) else f", first sign at step {onset.lead_step}"
    facts = [
        ("what", escape(onset.detail or onset.kind)),
        ("step", f"{onset.step}{lead}"),
        ("phase", escape(onset.phase)),
        ("micro-batch", str(onset.micro) if onset.micro else ""),
        ("rank", str(onset.rank) if onset.rank or diagnosis.ranks else ""),
        ("module", span(words.place(onset.module)) if onset.module or not onset.name else ""),
        ("name", span(onset.name)),
        ("op", span(onset.op)),
        ("source", span(onset.source)),
        ("samples", escape(reading.sampled(diagnosis))),
        ("damage", escape(diagnosis.damage)),
        ("shards", escape(reading.sharded(diagnosis))),
    ]
    yield "### Where"
    yield table(("", ""), [(name, value) for name, value in facts if value])
    if diagnosis.code:
        marked = [f"{'>' if here else ' '} {line:>5} | {words.printable(t)}" for line, t, here in _tidy(diagnosis)]
        yield _fenced("\n".join(marked))


def _tidy(diagnosis: Diagnosis) -> list[tuple[int, str, bool]]:
    return [(line, text.expandtabs(4).rstrip(), here) for line, text, here in diagnosis.code]


def _suspects(diagnosis: Diagnosis, top: int) -> Iterable[str]:
    if not diagnosis.suspects:
        if diagnosis.onset is not None:
            yield "None of the known causes shows itself."
        return
    yield "### Suspects"
    yield table(
        ("", "grade", "cause", "what", "where"),
        [
            (str(rank), escape(s.grade), span(s.cause), escape(s.summary), _spot(s))
            for rank, s in enumerate(diagnosis.suspects, start=1)
        ],
    )
    for suspect in diagnosis.suspects[:top]:
        if suspect.grade != Grade.REFUTED:
            yield from _case(suspect)


def _case(suspect: Suspect) -> Iterable[str]:
    """Yield what speaks against one suspect, and what to do about it."""
    lines = []
    for exhibit in suspect.exhibits:
        held = reading.evidence(exhibit.value, exhibit.threshold)
        lines.append(escape(exhibit.claim) + (f" ({escape(held)})" if held else ""))
    for trial, prediction in suspect.trials:
        lines.append(f"Trial {span(trial.name)}: {escape(reading.tried(trial, prediction))}")
    lines += [f"**Fix:** {escape(fix)}" for fix in suspect.fixes]
    if lines:
        yield f"#### {span(suspect.cause)}"
        yield bullets(lines)


def _spot(suspect: Suspect) -> str:
    at = suspect.location
    name = words.place(at.module or "", at.parameter or "") if at.module is not None or at.parameter else ""
    step = f"step {at.step}" if at.step is not None else ""
    return ", ".join(part for part in (step, span(name), span(at.op), span(at.source)) if part)


def _precision(diagnosis: Diagnosis) -> list[str]:
    facts = diagnosis.precision
    if facts is None:
        return []
    lines = [precision.headline(facts), *map(precision.step_beside, facts.beside)]
    lines += [precision.worst_gradients(facts.beside[-1])] if facts.beside else []
    breaks = precision.first_break(facts)
    lines += [f"{'holds' if precision.holds(facts) else 'breaks first'}: {breaks}"] if breaks else []
    rows = [(span(weight), *rest) for weight, *rest in map(precision.operand_cells, facts.worst)]
    columns = ("operand of", "role", "format", "norm lost", "flushed", "cut off")
    return [bullets(escape(line) for line in lines if line), *([table(columns, rows)] if rows else [])]


def _headroom(diagnosis: Diagnosis) -> list[str]:
    lines = format_lines(diagnosis.verdicts, diagnosis.headroom)
    if not lines:
        return []
    rows = [
        (
            span(line.format),
            span(words.place(tensor.module, tensor.name)),
            escape(tensor.role),
            escape(f"{tensor.text} {tensor.per}".rstrip()),
            tensor.scale,
        )
        for line in lines
        for tensor in line.tensors
    ]
    summary = bullets(f"{span(line.format)} {line.mark} {escape(line.text)}" for line in lines)
    return [summary, table(("format", "tensor that decides", "role", "number", "best scale"), rows)]


def _advice(diagnosis: Diagnosis) -> list[str]:
    lines = advice_lines(diagnosis)
    return [bullets(f"**{topic}:** {escape(text)}" for topic, text in lines)] if lines else []


def _trials(diagnosis: Diagnosis) -> list[str]:
    rows = [
        (
            span(t.name),
            escape(t.outcome),
            escape(t.readback),
            *map(escape, reading.before_and_after(t)),
            escape(t.detail),
        )
        for t in diagnosis.trials
    ]
    return (
        [table(("trial", "outcome", "changed, and read back", "loss", "gradient norm", "seen"), rows)] if rows else []
    )


def _lineage(diagnosis: Diagnosis) -> list[str]:
    rows = [
        (escape(does), span(op), span(words.place(module)), span(source))
        for op, module, source, does in diagnosis.lineage
    ]
    return [table(("does", "op", "module", "source"), rows)] if rows else []


def _ranks(diagnosis: Diagnosis) -> list[str]:
    rows = [tuple(map(escape, row)) for row in reading.rank_cells(diagnosis)]
    return [table(("", "", "", f"at step {diagnosis.ranks[0].step}"), rows)] if rows else []


def _elements(diagnosis: Diagnosis) -> list[str]:
    found = diagnosis.certificate
    if found is None:
        return []
    rows = [tuple(map(escape, reading.element_cells(found, element))) for element in found.elements]
    said = f"{words.counted(found.bad, 'bad element')} of {found.numel}, {escape(found.of)}: {escape(found.verdict)}"
    return [said, table(("element", "sample", "went in", "came out", "in fp64"), rows)]


def _run(diagnosis: Diagnosis) -> Iterable[str]:
    said = reading.replayed(diagnosis)
    if said:
        yield f"Replayed: {escape(said)}"
    follows = original.follows(diagnosis)
    if follows and not original.warning(diagnosis):
        yield f"The replay {escape(follows)}."


def _folded(title: str, blocks: list[str]) -> Iterable[str]:
    """Yield blocks under a summary that opens on a click; nothing where there are none."""
    if any(blocks):
        # Markdown inside is read as such only after an empty line
        yield f"<details><summary>{title}</summary>"
        yield from blocks
        yield "</details>"


def bullets(items: Iterable[str]) -> str:
    """Return a list."""
    return "\n".join(f"- {item}" for item in items)


def table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table; a bar ends a cell even inside a code span, so it is escaped in every cell."""
    lines = [columns, tuple("---" for _ in columns), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape(text: str) -> str:
    """Return prose in which no sign is markup."""
    signs = _SIGNS.sub(r"\\\1", words.prose(text)).translate(_ENTITIES)
    return _STARTS.sub(lambda match: f"{match[0]}\\", signs)


def span(text: str | None) -> str:
    """Return a name as a code span that it cannot leave; '' for no name."""
    if not text:
        return ""
    inner = words.printable(text)
    ticks = "`" * (_longest_run(inner) + 1)
    pad = " " if inner.startswith("`") or inner.endswith("`") else ""
    return f"{ticks}{pad}{inner}{pad}{ticks}"


def _fenced(text: str) -> str:
    fence = "`" * max(_longest_run(text) + 1, 3)
    return f"{fence}text\n{text}\n{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
