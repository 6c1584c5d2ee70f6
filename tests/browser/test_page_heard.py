"""The report as it is heard: what a screen reader is given of its tables, its curves, and of what changes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from tests.browser.chromium import Chromium
from tests.browser.screenshots import page


def heard(chromium: Chromium) -> list[dict[str, Any]]:
    """Return what Chromium hands to a screen reader."""
    nodes = chromium.call("Accessibility.getFullAXTree")["nodes"]
    return [node for node in nodes if not node["ignored"]]


def roles(chromium: Chromium) -> Counter[str]:
    return Counter(node["role"]["value"] for node in heard(chromium))


def test_a_table_stays_a_table_on_a_narrow_page(chromium: Chromium, tmp_path: Path) -> None:
    report = page("bad-sample", tmp_path)
    chromium.open(report)
    wide = roles(chromium)
    chromium.open(report, width=400)
    narrow = roles(chromium)
    assert wide["table"] >= 3
    for role in ("table", "row", "columnheader", "cell"):
        assert narrow[role] == wide[role], role


def test_a_narrow_pages_headings_of_columns_are_heard_once(chromium: Chromium, tmp_path: Path) -> None:
    chromium.open(page("bad-sample", tmp_path), width=400)
    said = Counter(node["name"]["value"] for node in heard(chromium) if node["role"]["value"] == "StaticText")
    # words that stand nowhere else on the page
    for label in ("changed, and read back", "because", "verdict"):
        assert said[label] == 1, label


def test_every_curve_says_its_ends_its_extremes_and_the_onset(chromium: Chromium, tmp_path: Path) -> None:
    chromium.open(page("fp16-overflow", tmp_path))
    names = chromium.evaluate(
        "[...document.querySelectorAll('canvas')].map((one) => [one.getAttribute('role'), one.getAttribute('aria-label')])"
    )
    assert len(names) == 5
    for role, name in names:
        assert role == "img"
        for word in ("first", "last", "lowest", "highest", "onset"):
            assert f"{word} " in name, (word, name)
    loss = names[0][1]
    assert loss.startswith("loss: first 4.36")
    assert "last NaN at step 39, lowest" in loss
    assert loss.endswith("1 of 10 without a finite value, onset NaN at step 39")


def test_of_the_tensor_only_its_title_is_announced(chromium: Chromium, tmp_path: Path) -> None:
    chromium.open(page("sqrt-zero", tmp_path))
    live = "[...document.querySelectorAll('#tensor, #tensor *')].filter((node) => node.hasAttribute('aria-live'))"
    assert chromium.evaluate(f"{live}.map((node) => node.localName)") == ["h3"]
    # a reader hears of a change only in an element that was there before it
    chromium.evaluate(f"window.before = {live}[0]")
    title = chromium.evaluate("window.before.textContent")
    chromium.evaluate("document.querySelector('.cells').focus()")
    chromium.press("ArrowDown")
    chromium.press("Enter")
    assert chromium.evaluate("document.querySelector('#tensor h3') === window.before")
    assert chromium.evaluate("window.before.textContent") != title
