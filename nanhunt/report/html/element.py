"""Markup that nothing in a trace can leave: text is escaped where it enters an element, and there is no other way in."""

from __future__ import annotations

import re
from html import escape

from nanhunt.report import words

__all__ = ["Markup", "code", "prose", "tag", "text"]

_VOID = frozenset(("meta", "path", "circle", "line", "polyline", "rect"))


class Markup(str):
    """A string that is markup already: what `tag` and `text` made, and the page's own style, scripts and data blocks."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Return text on one line, harmless in an element as in an attribute."""
    return Markup(escape(words.printable(str(value)), quote=True))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Return an element; children that are no markup are escaped, None and '' are left out.

    `class_` stands for class, and `_` in an attribute's name for `-`; one whose value is None or False is left out, one
    whose value is True stands alone.
    """
    head = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        spelt = key.rstrip("_").replace("_", "-")
        head.append(spelt if value is True else f'{spelt}="{text(value)}"')
    inner = "".join(child if isinstance(child, Markup) else text(child) for child in children if child is not None)
    return Markup(f"<{' '.join(head)}>" if name in _VOID else f"<{' '.join(head)}>{inner}</{name}>")


def code(name: object) -> Markup | None:
    """Return a name in code type, with places to break behind its dots; None for no name."""
    if not name:
        return None
    return tag("code", Markup(text(name).replace(".", ".<wbr>")))


def prose(sentence: str) -> Markup:
    """Return a sentence, with what stands between backticks in code type."""
    parts = re.split(r"`([^`]+)`", words.prose(sentence))
    return Markup("".join(tag("code", part) if i % 2 else text(part) for i, part in enumerate(parts)))
