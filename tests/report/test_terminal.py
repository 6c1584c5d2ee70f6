"""The page for a terminal: width, order, colour, and text from a trace that must stay text."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from rich.cells import cell_len

from nanhunt.diagnosis.precision import PrecisionFacts
from nanhunt.interventions import Outcome, Trial
from nanhunt.report.page import middle
from nanhunt.report.reading import tried
from nanhunt.report.terminal import TerminalRenderer
from tests.report.samples import HEALTHY, HOSTILE_STRINGS, INCONCLUSIVE, OVERFLOW, SAMPLES, SPIKE, diagnosis, row

SEQUENCE = re.compile(r"\x1b\[[0-9;]*m")


def page(sample: object, **options: object) -> str:
    return TerminalRenderer(**options).render(sample)  # type: ignore[arg-type]


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("verbose", [False, True])
def test_no_line_is_wider_than_the_page(sample: str, width: int, verbose: bool) -> None:
    lines = page(SAMPLES[sample], width=width, verbose=verbose).splitlines()
    assert max(cell_len(line) for line in lines) <= width


@pytest.mark.parametrize("sample", SAMPLES)
def test_colour_changes_nothing_but_colour(sample: str) -> None:
    plain, coloured = page(SAMPLES[sample]), page(SAMPLES[sample], color=True)
    assert SEQUENCE.sub("", coloured) == plain


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_only_escape_sequences_are_those_that_set_a_style(sample: str) -> None:
    assert "\x1b" not in SEQUENCE.sub("", page(SAMPLES[sample], color=True))


def test_no_line_ends_in_a_space() -> None:
    assert not [line for line in page(OVERFLOW).splitlines() if line != line.rstrip()]


def test_verdict_cure_and_fix_stand_above_everything_else() -> None:
    text = page(OVERFLOW, width=120)
    above = text[: text.index("\nwhere\n")]
    assert "trial fp32 cured it; its placebo, fp16-again, did not" in above
    assert "Compute the exp of blocks.5.mlp in fp32" in above


def test_sections_come_in_the_order_verdict_evidence_tables() -> None:
    text = page(OVERFLOW)
    titles = [
        "where",
        "curves",
        "suspects",
        "cleared",
        "could not tell",
        "headroom",
        "precision advice",
        "assumptions",
        "next",
    ]
    places = [re.search(rf"^{title}\b", text, re.MULTILINE) for title in titles]
    starts = [match.start() for match in places if match]
    assert len(starts) == len(titles)
    assert starts == sorted(starts)


def test_a_suspect_without_a_cured_trial_claims_no_cure() -> None:
    text = page(SPIKE)
    assert "cured" not in text
    assert "fix      Look at samples 3, 17 and 40" in text


def test_a_cure_that_was_not_predicted_is_not_called_one() -> None:
    assert "cure     " not in page(HOSTILE_STRINGS)


def test_exhibits_show_the_number_beside_its_threshold() -> None:
    assert "70144 against 65504" in page(OVERFLOW)
    assert "NaN against -inf" in page(INCONCLUSIVE)


def test_trials_show_whether_they_came_out_as_predicted() -> None:
    text = page(OVERFLOW, width=150)
    assert re.search("trial  fp32 +cured, as predicted: loss 2.41", text)
    assert "122 of 122 modules computed in fp32" in text[text.index("\ntrials") :]
    assert "persists, though 'cured' was predicted" in text


def test_the_onset_line_of_the_code_is_marked_between_its_neighbours() -> None:
    lines = page(OVERFLOW).splitlines()
    at = lines.index("  > 88 │ weights = gate.exp()")
    assert lines[at - 1] == "    87 │ gate = self.up(x)"
    assert lines[at + 1] == "    89 │ return self.down(weights * x)"
    assert not any("86 │" in line or "90 │" in line for line in lines)


def test_curves_mark_the_onset_in_red() -> None:
    text = page(OVERFLOW, color=True)
    (loss,) = [line for line in text.splitlines() if SEQUENCE.sub("", line).startswith("  loss  ")]
    assert "\x1b[1;31m✗" in loss
    assert "3.1 to NaN" in loss


def test_a_curve_that_never_changes_says_so() -> None:
    text = page(OVERFLOW)
    assert "65536 throughout" in text
    assert "0.0003 throughout" in text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_an_arrow_points_at_the_first_sign_below_the_curves(width: int) -> None:
    steps = tuple(range(100))
    onset = replace(OVERFLOW.onset, step=90, lead_step=80)  # type: ignore[type-var]
    sample = replace(OVERFLOW, onset=onset, series={"loss": (steps, tuple(float(s) for s in steps))})
    # on a wide page the curves are the right column's first section
    lines = [line[102 if width == 200 else 0 :] for line in page(sample, width=width).splitlines()]
    at = next(i for i, line in enumerate(lines) if line.lstrip().startswith("loss "))
    curve, arrow = lines[at].index("✗"), lines[at + 1].index("^")
    cells = len(re.findall("[▁▂▃▄▅▆▇█✗]", lines[at]))
    assert "first sign, step 80" in lines[at + 1]
    assert curve - arrow in (cells // 10, cells // 10 + 1)


def test_a_run_of_one_step_has_numbers_and_no_curves() -> None:
    text = page(diagnosis("fault", "x", series={"loss": ((7,), (2.5,)), "lr": ((7,), (0.1,))}))
    assert "curves  step 7 alone\n  loss        2.5\n  lr          0.1\n" in text


def test_refuted_suspects_are_dim_and_offer_no_fix() -> None:
    refuted = OVERFLOW.suspects[-1]
    lonely = replace(OVERFLOW, suspects=(replace(refuted, fixes=("Lower the rate.",)),), trials=())
    text = page(lonely, color=True)
    assert "Lower the rate." not in text
    assert "\x1b[2mlearning-rate-too-high" in text
    assert "nanhunt explain" not in text


def test_top_limits_suspects_and_says_what_it_hides() -> None:
    text = page(OVERFLOW, top=1)
    assert "and 2 more: naive-exp-log, learning-rate-too-high (--top 3)" in text
    assert "Call torch.softmax" not in text


def section(text: str, title: str, after: str) -> str:
    return text[text.index(f"\n{title}") : text.index(f"\n{after}")]


def test_headroom_says_of_each_format_whether_it_fits_and_shows_the_tensors_of_those_that_do_not() -> None:
    headroom = section(page(OVERFLOW, width=120), "headroom", "precision advice")
    assert "fp16      ✗ does not fit" in headroom
    assert headroom.index("-0.1 binades to overflow") < headroom.index("31 % of elements to zero")
    assert "bf16      ✓ " in headroom
    assert "blocks.0.weight" not in headroom
    assert "blocks.4.mlp            output" not in headroom.split("bf16")[1].split("e4m3fn")[0]


@pytest.mark.parametrize("width", [80, 120])
def test_headroom_and_advice_are_shorter_than_the_answer_and_name_every_format(width: int) -> None:
    text = page(OVERFLOW, width=width)
    answer = text[: text.index("\nheadroom")]
    rest = section(text, "headroom", "assumptions")
    assert 2 * rest.count("\n") < answer.count("\n")
    assert all(verdict.format in rest for verdict in OVERFLOW.verdicts)
    assert sum("░" in line or "█" in line for line in rest.splitlines()) <= 3
    assert "--verbose for all" in rest
    whole = section(page(OVERFLOW, width=width, verbose=True), "headroom", "assumptions")
    assert whole.count("\n") > 2 * rest.count("\n")


def test_formats_that_a_recipe_asks_about_are_told_in_full() -> None:
    facts = PrecisionFacts(recipe="mxfp8", quantized=1, skipped=(), beside=(), first=None, worst=())
    asked = replace(OVERFLOW, precision=facts)
    assert section(page(asked), "headroom", "precision advice").count("e4m3fn") == 1
    assert "narrower" not in page(asked)


def test_verbose_lists_every_tight_tensor_and_those_that_decide_a_format_that_fits() -> None:
    rows = tuple(row(f"m{i}", "fp16", 1.0 + i / 10) for i in range(6))
    sample = diagnosis("fault", "x", headroom=rows)
    assert "m5" not in page(sample)
    assert "fp16  ! forward fits" in page(sample)
    assert all(f"m{i} " in page(sample, verbose=True) for i in range(6))


def test_margins_near_the_end_are_marked_by_colour_and_bars_leave_the_range_in_red() -> None:
    rows = (row("near", "fp16", 1.0), row("over", "fp16", -3.0, overflow_fraction=0.1))
    text = page(diagnosis("fault", "x", headroom=rows), color=True, width=120)
    (near,) = [line for line in text.splitlines() if "near" in line and "output" in line]
    (over,) = [line for line in text.splitlines() if "over " in line and "output" in line]
    assert "\x1b[33m" in near
    assert "\x1b[31m" in over
    assert SEQUENCE.sub("", over).count("│█") == 1
    assert "│█" not in SEQUENCE.sub("", near)


@pytest.mark.parametrize("width", [80, 120])
def test_the_headroom_of_a_healthy_run_is_a_line_a_format(width: int) -> None:
    text = section(page(HEALTHY, width=width), "headroom", "assumptions")
    assert [line for line in text.splitlines() if "░" in line] == []
    assert sum(line.startswith("  ") and line[2] != " " for line in text.splitlines()) == 2


def test_advice_is_wrapped_beside_its_topic() -> None:
    text = section(page(OVERFLOW, width=80), "precision advice", "assumptions")
    assert "  loss scale  2^14 (16384) for fp16; 2^11 to 2^17 work" in text
    assert "this run used 65536, within the range" in " ".join(text.split())


def test_wide_characters_and_marks_keep_the_columns_straight() -> None:
    names = ("模型.注意力.查询.投影.权重和更多的东西", "plain.name", "decoder.🔥.out", "cafe\u0301.block.0.naïve")
    hops = tuple((f"aten.{n}", n, f"{n}.py:8{i}", "carries") for i, n in enumerate(names))
    rows = tuple(row(n, "fp16", -1.0 - i, overflow_fraction=0.1) for i, n in enumerate(names[:3]))
    text = page(diagnosis("fault", "x", onset=OVERFLOW.onset, lineage=hops, headroom=rows), verbose=True)
    path = [line for line in text.splitlines() if line.startswith("  carries")]
    bars = [line for line in text.splitlines() if line.startswith("    ✗") and "│" in line]
    assert (len(path), len(bars)) == (4, 3)
    assert {cell_len(line[: line.rindex("  ")]) for line in path} == {cell_len(path[0][: path[0].rindex("  ")])}
    assert {cell_len(line[: line.index("│")]) for line in bars} == {cell_len(bars[0][: bars[0].index("│")])}


@pytest.mark.parametrize(
    ("name", "width", "cut"),
    [
        ("transformer.h.11.attn.c_proj", 25, "transformer.h…attn.c_proj"),
        ("blocks.0.attention.qkv", 20, "blocks.0.attenti…qkv"),
        ("blocks.3.attention.projection_of_something_long", 24, "blocks.…f_something_long"),
        ("some/path/very/long/train.py:89", 25, "some/path/ver…train.py:89"),
    ],
)
def test_a_name_loses_its_middle_and_never_the_end_that_tells(name: str, width: int, cut: str) -> None:
    assert middle(name, width) == cut


def test_long_names_lose_their_middle() -> None:
    name = "encoder.layers.11.attention.query.projection.inner"
    sample = diagnosis("fault", "x", headroom=(row(name, "fp16", -1.0),))
    (line,) = [line for line in page(sample).splitlines() if "binades to overflow" in line and "output" in line]
    assert re.search(r"encoder\.l\S*…\S*inner ", line)


def test_a_healthy_run_is_short() -> None:
    text = page(HEALTHY)
    assert len(text.splitlines()) <= 25
    assert "where\n" not in text
    assert "reasons: --verbose" in text
    assert "the trace holds one rank only" in page(HEALTHY, verbose=True)


def test_the_next_command_names_the_cause_and_the_trace() -> None:
    text = page(OVERFLOW)
    assert "nanhunt explain activation-overflow" in text
    assert "nanhunt report trace.parquet --format markdown" in text


def test_a_trace_path_with_spaces_is_quoted_for_the_shell() -> None:
    sample = replace(OVERFLOW, run=OVERFLOW.run | {"trace": "my runs/trace.parquet"})
    assert "nanhunt report 'my runs/trace.parquet' --format markdown" in page(sample)


def test_markup_of_console_libraries_prints_as_it_is() -> None:
    assert "[red]x[/red]" in page(HOSTILE_STRINGS)


def test_escape_sequences_and_direction_overrides_are_spelt_out() -> None:
    text = page(HOSTILE_STRINGS, width=200)
    assert r"\x1b[31m\x07\x9b2J" in text
    assert r"\u202egnp.exe" in text


def test_a_fault_without_suspects_says_that_no_cause_shows_itself() -> None:
    assert "none of the known causes shows itself" in page(SAMPLES["no-suspects"])


@pytest.mark.parametrize(
    ("intervention", "outcome", "said"),
    [
        ({"placebo_of": "drop-samples"}, "persists", "persists, the control of drop-samples: seen"),
        (
            {"placebo_of": "drop-samples"},
            "cured",
            "cured, the control of drop-samples: then anything of its size helps: seen",
        ),
        (
            {},
            "cured",
            "cured; it would be under other causes too, and counts neither for this one nor against it: seen",
        ),
    ],
)
def test_a_trial_that_a_cause_predicts_nothing_of_is_told_by_what_it_is_there_for(
    intervention: dict[str, str], outcome: Outcome, said: str
) -> None:
    trial = Trial(name="t", outcome=outcome, intervention=intervention, detail="seen")
    assert tried(trial, None) == said
