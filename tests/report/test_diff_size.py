"""Pages of a comparison end, however large the model, however long the run, however long the names; the document has all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from nanhunt.comparison.comparison import Comparison, Setting
from nanhunt.report.diff import drawn, reading
from nanhunt.report.diff.html import DiffHtml
from nanhunt.report.diff.json import DiffJson
from nanhunt.report.diff.markdown import DiffMarkdown
from nanhunt.report.diff.terminal import DiffTerminal
from nanhunt.report.markdown import LIMIT
from tests.report.comparisons import large

#: Bytes of the HTML page; lines of the terminal's, plain and under -v.
PAGE, LINES, VERBOSE_LINES = 500_000, 80, 700
MANY = tuple(Setting(name=f"config.{i}{'.x' * 400}", a="<" * 60, b="\U0001d54f" * 60) for i in range(200))
#: Built where they are looked at, and once: together they take half a gigabyte.
LARGE: dict[str, Callable[[], Comparison]] = {
    "300 modules, 200 steps": lambda: large(300, 200),
    "10 000 modules": lambda: large(10_000, 200),
    "100 000 steps": lambda: large(300, 100_000),
    "both": lambda: large(10_000, 100_000, every=40),
    "born everywhere": lambda: large(10_000, 20, every=1),
    "agreeing": lambda: agreeing(large(10_000, 200)),
    "same": lambda: replace(agreeing(large(10_000, 200)), outcome="identical"),
    "settings and new names": lambda: replace(
        large(300, 20), settings=100 * MANY, renamed=(("a.b" * 900, "a.c" * 900),) * 5000
    ),
    "long names": lambda: named("<&\U0001d54f`" * 2000),
    "names of tags": lambda: named("<" * 999),
    "names of dots": lambda: named("." * 999),
    "names of surrogates": lambda: named("\U0001d54f" * 999),
    "names that do not print": lambda: named("\u2028" * 999),
}


@cache
def built(name: str) -> Comparison:
    return LARGE[name]()


def agreeing(found: Comparison) -> Comparison:
    depth = tuple(replace(row, verdict="within", apart=row.bound / 3) for row in found.depth)
    return replace(found, outcome="agree", born=(), inherited=0, closest=found.born[0], depth=depth)


def named(name: str) -> Comparison:
    found = large(2000, 2000, every=2, name="{}" + name)
    return replace(found, settings=MANY, renamed=((name, name),) * 99)


@pytest.fixture(params=LARGE)
def comparison(request: pytest.FixtureRequest) -> Comparison:
    return built(request.param)


def data(page: str) -> dict[str, Any]:
    found = re.search('<script type="application/json" id="report">(.*?)</script>', page)
    assert found
    body: dict[str, Any] = json.loads(found[1])
    return body


def test_the_html_page_stays_below_half_a_megabyte(comparison: Comparison) -> None:
    assert len(DiffHtml().render(comparison).encode()) < PAGE


@pytest.mark.parametrize("top", [5, 100_000])
def test_the_markdown_page_fits_into_an_issue(comparison: Comparison, top: int) -> None:
    page = DiffMarkdown(top=top).render(comparison)
    assert len(page) <= LIMIT
    assert page.startswith("**")
    assert page.count("<details>") == page.count("</details>")


@pytest.mark.parametrize(("verbose", "lines"), [(False, LINES), (True, VERBOSE_LINES)])
def test_the_terminals_page_is_a_page_or_two_and_under_verbose_some_hundred_lines(verbose: bool, lines: int) -> None:
    for name in ("300 modules, 200 steps", "10 000 modules", "100 000 steps", "both", "born everywhere", "agreeing"):
        page = DiffTerminal(width=100, verbose=verbose).render(built(name))
        assert page.count("\n") < lines, name


def test_the_document_is_complete() -> None:
    found = json.loads(DiffJson().render(built("both")))
    assert (len(found["depth"]), len(found["by_step"]), len(found["born"])) == (
        30_000,
        100_000,
        len(built("both").born),
    )


# --- what is kept, and what is said of the rest -----------------------------------------------------------------------


def test_every_page_says_how_much_it_leaves_out_and_who_has_it() -> None:
    both = built("both")
    html = DiffHtml().render(both)
    shown = len(data(html)["depth"]["at"])
    assert f"Of 30000 observations it shows {shown}:" in html
    assert "Of 100000 steps it shows" in html
    assert "As a table, 29920 rows left out: -f json has all" in html
    assert "As a table, 99940 rows left out: -f json has all" in html
    markdown = DiffMarkdown().render(both)
    assert "29990 rows left out: `-f json` has all" in markdown
    assert "99940 steps left out: -f json has all" in markdown
    assert "29985 more rows (-v)" in DiffTerminal(width=100).render(both)
    assert "29800 more rows (-f json)" in DiffTerminal(width=100, verbose=True).render(both)


def test_a_part_that_does_not_fit_into_an_issue_is_named() -> None:
    page = DiffMarkdown().render(built("settings and new names"))
    assert "Left out, for an issue has an end: settings that differ. `--format json` has it all." in page
    assert "nanhunt report" in page


def test_what_tells_is_drawn_and_stands_where_it_ran() -> None:
    both = built("both")
    found = drawn.depth(both)
    at = found["at"]
    assert at == sorted(set(at))
    assert found["of"] == len(both.depth)
    assert len(at) <= 1.5 * drawn.POINTS
    rows = dict(enumerate(both.depth))
    born = [i for i, row in rows.items() if row.verdict == "born"]
    # the first difference with the rows around it, the furthest of each verdict, both ends
    assert set(range(born[0] - 20, born[0] + 40)) <= set(at)
    for verdict in ("within", "inherited", "born"):
        assert max((i for i, row in rows.items() if row.verdict == verdict), key=lambda i: rows[i].apart) in at
    assert {0, len(rows) - 1} <= set(at)
    assert found["place"] == [reading.place(rows[i]) for i in at]
    assert found["verdict"] == "".join(rows[i].verdict[0] for i in at)
    assert [found["phases"][i] for i in found["phase"]] == [rows[i].phase for i in at]


def test_a_model_of_some_hundred_modules_is_drawn_whole() -> None:
    assert drawn.depth(built("300 modules, 200 steps"))["at"] == list(range(900))


def test_a_curve_keeps_its_spike_and_every_step_around_the_first_difference() -> None:
    long = built("100 000 steps")
    rows = list(long.by_step)
    rows[70_123] = replace(rows[70_123], outputs=7.0)
    curve = drawn.curves(replace(long, by_step=tuple(rows)))["outputs"]
    at = dict(zip(curve["steps"], curve["values"], strict=True))
    assert at[70_123] == 7.0
    assert long.first is not None
    assert set(range(long.first.step - 50, long.first.step + 51)) <= set(at)


def test_the_table_by_step_has_both_ends_and_the_first_difference() -> None:
    long = built("100 000 steps")
    told, hidden = reading.growth(long)
    steps = [row.step for row in told]
    assert len(steps) + hidden == 100_000
    assert len(steps) <= reading.STEPS
    assert steps == sorted(set(steps))
    assert long.first is not None
    assert {0, 99_999, long.first.step - 1, long.first.step, long.first.step + 1} <= set(steps)
    assert reading.growth(replace(long, by_step=long.by_step[:60])) == (list(long.by_step[:60]), 0)
