"""The heat map's marks as they are drawn: crossed cells, minus signs, lines of two tones, a legend that shows the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.report.html.page import HtmlRenderer
from nanhunt.trace.reader import Trace
from tests.browser.chromium import Chromium
from tests.browser.kept import trace_of

READING = "document.querySelector('#heat-reading').textContent"
LEGEND = "[...document.querySelectorAll('.legend')].at(0).textContent"
GROWTH = "[...document.querySelectorAll('.controls button')].find((button) => button.textContent === 'growth')"


def diagnosis_of(fault: str) -> Diagnosis:
    return diagnose(Trace.open(trace_of(fault)))


def opened(chromium: Chromium, diagnosis: Diagnosis, folder: Path, *, dark: bool = False) -> None:
    page = folder / "page.html"
    page.write_text(HtmlRenderer().render(diagnosis), encoding="utf-8")
    chromium.open(page, dark=dark)
    assert chromium.problems == []


def marked(chromium: Chromium, place: str) -> dict[str, str]:
    """Return the colours of the marks that are drawn, by kind of cell."""
    found = chromium.evaluate(
        f"[...document.querySelectorAll('{place} .mark')].map((node) => [node.classList[1], getComputedStyle(node).stroke])"
    )
    return dict(found)


@pytest.mark.parametrize("dark", [False, True])
def test_a_nan_is_crossed_out_on_the_map_as_in_its_legend(chromium: Chromium, tmp_path: Path, dark: bool) -> None:
    opened(chromium, diagnosis_of("fp16-overflow"), tmp_path, dark=dark)
    paper = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    assert marked(chromium, ".cells") == {"bad": paper}
    assert marked(chromium, ".legend") == {"bad": paper}
    assert chromium.evaluate("document.querySelector('.legend .mark').closest('span').textContent") == "NaN or Inf"


def test_every_run_of_bad_cells_has_a_mark_that_stays_inside_it(chromium: Chromium, tmp_path: Path) -> None:
    opened(chromium, diagnosis_of("fp16-overflow"), tmp_path)
    of = "document.querySelector('.cells .{0}.bad')"
    boxes, marks = (
        chromium.evaluate(f"{of.format(name)}.getAttribute('d').split('M').length") for name in ("cell", "mark")
    )
    assert marks == boxes > 2
    sizes = [
        chromium.evaluate(f"(b => [b.x, b.y, b.x + b.width, b.y + b.height])({of.format(name)}.getBBox())")
        for name in ("cell", "mark")
    ]
    (left, top, right, bottom), (west, north, east, south) = sizes
    assert left < west < east < right
    assert top < north < south < bottom


def test_what_falls_has_a_minus_on_the_map_as_in_its_legend(chromium: Chromium, tmp_path: Path) -> None:
    opened(chromium, diagnosis_of("lr-spike"), tmp_path)
    on_map, in_legend = marked(chromium, ".cells"), marked(chromium, ".legend")
    assert "down1" in on_map
    assert set(in_legend) == {"bad", "down1", "down2", "down3", "down4"}
    assert on_map["down1"] == in_legend["down1"]


def test_the_first_sign_is_a_line_of_two_tones_and_in_the_legend(chromium: Chromium, tmp_path: Path) -> None:
    diagnosis = diagnosis_of("lr-spike")
    assert diagnosis.onset is not None
    opened(chromium, diagnosis, tmp_path)
    assert "first sign" not in chromium.evaluate(LEGEND)
    opened(chromium, replace(diagnosis, onset=replace(diagnosis.onset, lead_step=34)), tmp_path)
    assert "first sign" in chromium.evaluate(LEGEND)
    for place in (".cells", ".legend"):
        strokes = chromium.evaluate(
            f"[...document.querySelectorAll('{place} .first-sign')].map((node) => getComputedStyle(node).stroke)"
        )
        assert len(set(strokes)) == 2, place


def test_growth_is_told_against_the_steps_before_the_onset(chromium: Chromium, tmp_path: Path) -> None:
    diagnosis = diagnosis_of("lr-spike")
    opened(chromium, diagnosis, tmp_path)
    assert "as before" in chromium.evaluate(LEGEND)
    assert chromium.evaluate(READING).endswith("binades against before")


def test_growth_is_not_told_where_no_step_comes_before_the_onset(chromium: Chromium, tmp_path: Path) -> None:
    diagnosis = diagnosis_of("lr-spike")
    assert diagnosis.onset is not None
    assert diagnosis.recording is not None
    first = diagnosis.recording.histories.columns[0][0]
    opened(chromium, replace(diagnosis, onset=replace(diagnosis.onset, step=first, lead_step=None)), tmp_path)
    assert chromium.evaluate(f"{GROWTH} === undefined")
    assert "no step before the onset" in chromium.evaluate("document.querySelector('#heat').innerText")
    assert "against" not in chromium.evaluate(READING)


def test_growth_without_an_onset_says_that_it_is_against_all_steps(chromium: Chromium, tmp_path: Path) -> None:
    opened(chromium, replace(diagnosis_of("lr-spike"), onset=None), tmp_path)
    chromium.evaluate(f"{GROWTH}.click()")
    assert "as the median of all steps" in chromium.evaluate(LEGEND)
    assert chromium.evaluate(READING).endswith("binades against the median of all steps")
