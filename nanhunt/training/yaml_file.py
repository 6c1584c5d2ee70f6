"""Read a YAML file by the rules of YAML 1.2, and remember where each key stands.

PyYAML follows YAML 1.1, where `1e-4` is a text, `on` is true, `12:30` is 750 and the second of two equal keys wins
without a word. A config that means something else than it says is the last thing a hunt for a NaN needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
import yaml.composer
import yaml.constructor

from nanhunt.errors import ConfigError
from nanhunt.training.yaml_syntax import syntax_error

__all__ = ["SCALARS", "KeyPath", "Place", "YamlFile", "read_yaml"]

#: keys and, inside lists, indices, all as text
KeyPath = tuple[str, ...]

#: Bounds on what is taken for a config: a cyclic alias has no bottom, and nested aliases grow like powers.
DEEPEST = 20
MOST_KEYS = 20_000
MOST_BYTES = 1 << 18
MOST_BITS = 1024


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Line and column, both from 1, as editors count."""

    line: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class YamlFile:
    """A parsed document, the place of each key, and the keys that were written twice."""

    path: Path
    value: Any
    places: dict[KeyPath, Place] = field(default_factory=dict)
    #: (key path, first place, second place)
    duplicates: tuple[tuple[KeyPath, Place, Place], ...] = ()

    def place_of(self, key: KeyPath) -> Place:
        """Return the place of a key, or of its nearest parent that stands in the file."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, Place(1, 1))


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema: no on/off, no sexagesimals, no dates, no octal 010.

    Nesting is counted while it is read: PyYAML takes a time that grows with the square of it, a minute for 100 000 `[`.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own shape
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node and what is in it. Raises ComposerError where it lies too deep."""
        self._depth += 1
        if self._depth > DEEPEST + 2:
            raise yaml.composer.ComposerError(None, None, f"nested more than {DEEPEST} deep", self.get_mark())
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


#: tag, pattern, first characters; the first pattern that fits decides
_PATTERNS: tuple[tuple[str, str, str], ...] = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("merge", r"<<", "<"),
)
#: how plain scalars are read: tag, pattern, first characters
SCALARS = tuple((f"tag:yaml.org,2002:{t}", re.compile(rf"^(?:{p})$"), tuple(first)) for t, p, first in _PATTERNS)
for _tag, _pattern, _first in SCALARS:
    _Loader.add_implicit_resolver(_tag, _pattern, list(_first))
# the empty scalar has no first character; PyYAML files it under ''
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^$"), [""])


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    number = int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if number.bit_length() > MOST_BITS:  # Python itself refuses to print one of 4300 digits
        raise yaml.constructor.ConstructorError(None, None, f"a number of more than {MOST_BITS} bits", node.start_mark)
    return number


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def read_yaml(path: Path) -> YamlFile:
    """Parse one YAML document.

    Raises ConfigError with file, line and column where it is not valid YAML, not text, or cannot be read. An empty
    file has the value None.
    """
    text = _read_text(path)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        # before construction, which writes the pairs of a merge (<<) into the node
        seen = list(islice(_keys(node, ()), MOST_KEYS + 1)) if node is not None else []
        if len(seen) > MOST_KEYS or any(len(key) > DEEPEST for key, _ in seen):
            raise ConfigError(f"{path}: more than {MOST_KEYS} keys, or nested more than {DEEPEST} deep")
        value = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        raise syntax_error(path, text, error) from error
    except yaml.reader.ReaderError as error:
        raise ConfigError(
            f"{path}: holds the character #x{error.character:04x} at position {error.position}, which YAML forbids",
            hint="save the file as plain UTF-8 text",
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a YAML document that can be read: {error}") from error
    places: dict[KeyPath, Place] = {}
    duplicates: list[tuple[KeyPath, Place, Place]] = []
    for key, place in seen:
        if key in places:
            duplicates.append((key, places[key], place))
        places.setdefault(key, place)
    return YamlFile(path=path, value=value, places=places, duplicates=tuple(duplicates))


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(
                f"{path}: is larger than {MOST_BYTES >> 10} KiB, which no config is", hint="name another file"
            )
        # utf-8-sig: editors on Windows put a byte order mark in front, which would become part of the first key
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder", hint=f"name the file in it: {path / 'nanhunt.yaml'}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _keys(node: yaml.Node, above: KeyPath) -> Iterator[tuple[KeyPath, Place]]:
    """Yield each key path below a node with its place, in the order of the file; equal keys come twice."""
    if len(above) > DEEPEST + 1:
        return
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = (*above, str(key_node.value))
            yield key, _place(key_node)
            yield from _keys(value_node, key)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*above, str(index)), _place(item)
            yield from _keys(item, (*above, str(index)))


def _place(node: yaml.Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)
