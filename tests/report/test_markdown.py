"""The report for an issue: text from a trace never becomes markup, as a Markdown parser of others sees it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from nanhunt.diagnosis.cause import Exhibit
from nanhunt.report.markdown import LIMIT, MarkdownRenderer
from nanhunt.report.markdown_text import escape, span, table
from nanhunt.report.words import prose
from tests.report.kept import FAULTS, diagnosis_of
from tests.report.samples import HEALTHY, OVERFLOW, SAMPLES, diagnosis

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
#: HTML that a report may hold.
FOLD = re.compile(r"<details><summary>[a-zA-Z ,:]+</summary>|</details>")
#: What GitHub would make a link of, in text that is no code.
LINKED = re.compile(r"@\w|#\d|\bGH-\d|\w://|\bwww\.", re.IGNORECASE)
ZERO_WIDTH = "\u200b"

DIAGNOSES = SAMPLES | {fault: diagnosis_of(fault) for fault in FAULTS}


def report(sample: object, **options: object) -> str:
    return MarkdownRenderer(**options).render(sample)  # type: ignore[arg-type]


def leaves(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from leaves(token.children or [])


def text_of(tokens: list[Token]) -> str:
    """What a reader reads, without the spaces that have no width."""
    return "".join(t.content for t in leaves(tokens) if t.type in ("text", "code_inline")).replace(ZERO_WIDTH, "")


# --- by a parser that is not ours -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIAGNOSES)
def test_a_parser_finds_no_markup_but_the_reports_own(name: str) -> None:
    tokens = list(leaves(PARSER.parse(report(DIAGNOSES[name]))))
    kinds = {token.type.removesuffix("_open").removesuffix("_close") for token in tokens}
    assert kinds <= {
        "paragraph", "inline", "text", "strong", "bullet_list", "list_item", "code_inline", "fence", "html_block",
        "heading", "table", "thead", "tbody", "tr", "th", "td",
    }  # fmt: skip
    for token in tokens:
        if token.type == "html_block":
            assert FOLD.fullmatch(token.content.strip()), token.content
        if token.type == "text":
            assert not LINKED.search(token.content), token.content


@pytest.mark.parametrize("name", DIAGNOSES)
def test_every_line_that_looks_like_a_table_is_a_row_of_one_and_each_has_as_many_cells_as_its_head(name: str) -> None:
    text = report(DIAGNOSES[name])
    tokens = PARSER.parse(text)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rules = [line for line in lines if set(line) <= set("| -") and "---" in line]
    assert sum(token.type == "tr_open" for token in tokens) == len(lines) - len(rules)
    width = cells = 0
    for token in tokens:
        width = 0 if token.type == "table_open" else width
        cells = 0 if token.type == "tr_open" else cells + (token.type in ("td_open", "th_open"))
        if token.type == "tr_close":
            width = width or cells
            assert cells == width
    # a cell too many would be dropped without a word
    for line in lines:
        assert re.search(r"(?<!\\)(\\\\)* \|$", line), line


@pytest.mark.parametrize("name", DIAGNOSES)
def test_all_but_verdict_fix_and_evidence_stands_in_one_fold(name: str) -> None:
    text = report(DIAGNOSES[name])
    above, _, folded = text.partition("<details>")
    assert len(above.splitlines()) <= 30
    assert "### " not in above
    if folded:
        assert text.count("\n<details><summary>") == text.count("\n</details>\n") == 1
        assert re.match(r"<summary>[^\n]*</summary>\n\n###", folded)
        assert text.endswith("\n\n</details>\n")


@given(st.text(max_size=80))
def test_prose_reads_as_it_was_whatever_is_in_it(text: str) -> None:
    tokens = PARSER.parse(f"- {escape(text)}\n")
    kinds = {token.type for token in leaves(tokens)}
    assert not kinds - {
        "bullet_list_open", "bullet_list_close", "list_item_open", "list_item_close", "paragraph_open",
        "paragraph_close", "inline", "text", "code_inline",
    }  # fmt: skip
    assert text_of(tokens).replace("`", "") == prose(text).replace("`", "").replace(ZERO_WIDTH, "")


@given(st.text(alphabet="`| ab\\<@#1*", min_size=1, max_size=20))
def test_a_name_reads_as_it_is_in_code_and_in_a_table(name: str) -> None:
    (inline,) = (t for t in PARSER.parse(f"x {span(name)} y") if t.type == "inline")
    assert [t.content for t in inline.children or [] if t.type == "code_inline"] == [name]
    cells = [t for t in PARSER.parse(table(("a", "b"), [(span(name), escape(name))])) if t.type == "inline"]
    assert len(cells) == 4
    assert [t.content for t in cells[2].children or []] == [name]
    assert text_of([cells[3]]).replace("`", "") == prose(name).replace("`", "")


@pytest.mark.parametrize(
    "text",
    ["ask @octocat", "see #123", "owner/repo#7", "GH-12", "http://example.org/a", "www.example.org", "me@example.org"],
)
def test_what_github_would_link_is_broken_by_a_space_without_width(text: str) -> None:
    said = PARSER.renderInline(escape(text))
    assert said.replace(ZERO_WIDTH, "") == text
    assert not LINKED.search(said)


def test_code_in_a_sentence_is_code() -> None:
    assert escape("call `x @ y` or *not*") == "call `x @ y` or \\*not\\*"


def test_a_report_of_anything_stays_below_githubs_limit_and_names_what_it_leaves_out() -> None:
    long = "@<_" * 1000
    hops = tuple((f"aten.op{i}", f"module.{i}" * 20, "train.py:1", "carries") for i in range(2000))
    exhibits = tuple(Exhibit(claim=long) for _ in range(50))
    suspects = tuple(replace(s, summary=long, exhibits=exhibits, fixes=(long,) * 9) for s in OVERFLOW.suspects * 9)
    big = replace(
        OVERFLOW, summary=long, lineage=hops, assumptions=(long,) * 999, suspects=suspects, code=((1, long, True),) * 9
    )
    text = report(big, top=99)
    assert len(text) <= LIMIT < 65_536
    assert "Left out, for an issue has an end: path, suspects, assumptions. `--format html` has it all." in text
    assert "### Trials" in text


# --- what is in it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "spelt"), [("1. one", r"1\. one"), ("- two", r"\- two"), ("# three", r"\# three")])
def test_a_list_item_cannot_open_a_list_or_a_heading(text: str, spelt: str) -> None:
    assert f"\n- {spelt}\n" in report(diagnosis("healthy", "", assumptions=(text,)))


def test_a_decimal_number_at_the_start_is_left_alone() -> None:
    assert "\n- 1.5 times\n" in report(diagnosis("healthy", "", assumptions=("1.5 times",)))


def test_code_that_holds_a_fence_stays_inside_a_longer_one() -> None:
    text = report(diagnosis("fault", "x", onset=OVERFLOW.onset, code=((1, "```", True), (2, "````", False))))
    assert "\n`````text\n" in text
    assert text.count("`````") == 4


def test_suspects_are_a_table_and_their_evidence_stands_below() -> None:
    text = report(OVERFLOW)
    assert "| 1 | confirmed | `activation-overflow` |" in text
    assert "- fp64 gives a finite number that fp16 cannot hold (70144 against 65504)" in text
    assert "- **Fix:** Subtract the row's maximum before the exp." in text
    assert "#### `learning-rate-too-high`" not in text


def test_verdict_fix_cure_place_and_evidence_stand_above_the_fold() -> None:
    above, _, folded = report(OVERFLOW).partition("<details>")
    assert above.index("**✗ fault**") < above.index("**Fix:**") < above.index("**Cure:**") < above.index("**Where:**")
    assert ">    88 | weights = gate.exp()" in above
    assert "**Evidence** against `activation-overflow`, confirmed:" in above
    for title in ("Where", "Curves", "Path", "Suspects", "Trials", "Number formats", "Could not tell", "Assumptions"):
        assert f"\n\n### {title}\n\n" in folded


def test_a_healthy_report_has_no_empty_parts() -> None:
    text = report(HEALTHY)
    for title in ("Where", "Suspects", "Trials", "Path"):
        assert title not in text
