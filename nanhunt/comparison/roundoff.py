"""Unit roundoffs of what a run computes in: of a stored format, of its autocast, and of the sums inside an op."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nanhunt.errors import UsageError
from nanhunt.formats.catalogue import FP32, lookup
from nanhunt.formats.number_format import AnyFormat, BlockFormat
from nanhunt.recipes.catalogue import lookup as recipe_of
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import NoteKind

__all__ = ["Arithmetic", "of_sums", "unit_roundoff"]

_Floats = npt.NDArray[np.float64]

#: From this unit roundoff on, fp16's and coarser, products are exact in fp32 and added up in it, on CPUs as on tensor cores.
_NARROW = 2.0**-11


def unit_roundoff(dtype: str) -> float:
    """Return 2^-p of a format with p significant bits, the largest relative error of rounding to nearest; 0 of integers.

    >>> unit_roundoff("float32") == 2.0**-24, unit_roundoff("bfloat16") == 2.0**-8, unit_roundoff("int64")
    (True, True, 0.0)
    """
    found = _format(dtype)
    if found is None:
        return 0.0
    return 2.0 ** -(found.element if isinstance(found, BlockFormat) else found).precision


def of_sums(u: _Floats) -> _Floats:
    """Return the unit roundoff in which an op adds up what it rounds with `u`: narrow formats are added up in fp32."""
    return np.where(u >= _NARROW, 2.0**-FP32.precision, u)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """The coarsest format that a run names for its products: `name`, its unit roundoff, half its smallest number.

    '' and zeros where it names none: then tensors are computed in what they are stored in.
    """

    name: str = ""
    u: float = 0.0
    flush: float = 0.0

    @classmethod
    def of(cls, trace: Trace) -> Arithmetic:
        """Read it from the config, the optimizer's note and the recipe of the command line."""
        named = [(unit_roundoff(name), name) for name in _named(trace)]
        u, name = max(named, default=(0.0, ""))
        return cls(name=name, u=u, flush=_flush(name))

    def of_rows(self, dtypes: tuple[Sequence[str], npt.NDArray[np.int64]]) -> tuple[_Floats, _Floats]:
        """Return each row's unit roundoff, and the most that flushing to zero takes: the dtype's or the products'.

        `dtypes` are the words and each row's place among them. Both are 0 of rows that are no floats.
        """
        words, places = dtypes
        own = np.array([unit_roundoff(word) for word in words])
        u = np.where(own > 0.0, np.maximum(own, self.u), 0.0)
        flush = np.where(own > 0.0, np.maximum([_flush(word) for word in words], self.flush), 0.0)
        return u[places], flush[places]

    def ends(self, dtypes: tuple[Sequence[str], npt.NDArray[np.int64]]) -> _Floats:
        """Return the largest number of each row's dtype, or of the products' format where this is smaller; NaN of no floats."""
        words, places = dtypes
        return np.array([min(_end(word), _end(self.name) if self.name else math.inf) for word in words])[places]


def _format(name: str) -> AnyFormat | None:
    try:
        return lookup(name)
    except UsageError:
        return None


def _end(name: str) -> float:
    found = _format(name)
    return math.nan if found is None else (found.element if isinstance(found, BlockFormat) else found).max


def _flush(name: str) -> float:
    """Return half the smallest positive number of a format: what is below it becomes zero."""
    found = _format(name)
    return 0.0 if found is None or isinstance(found, BlockFormat) else found.smallest / 2


def _named(trace: Trace) -> list[str]:
    """Return the formats that the run names for its products."""
    precision: Any = trace.manifest.config.get("precision")
    precision = precision if isinstance(precision, dict) else {}
    note = trace.note_of(NoteKind.OPTIMIZER) or {}
    names = [str(precision.get("autocast") or ""), str(note.get("autocast") or "")]
    for recipe in (precision.get("recipe"), trace.manifest.settings.get("precision")):
        names += _of_recipe(str(recipe)) if recipe else []
    return [name for name in names if name not in ("", "none")]


def _of_recipe(name: str) -> list[str]:
    """Return the formats of a recipe's products; [] of one that this version does not know."""
    try:
        recipe = recipe_of(name)
    except UsageError:
        return []
    found = [recipe.autocast or "", "tf32" if recipe.tf32 else ""]
    if recipe.products is not None:
        found += [o.format for o in (recipe.products.input, recipe.products.weight, recipe.products.gradient)]
    return found
