"""The page of the gallery says what the commands print today."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.forked import python

DOCS = Path(__file__).resolve().parents[1] / "docs"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gallery", DOCS / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gallery"] = module
    spec.loader.exec_module(module)
    return module


gallery = load()


def words(page: str) -> list[str]:
    """The page without its numbers, curves and line breaks: another machine rounds otherwise, and wraps otherwise."""
    return re.sub(r"[▁▂▃▄▅▆▇█✗░]+|[-+]?[\d.]+(e[-+]?\d+)?", "#", page).split()


def section_of_page(name: str) -> str:
    page = (DOCS / "hunt.md").read_text()
    start = page.index(f"\n## {name}\n")
    end = page.find("\n## ", start + 1)
    return page[start : end if end >= 0 else None]


def forked(place: Path, *command: str) -> str:
    done = python(*command, cwd=place, env=gallery.SURROUNDINGS)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("entry", gallery.ENTRIES, ids=lambda e: e.name)
def test_a_hunt_of_the_gallery_finds_the_fault_and_prints_what_the_page_shows(entry: Any, tmp_path: Path) -> None:
    found = gallery.hunt(entry, tmp_path, forked)
    assert found.report["outcome"] == "fault"
    assert found.report["suspects"][0]["cause"] == entry.cause
    assert words(gallery.section(entry, found)) == words(section_of_page(entry.name))


def test_every_line_that_a_report_points_at_is_the_marked_one() -> None:
    page = (DOCS / "hunt.md").read_text()
    pointed = re.findall(r"^  source   train\.py:(\d+)$", page, re.MULTILINE)
    assert len(pointed) >= 8
    for entry in gallery.ENTRIES:
        told = re.search(r"^  source   train\.py:(\d+)$", section_of_page(entry.name), re.MULTILINE)
        if told:
            line = (DOCS / "gallery" / entry.name / "train.py").read_text().splitlines()[int(told[1]) - 1]
            assert "# fault" in line
