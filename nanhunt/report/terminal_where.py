"""The terminal page's place of the fault: where it broke, its source lines, its elements, and the path to the loss."""

from __future__ import annotations

from rich.text import Text

from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.report import reading, words
from nanhunt.report.options import Options
from nanhunt.report.page import Page, column, middle

__all__ = ["put_lineage", "put_where"]

#: Hops shown at each end of a long path: the first ones, and the last.
_FIRST, _LAST = 3, 2
#: Bad elements that are shown.
_ELEMENTS = 3


def put_where(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    """Print the place of the onset, its source lines, and the elements that broke."""
    onset = diagnosis.onset
    if onset is None:
        return
    step = f"{onset.step}"
    if onset.lead_step is not None and onset.lead_step != onset.step:
        step += f", first sign at step {onset.lead_step}"
    phase = words.printable(onset.phase)
    phase += f", micro-batch {onset.micro}" if onset.micro else ""
    phase += f", rank {onset.rank}" if onset.rank or diagnosis.ranks else ""
    page.heading("where")
    page.field("what", words.prose(onset.detail) or onset.kind)
    page.field("step", step)
    page.field("phase", phase)
    if onset.module or not onset.name:
        page.field("module", middle(words.place(onset.module), page.width - 11).rstrip(), style="cyan")
    for label, value in (("name", onset.name), ("op", onset.op), ("source", onset.source)):
        if value:
            page.field(label, words.printable(value))
    samples = reading.sampled(diagnosis)
    if samples:
        page.field("samples", samples, style="" if onset.samples else "dim")
    if diagnosis.damage:
        page.field("damage", words.prose(diagnosis.damage))
    shards = reading.sharded(diagnosis)
    if shards:
        page.field("shards", shards)
    _code(page, diagnosis)
    _elements(page, diagnosis, options)


def _code(page: Page, diagnosis: Diagnosis) -> None:
    """Print the onset's line between its neighbours."""
    here = next((i for i, (_, _, is_line) in enumerate(diagnosis.code) if is_line), 0)
    lines = diagnosis.code[max(here - 1, 0) : max(here - 1, 0) + 3]
    if not lines:
        return
    texts = [text.expandtabs(4) for _, text, _ in lines]
    margin = min((len(t) - len(t.lstrip()) for t in texts if t.strip()), default=0)
    gutter = max(len(str(number)) for number, _, _ in lines)
    page.put(Text())
    source = diagnosis.onset.source if diagnosis.onset else None
    if diagnosis.code_file and not (source or "").startswith(diagnosis.code_file):
        page.row(Text(f"{'':{gutter + 3}}{words.printable(diagnosis.code_file)}", "dim"))
    for (number, _, is_line), text in zip(lines, texts, strict=True):
        line = Text(f"{'>' if is_line else ' '} {number:>{gutter}} │ ", "bold red" if is_line else "dim")
        page.row(line.append(words.printable(text[margin:].rstrip()), "bold" if is_line else "dim"))


def _elements(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    """Print the certificate: the first offending elements, and what fp64 makes of them."""
    found = diagnosis.certificate
    if found is None:
        return
    page.put(Text())
    rows = [reading.element_cells(found, e) for e in found.elements[: None if options.verbose else _ELEMENTS]]
    first = "" if len(rows) == found.bad else f"the first {len(rows)} of " if len(rows) > 1 else "the first of "
    head = f"{first}{words.counted(found.bad, 'bad element')} of {found.numel}, {words.prose(found.of)}"
    page.put(Text(head, "dim"))
    at = column((row[0] for row in rows), 24)
    sample = column((row[1] for row in rows), 26)
    for place, owner, given, output, fp64 in rows:
        label = Text(middle(place, at)).append(f"  {middle(owner, sample)}" if sample else "", "cyan").append("  ")
        line = Text(given, "dim").append(f"{' ' if given else ''}→ {output}", "bold red")
        page.put(label, line.append(f", in fp64 {fp64}" if fp64 else "", "yellow"))
    page.put(Text(words.prose(found.verdict)))


def put_lineage(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    """Print the way from the birth to what it spoiled; of a long one its two ends."""
    hops = diagnosis.lineage
    if not hops:
        return
    page.heading("path", f"from birth to damage, {words.counted(len(hops), 'op')}")
    op_width = column((op for op, *_ in hops), 28 if page.width >= 80 else 18)
    source_width = column((source for _, _, source, _ in hops), 24 if page.width >= 80 else 12)
    does_width = column((does for *_, does in hops), 12 if page.width >= 80 else 8)
    # two cells before each of the four columns
    module_width = column((words.place(m) for _, m, *_ in hops), page.width - does_width - op_width - source_width - 8)
    cut = len(hops) > _FIRST + _LAST + 1 and not options.verbose
    for i, (op, module, source, does) in enumerate(hops):
        if cut and _FIRST <= i < len(hops) - _LAST:
            if i == _FIRST:
                more = words.counted(len(hops) - _FIRST - _LAST, "more op")
                page.row(Text(f"{'…':<{does_width}}  {more}", "dim"))
            continue
        line = Text(middle(words.printable(does), does_width), "bold red" if i == 0 else "")
        line.append(f"  {middle(words.printable(op), op_width)}")
        line.append(f"  {middle(words.place(module), module_width)}", "cyan")
        page.row(line.append(f"  {middle(words.printable(source), source_width)}", "dim"))
