"""Reports of six faults against kept ones, at 80 and 200 columns and for an issue: `make examples` writes them again."""

from __future__ import annotations

import re

import pytest
from rich.cells import cell_len

from nanhunt.report.terminal import TerminalRenderer
from tests.report.kept import FAULTS, FOLDER, WIDTHS, diagnosis_of, reports

TITLE = re.compile(r"^[a-z]", re.MULTILINE)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_report_is_the_kept_one(fault: str) -> None:
    for name, text in reports(fault):
        kept = (FOLDER / name).read_text(encoding="utf-8")
        assert text == kept, f"{name} reads otherwise: `make examples`, and look at the diff"


def test_no_report_is_kept_of_a_fault_that_there_is_not() -> None:
    assert {path.name.split(".")[0] for path in FOLDER.iterdir()} == set(FAULTS)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wide_terminal_is_used_and_loses_no_word_of_the_narrow_one(fault: str) -> None:
    narrow, wide = (TerminalRenderer(width=width).render(diagnosis_of(fault)) for width in WIDTHS)
    assert max(map(cell_len, wide.splitlines())) > 150
    assert wide.count("\n") < 0.75 * narrow.count("\n")
    # what the narrow page cuts (names, bars, purposes of commands) it may say in full; titles are the same
    titles = [line.split("  ")[0] for line in narrow.splitlines() if TITLE.match(line)]
    columns = [part.strip() for line in wide.splitlines() for part in re.split(r" {4,}", line)]
    assert all(any(part.startswith(title) for part in columns) for title in titles)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_story_is_whole_on_a_terminal(fault: str) -> None:
    text = TerminalRenderer(width=80).render(diagnosis_of(fault))
    titles = {line.split("  ")[0] for line in text.splitlines() if TITLE.match(line)}
    told = {"where", "curves", "suspects", "trials", "cleared", "headroom", "precision advice", "assumptions", "next"}
    assert told <= titles
    # where all gradients are NaN, nothing is left to say of the optimizer
    assert ("optimizer" in titles) == (fault not in ("bad-sample", "sqrt-zero"))
    assert ("bad sample" in titles) == (fault == "bad-sample")
    assert ("path" in titles) == bool(diagnosis_of(fault).lineage)


def test_the_tokens_of_a_bad_sample_have_its_position_in_brackets() -> None:
    text = TerminalRenderer(width=80).render(diagnosis_of("bad-sample"))
    assert "position  17 of its sequence" in text
    tokens = re.search(r"^  tokens    (.*\n.*)$", text, re.MULTILINE)
    assert tokens is not None
    assert tokens[1].split()[17] == "[32]"


@pytest.mark.parametrize("width", [40, 60, 120, 160])
def test_no_line_of_a_real_report_is_wider_than_the_page(width: int) -> None:
    for fault in FAULTS:
        text = TerminalRenderer(width=width, verbose=True).render(diagnosis_of(fault))
        assert max(map(cell_len, text.splitlines())) <= width
