"""The pages of README and docs/, cut into what a test can hold: blocks, commands, links, headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "Link", "anchors", "blocks", "code_spans", "command_lines", "links", "prose"]

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^ *(`{3,})([^`\n]*)$")
_SPAN = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_COMMAND = re.compile(r"(?:\$ )?(?:\.venv/bin/)?((?:nanhunt|python|torchrun|make|pip)(?: .*)?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block: its language ('' where none is named), and its text from the line behind the fence on."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link or a picture: what it leads to, and where it stands."""

    page: Path
    line: int
    target: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line} {self.target}"


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    """Return a page's fenced blocks. Raises AssertionError where one is not closed."""
    found: list[Block] = []
    fence, language, start, lines = "", "", 0, list[str]()
    for number, line in enumerate(page.read_text().splitlines(), 1):
        mark = _FENCE.match(line)
        if not fence and mark:
            fence, language, start, lines = mark[1], mark[2].strip(), number, []
        elif fence and mark and mark[1] == fence and not mark[2].strip():
            found.append(Block(page=page, line=start, language=language, text="\n".join(lines) + "\n"))
            fence = ""
        elif fence:
            lines.append(line)
    assert not fence, f"{page.relative_to(ROOT)}:{start}: the block is not closed"
    return tuple(found)


@cache
def prose(page: Path) -> str:
    """Return a page with the lines of its blocks and its comments empty: line numbers stay."""
    lines = page.read_text().splitlines()
    for block in blocks(page):
        for number in range(block.line - 1, block.line + block.text.count("\n") + 1):
            lines[number] = ""
    return re.sub(r"<!--.*?-->", lambda m: "\n" * m[0].count("\n"), "\n".join(lines), flags=re.DOTALL)


def code_spans(page: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of what stands in backquotes, its line breaks as spaces."""
    text = prose(page)
    for found in _SPAN.finditer(text):
        yield text.count("\n", 0, found.start()) + 1, " ".join(found[2].split())


def links(page: Path) -> Iterator[Link]:
    """Yield the links and pictures of a page, in Markdown and in HTML."""
    text = _SPAN.sub(lambda m: re.sub(r"[^\n]", "x", m[0]), prose(page))
    for found in re.finditer(r"\]\(([^()\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"|<(https?://[^>\s]+)>", text):
        target = next(group for group in found.groups() if group)
        yield Link(page=page, line=text.count("\n", 0, found.start()) + 1, target=target)


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the names by which GitHub finds a page's headings: lower case, no punctuation, a repeated one numbered."""
    names: list[str] = []
    for heading in re.findall(r"(?m)^#{1,6} +(.+?) *#*$", prose(page)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        again = sum(n == name or re.fullmatch(rf"{re.escape(name)}-\d+", n) is not None for n in names)
        names.append(f"{name}-{again}" if again else name)
    return frozenset(names)


def command_lines(page: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, command) of what a reader may type: the lines of blocks that begin as one, and such code spans.

    A comment behind the command is cut off, and what a shell would take for its own: `&`, `|`, `>`.
    """
    for block in blocks(page):
        if block.language in ("", "bash", "sh", "console"):
            for number, line in enumerate(block.text.splitlines(), block.line + 1):
                if found := _COMMAND.fullmatch(line.strip()):
                    yield number, _bare(found[1])
    for number, span in code_spans(page):
        if found := _COMMAND.fullmatch(span):
            yield number, _bare(found[1])


def _bare(command: str) -> str:
    return re.split(r"\s+(?:#|&|\||>)(?:\s|$)", command)[0].strip()
