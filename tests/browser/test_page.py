"""The HTML report as it is seen: headless Chromium opens pages of six faults, clicks, types, and complains of nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.report.html.page import HtmlRenderer
from nanhunt.trace.compact import parquet_writer
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import METADATA_KEY, ArrowSchema
from tests.browser.chromium import Chromium
from tests.browser.kept import FAULTS, trace_of

#: Ends a script, a comment, an attribute and a tag, and would say so if it ran.
ATTACK = "</script>--></style><img src=x onerror='window.struck=1'>\"<svg onload=window.struck=1>"
#: What decides what a note is, and is not shown as it stands.
MEANT = ("$float", "kind", "phase", "check", "output", "recipe", "formats", "does", "dtype", "cause")

PageOf = Callable[[str], Path]

VISIBLE = "document.body.innerText"
READING = "document.querySelector('#heat-reading').textContent"
TITLE = "document.querySelector('#tensor h3').textContent"
#: A row that is seen whole and is not the open one.
CLICKED = """(() => {
  const top = document.querySelector('.cells').scrollTop;
  const open = document.querySelector('#tensor h3 code').textContent;
  const rows = [...document.querySelectorAll('.cells .label title')].map((title, at) => ({ at, name: title.textContent }));
  return rows.find(({ at, name }) => at * 16 >= top && name !== open);
})()"""


@cache
def diagnosis_of(fault: str) -> Diagnosis:
    return diagnose(Trace.open(trace_of(fault)))


@pytest.fixture(scope="module")
def page_of(tmp_path_factory: pytest.TempPathFactory) -> PageOf:
    folder = tmp_path_factory.mktemp("pages")

    def write(fault: str) -> Path:
        page = folder / f"{fault}.html"
        if not page.exists():
            page.write_text(HtmlRenderer().render(diagnosis_of(fault)), encoding="utf-8")
        return page

    return write


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_without_a_request_or_a_complaint(chromium: Chromium, page_of: PageOf, fault: str) -> None:
    chromium.open(page_of(fault))
    diagnosis = diagnosis_of(fault)
    seen = " ".join(chromium.evaluate(VISIBLE).split())
    assert " ".join(diagnosis.summary.replace("`", "").split()) in seen
    assert diagnosis.suspects[0].cause in seen
    assert chromium.evaluate("document.querySelectorAll('#curves canvas').length") >= 3
    assert chromium.evaluate("document.querySelectorAll('.cells path.cell').length") >= 1
    # the tensor of the onset is open without a click
    assert chromium.evaluate("document.querySelectorAll('#tensor canvas, #tensor rect').length") > 1
    assert chromium.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert (chromium.problems, chromium.requests) == ([], [])


@pytest.mark.parametrize(("fault", "width"), [*((fault, 1280) for fault in FAULTS), ("fp16-overflow", 400)])
def test_a_click_on_a_row_of_the_heat_map_opens_that_tensor(
    chromium: Chromium, page_of: PageOf, fault: str, width: int
) -> None:
    chromium.open(page_of(fault), width=width)
    chromium.evaluate("document.querySelector('.cells').scrollIntoView()")
    box = chromium.evaluate("(b => [b.left, b.top, b.width])(document.querySelector('.cells').getBoundingClientRect())")
    before = chromium.evaluate(TITLE)
    row = chromium.evaluate(CLICKED)
    scrolled = chromium.evaluate("document.querySelector('.cells').scrollTop")
    chromium.click(box[0] + 0.5 * box[2], box[1] + 16 * row["at"] + 8 - scrolled)
    assert chromium.evaluate(TITLE).startswith(f"{row['name']} ")
    assert chromium.evaluate(TITLE) != before
    assert chromium.evaluate(READING).startswith(f"{row['name']} · step ")
    assert chromium.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert (chromium.problems, chromium.requests) == ([], [])


def test_arrow_keys_move_on_the_heat_map_and_enter_opens(chromium: Chromium, page_of: PageOf) -> None:
    chromium.open(page_of("sqrt-zero"))
    before = chromium.evaluate(TITLE)
    chromium.evaluate("document.querySelector('.cells').focus()")
    at = chromium.evaluate(READING)
    chromium.press("ArrowLeft")
    assert chromium.evaluate(READING).split(" · ")[0] == at.split(" · ")[0]
    assert chromium.evaluate(READING).split(" · ")[1] != at.split(" · ")[1]
    chromium.press("ArrowDown")
    moved = chromium.evaluate(READING).split(" · ")[0]
    assert moved != at.split(" · ")[0]
    assert chromium.evaluate(TITLE) == before
    chromium.press("Enter")
    assert chromium.evaluate(TITLE).startswith(moved)
    assert chromium.problems == []


def test_curves_zoom_by_keys_and_by_a_drag_and_come_back(chromium: Chromium, page_of: PageOf) -> None:
    chromium.open(page_of("lr-spike"))
    pixels = "[...document.querySelectorAll('#curves canvas')].map(c => c.toDataURL()).join()"
    whole = chromium.evaluate(pixels)
    chromium.evaluate("document.querySelector('.curves').focus()")
    chromium.press("+")
    zoomed = chromium.evaluate(pixels)
    assert zoomed != whole
    chromium.press("ArrowRight")
    assert chromium.evaluate(pixels) not in (whole, zoomed)
    chromium.press("0")
    assert chromium.evaluate(pixels) == whole
    chromium.evaluate("document.querySelector('.curves').scrollIntoView()")
    box = chromium.evaluate(
        "(b => [b.left, b.top, b.width])(document.querySelector('.u-over').getBoundingClientRect())"
    )
    chromium.drag(box[0] + 0.3 * box[2], box[1] + 30, box[0] + 0.6 * box[2])
    assert chromium.evaluate(pixels) != whole
    assert chromium.problems == []


def test_colours_follow_the_readers_theme_and_paper_is_white(
    chromium: Chromium, page_of: PageOf, tmp_path: Path
) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    chromium.open(page_of("bad-sample"))
    light = chromium.evaluate(background)
    chromium.open(page_of("bad-sample"), dark=True)
    assert chromium.evaluate(background) != light
    chromium.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    # and what was opened for the paper is closed again
    assert chromium.evaluate("document.querySelectorAll('details[open]').length") == 0
    assert chromium.problems == []


def test_on_paper_tables_end_at_the_margin_and_grounds_are_printed(chromium: Chromium, page_of: PageOf) -> None:
    chromium.open(page_of("bad-sample"), width=700)
    chromium.call("Emulation.setEmulatedMedia", media="print")
    try:
        chromium.evaluate("dispatchEvent(new Event('beforeprint'))")
        right = "e => e.getBoundingClientRect().right"
        margin = chromium.evaluate(f"({right})(document.querySelector('main'))")
        ends = chromium.evaluate(f"[...document.querySelectorAll('table')].map({right})")
        assert len(ends) > 3
        assert max(ends) <= margin + 1
        assert chromium.evaluate("getComputedStyle(document.querySelector('.tokens b')).printColorAdjust") == "exact"
    finally:
        chromium.call("Emulation.setEmulatedMedia", media="")


def test_the_bad_sample_is_shown_with_its_position_and_its_tokens(chromium: Chromium, page_of: PageOf) -> None:
    chromium.open(page_of("bad-sample"))
    trace = Trace.open(trace_of("bad-sample"))
    fields = trace.notes_of("batch")[0]["micros"][0]["fields"]
    tokens = next(f for f in fields if f["field"] == "tokens")["excerpts"][0]
    position = next(iter(trace.notes_of("samples")[0]["positions"].values()))[0]
    shown = "[...document.querySelectorAll('.tokens')].map(t => [...t.querySelectorAll('span,b')].map(c => Number(c.textContent)))"
    assert tokens["values"] in chromium.evaluate(shown)
    assert chromium.evaluate("document.querySelector('.tokens b').title") == f"position {position}"


def struck(value: Any) -> Any:
    """Put the attack before every text of a note."""
    if isinstance(value, dict):
        return {key: item if key in MEANT else struck(item) for key, item in value.items()}
    if isinstance(value, list):
        return [struck(item) for item in value]
    return ATTACK + value if isinstance(value, str) else value


def write_struck(trace: Path, to: Path) -> None:
    """Write a trace again, with the attack in the names of its modules and in all that its notes say."""
    file = pq.ParquetFile(trace)
    table, metadata = file.read(), json.loads(file.metadata.metadata[METADATA_KEY])
    modules = pa.array([ATTACK + module for module in table.column("module").to_pylist()], pa.string())
    table = table.set_column(table.schema.get_field_index("module"), ArrowSchema.field("module"), modules)
    metadata["notes"] = [{"kind": note["kind"], "body": struck(note["body"])} for note in metadata["notes"]]
    with to.open("wb") as target, parquet_writer(target, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({METADATA_KEY: json.dumps(metadata)})


def test_names_lines_and_texts_that_are_markup_stay_text(chromium: Chromium, tmp_path: Path) -> None:
    trace, page = tmp_path / f"{ATTACK.replace('/', '')}.parquet", tmp_path / "page.html"
    write_struck(trace_of("bad-sample"), trace)
    page.write_text(HtmlRenderer().render(diagnose(Trace.open(trace))), encoding="utf-8")
    chromium.open(page)
    assert chromium.evaluate("window.struck") is None
    # no element but those of the page
    assert (
        chromium.evaluate("document.querySelectorAll('img, iframe, svg[onload], main script, main style').length") == 0
    )
    for place in ("h1", "#where .facts", ".code", ".path", ".suspect", "#assumptions", "footer", ".cells .label title"):
        assert "<img src=x" in chromium.evaluate(f"document.querySelector({place!r}).textContent"), place
    assert (chromium.problems, chromium.requests) == ([], [])
