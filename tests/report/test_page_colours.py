"""The page's colours by their contrast: WCAG's relative luminance of every pair that must be told apart, in both themes."""

from __future__ import annotations

import re
from importlib.resources import files
from itertools import pairwise

import pytest

ASSETS = files("nanhunt.report.html").joinpath("assets")
PAGE, DRAWN, DEPTH = (ASSETS.joinpath(f"{name}.css").read_text() for name in ("page", "drawn", "depth"))
#: Where the dark theme's names start, and where it ends.
DARK, END = PAGE.index("@media (prefers-color-scheme: dark)"), PAGE.index("* {")

#: WCAG 2: text (1.4.3), and what a drawing needs to be understood (1.4.11).
TEXT, GRAPHIC = 4.5, 3.0
#: Neighbours of a ramp: two areas of ten percent are told apart beside one another.
NEIGHBOURS = 1.1

ROOM = [f"h{i}" for i in range(8)]
FALLING = [f"d{i}" for i in range(1, 5)]
#: `.cell.up1` to `.cell.up4`, as drawn.css paints them.
RISING = re.findall(r"\.cell\.up\d \{ fill: var\(--(\w+)\)", DRAWN)


def colours(theme: str) -> dict[str, str]:
    """Return the theme's custom properties; what the dark one does not name is the light one's."""
    light = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", PAGE[:DARK]))
    return light if theme == "light" else light | dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", PAGE[DARK:END]))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def strokes(selector: str) -> list[str]:
    """Return the names of the colours with which drawn.css strokes what a selector ends in."""
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", DRAWN)
    bodies = [body for names, body in rules if any(n.strip().endswith(selector) for n in names.split(","))]
    return [name for body in bodies for name in re.findall(r"stroke: var\(--([\w-]+)\)", body)]


themes = pytest.mark.parametrize("theme", ["light", "dark"])


def test_contrast_is_wcags() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@themes
def test_text_is_read_on_every_ground_it_stands_on(theme: str) -> None:
    its = colours(theme)
    for name in ("ink", "soft", "muted", "fault", "good", "doubt"):
        for ground in ("paper", "raised", "fault-wash"):
            assert contrast(its[name], its[ground]) >= TEXT, (name, ground)
    assert contrast(its["paper"], its["fault"]) >= TEXT  # a bad token


def test_no_text_and_no_drawing_is_made_paler_than_its_colour() -> None:
    faded = re.findall(r"([^{}]+)\{[^{}]*opacity: 0?\.\d", PAGE + DRAWN + DEPTH)
    # the wash of a selection lies over the curves, and must let them through
    assert [selector.strip() for selector in faded] == [".u-select"]


@themes
def test_lines_and_bars_stand_out_from_the_paper(theme: str) -> None:
    its = colours(theme)
    for name in ("accent", "second", "muted", "soft", "fault", "doubt"):
        assert contrast(its[name], its["paper"]) >= GRAPHIC, name
    # a bar of the steps before has an outline, and the onset's bar stands out from what fills it
    assert strokes("rect.before") == ["muted"]
    assert contrast(its["accent"], its["hairline"]) >= GRAPHIC


@themes
@pytest.mark.parametrize("ramp", [ROOM, ["h7", *RISING], ["h7", *FALLING]], ids=["room", "rising", "falling"])
def test_a_ramps_neighbours_differ_in_lightness_and_in_one_direction(theme: str, ramp: list[str]) -> None:
    its = colours(theme)
    light = [luminance(its[name]) for name in ramp]
    assert light in (sorted(light), sorted(light, reverse=True))
    for one, other in pairwise(ramp):
        assert contrast(its[one], its[other]) >= NEIGHBOURS, (one, other)


@themes
def test_a_mark_stands_out_from_its_cell(theme: str) -> None:
    its = colours(theme)
    for kind, ground in [("bad", "ink"), *((f"down{i}", f"d{i}") for i in range(1, 5))]:
        (stroke,) = strokes(f".mark.{kind}")
        assert contrast(its[stroke], its[ground]) >= GRAPHIC, kind


@themes
@pytest.mark.parametrize(
    ("line", "seam"), [(".cursor .line", ".cursor .seam"), (".first-sign.dots", ".first-sign.seam")]
)
def test_a_line_over_cells_is_of_two_tones_one_of_which_stands_out_from_any_cell(
    theme: str, line: str, seam: str
) -> None:
    its = colours(theme)
    tones = [its[name] for name in (*strokes(line), *strokes(seam))]
    assert len(tones) == 2
    for cell in (*ROOM, *FALLING, "ink", "paper"):
        assert max(contrast(tone, its[cell]) for tone in tones) >= GRAPHIC, cell
