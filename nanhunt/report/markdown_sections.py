"""What an issue folds away: every section of the report in Markdown, each a title and its blocks."""

from __future__ import annotations

from collections.abc import Iterator

from nanhunt.diagnosis.cause import Diagnosis, Grade, Suspect
from nanhunt.report import original, precision, reading, words
from nanhunt.report.advice import advice_lines
from nanhunt.report.headroom import format_lines
from nanhunt.report.health import health_of
from nanhunt.report.markdown_text import bullets, escape, fenced, span, table
from nanhunt.report.options import Options
from nanhunt.report.page import Page
from nanhunt.report.sample import FIELD_COLUMNS, Excerpt, bad_samples, field_rows
from nanhunt.report.sparkline import sparkline
from nanhunt.report.terminal_curves import put_curves

__all__ = ["Section", "code_lines", "exhibits", "sections"]

#: A title, and the blocks below it.
Section = tuple[str, list[str]]
#: Cells of a line of curves: GitHub's column shows some 90 of a block of text.
_WIDTH = 80
_CURVE = 12


def sections(diagnosis: Diagnosis, top: int) -> list[Section]:
    """Return the sections that say anything, in the order of the page."""
    every: tuple[Section, ...] = (
        ("Where", _where(diagnosis)),
        ("Curves", _curves(diagnosis)),
        ("Ranks", _ranks(diagnosis)),
        ("Path", _lineage(diagnosis)),
        ("Offending elements", _elements(diagnosis)),
        ("Suspects", _suspects(diagnosis, top)),
        ("Trials", _trials(diagnosis)),
        ("Bad sample", _sample(diagnosis)),
        ("Optimizer", _optimizer(diagnosis)),
        ("Precision", _precision(diagnosis)),
        ("Number formats", _headroom(diagnosis)),
        ("Precision advice", _advice(diagnosis)),
        ("Could not tell", [bullets(f"{span(slug)}: {escape(why)}" for slug, why in diagnosis.untold)]),
        ("Cleared", [", ".join(span(slug) for slug in diagnosis.cleared)]),
        ("Assumptions", [bullets(escape(text) for text in diagnosis.assumptions)]),
        ("Replay", _run(diagnosis)),
    )
    return [(title, blocks) for title, blocks in every if any(blocks)]


def _where(diagnosis: Diagnosis) -> list[str]:
    onset = diagnosis.onset
    if onset is None:
        return []
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
    told = [table(("", ""), [(name, value) for name, value in facts if value])]
    return [*told, fenced(code_lines(diagnosis))] if diagnosis.code else told


def code_lines(diagnosis: Diagnosis, around: int | None = None) -> list[str]:
    """Return the source lines of the onset, marked and numbered; of them all, or `around` it."""
    at = next((i for i, (*_, here) in enumerate(diagnosis.code) if here), 0)
    shown = diagnosis.code if around is None else diagnosis.code[max(at - around, 0) : at + around + 1]
    texts = [text.expandtabs(4).rstrip() for _, text, _ in shown]
    margin = min((len(text) - len(text.lstrip()) for text in texts if text), default=0)
    return [
        f"{'>' if here else ' '} {line:>5} | {text[margin:]}".rstrip()
        for (line, _, here), text in zip(shown, texts, strict=True)
    ]


def _curves(diagnosis: Diagnosis) -> list[str]:
    page = Page(_WIDTH)
    put_curves(page, diagnosis, Options())
    lines = page.text(color=False).strip().splitlines()
    return [fenced(lines)] if lines else []


def _suspects(diagnosis: Diagnosis, top: int) -> list[str]:
    if not diagnosis.suspects:
        return []
    ranked = table(
        ("", "grade", "cause", "what", "where"),
        [
            (str(rank), escape(s.grade), span(s.cause), escape(s.summary), _spot(s))
            for rank, s in enumerate(diagnosis.suspects, start=1)
        ],
    )
    cases = (block for s in diagnosis.suspects[:top] if s.grade != Grade.REFUTED for block in _case(s))
    return [ranked, *cases]


def exhibits(suspect: Suspect) -> list[str]:
    """Return what speaks against a suspect, each with its number and the number it is held against."""
    held = (reading.evidence(exhibit.value, exhibit.threshold) for exhibit in suspect.exhibits)
    told = zip(suspect.exhibits, held, strict=True)
    return [escape(exhibit.claim) + (f" ({escape(number)})" if number else "") for exhibit, number in told]


def _case(suspect: Suspect) -> Iterator[str]:
    """Yield what speaks against one suspect, and what to do about it."""
    lines = exhibits(suspect)
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
        if tensor.level != "roomy"
    ]
    summary = bullets(f"{span(line.format)} {line.mark} {escape(line.text)}" for line in lines)
    decide = ("format", "tensor that decides", "role", "number", "best scale")
    return [summary, *([table(decide, rows)] if rows else [])]


def _advice(diagnosis: Diagnosis) -> list[str]:
    lines = advice_lines(diagnosis)
    return [bullets(f"**{topic}:** {escape(text)}" for topic, text in lines)] if lines else []


def _trials(diagnosis: Diagnosis) -> list[str]:
    rows = [
        (
            span(t.name),
            escape(reading.came_out(t)),
            escape(t.readback),
            *(escape(part.removeprefix("loss ").removeprefix("grad norm ")) for part in reading.before_and_after(t)),
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


def _sample(diagnosis: Diagnosis) -> list[str]:
    blocks = []
    samples, rest = bad_samples(diagnosis)
    for sample in samples:
        facts = [(escape(n), _excerpt(f) if isinstance(f, Excerpt) else escape(f)) for n, f in sample.facts]
        blocks.append(table(("sample", escape(sample.which)), facts))
    if rest > 0:
        blocks.append(f"and {words.counted(rest, 'more sample')}")
    rows = [(span(field), *map(escape, cells)) for field, *cells in field_rows(diagnosis)] if samples else []
    return [*blocks, *([table(FIELD_COLUMNS, rows)] if rows else [])]


def _excerpt(excerpt: Excerpt) -> str:
    """Return the values of a sample in a row, a bad one in bold."""
    shown = [f"**{escape(value)}**" if is_bad else escape(value) for value, is_bad in excerpt.values]
    before = [f"… {excerpt.start} before"] if excerpt.start else []
    return " ".join([*before, *shown, *([f"… {excerpt.rest} more"] if excerpt.rest else [])])


def _optimizer(diagnosis: Diagnosis) -> list[str]:
    found = health_of(diagnosis)
    if found is None:
        return []
    rows = []
    for row in found.rows:
        curve = "".join(cell.char for cell in sparkline(row.steps, row.values, onset=None, width=_CURVE))
        rows.append((escape(row.label), span(row.parameter), curve, row.worst, row.median, escape(row.says)))
    columns = ("measure", "worst parameter", "steps", f"at step {found.step}", "median of all", "what it says")
    return [escape(found.optimizer), table(columns, rows)] if found.optimizer else [table(columns, rows)]


def _run(diagnosis: Diagnosis) -> list[str]:
    said, follows = reading.replayed(diagnosis), original.follows(diagnosis)
    lines = [f"replayed {escape(said)}"] if said else []
    lines += [f"the replay {escape(follows)}"] if follows and not original.warning(diagnosis) else []
    return [bullets(lines)] if lines else []
