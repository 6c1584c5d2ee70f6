"""What every section of the page is made of: a heading, a list of facts, a table, a line drawn small."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from nanhunt.report.html.element import Markup, tag

__all__ = ["bullets", "definitions", "section", "spark", "table"]


def section(name: str, title: str, *children: Markup | None, lead: str = "") -> Markup:
    """Return a section under its heading."""
    note = tag("p", lead, class_="note") if lead else None
    return tag("section", tag("h2", title), note, *children, id=name)


def definitions(facts: Iterable[tuple[str, object]], *, class_: str = "facts") -> Markup | None:
    """Return facts as a list of names and values; None for no fact."""
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts]
    return tag("dl", *rows, class_=class_) if rows else None


def bullets(items: Iterable[object], *, class_: str | None = None) -> Markup:
    """Return a list."""
    return tag("ul", *(tag("li", item) for item in items), class_=class_)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, number: Sequence[int] = ()) -> Markup:
    """Return a table, with the columns `number` set right; on a narrow page each row becomes a card of named values.

    The roles are spelt out, as a browser forgets them where a card's `display` is none of a table's.
    """
    head = tag("tr", *(tag("th", name, scope="col", role="columnheader") for name in columns), role="row")
    body = [
        tag(
            "tr",
            *(
                tag("td", tag("span", cell), data_label=columns[i], class_="n" if i in number else None, role="cell")
                if cell not in (None, "")
                else tag("td", class_="none", role="cell")
                for i, cell in enumerate(row)
            ),
            role="row",
        )
        for row in rows
    ]
    whole = tag("table", tag("thead", head, role="rowgroup"), tag("tbody", *body, role="rowgroup"), role="table")
    return tag("div", whole, class_="scroll")


def spark(values: Sequence[float], *, width: int = 120, height: int = 22) -> Markup | None:
    """Return a curve in one line's height, on a logarithmic scale where it spans more than two decades."""
    known = [v for v in values if math.isfinite(v)]
    if len(known) < 2:
        return None
    is_wide = min(known) > 0 and max(known) > 100 * min(known)
    drawn = [math.log(v) if is_wide and math.isfinite(v) else v for v in values]
    finite = [v for v in drawn if math.isfinite(v)]
    low, high = min(finite), max(finite)
    across = (width - 4) / max(len(values) - 1, 1)
    points = " ".join(
        f"{2 + i * across:.1f},{height - 3 - (v - low) / ((high - low) or 1.0) * (height - 6):.1f}"
        for i, v in enumerate(drawn)
        if math.isfinite(v)
    )
    return tag(
        "svg",
        tag("polyline", points=points),
        viewBox=f"0 0 {width} {height}",
        class_="spark",
        aria_hidden="true",
    )
