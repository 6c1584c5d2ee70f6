"""The page of `nanhunt formats`, in its three forms."""

from __future__ import annotations

import json
import math
import re

import pytest

from nanhunt.errors import UsageError
from nanhunt.formats.catalogue import FORMATS
from nanhunt.report.formats_page import formats_document, render_formats, render_formats_markdown

VALUES = [0.1, 70000.0, -1e-40, math.nan, -math.inf, 0.0, 500.0, 3.1415926]


def test_the_document_is_json_without_bare_nonfinite_numbers() -> None:
    document = json.loads(json.dumps(formats_document([], VALUES), allow_nan=False))
    assert [f["name"] for f in document["formats"]] == [f.name for f in FORMATS]
    assert [v["value"] for v in document["values"]][3:5] == ["NaN", "-Infinity"]
    fates = {f["format"]: f for f in document["values"][1]["fates"]}
    assert fates["fp16"]["becomes"] == "Infinity"
    assert fates["fp16"]["kind"] == "overflow"
    assert fates["e4m3fn"]["becomes"] == "NaN"
    assert fates["bf16"]["becomes"] == 70144


def test_the_document_has_exact_numbers_and_their_exact_texts() -> None:
    (bf16,) = formats_document(["bfloat16"], [])["formats"]
    assert bf16["max"] == 3.3895313892515355e38
    assert bf16["exact"] == {
        "max": "255/128·2^127",
        "smallest_normal": "2^-126",
        "smallest_subnormal": "2^-133",
        "eps": "2^-7",
    }
    (mxfp8,) = formats_document(["mxfp8"], [])["formats"]
    assert (mxfp8["kind"], mxfp8["element"], mxfp8["scale"], mxfp8["bits"]) == ("block", "e4m3fn", "e8m0fnu", 8.25)


@pytest.mark.parametrize("width", [20, 40, 60, 79, 80, 100, 136, 200])
def test_no_line_is_wider_than_asked_and_no_number_is_cut(width: int) -> None:
    page = render_formats([], VALUES, width=width, color=False)
    assert "…" not in page
    assert max(map(len, page.splitlines())) <= width
    assert "~3.39e38" in page
    assert "65504" in page
    assert "57344" in page


def test_eighty_columns_hold_every_column_of_the_plain_formats() -> None:
    page = render_formats([], [], width=80, color=False)
    header = page.splitlines()[:2]
    for title in ("sign/exp/", "smallest", "NaN"):
        assert title in header[0]
    for title in ("format", "bits", "mantissa", "largest", "normal", "subnormal", "eps", "inf", "codes"):
        assert title in header[1]
    assert re.search(r"^e4m3fn +8 +1/4/3 +448 +2\^-6 +2\^-9 +2\^-3 +no +2$", page, re.MULTILINE)


def test_a_wide_page_has_the_exact_form_with_the_decimal_beside_it() -> None:
    page = render_formats([], [], width=160, color=False)
    assert "255/128·2^127 = ~3.39e38" in page
    assert "2^-14 = 6.103515625e-5" in page


def test_one_name_asks_for_the_card() -> None:
    card = render_formats(["torch.bfloat16"], [], width=80, color=False)
    for fact in ("255/128·2^127 = ~3.39e38", "2^-133 = ~9.18e-41", "88.7189", "261.0 binades", "becomes inf", "254"):
        assert fact in card
    assert "2.12" in render_formats(["fp8"], [], width=80, color=False)
    assert "e8m0fnu per 32 elements" in render_formats(["mxfp4"], [], width=80, color=False)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("width", [50, 80])
def test_every_card_fits(fmt, width: int) -> None:  # type: ignore[no-untyped-def]
    for page in (
        render_formats([fmt.name], VALUES, width=width, color=False),
        render_formats_markdown([fmt.name], VALUES),
    ):
        assert fmt.title.split()[0] in page
    assert max(map(len, render_formats([fmt.name], VALUES, width=width, color=False).splitlines())) <= width


def test_a_value_is_told_in_words_for_each_format() -> None:
    page = render_formats(["fp16", "bf16", "e4m3fn", "e2m1fn", "fp32"], [70000.0, 1e-9], width=80, color=False)
    assert re.search(r"^fp16 +inf +- +overflows to inf$", page, re.MULTILINE)
    assert re.search(r"^bf16 +70144 +~0.0021 +rounded$", page, re.MULTILINE)
    assert re.search(r"^e4m3fn +NaN +- +overflows to NaN$", page, re.MULTILINE)
    assert re.search(r"^e2m1fn +6 +~1 +saturates at 6$", page, re.MULTILINE)
    assert re.search(r"^fp32 +70000 +0 +exact$", page, re.MULTILINE)
    assert re.search(r"^fp16 +0 +1 +flushed to 0$", page, re.MULTILINE)
    assert "e4m3fn: torch casts saturate at 448 from 2.12 on" in page


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("e4m3fn", math.inf, "no infinity: NaN"),
        ("e8m0", -1.0, "no sign: NaN"),
        ("e8m0", 0.0, "no zero: NaN"),
        ("e8m0", math.inf, "no infinity: NaN"),
        ("fp4", math.nan, "no NaN: becomes 0"),
        ("fp16", 2.0**-24, "subnormal, exact"),
        ("fp16", 1.1 * 2.0**-24, "subnormal, rounded"),
        ("mxfp8", math.nan, "NaN"),
        ("mxfp8", math.inf, "spoils its block"),
        ("fp32", math.nan, "NaN"),
    ],
)
def test_the_reason_for_a_loss_is_in_the_words(name: str, value: float, words: str) -> None:
    assert formats_document([name], [value])["values"][0]["fates"][0]["words"] == words


def test_names_given_twice_are_shown_once_in_the_order_given() -> None:
    document = formats_document(["fp8", "bf16", "e4m3", "bfloat16"], [])
    assert [f["name"] for f in document["formats"]] == ["e4m3fn", "bf16"]


def test_color_is_in_the_page_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in render_formats([], [1e9], width=100, color=True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" not in render_formats([], [1e9], width=100, color=False)


def test_markdown_tables_have_as_many_cells_as_titles() -> None:
    page = render_formats_markdown([], VALUES)
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2 + len(VALUES)
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
    assert "255/128·2^127 = ~3.39e38" in page


def test_an_unknown_name_is_a_usage_error_in_every_form() -> None:
    with pytest.raises(UsageError, match="bf61"):
        formats_document(["bf61"], [])
    with pytest.raises(UsageError, match="bf61"):
        render_formats(["bf61"], [], width=80, color=False)
    with pytest.raises(UsageError, match="bf61"):
        render_formats_markdown(["bf61"], [])
