"""Whether a JSON value has the shape that a type says: what a trace tells is looked at before anything relies on it.

A trace may come from anywhere. A number where a text belongs would otherwise come to light in the middle of a report, as
an AttributeError of whichever line met it first.

A type is turned into a function once: the notes of a long run hold millions of numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from typing import Any, Literal

__all__ = ["misfit"]

#: Whole numbers are at most what a column of a trace holds; JSON has no end of digits.
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
#: Nesting of what has no type of its own: a config is 20 deep at most.
_DEEPEST = 40

#: What is wrong, and where: the keys and indices that lead there, the outermost last. None of a value that fits.
_Wrong = tuple[list[str], str] | None
_Check = Callable[[Any], _Wrong]

_NAMES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "NoneType": "null"}


def misfit(value: Any, hint: Any) -> str:
    """Return what is wrong with a value and where, `hops[3].op is not a text`; '' where it fits.

    Hints are `int`, `float` (a whole number fits), `bool`, `str`, None, `Any`, `list`, `dict` with keys of str, or of int
    (written as digits), `tuple`, unions, `Literal` (any text: later versions have more), dataclasses and TypedDicts. Keys
    that a dataclass or TypedDict does not know are looked at as `Any` is: for their depth, and for numbers without end.
    """
    wrong = _check_for(hint)(value)
    if wrong is None:
        return ""
    path = "".join(reversed(wrong[0])).lstrip(".")[:120]
    return f"{path or 'it'} {wrong[1]}"


@functools.cache
def _check_for(hint: Any) -> _Check:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _any
    if origin in (typing.Union, types.UnionType):
        return _union([_check_for(part) for part in parts])
    if origin in (typing.Required, typing.NotRequired):
        return _check_for(parts[0])
    if origin is dict:
        return _object(is_numbered=parts[0] is int, inner=_check_for(parts[1]))
    if origin is list:
        return _list([], _check_for(parts[0]))
    if origin is tuple:
        rest = next((inner for inner in map(_repeated, parts) if inner is not None), None)
        fixed = [_check_for(part) for part in parts if _repeated(part) is None]
        return _list(fixed, None if rest is None else _check_for(rest))
    if dataclasses.is_dataclass(hint) or typing.is_typeddict(hint):
        return _record(hint)
    return _plain(str if origin is Literal else type(None) if hint is None else hint)


def _any(value: Any, depth: int = 0) -> _Wrong:
    """Refuse what no value may be, whatever it is for: nested without end, or a number without end."""
    if depth > _DEEPEST:
        return [], f"is nested more than {_DEEPEST} deep"
    if isinstance(value, (dict, list)):
        inside = value.values() if isinstance(value, dict) else value
        return next((wrong for inner in inside if (wrong := _any(inner, depth + 1)) is not None), None)
    return ([], "is a number out of range") if type(value) is int and not _LEAST <= value <= _MOST else None


def _plain(kind: type) -> _Check:
    wrong = f"is not {_NAMES[kind.__name__]}"
    takes_whole = kind in (int, float)

    def check(value: Any) -> _Wrong:
        if type(value) is int and takes_whole:
            return None if _LEAST <= value <= _MOST else ([], "is a number out of range")
        return None if type(value) is kind else ([], wrong)

    return check


def _union(checks: list[_Check]) -> _Check:
    def check(value: Any) -> _Wrong:
        tried = [check(value) for check in checks]
        return None if None in tried else tried[0]

    return check


def _object(*, is_numbered: bool, inner: _Check) -> _Check:
    def check(value: Any) -> _Wrong:
        if not isinstance(value, dict):
            return [], "is not an object"
        for key, item in value.items():
            if is_numbered and not (key.isdecimal() and key.isascii() and len(key) < 19):
                return [], "has a key that is not a number"
            wrong = inner(item)
            if wrong is not None:
                return [*wrong[0], f".{key}"], wrong[1]
        return None

    return check


def _list(fixed: list[_Check], rest: _Check | None) -> _Check:
    """Return a check of `fixed` entries, and of any number behind them where there is a `rest`."""
    count = len(fixed)

    def check(value: Any) -> _Wrong:
        if not isinstance(value, list):
            return [], "is not a list"
        if len(value) < count or (rest is None and len(value) > count):
            return [], f"has {len(value)} entries"
        for at, item in enumerate(value):
            wrong = fixed[at](item) if at < count or rest is None else rest(item)
            if wrong is not None:
                return [*wrong[0], f"[{at}]"], wrong[1]
        return None

    return check


def _record(hint: Any) -> _Check:
    hints = typing.get_type_hints(hint)
    required = _required(hint)
    checks = {name: _check_for(inner) for name, inner in hints.items()}

    def check(value: Any) -> _Wrong:
        if not isinstance(value, dict):
            return [], "is not an object"
        for name in required:
            if name not in value:
                return [], f"lacks {name!r}"
        for key, item in value.items():
            wrong = checks.get(key, _any)(item)
            if wrong is not None:
                return [*wrong[0], f".{key}"], wrong[1]
        return None

    return check


def _required(hint: Any) -> tuple[str, ...]:
    """Return the fields that must be there."""
    if typing.is_typeddict(hint):
        return tuple(sorted(hint.__required_keys__))
    absent = dataclasses.MISSING
    return tuple(f.name for f in dataclasses.fields(hint) if f.default is absent and f.default_factory is absent)


def _repeated(part: Any) -> Any:
    """Return X of `*tuple[X, ...]`, in either of the two forms that typing gives it; None of anything else."""
    if typing.get_origin(part) is typing.Unpack:
        part = typing.get_args(part)[0]
    elif not getattr(part, "__unpacked__", False):
        return None
    return typing.get_args(part)[0]
