"""The report for an issue: text from a trace never becomes markup."""

from __future__ import annotations

import re

import pytest

from nanhunt.report.markdown import MarkdownRenderer
from tests.report.samples import HEALTHY, HOSTILE_STRINGS, OVERFLOW, SAMPLES, diagnosis

TICKS = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)")


def report(sample: object, **options: object) -> str:
    return MarkdownRenderer(**options).render(sample)  # type: ignore[arg-type]


def outside_code(text: str) -> str:
    """Return the text without fenced blocks and code spans, as a Markdown reader would split it."""
    text = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    escaped = text.replace("\\`", "")
    return TICKS.sub("", escaped)


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_row_of_a_table_has_as_many_cells_as_its_head(sample: str) -> None:
    width = None
    for line in report(SAMPLES[sample]).splitlines():
        if not line.startswith("| "):
            width = None
            continue
        bars = len(re.findall(r"(?<!\\)\|", line))
        assert width in (None, bars), line
        width = bars


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_only_html_is_the_folding(sample: str) -> None:
    tags = set(re.findall(r"<[^>]*>", outside_code(report(SAMPLES[sample]))))
    assert tags <= {"<details>", "<summary>", "</summary>", "</details>"}


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_fold_that_opens_closes(sample: str) -> None:
    text = outside_code(report(SAMPLES[sample]))
    assert text.count("<details>") == text.count("</details>") == text.count("<summary>")


def test_no_backtick_is_left_open() -> None:
    assert "`" not in outside_code(report(HOSTILE_STRINGS))


def test_no_link_or_emphasis_comes_out_of_a_trace() -> None:
    text = outside_code(report(diagnosis("fault", "see [x](http://a) *b* _c_ ~d~ $e$ <f> &amp;")))
    assert r"\[x\](http://a) \*b\* \_c\_ \~d\~ \$e\$ &lt;f&gt; &amp;amp;" in text


@pytest.mark.parametrize(("text", "spelt"), [("1. one", r"1\. one"), ("- two", r"\- two"), ("# three", r"\# three")])
def test_a_list_item_cannot_open_a_list_or_a_heading(text: str, spelt: str) -> None:
    assert f"\n- {spelt}\n" in report(diagnosis("healthy", "", assumptions=(text,)))


def test_a_decimal_number_at_the_start_is_left_alone() -> None:
    assert "\n- 1.5 times\n" in report(diagnosis("healthy", "", assumptions=("1.5 times",)))


def test_code_that_holds_a_fence_stays_inside_a_longer_one() -> None:
    text = report(diagnosis("fault", "x", onset=OVERFLOW.onset, code=((1, "```", True), (2, "````", False))))
    assert "\n`````text\n" in text
    assert text.count("`````") == 2


def test_suspects_are_a_table_and_their_evidence_stands_below() -> None:
    text = report(OVERFLOW)
    assert "| 1 | confirmed | `activation-overflow` |" in text
    assert "- fp64 gives a finite number that fp16 cannot hold (70144 against 65504)" in text
    assert "- **Fix:** Subtract the row's maximum before the exp." in text
    assert "#### `learning-rate-too-high`" not in text


def test_headroom_trials_lineage_and_assumptions_are_folded() -> None:
    text = report(OVERFLOW)
    for title in ("Headroom", "Precision advice", "Trials", "Lineage", "Assumptions", "Could not tell", "Cleared"):
        assert f"<details><summary>{title}</summary>\n\n" in text


def test_a_healthy_report_has_no_empty_parts() -> None:
    text = report(HEALTHY)
    for title in ("Where", "Suspects", "Trials", "Lineage"):
        assert title not in text
