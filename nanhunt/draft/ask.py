"""The questions at a terminal: one import string each, checked at once by importing it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nanhunt.draft.text import Draft, Entry
from nanhunt.errors import NanhuntError, UserCodeError
from nanhunt.report.words import prose
from nanhunt.training.user_code import resolve, user_traceback

__all__ = ["asked"]

_QUESTIONS = {
    "model": "model, a callable that returns the nn.Module",
    "data": "data, a callable that returns the batches, or an iterable of them",
    "loss": "loss, a callable (model, batch) -> scalar",
    "optimizer": "optimizer, a class or a callable (model) -> Optimizer",
    "scheduler": "scheduler, a callable (optimizer) -> LR scheduler",
}


def asked(draft: Draft, *, root: Path, ask: Callable[[str], str], say: Callable[[str], None]) -> Draft:
    """Return the draft with the answers in it.

    `ask` shows a prompt and returns the line; EOFError ends the questions and keeps the rest as it is. An empty line
    takes what stands in brackets, which is checked like an answer; where nothing stands there, the placeholder or the
    comment stays. What does not resolve is said, with the nearest name, and asked again.
    """
    say(
        "Import strings are module:attribute, looked up from "
        f"{root.resolve()}. Each is checked by importing it: this runs what your modules do when they are imported."
    )
    try:
        for key in _QUESTIONS:
            entry = next((e for e in draft.entries if e.key == key), None)
            if entry is None:
                continue
            answer = _answered(entry, key in draft.placeholders, root, ask, say)
            if answer is not None:
                draft = _with(draft, answer)
    except EOFError:
        say("")
    return draft


def _answered(
    entry: Entry, is_placeholder: bool, root: Path, ask: Callable[[str], str], say: Callable[[str], None]
) -> Entry | None:
    """Return the entry with what was answered or confirmed; None where it stays as it is."""
    guess = entry.value["call"] if isinstance(entry.value, dict) else entry.value
    default = guess if entry.active and not is_placeholder else ""
    kept = "stays open" if is_placeholder else "none" if not entry.active else ""
    if entry.candidates:
        say(f"  {prose(entry.candidates)}")
    while True:
        answer = ask(f"{_QUESTIONS[entry.key]} [{default or kept}]: ").strip()
        if not (answer or default):
            return None
        problem = _problem(entry.key, answer or default, root)
        if problem is None:
            return entry if entry.active and answer in ("", guess) else _named(entry, answer)
        say(problem)
        if not answer:  # the guess is wrong: an empty line must not run into it again
            default, kept = "", "stays as guessed"


def _named(entry: Entry, answer: str) -> Entry:
    """Return the entry with an answer in place of its value; arguments that were meant for the guess go with it."""
    return replace(entry, value=answer, active=True, notes=entry.notes[:1])


def _problem(key: str, spec: str, root: Path) -> str | None:
    """Return why an import string cannot stand under a key, in a line or with the user's traceback; else None."""
    try:
        with _no_bytecode():
            found: Any = resolve(spec, key=key, root=root)
    except UserCodeError as error:
        trace = user_traceback(error.__cause__, root=root) if error.__cause__ is not None else ""
        return "\n".join(t for t in (trace, f"  {prose(error.message)}", _hint(error)) if t)
    except NanhuntError as error:
        return "\n".join(t for t in (f"  {prose(error.message)}", _hint(error)) if t)
    if callable(found) or (key == "data" and hasattr(found, "__iter__")):
        return None
    return f"  {key}: {spec} is a {type(found).__name__}, not a callable{' or an iterable' if key == 'data' else ''}"


def _hint(error: NanhuntError) -> str:
    return f"  {prose(error.hint)}" if error.hint else ""


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """Leave no `__pycache__` of what is imported only to see whether it is there."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _with(draft: Draft, entry: Entry) -> Draft:
    """Return the draft with this entry in the place of its key's; an answer closes what was open."""
    return replace(
        draft,
        entries=tuple(entry if e.key == entry.key else e for e in draft.entries),
        placeholders=tuple(k for k in draft.placeholders if k != entry.key),
        guessed=tuple(k for k in draft.guessed if k != entry.key),
        unknown=tuple(u for u in draft.unknown if not u.startswith(f"{entry.key}:")),
    )
