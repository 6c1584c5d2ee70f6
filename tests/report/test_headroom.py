"""Lines on formats, bars, and sentences of advice."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanhunt.diagnosis.advice import GradientLoss
from nanhunt.diagnosis.cause import HeadroomRow
from nanhunt.diagnosis.format_verdict import Answer, Deciding, FormatVerdict, Side, format_verdicts
from nanhunt.formats.shared_scale import Lost
from nanhunt.report.advice import advice_lines
from nanhunt.report.headroom import FormatLine, bar, format_lines
from nanhunt.report.trace_formats import TraceFormats
from tests.report.samples import HEALTHY, OVERFLOW, advised, diagnosis, row


def lines_of(*rows: HeadroomRow) -> list[FormatLine]:
    return format_lines(format_verdicts((), rows), rows)


def magnitudes(amin: float, amax: float, format: str = "fp16", **more: object) -> HeadroomRow:
    return replace(row("x", format, 1.0, **more), amax=amax, amin=amin)


# --- formats ---------------------------------------------------------------------------------------------------------


def test_a_format_has_one_line_and_the_worst_tensors_come_first() -> None:
    bf16, fp16 = row("roomy", "bf16", 90.0), [row(f"m{i}", "fp16", float(i)) for i in range(5)]
    first, second = lines_of(bf16, *fp16)
    assert (first.format, second.format) == ("fp16", "bf16")
    assert [t.module for t in first.tensors] == ["m0", "m1", "m2"]
    assert [t.level for t in first.tensors] == ["near", "near", "roomy"]
    assert (first.mark, second.mark) == ("!", "✓")


def test_sides_that_differ_are_told_apart_and_what_is_not_recorded_is_said() -> None:
    (line,) = lines_of(row("x", "fp16", -3.0, overflow_fraction=0.1), row("g", "fp16", 9.0, role="grad_output"))
    assert line.text == "does not fit: forward does not, gradients fit"
    (line,) = lines_of(row("x", "fp16", 9.0))
    assert line.text.startswith("forward fits, gradients cannot be told")


def test_a_block_format_whose_blocks_were_not_looked_at_says_so() -> None:
    both = (row("x", "nvfp4", 0.0), row("g", "nvfp4", 0.0, role="grad_output"))
    (line,) = lines_of(*both)
    assert "each element in the block that suits it best" in line.text
    (line,) = lines_of(*(replace(r, measured=True) for r in both))
    assert line.text == "fits"


@pytest.mark.parametrize(("looked", "said"), [((3, 8), "fits; blocks on 3 of 8 recorded steps"), ((8, 8), "fits")])
def test_figures_of_blocks_say_on_how_many_steps_they_rest(looked: tuple[int, int], said: str) -> None:
    rows = tuple(replace(row("x", "nvfp4", 0.0, role=role), measured=True) for role in ("output", "grad_output"))
    verdicts = [replace(v, looked=looked) for v in format_verdicts((), rows)]
    (line,) = format_lines(verdicts, rows)
    assert line.text == said
    page = TraceFormats(trace="t", rows=rows, verdicts=tuple(verdicts), whole=True).markdown()
    assert ("blocks on 3 of 8 recorded steps, margins on every one" in page) is (looked == (3, 8))
    for words in ("along the last dimension only", "weights have 16×16"):
        assert words in page


def test_the_legend_says_which_columns_are_of_some_steps_and_which_shares_are_estimates() -> None:
    rows = (replace(row("x", "e4m3fn", 9.0), measured=True), row("x", "fp16", 9.0))
    verdicts = tuple(replace(v, looked=(3, 8)) for v in format_verdicts((), rows))
    page = TraceFormats(trace="t", rows=rows, verdicts=verdicts, whole=True).markdown()
    assert "rows and blocks on 3 of 8 recorded steps, all else on every one" in page
    assert page.count("from 2^15 elements on are estimates") == 2


def test_every_share_that_is_not_none_reads_as_some() -> None:
    (line,) = lines_of(row("x", "e4m3fn", 9.0, flushed_fraction=1.0, role="grad_output"))
    assert line.tensors[0].text == "100 % of elements to zero, 0 % of energy"
    assert line.tensors[0].per == "with a scale per tensor"
    assert "blocks were not looked at" in line.text


def test_a_scale_is_offered_only_where_one_helps() -> None:
    rows = (row("over", "fp16", -3.0, overflow_fraction=0.1, best_shift=-4), row("roomy", "fp16", 9.0))
    (line,) = lines_of(*rows)
    assert [(t.module, t.scale) for t in line.tensors] == [("over", "×1/16"), ("roomy", "")]
    (line,) = lines_of(replace(rows[1], overflowed=3))
    assert line.tensors[0].scale == ""


# --- bars ------------------------------------------------------------------------------------------------------------


def test_a_bar_shows_a_tensor_in_its_formats_range() -> None:
    assert str(bar(magnitudes(2.0**-24, 65504.0), 10)) == " │██████████│ "
    assert str(bar(magnitudes(1.0, 1.9), 10)) == " │░░░░░░█░░░│ "
    assert str(bar(magnitudes(1.0, 1e6, overflow_fraction=0.1), 10)) == " │░░░░░░████│█"
    assert str(bar(magnitudes(1e-9, 1.0), 10)) == "█│███████░░░│ "
    assert str(bar(magnitudes(1e-12, 1e-11), 10)) == "█│░░░░░░░░░░│ "
    assert bar(magnitudes(0.0, 0.0), 10) is None


def test_under_a_scale_the_largest_stands_at_the_end() -> None:
    for scale in (1e-9, 1.0, 1e9):
        assert str(bar(magnitudes(2.0**-6 * scale, scale, "e4m3fn"), 9)).endswith("███│ ")


@given(
    st.floats(1e-30, 1e30), st.floats(1.0, 1e30), st.integers(1, 40), st.sampled_from(["fp16", "bf16", "e5m2", "nvfp4"])
)
def test_a_bar_is_as_wide_as_it_was_asked_to_be(amin: float, ratio: float, cells: int, name: str) -> None:
    drawn = bar(magnitudes(amin, min(amin * ratio, 1e38), name), cells)
    assert drawn is not None
    assert len(str(drawn)) == cells + 4


# --- advice ----------------------------------------------------------------------------------------------------------


def told(topic: str, **more: object) -> str:
    sample = diagnosis("healthy", "", headroom=OVERFLOW.headroom, **more)
    return " ".join(text for name, text in advice_lines(sample) if name == topic)


def test_the_loss_scale_is_told_with_its_range_and_the_tensors_at_both_ends() -> None:
    text = told("loss scale", advice=advised(11, 17))
    assert text.startswith("2^14 (16384) for fp16; 2^11 to 2^17 work")
    assert "blocks.5.mlp (grad_output) becomes zero" in text
    assert "head (grad_output) overflows" in text


def test_where_one_is_among_the_scales_that_work_none_is_recommended() -> None:
    assert told("loss scale", advice=advised(-28, 7)).startswith("none is needed for fp16; 2^-28 to 2^7 work")
    assert told("loss scale", advice=advised(-28, -3)).startswith("2^-16")


def test_the_formats_sentences_name_the_loss_scales_that_the_verdict_rests_on() -> None:
    ends = (("least loss scale", "low", 5), ("most loss scale", "high", 20))

    def fp16(answer: Answer) -> str:
        deciding = tuple(
            Deciding(module=m, role="grad", name="", answer=answer, what=what, number=n) for what, m, n in ends
        )
        forward = Side(answer=Answer.FITS)
        verdict = FormatVerdict(format="fp16", forward=forward, gradients=Side(answer=answer, deciding=deciding))
        return told("fp16", advice=advised(5, 20), verdicts=(verdict,))

    assert fp16(Answer.SCALED) == "suits with a loss scale of 2^5 to 2^20"
    assert fp16(Answer.NOT) == (
        "does not suit this run: no one loss scale works: low (grad) needs a loss scale ≥ 2^5, "
        "high (grad) takes a loss scale ≤ 2^20"
    )


@pytest.mark.parametrize(
    ("used", "said"),
    [
        ((65536.0, 65536.0), "65536, within the range"),
        ((1.0, 1024.0), "1 to 1024, too small"),
        ((2.0**20, 2.0**20), "1048576, too large"),
        ((1.0, 2.0**20), "too small and too large"),
        (None, "used none"),
    ],
)
def test_the_runs_own_loss_scale_is_held_against_the_range(used: tuple[float, float] | None, said: str) -> None:
    assert said in told("loss scale", advice=advised(11, 17, used=used))


def test_where_no_scale_works_both_tensors_are_named() -> None:
    text = told("loss scale", advice=advised(17, 11))
    assert text.startswith("no one scale works in fp16: blocks.5.mlp (grad_output) needs 2^17 or more, head")


def test_e4m3_is_held_against_e5m2_by_what_they_flush_and_how_they_round() -> None:
    text = told("backward", advice=OVERFLOW.advice)
    assert "E4M3 flushes 2.7 %" in text
    assert "2^-4" in text
    assert "E5M2 flushes nothing and rounds by up to 2^-3" in text


def lost(share: float) -> Lost:
    return Lost(of=1000, flushed=round(1000 * share), energy=1.0)


def choice(e4m3: tuple[float, ...], e5m2: tuple[float, ...], forward: tuple[float, ...] = (0.0,)) -> str:
    """Return the advice on gradients that lose such shares per tensor, and per block where there is a second."""
    rows = [
        replace(row("m", name, 9.0, role=role), measured=len(found) > 1,
                scaled=tuple(zip(("tensor", "block"), map(lost, found), strict=False)))
        for name, role, found in (("e4m3fn", "output", forward), ("e4m3fn", "grad_output", e4m3),
                                  ("e5m2", "grad_output", e5m2))
    ]  # fmt: skip
    rows += [row("m", "bf16", 90.0, role=role) for role in ("output", "grad_output")]
    losses = tuple(
        GradientLoss(format=name, per="tensor", lost=lost(share[0]), rounding=2.0**-4, module="m", name="", worst=0.5)
        for name, share in (("e4m3fn", e4m3), ("e5m2", e5m2))
    )
    sample = diagnosis("healthy", "", headroom=tuple(rows), advice=advised(1, 2, gradients=losses))
    (text,) = (text for name, text in advice_lines(sample) if name == "backward")
    return text.partition(". Of all")[0]


def test_e4m3_for_both_passes_is_advised_only_where_it_fits_forward() -> None:
    assert choice((0.0,), (0.0,)).startswith("E4M3 for both passes")
    assert choice((0.0,), (0.0,), (0.9,)).endswith("; forward it does not fit with a scale per tensor")
    assert choice((0.0,), (0.0,), (0.9, 0.9)).endswith("; forward it does not fit, not even with a scale per block")
    assert choice((0.0,), (0.0,), (0.9, 0.0)).endswith("; forward it fits with a scale per block only")
    assert choice((0.9, 0.0), (0.0, 0.0)).endswith("or E4M3 with a scale per block for both passes")
    assert choice((0.9, 0.0), (0.0, 0.0), (0.9, 0.9)).endswith("or E4M3 with a scale per block")


def test_e5m2_is_advised_only_where_it_fits_and_else_what_does() -> None:
    assert choice((0.9,), (0.0,)) == "E5M2: in E4M3 some gradients do not fit with a scale per tensor"
    assert choice((0.9, 0.9), (0.9, 0.0)).startswith("E5M2 with a scale per block: ")
    assert choice((0.9,), (0.9,)) == "neither E4M3 nor E5M2 fits every gradient with a scale per tensor (bf16 fits)"
    assert choice((0.9, 0.9), (0.9, 0.9)).endswith(", not even with a scale per block (bf16 fits)")


def test_what_is_missing_is_said_last() -> None:
    lines = advice_lines(diagnosis("healthy", "", advice=advised(1, 2, missing=("no update is in the trace",))))
    assert lines[-1] == ("not told", "no update is in the trace")


def test_without_tensors_there_is_no_advice() -> None:
    assert advice_lines(HEALTHY) == []


def test_numbers_of_verdicts_are_never_nan() -> None:
    assert all(not math.isnan(d.number) for v in OVERFLOW.verdicts for d in v.deciding)
