"""The page's upper half in words: the verdict and its fix, where it broke, the path to the loss, suspects and trials."""

from __future__ import annotations

from nanhunt.diagnosis.cause import Diagnosis, Grade, Suspect
from nanhunt.report import original, reading, words
from nanhunt.report.html.element import Markup, code, prose, tag
from nanhunt.report.html.parts import definitions, section, table

__all__ = ["lineage", "ranks", "suspects", "trials", "verdict", "where"]

_GRADES = {Grade.PROVED: 4, Grade.CONFIRMED: 3, Grade.SUPPORTED: 2, Grade.CONSISTENT: 1}
#: Hops shown at each end of a long path.
_ENDS = 4


def verdict(diagnosis: Diagnosis) -> Markup:
    """Return the head of the page: outcome, summary, fix and cure, what was replayed."""
    mark, _, rest = reading.headline(diagnosis).partition(" ")
    suspect, found = reading.leading_suspect(diagnosis), reading.cure(diagnosis)
    follows, beware = original.follows(diagnosis), original.warning(diagnosis)
    is_aside = follows and not beware and not original.is_verdict(diagnosis)
    facts = [
        ("Fix", prose(suspect.fixes[0]) if suspect and suspect.fixes else None),
        ("Cure", prose(found[1]) if found else None),
        ("Check", prose(beware) if beware else None),
        ("Replay", None if is_aside else follows or None),
        ("Trace", f"ends early: {reading.why_incomplete(diagnosis)}" if reading.why_incomplete(diagnosis) else None),
    ]
    named = [code(suspect.cause), f" {suspect.grade}"] if suspect and diagnosis.outcome != "healthy" else []
    return tag(
        "header",
        tag(
            "p",
            tag("span", tag("span", mark, class_="mark", aria_hidden="true"), " ", rest, class_="outcome"),
            tag("span", *named, class_="cause") if named else None,
            class_="eyebrow",
        ),
        tag("h1", prose(diagnosis.summary) or rest),
        definitions([(name, text) for name, text in facts if text], class_="lead"),
        tag("p", reading.replayed(diagnosis), class_="run") if reading.replayed(diagnosis) else None,
        tag("p", follows, class_="run") if is_aside else None,
        class_=f"verdict {diagnosis.outcome if diagnosis.outcome in ('fault', 'healthy') else 'inconclusive'}",
    )


def where(diagnosis: Diagnosis) -> Markup | None:
    """Return the place of the onset beside its source lines; None without an onset."""
    onset = diagnosis.onset
    if onset is None:
        return None
    lead = "" if onset.lead_step in (None, onset.step) else f", first sign at step {onset.lead_step}"
    facts: list[tuple[str, object]] = [
        ("what", prose(onset.detail) or onset.kind),
        ("step", f"{onset.step}{lead}"),
        ("phase", onset.phase),
        ("micro-batch", onset.micro or None),
        ("rank", str(onset.rank) if onset.rank or diagnosis.ranks else None),
        ("module", code(words.place(onset.module)) if onset.module or not onset.name else None),
        ("name", code(onset.name)),
        ("op", code(onset.op)),
        ("source", code(onset.source)),
        ("samples", reading.sampled(diagnosis)),
        ("damage", prose(diagnosis.damage)),
    ]
    told = [(name, value) for name, value in facts if value]
    return section("where", "Where", tag("div", definitions(told), _code(diagnosis), class_="beside"))


def ranks(diagnosis: Diagnosis) -> Markup | None:
    """Return what each rank saw of the onset's step; None of one process."""
    rows = [
        (rank, loss.removeprefix("loss "), norm.removeprefix("grad norm "), said)
        for rank, loss, norm, said in reading.rank_cells(diagnosis)
    ]
    if not rows:
        return None
    shown = table(("rank", "loss", "grad norm", "what it saw"), rows, number=(1, 2))
    return section("ranks", "Ranks", shown, lead=f"At step {diagnosis.ranks[0].step}.")


def _code(diagnosis: Diagnosis) -> Markup | None:
    if not diagnosis.code:
        return None
    rows = [(number, text.expandtabs(4).rstrip(), here) for number, text, here in diagnosis.code]
    margin = min((len(t) - len(t.lstrip()) for _, t, _ in rows if t.strip()), default=0)
    lines = [
        tag(
            "span",
            tag("span", f"{number:>4}", class_="number"),
            f"  {text[margin:]}",
            class_="line here" if here else "line",
        )
        for number, text, here in rows
    ]
    return tag(
        "figure",
        tag("figcaption", code(diagnosis.code_file)),
        tag("pre", Markup("\n".join(lines)), tabindex="0", role="group", aria_label="source lines around the onset"),
        class_="code",
    )


def _elements(diagnosis: Diagnosis) -> Markup | None:
    found = diagnosis.certificate
    if found is None:
        return None
    rows = [reading.element_cells(found, element) for element in found.elements]
    said = f"{words.counted(found.bad, 'bad element')} of {found.numel}, {found.of}: {found.verdict}"
    columns = ("element", "sample", "went in", "came out", "in fp64")
    return tag("details", tag("summary", prose(said)), table(columns, rows, number=(3, 4)))


def lineage(diagnosis: Diagnosis) -> Markup | None:
    """Return the way from the birth to what it spoiled as a drawn path; None where there is none."""
    hops = diagnosis.lineage
    elements = _elements(diagnosis)
    if not hops:
        return section("lineage", "Where it was born", elements) if elements else None
    birth = diagnosis.recording.birth_code if diagnosis.recording else ""
    items = [_hop(hop, at=i, last=len(hops) - 1, line=birth if i == 0 else "") for i, hop in enumerate(hops)]
    if len(hops) > 2 * _ENDS + 1:
        inner = tag("ol", *items[_ENDS:-_ENDS], class_="path")
        summary = tag("summary", f"{len(hops) - 2 * _ENDS} ops between")
        items[_ENDS:-_ENDS] = [tag("li", tag("details", summary, inner), class_="between")]
    return section("lineage", "From birth to damage", tag("ol", *items, class_="path"), elements)


def _hop(hop: tuple[str, str, str, str], *, at: int, last: int, line: str) -> Markup:
    op, module, source, does = hop
    kind = "birth" if at == 0 else "end" if at == last else "hop"
    shape = {
        "birth": tag("path", d="M3 3 13 13M13 3 3 13"),
        "hop": tag("circle", cx="8", cy="8", r="3.5"),
        "end": tag("circle", cx="8", cy="8", r="5.5"),
    }[kind]
    return tag(
        "li",
        tag("svg", shape, viewBox="0 0 16 16", aria_hidden="true", class_="node"),
        tag("span", does, class_="does"),
        tag("span", code(op), class_="op"),
        tag("span", code(words.place(module)), class_="module"),
        tag("span", code(source), class_="source"),
        tag("code", line.strip(), class_="text") if line.strip() else None,
        class_=kind,
    )


def suspects(diagnosis: Diagnosis, top: int) -> Markup | None:
    """Return the suspects with their evidence; those that are refuted, or beyond `top`, folded away."""
    if not diagnosis.suspects:
        alone = "None of the known causes shows itself." if diagnosis.onset is not None else None
        return section("suspects", "Suspects", tag("p", alone)) if alone else None
    cases = [_case(suspect, rank) for rank, suspect in enumerate(diagnosis.suspects, start=1)]
    shown = [s.grade != Grade.REFUTED and rank < top for rank, s in enumerate(diagnosis.suspects)]
    front = [case for case, is_shown in zip(cases, shown, strict=True) if is_shown]
    rest = [case for case, is_shown in zip(cases, shown, strict=True) if not is_shown]
    folded = tag("details", tag("summary", words.counted(len(rest), "other suspect")), *rest) if rest else None
    return section("suspects", "Suspects", *front, folded)


def _case(suspect: Suspect, rank: int) -> Markup:
    exhibits = [
        tag("li", prose(e.claim), tag("span", held, class_="held") if held else None)
        for e in suspect.exhibits
        for held in [reading.evidence(e.value, e.threshold)]
    ]
    tried = [
        tag(
            "li",
            tag("span", "trial", class_="label"),
            tag("span", code(t.name), " ", prose(reading.tried(t, prediction))),
        )
        for t, prediction in suspect.trials
    ]
    fixes = [tag("li", tag("span", "fix", class_="label"), tag("span", prose(fix))) for fix in suspect.fixes]
    return tag(
        "article",
        tag(
            "h3",
            tag("span", str(rank), class_="rank"),
            code(suspect.cause),
            tag("span", _dots(suspect.grade), str(suspect.grade), class_="grade"),
        ),
        tag("p", prose(suspect.summary), tag("span", _spot(suspect), class_="spot")),
        tag("ul", *exhibits, class_="exhibits") if exhibits else None,
        tag("ul", *tried, *fixes, class_="actions") if tried or fixes else None,
        class_="suspect refuted" if suspect.grade == Grade.REFUTED else "suspect",
    )


def _dots(grade: Grade) -> Markup:
    """Return the grade as dots, so that it is seen without reading and without colour."""
    count = _GRADES.get(grade, 0)
    return tag("span", "●" * count + "○" * (4 - count), class_="dots", aria_hidden="true")


def _spot(suspect: Suspect) -> str:
    at = suspect.location
    name = words.place(at.module or "", at.parameter or "") if at.module is not None or at.parameter else ""
    parts = (f"step {at.step}" if at.step is not None else "", name, at.op or "", at.source or "")
    return " · ".join(words.printable(part) for part in parts if part)


def trials(diagnosis: Diagnosis) -> Markup | None:
    """Return the table of trials: what was changed, and what came of it."""
    if not diagnosis.trials:
        return None
    rows = [
        (
            code(t.name),
            tag(
                "span",
                reading.came_out(t),
                class_=f"tried {t.outcome if t.outcome in ('cured', 'persists') else 'failed'}",
            ),
            prose(t.readback),
            *(part.removeprefix("loss ").removeprefix("grad norm ") for part in reading.before_and_after(t)),
            prose(t.detail),
        )
        for t in diagnosis.trials
    ]
    columns = ("trial", "outcome", "changed, and read back", "loss", "gradient norm", "seen")
    lead = "The bad step once more, each time under one change, beside an exact repetition and a placebo."
    return section("trials", "Trials", table(columns, rows, number=(3, 4)), lead=lead)
