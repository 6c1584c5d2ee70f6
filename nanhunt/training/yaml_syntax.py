"""What is wrong with a YAML file that PyYAML could not parse, in words: which line, what stands there, what mends it.

PyYAML names what its grammar met ("expected <block end>, but found '<block mapping start>'") and often a place behind the
slip. Nearly all slips are few: a line that is indented otherwise than its neighbours, a bracket or quote that stays open, a
key without its colon, a sign that YAML keeps for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from nanhunt.errors import ConfigError

__all__ = ["syntax_error"]

#: What PyYAML says, what it means, the mend.
_IN_WORDS = (
    ("could not determine a constructor", "a tag (!…) that a config has no use for", "write plain values"),
    ("found another document", "a second document begins here", "keep one, without the line of dashes"),
    ("unhashable key", "a key that is a list or a mapping", "a key is a plain text"),
    ("found '<stream end>'", "the file ends where a value or a bracket is wanted", "write it, or take the key out"),
)
#: Signs that no plain text may begin with.
_SIGNS = "@`%&*!|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slip:
    """What is wrong, in which line and column from 0, and the mend."""

    line: int
    column: int
    problem: str
    hint: str | None = None


def syntax_error(path: Path, text: str, error: yaml.MarkedYAMLError) -> ConfigError:
    """Return the error that names file, line and column, quotes the line, and says what to do about it."""
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return ConfigError(f"{path}: {error.problem or 'not valid YAML'}")
    lines = text.splitlines()
    slip = _slip(error, lines, mark.line, mark.column)
    quoted = f": {lines[slip.line].strip()}" if slip.line < len(lines) and lines[slip.line].strip() else ""
    return ConfigError(f"{path}:{slip.line + 1}:{slip.column + 1}: {slip.problem}{quoted}", hint=slip.hint)


def _slip(error: yaml.MarkedYAMLError, lines: list[str], line: int, column: int) -> _Slip:
    problem = error.problem or "not valid YAML"
    if "\\t" in problem or "'\t'" in problem:
        return _Slip(line=line, column=column, problem="a tab where YAML wants spaces", hint="indent with spaces")
    for jargon, told, hint in _IN_WORDS:
        if jargon in problem:
            return _Slip(line=line, column=column, problem=told, hint=hint)
    opened = error.context_mark
    if opened is not None and "flow" in (error.context or "") and problem.startswith("expected ','"):
        sign = "{" if "mapping" in (error.context or "") else "["
        told = f"the {sign!r} is not closed, or a comma is missing behind it"
        return _Slip(line=opened.line, column=opened.column, problem=told, hint=f"close it with {'}' if sign == '{' else ']'}")  # fmt: skip
    if opened is not None and "quoted scalar" in (error.context or "") and "end of stream" in problem:
        told = "the quote that opens here is not closed"
        return _Slip(line=opened.line, column=opened.column, problem=told, hint="close it in the same line")
    if "could not find expected ':'" in problem:
        at = opened.line if opened is not None else line
        return _Slip(line=at, column=0, problem="a key without its colon", hint="write `key: value`")
    if "cannot start any token" in problem or "alias" in problem or "anchor" in problem:
        return _of_sign(lines, line, column, problem)
    return _of_structure(problem, lines, line, column)


def _of_sign(lines: list[str], line: int, column: int, problem: str) -> _Slip:
    sign = lines[line][column : column + 1] if line < len(lines) else ""
    if sign not in _SIGNS or not sign:
        return _Slip(line=line, column=column, problem=problem)
    told = f"a text that begins with {sign!r}, which YAML keeps for itself"
    return _Slip(line=line, column=column, problem=told, hint="put the text in quotes")


def _of_structure(problem: str, lines: list[str], line: int, column: int) -> _Slip:
    """Return what is wrong where keys, items or brackets stand that cannot follow what stands above."""
    stray = next((sign for sign in "}]," if f"'{sign}'" in problem), "")
    if stray:
        return _Slip(line=line, column=column, problem=f"a {stray!r} that closes or parts nothing", hint="take it out")
    indented = _indentation(lines, line)
    if indented is not None:
        return indented
    if "'-'" in problem or "block entry" in problem or "sequence entries" in problem:
        return _Slip(line=line, column=column, problem="a list's item where keys stand", hint="write `key: value`")
    if "mapping values are not allowed" in problem:
        hint = "one key per line, and quotes around a text that holds ': '"
        return _Slip(line=line, column=column, problem="a second ': ' in one line", hint=hint)
    return _Slip(line=line, column=column, problem=problem)


def _indentation(lines: list[str], line: int) -> _Slip | None:
    """Return the slip of a line that is indented as no key above it allows; None where its indent is sound."""
    if line >= len(lines) or not lines[line].strip():
        return None
    depth = _depth(lines[line])
    above = [i for i in range(line) if lines[i].strip() and not lines[i].lstrip().startswith("#")]
    if not above:
        return None
    last = above[-1]
    if depth > _depth(lines[last]) and not lines[last].partition(" #")[0].rstrip().endswith(":"):
        told = f"indented by {_spaces(depth)}, line {last + 1} above it by {_spaces(_depth(lines[last]))}"
        hint = f"give it the indent of line {last + 1}, or, if it belongs below that line, let that line end in ':'"
        return _Slip(line=line, column=depth, problem=told, hint=hint)
    known = _open_depths(lines, above)
    if depth not in known and depth < _depth(lines[last]):
        told = f"indented by {_spaces(depth)}, where the keys above stand at {' or '.join(map(str, known))}"
        return _Slip(line=line, column=depth, problem=told, hint="align it with the keys that it belongs to")
    return None


def _open_depths(lines: list[str], above: list[int]) -> list[int]:
    """Return the indents that are open behind the last of the lines: its own, and those that lead to it."""
    open_depths: list[int] = []
    for i in above:
        depth = _depth(lines[i])
        open_depths = [d for d in open_depths if d < depth] + [depth]
    return open_depths


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _spaces(count: int) -> str:
    return "1 space" if count == 1 else f"{count} spaces"
