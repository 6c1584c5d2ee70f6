"""The page of a comparison as it is seen: curves are drawn, arrow keys move along the depth, nothing is asked or complained of."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from nanhunt.comparison.comparison import Comparison
from nanhunt.report.diff.drawn import depth
from nanhunt.report.diff.html import DiffHtml
from nanhunt.report.diff.reading import headline
from tests.browser.chromium import Chromium
from tests.report.comparisons import compared, large

MARKS = "#depth circle, #depth .born"
READING = "document.querySelector('#depth-reading').textContent"


def opened(chromium: Chromium, comparison: Comparison, folder: Path, width: int = 1280) -> Path:
    page = folder / "diff.html"
    page.write_text(DiffHtml().render(comparison), encoding="utf-8")
    chromium.open(page, width=width)
    return page


@pytest.mark.parametrize("width", [400, 1280])
def test_a_comparison_is_told_and_drawn_without_a_request_or_a_complaint(
    chromium: Chromium, tmp_path: Path, width: int
) -> None:
    found = compared("fp16-overflow", "bad-sample")
    page = opened(chromium, found, tmp_path, width)
    assert headline(found) in " ".join(chromium.evaluate("document.body.innerText").split())
    assert chromium.evaluate("document.querySelectorAll('#curves canvas').length") == 4
    assert chromium.evaluate(f"document.querySelectorAll('{MARKS}').length") == len(found.depth)
    # the first difference is open, and the arrow keys go on from it
    first = chromium.evaluate(READING)
    assert first.startswith("embed.weight · load")
    chromium.evaluate("document.querySelector('.depth').focus()")
    chromium.press("ArrowRight")
    assert chromium.evaluate(READING) != first
    chromium.press("ArrowLeft")
    assert chromium.evaluate(READING) == first
    assert chromium.evaluate("document.documentElement.scrollWidth <= innerWidth")
    light = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    chromium.open(page, width=width, dark=True)
    assert chromium.evaluate("getComputedStyle(document.body).backgroundColor") != light
    assert (chromium.problems, chromium.requests) == ([], [])


def test_a_large_comparison_draws_what_tells_where_it_ran(chromium: Chromium, tmp_path: Path) -> None:
    found = large(10_000, 100_000, every=40)
    opened(chromium, found, tmp_path)
    at = depth(found)["at"]
    assert chromium.evaluate(f"document.querySelectorAll('{MARKS}').length") == len(at) < len(found.depth)
    assert chromium.evaluate("document.querySelectorAll('#curves canvas').length") == 4
    # the backward pass begins at a third of the depth, however few of its rows are drawn
    names = chromium.evaluate(
        "[...document.querySelectorAll('#depth .phase')].map(e => [e.textContent, +e.getAttribute('x')])"
    )
    assert [name for name, _ in names] == ["forward", "backward"]
    width = chromium.evaluate("document.querySelector('.depth').clientWidth") - 74
    assert names[1][1] - names[0][1] == pytest.approx(width / 3, rel=0.02)
    # the first difference is open, and the next row is the one that ran next
    assert chromium.evaluate(READING).startswith("model.decoder.layers.5000.self_attn.q_proj · forward")
    chromium.evaluate("document.querySelector('.depth').focus()")
    chromium.press("ArrowRight")
    assert chromium.evaluate(READING).startswith("model.decoder.layers.5001.self_attn.q_proj · forward")
    assert (chromium.problems, chromium.requests) == ([], [])


def test_what_has_no_number_lies_at_the_top_and_spoils_no_scale(chromium: Chromium, tmp_path: Path) -> None:
    found = compared("fp16-overflow", "bad-sample")
    rows = list(found.depth)
    rows[40] = replace(rows[40], apart=math.inf, rms_b=math.inf)
    rows[41] = replace(rows[41], apart=math.nan, rms_b=math.nan, bound=math.inf)
    opened(chromium, replace(found, depth=tuple(rows)), tmp_path)
    assert "NaN" not in chromium.evaluate("document.querySelector('#depth svg').outerHTML")
    assert "Infinity" not in chromium.evaluate("document.querySelector('#depth svg').outerHTML")
    ticks = chromium.evaluate("[...document.querySelectorAll('#depth .tick')].map(e => e.textContent)")
    assert ticks[-1] == "1"
    chromium.evaluate("document.querySelector('.depth').focus()")
    chromium.press("Home")
    for _ in range(41):
        chromium.press("ArrowRight")
    assert "against NaN · apart NaN" in chromium.evaluate(READING)
    assert (chromium.problems, chromium.requests) == ([], [])
