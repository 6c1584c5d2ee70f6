"""A draft as YAML text: comments that nothing can break out of, values that PyYAML quotes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from nanhunt.report.words import prose
from nanhunt.training.yaml_file import SCALARS

__all__ = ["Draft", "Entry", "draft_text"]

#: Columns of the file.
_WIDTH = 110
#: Columns up to which what stands behind the keys of a section is aligned.
_ASIDE = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A key at the top of the config: its value, and what is said above it. One that is not `active` is a comment."""

    key: str
    value: Any
    notes: tuple[str, ...] = ()
    active: bool = True
    #: what else it may mean, or what comes near: said at a terminal before the question
    candidates: str = ""
    #: of a section, what is said behind its keys
    asides: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A config to be: paragraphs of its head, its entries, and what could not be known."""

    head: tuple[str, ...]
    entries: tuple[Entry, ...]
    unknown: tuple[str, ...] = ()
    #: keys whose value is a placeholder that no code answers to
    placeholders: tuple[str, ...] = ()
    #: keys whose value is a guess that nobody has confirmed
    guessed: tuple[str, ...] = ()


def draft_text(draft: Draft) -> str:
    """Return the file's text; read back, it has the active entries' values and nothing else."""
    parts = [_paragraphs(draft.head)]
    for entry in draft.entries:
        lines = _dumped(entry)
        body = lines if entry.active else [f"# {line}" for line in lines]
        parts.append("\n".join([*_comment(entry.notes), *body]))
    return "\n\n".join(parts) + "\n"


def _paragraphs(paragraphs: Sequence[str]) -> str:
    return "\n#\n".join("\n".join(_comment([text])) for text in paragraphs)


def _comment(texts: Sequence[str]) -> list[str]:
    """Return comment lines; a text that begins with two spaces is a command, and is not folded.

    A character that YAML, or a terminal, could take for more than a letter is spelt out: a line break in a name from a
    checkpoint must not end the comment.
    """
    lines: list[str] = []
    for text in filter(None, texts):
        if text.startswith("  "):
            lines.append(f"#   {prose(text)}")
        else:
            lines += textwrap.wrap(
                prose(text), _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
            )
    return lines


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes what YAML 1.2 takes for something else than a text: `1e-4` is one in YAML 1.1."""

    yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeDumper.yaml_implicit_resolvers.items()}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value that stands twice twice: an alias says nothing to a reader."""
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # other styles write a line separator as it is, and in a comment it would end the line
    style = None if value.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


class _Block(dict[str, Any]):
    """A mapping that is written a line a key."""


def _block(dumper: yaml.SafeDumper, value: _Block) -> yaml.MappingNode:
    return dumper.represent_mapping("tag:yaml.org,2002:map", value, flow_style=False)


for _tag, _pattern, _first in SCALARS:
    _Dumper.add_implicit_resolver(_tag, _pattern, list(_first))
_Dumper.add_representer(str, _text)
_Dumper.add_representer(_Block, _block)


def _dumped(entry: Entry) -> list[str]:
    """Return an entry's lines: a section and an import string with arguments a line a key, what is inside in one."""
    if not isinstance(entry.value, dict):
        return _yaml({entry.key: entry.value})
    sections = {key: [f"  {line}" for line in _yaml({key: inner})] for key, inner in entry.value.items()}
    edge = max((len(lines[0]) for lines in sections.values() if len(lines[0]) <= _ASIDE), default=0)
    found = [f"{entry.key}:"]
    for key, lines in sections.items():
        aside = prose(entry.asides.get(key, ""))
        behind = f"{lines[0]:<{edge}}  # {aside}"
        if aside and len(lines) == 1 and len(behind) <= _WIDTH:
            found.append(behind)
        else:
            found += [*(f"  {line}" for line in _comment([aside] if aside else [])), *lines]
    return found


def _yaml(mapping: dict[str, Any]) -> list[str]:
    """Return a mapping's lines; PyYAML writes a right-to-left override as it is, so such a text is spelt in ASCII."""
    for letters in (True, False):
        text: str = yaml.dump(
            _Block(mapping),
            Dumper=_Dumper,
            default_flow_style=True,
            sort_keys=False,
            width=_WIDTH,
            allow_unicode=letters,
        )
        lines = text.rstrip("\n").split("\n")
        if all(line.isprintable() for line in lines):
            break
    return lines
