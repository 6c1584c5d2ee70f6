"""Nothing in README and docs/ leads nowhere: links, anchors, paths, and the index that leads to every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, code_spans, links

#: What a path in a code span begins with, as seen from the repository's root.
FOLDERS = ("benchmarks/", "configs/", "docs/", "nanhunt/", "tests/")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_to_a_file_and_every_anchor_to_a_heading(page: Path) -> None:
    dead = []
    for link in links(page):
        path, _, anchor = link.target.partition("#")
        if "://" in path or path.startswith("mailto:"):
            continue
        to = (page.parent / path).resolve() if path else page
        if not to.exists() or ROOT not in to.parents or (anchor and anchor not in anchors(to)):
            dead.append(str(link))
    assert not dead


def test_anchors_are_those_that_github_makes_of_headings(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# What it *cannot* see\n## `qwen2.5-small.yaml`\n## [A link](x.md), twice\n## Twice\n## Twice\n```\n# none\n```\n"
    )
    assert anchors(page) == {"what-it-cannot-see", "qwen25-smallyaml", "a-link-twice", "twice", "twice-1"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_path_that_is_named_is_there(page: Path) -> None:
    named = [
        (line, span)
        for line, span in code_spans(page)
        if span.startswith(FOLDERS) and re.fullmatch(r"[\w./*-]+", span)  # no placeholder, no command
    ]
    assert not [f"{name(page)}:{line} {span}" for line, span in named if not any(ROOT.glob(span.rstrip("/")))]


def test_every_file_of_the_architecture_is_there() -> None:
    page = ROOT / "docs" / "architecture.md"
    there = [f"/{p.relative_to(ROOT).as_posix()}" for p in ROOT.rglob("*.py") if ".venv" not in p.parts]
    files = [(line, span) for line, span in code_spans(page) if re.fullmatch(r"[\w/]+\.py", span)]
    assert files
    assert not [f"{line}: {span}" for line, span in files if not any(p.endswith(f"/{span}") for p in there)]


def test_the_index_leads_to_every_page_and_the_readme_to_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    reached, waiting = {ROOT / "README.md"}, [index]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            there = [(page.parent / link.target.partition("#")[0]).resolve() for link in links(page)]
            waiting += [to for to in there if to.suffix == ".md" and to in PAGES]
    assert not [name(p) for p in PAGES if p not in reached]
    assert index in [(ROOT / link.target).resolve() for link in links(ROOT / "README.md")]
