r"""Text that came from a file, made inert: no control character of it reaches a terminal.

Names of tensors, modules and files, source lines and messages were chosen by whoever made the checkpoint, the trace or the
model. An escape sequence in one of them would drive the reader's terminal (`\x1b]52;…` writes to the clipboard), and a
right-to-left override would turn a file name around.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["few", "printable", "printable_lines", "prose"]


def printable(text: str) -> str:
    r"""Return the text on one line, with every control, format and surrogate character spelt out as `\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def few(names: Iterable[object], most: int = 3) -> str:
    """Return the first names, each printable and cut, and how many more there are: 'a, b … (5 more)'."""
    every = list(names)
    rest = f" … ({len(every) - most} more)" if len(every) > most else ""
    return ", ".join(printable(str(name))[:200] for name in every[:most]) + rest


def printable_lines(text: str) -> str:
    """Return the text with its lines and their indents kept, each line as `printable`."""
    return "\n".join(printable(line) for line in text.expandtabs(4).split("\n"))


def prose(text: str) -> str:
    """Return a sentence on one line: white space folded, then as `printable`."""
    return printable(" ".join(text.split()))
