"""The report for a terminal: the verdict first, then where, why, and what was looked at; tables last."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from rich.cells import cell_len
from rich.text import Text

from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.report import original, reading, words
from nanhunt.report.options import Options
from nanhunt.report.page import Page, column, middle
from nanhunt.report.sparkline import sparkline
from nanhunt.report.terminal_formats import put_advice, put_headroom, put_precision
from nanhunt.report.terminal_suspects import put_suspects, put_trials

__all__ = ["TerminalRenderer"]

#: cells below which columns no longer fit side by side
_NARROWEST = 40
#: cells of a sparkline: more say no more, and the eye no longer takes them in at once
_CURVE = 64

_OUTCOME_STYLES = {"fault": "bold red", "healthy": "bold green", "inconclusive": "bold yellow"}
_CURVES = (("loss", "loss"), ("grad_norm", "grad norm"), ("loss_scale", "loss scale"))


class TerminalRenderer(Options):
    """A page of at most `width` cells; without `color` there is no escape sequence in it."""

    __slots__ = ()
    name: ClassVar[str] = "terminal"
    suffix: ClassVar[str] = ".txt"

    def render(self, diagnosis: Diagnosis) -> str:
        """Return the page."""
        page = Page(max(self.width, _NARROWEST))
        for section in _SECTIONS:
            section(page, diagnosis, self)
        return page.text(color=self.color)


def _verdict(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    style = _OUTCOME_STYLES.get(diagnosis.outcome, "bold yellow")
    mark, _, rest = reading.headline(diagnosis).partition(" ")
    line = Text().append(rest, style)
    if diagnosis.summary:
        line.append(" · ", "dim").append(words.prose(diagnosis.summary), "bold")
    page.put(Text(f"{mark} ", style), line, indent=0)
    why = reading.why_incomplete(diagnosis)
    if why:
        page.field("why", f"the trace ends early: {why}", style="dim")
    found = reading.cure(diagnosis)
    if found:
        page.field("cure", found[1], style="green")
    suspect = reading.leading_suspect(diagnosis)
    if suspect and suspect.fixes:
        page.field("fix", words.prose(suspect.fixes[0]))
    said = reading.replayed(diagnosis)
    if said:
        page.field("run", said, style="dim")
    _original(page, diagnosis)
    if options.verbose and diagnosis.run.get("match"):
        page.field("loaded", str(diagnosis.run["match"]), style="dim")


def _original(page: Page, diagnosis: Diagnosis) -> None:
    """Print whether the replay is the run that failed, and what follows where it is not."""
    said, beware = original.follows(diagnosis), original.warning(diagnosis)
    if said and not original.is_verdict(diagnosis):
        page.field("replay", said, style="yellow" if beware else "dim")
    if beware:
        page.field("check", beware, style="yellow")


def _where(page: Page, diagnosis: Diagnosis, options: Options) -> None:
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
    _lineage(page, diagnosis, options)
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


def _lineage(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    """Print the way from the birth to what it spoiled; of a long one its two ends."""
    hops = diagnosis.lineage
    if not hops:
        return
    page.put(Text())
    page.put(Text("from birth to damage", "dim"))
    op_width = column((op for op, *_ in hops), 28 if page.width >= 80 else 18)
    source_width = column((source for _, _, source, _ in hops), 24 if page.width >= 80 else 12)
    does_width = column((does for *_, does in hops), 12 if page.width >= 80 else 8)
    # two cells before each of the four columns
    module_width = column((words.place(m) for _, m, *_ in hops), page.width - does_width - op_width - source_width - 8)
    cut = len(hops) > 6 and not options.verbose
    for i, (op, module, source, does) in enumerate(hops):
        if cut and 3 <= i < len(hops) - 2:
            if i == 3:
                page.row(Text(f"{'…':<{does_width}}  {words.counted(len(hops) - 5, 'more op')}", "dim"))
            continue
        line = Text(middle(words.printable(does), does_width), "bold red" if i == 0 else "")
        line.append(f"  {middle(words.printable(op), op_width)}")
        line.append(f"  {middle(words.place(module), module_width)}", "cyan")
        page.row(line.append(f"  {middle(words.printable(source), source_width)}", "dim"))


def _elements(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    """Print the certificate: the first offending elements, and what fp64 makes of them."""
    found = diagnosis.certificate
    if found is None:
        return
    page.put(Text())
    head = f"the first of {words.counted(found.bad, 'bad element')} of {found.numel}, {words.prose(found.of)}"
    page.put(Text(head, "dim"))
    rows = [reading.element_cells(found, e) for e in found.elements[: None if options.verbose else 3]]
    at = column((row[0] for row in rows), 24)
    sample = column((row[1] for row in rows), 26)
    for place, owner, given, output, fp64 in rows:
        line = Text(middle(place, at)).append(f"  {middle(owner, sample)}" if sample else "", "cyan")
        line.append(f"  {given}" if given else "", "dim").append(f"  → {output}", "bold red")
        page.put(line.append(f", in fp64 {fp64}" if fp64 else "", "yellow"))
    page.put(Text(words.prose(found.verdict)))


def _curves(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    drawn = [(label, *diagnosis.series[name]) for name, label in _CURVES if any(diagnosis.series.get(name, ((), ())))]
    if not drawn:
        return
    first, last = min(steps[0] for _, steps, _ in drawn), max(steps[-1] for _, steps, _ in drawn)
    onset = diagnosis.onset.step if diagnosis.onset else None
    mark = f", ✗ at step {onset}" if onset is not None else ""
    page.heading("curves", f"steps {first} to {last}{mark}" if first != last else f"step {first}{mark}")
    for label, steps, values in drawn:
        line = Text()
        # 12 for the label, 2 and 2 for the gaps, 30 for the numbers
        for cell in sparkline(steps, values, onset=onset, width=max(min(page.width - 46, _CURVE), 8)):
            line.append(cell.char, {"onset": "bold red", "non-finite": "red"}.get(cell.mark, "cyan"))
        page.put(Text(f"{label:<12}", "dim"), line.append(f"  {_told(steps, values, onset)}"))


def _ranks(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    cells = reading.rank_cells(diagnosis)
    if not cells:
        return
    page.heading("ranks", f"at step {diagnosis.ranks[0].step}")
    rank, loss, norm = (max(len(row[i]) for row in cells) for i in range(3))
    for row in cells:
        page.put(Text(f"{row[0]:<{rank}}  ", "dim"), Text(f"{row[1]:<{loss}}  {row[2]:<{norm}}  {row[3]}"))


def _told(steps: tuple[int, ...], values: tuple[float, ...], onset: int | None) -> str:
    """Return a curve's ends and, where it is neither of them, its value at the onset."""
    if len(set(values)) == 1:
        return f"{words.number(values[0])} throughout"
    at_onset = (
        f", {words.number(values[steps.index(onset)])} at ✗" if onset is not None and onset in steps[1:-1] else ""
    )
    return f"{words.number(values[0])} to {words.number(values[-1])}{at_onset}"


def _innocent(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    if diagnosis.cleared:
        page.heading("cleared", f"{words.counted(len(diagnosis.cleared), 'cause')} looked at, and innocent")
        page.put(Text(words.listed(diagnosis.cleared, limit=len(diagnosis.cleared)), "dim"))
    if not diagnosis.untold:
        return
    page.heading("could not tell")
    if diagnosis.outcome == "healthy" and not options.verbose:
        listed = words.listed([slug for slug, _ in diagnosis.untold], limit=len(diagnosis.untold))
        page.put(Text(f"{listed} (reasons: --verbose)", "dim"))
        return
    slugs = column((slug for slug, _ in diagnosis.untold), page.width // 2 - 2)
    for slug, reason in diagnosis.untold:
        page.put(Text(f"{middle(words.printable(slug), slugs)}  "), Text(words.prose(reason), "dim"))


def _assumptions(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    if diagnosis.assumptions:
        page.heading("assumptions")
    for text in diagnosis.assumptions:
        page.put(Text("• ", "dim"), Text(words.prose(text), "dim"))


def _next(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    page.heading("next")
    commands = reading.next_commands(diagnosis)
    longest = max(cell_len(command) for command, _ in commands)
    # with purposes only where all fit: a command is there to be copied, so it gets the whole line
    fits = all(longest + cell_len(purpose) + 6 <= page.width for _, purpose in commands)
    for command, purpose in commands:
        line = Text(command, "bold")
        page.put(line.append(f"{'':{longest - cell_len(command)}}  # {purpose}", "not bold dim") if fits else line)


#: in the order of the page
_SECTIONS: tuple[Callable[[Page, Diagnosis, Options], None], ...] = (
    _verdict,
    _where,
    _curves,
    _ranks,
    put_suspects,
    put_trials,
    _innocent,
    put_precision,
    put_headroom,
    put_advice,
    _assumptions,
    _next,
)
