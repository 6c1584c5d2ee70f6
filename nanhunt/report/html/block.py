"""The series block: every tensor's history over the steps, small enough to travel inside a page.

How it works. Magnitudes are whole numbers of parts of a binade, an eighth where there is room, counts are exact. Along
the steps differences are kept, in planes of bytes, low bytes apart from high ones: most of them are zero or near it, so
that deflate leaves a few bits each. A page opens them with the browser's own `DecompressionStream`.

What that costs. A magnitude is read back to 5 % (eighths of a binade), at worst to 20 % (halves). Where tensors do not
fit even so, those with the most room are left out, and the page says how many.

    bytes 0–3    length of the head, little endian
    head         JSON: columns, parts of a binade, and a line a tensor, with its histograms
    planes       tensors x columns each: low then high bytes of `amax`, `rms`, `amin` (int16 differences; see EMPTY), zero
                 (bytes of percent, 255 for not observed), and the four bytes of `bad` and of `infinite`
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nanhunt.diagnosis.recording import Histories, TensorHistory
from nanhunt.formats.headroom import ExponentHistogram
from nanhunt.inert import printable

__all__ = ["BUDGET", "EMPTY", "ZERO", "packed"]

#: Bytes of a block in base64: a page is to stay below 500 kB, of which its code, text and curves take up to 220.
BUDGET = 280_000
#: In place of a magnitude: not observed, and all elements zero.
EMPTY, ZERO = -32000, -31000
#: Parts of a binade, from the finest. The smallest magnitude is noise to a binade, and is told in whole ones.
_PARTS = (8, 4, 2)
#: zlib's; 9 takes four times as long and saves one byte in a hundred
_EFFORT = 6


def packed(
    histories: Histories, firsts: frozenset[str] = frozenset(), roles: Sequence[str] = (), budget: int = BUDGET
) -> str:
    """Return the block as base64, of `budget` characters at most; '' where there is nothing to show.

    Where tensors have to go, those of the modules `firsts` go last, and before them those of `roles`, the first of which
    tells most: a map of outputs shows where they are healthy yet.
    """
    kept = list(histories.tensors)
    if not kept or not histories.columns:
        return ""
    for parts in _PARTS:
        block = _encoded(histories, kept, parts)
        if len(block) <= budget:
            return block
    order = sorted(range(len(kept)), key=lambda i: _interest(kept[i], firsts, roles), reverse=True)
    while len(block) > budget and len(order) > 1:
        order = order[: max(int(len(order) * budget / len(block) * 0.97), 1)]
        block = _encoded(histories, [kept[i] for i in sorted(order)], _PARTS[-1])
    return block


def _interest(tensor: TensorHistory, firsts: frozenset[str], roles: Sequence[str]) -> tuple[bool, int, bool, float]:
    """Return by what a tensor is kept: in the story, its role, broken, and then by its largest magnitude."""
    highest = float(np.nanmax(tensor.amax, initial=0.0))
    role = len(roles) - roles.index(tensor.role) if tensor.role in roles else 0
    return tensor.module in firsts, role, bool(tensor.bad.any()), highest if math.isfinite(highest) else math.inf


def _encoded(histories: Histories, tensors: Sequence[TensorHistory], parts: int) -> str:
    head = {
        "parts": parts,
        "columns": histories.columns,
        "left_out": len(histories.tensors) - len(tensors),
        "tensors": [_line(tensor) for tensor in tensors],
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    planes = b"".join(
        [
            _differences([_levels(t.amax, parts) for t in tensors]),
            _differences([_levels(t.rms, parts) for t in tensors]),
            _differences([_levels(t.amin, 1) for t in tensors]),
            np.stack([_percent(t.zero) for t in tensors]).tobytes(),
            *(_whole([getattr(t, name) for t in tensors]) for name in ("bad", "infinite")),
        ]
    )
    raw = len(text).to_bytes(4, "little") + text + planes
    return base64.b64encode(zlib.compress(raw, _EFFORT)).decode("ascii")


def _line(tensor: TensorHistory) -> list[Any]:
    names = [printable(part) for part in (tensor.module, tensor.role, tensor.name, tensor.dtype)]
    return [*names, tensor.numel, _shares(tensor.before), _shares(tensor.at)]


def _shares(histogram: ExponentHistogram) -> list[int]:
    """Return the lowest exponent, then each bin's share as 1 + 8 (31 + log2 share), 0 for none: 1 in 2^31 is told."""
    total = histogram.total
    if not total:
        return []
    levels = (0 if not c else max(1, 1 + round(8 * (31 + math.log2(c / total)))) for c in histogram.counts)
    return [histogram.lowest, *levels]


def _levels(values: npt.NDArray[np.float64], parts: int) -> npt.NDArray[np.int64]:
    """Return magnitudes as parts of a binade."""
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = np.rint(parts * np.log2(values))
    return np.where(np.isnan(values), EMPTY, np.where(values > 0.0, np.nan_to_num(levels), ZERO)).astype(np.int64)


def _differences(levels: list[npt.NDArray[np.int64]]) -> bytes:
    """Return low bytes, then high bytes, of each value minus the one before it in its line, modulo 2^16.

    Signs are folded in (0, -1, 1, -2 become 0, 1, 2, 3): a small step down has a high byte of zero as well.
    """
    lines = np.stack(levels)
    steps = lines - np.pad(lines, ((0, 0), (1, 0)))[:, :-1]
    steps = (steps + 32768) % 65536 - 32768
    folded = np.where(steps < 0, -2 * steps - 1, 2 * steps).astype(np.uint16)
    low, high = (folded & 255).astype(np.uint8), (folded >> 8).astype(np.uint8)
    return low.tobytes() + high.tobytes()


def _percent(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Return whole percents; a share above none is 1 at least, one below all 99 at most."""
    percents = np.where(shares >= 1.0, 100, np.clip(np.rint(100 * np.nan_to_num(shares)), shares > 0, 99))
    return np.where(np.isnan(shares), 255, percents).astype(np.uint8)


def _whole(counts: list[npt.NDArray[np.int64]]) -> bytes:
    numbers = np.minimum(np.stack(counts), 2**32 - 1).astype(np.uint32)
    return b"".join(((numbers >> shift) & 255).astype(np.uint8).tobytes() for shift in (0, 8, 16, 24))
