"""JSON that keeps non-finite floats: exactly between nanhunt and itself, as words for everybody else.

JSON has no NaN. Between the writer and the reader of a trace, `dumps` and `loads` tag them, `{"$float": "NaN"}`, so that
a string "NaN" stays a string. For documents that others read, `spell_nonfinite` gives the plain words of the contract.
"""

from __future__ import annotations

import json
import math
import numbers
from typing import Any

__all__ = ["dumps", "loads", "spell_nonfinite"]

_TAG = "$float"
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def dumps(value: Any) -> str:
    """Return ASCII JSON from which `loads` rebuilds every float, non-finite ones too.

    Tuples become lists, keys strings, numpy and torch scalars numbers. What JSON has no type for (a path, a date, a
    dtype) becomes its `str`: a recording must not stop because a config holds a date.
    """
    return json.dumps(_tagged(value), allow_nan=False, separators=(",", ":"))


def loads(text: str | bytes) -> Any:
    """Return what `dumps` was given. Raises ValueError for anything that is not its output."""
    try:
        return json.loads(text, object_hook=_untagged)
    except RecursionError as error:
        raise ValueError("JSON is nested too deeply") from error


def spell_nonfinite(value: Any) -> Any:
    """Return the value as JSON types with "NaN", "Infinity" and "-Infinity" for the floats that JSON lacks."""
    value = _plain(value)
    if isinstance(value, dict):
        return {str(k): spell_nonfinite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [spell_nonfinite(v) for v in value]
    return _word(value) if isinstance(value, float) and not math.isfinite(value) else value


def _tagged(value: Any) -> Any:
    """Return the value as JSON types, non-finite floats tagged, keys that look like a tag escaped by a `$` more."""
    value = _plain(value)
    if isinstance(value, dict):
        return {(f"${k}" if str(k).startswith("$") else str(k)): _tagged(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_tagged(v) for v in value]
    return {_TAG: _word(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _untagged(body: dict[str, Any]) -> Any:
    """Undo `_tagged` for one JSON object."""
    if _TAG in body:
        word = body[_TAG]
        if len(body) != 1 or not isinstance(word, str) or word not in _WORDS:
            raise ValueError(f"not a float: {body!r:.80}")
        return _WORDS[word]
    return {(k[1:] if k.startswith("$") else k): v for k, v in body.items()}


def _plain(value: Any) -> Any:
    """Return the value as one of None, bool, int, float, str, list, dict; the insides of the last two untouched."""
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if value is None or isinstance(value, bool | dict):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, list | tuple):
        return list(value)
    return sorted(value, key=str) if isinstance(value, set | frozenset) else str(value)


def _word(value: float) -> str:
    """Return the name of a non-finite float."""
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
