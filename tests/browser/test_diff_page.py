"""The page of a comparison as it is seen: curves are drawn, arrow keys move along the depth, nothing is asked or complained of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nanhunt.comparison.compare import compare
from nanhunt.report.diff.html import DiffHtml
from nanhunt.report.diff.reading import headline
from nanhunt.trace.reader import Trace
from tests.browser.chromium import Chromium, find_chromium, running
from tests.browser.kept import trace_of

BROWSER = find_chromium()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium; `make browser` installs Debian's")

READING = "document.querySelector('#depth-reading').textContent"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    assert BROWSER is not None
    with running(BROWSER) as browser:
        yield browser


@pytest.mark.parametrize("width", [400, 1280])
def test_a_comparison_is_told_and_drawn_without_a_request_or_a_complaint(
    chromium: Chromium, tmp_path: Path, width: int
) -> None:
    found = compare(Trace.open(trace_of("fp16-overflow")), Trace.open(trace_of("bad-sample")))
    page = tmp_path / "diff.html"
    page.write_text(DiffHtml().render(found), encoding="utf-8")
    assert page.stat().st_size < 500_000
    chromium.open(page, width=width)
    assert headline(found) in " ".join(chromium.evaluate("document.body.innerText").split())
    assert chromium.evaluate("document.querySelectorAll('#curves canvas').length") == 4
    assert chromium.evaluate("document.querySelectorAll('#depth circle, #depth .born').length") == len(found.depth)
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
