"""The report where a drawing fails: it says so in that drawing's place, and the rest of the page is there."""

from __future__ import annotations

from pathlib import Path

from tests.browser.chromium import Chromium
from tests.browser.screenshots import page

#: A plot whose maker throws, whatever the page's script puts into its place.
NO_PLOT = """Object.defineProperty(window, "uPlot", {
  get: () => function () { throw new Error("the canvas is gone"); }, set: () => undefined,
})"""


def told(chromium: Chromium, place: str) -> str:
    return str(chromium.evaluate(f"document.querySelector('{place} .undrawn')?.textContent ?? ''"))


def test_a_browser_that_cannot_open_the_series_draws_the_rest_and_says_so(chromium: Chromium, tmp_path: Path) -> None:
    chromium.open(page("fp16-overflow", tmp_path), first="delete window.DecompressionStream")
    assert told(chromium, "#heat").startswith("The heat map cannot be drawn: this browser cannot open")
    assert "Safari 16.4" in told(chromium, "#heat")
    assert chromium.evaluate("document.querySelectorAll('#curves canvas').length") == 4
    # told on the console too, and caught: no rejection that nobody handles
    assert len(chromium.problems) == 1
    assert "unhandled" not in chromium.problems[0].lower()
    assert "Uncaught" not in chromium.problems[0]


def test_a_drawing_that_throws_takes_no_other_with_it(chromium: Chromium, tmp_path: Path) -> None:
    chromium.open(page("fp16-overflow", tmp_path), first=NO_PLOT)
    assert told(chromium, "#curves") == "The curves cannot be drawn: the canvas is gone."
    assert chromium.evaluate("document.querySelectorAll('.cells .cell').length") >= 1
    chromium.wait("document.querySelector('#tensor .undrawn') !== null")
    assert told(chromium, "#tensor") == "The tensor cannot be drawn: the canvas is gone."
    # what is drawn is drawn again at another width, whatever failed
    before = chromium.evaluate("document.querySelector('.cells svg').getAttribute('width')")
    chromium.call("Emulation.setDeviceMetricsOverride", width=700, height=900, deviceScaleFactor=1, mobile=False)
    chromium.wait(f"document.querySelector('.cells svg').getAttribute('width') !== '{before}'")
