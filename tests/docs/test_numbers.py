"""Numbers that the README repeats are those of the page that has them from a command."""

from __future__ import annotations

import re

from tests.docs.pages import ROOT, prose

README, DOCS = ROOT / "README.md", ROOT / "docs"


def section(heading: str) -> str:
    """A section of the README in one line."""
    return " ".join(prose(README).partition(f"\n## {heading}\n")[2].partition("\n## ")[0].split())


def test_what_the_readme_says_of_the_scoreboard_stands_on_it() -> None:
    board = (DOCS / "scoreboard.md").read_text()
    total = re.search(r"(?m)^\| total \| (\d+) \| \S+ \| (\d+)/\d+ \| \S+ \| (\d+)/\d+ ", board)
    alarms = re.search(r"false alarms: (\d+) of (\d+)", board)
    assert total is not None
    assert alarms is not None
    told = section("How often it is right")
    programs, first, located = total.groups()
    sure = [(int(a), int(b)) for a, b in re.findall(r"(?m)^- (?:proved|confirmed): (\d+) of (\d+)", board)]
    right, of = (sum(column) for column in zip(*sure, strict=True))
    for said in (
        f"{first} of {programs}",
        f"{located} of {programs}",
        f"{right} of {of}",
        f"{alarms[1]} of {alarms[2]}",
    ):
        assert said in told, said


def test_what_the_readme_says_of_costs_stands_among_what_was_measured() -> None:
    measured = set(re.findall(r"\d+\.\d+", (DOCS / "performance.md").read_text()))
    told = re.findall(r"(\d+\.\d+) ×", section("What it costs"))
    assert len(told) > 10
    assert set(told) <= measured
