"""What two runs were: settings that differ, and what a reader has to know before the first difference means anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nanhunt.comparison.comparison import Setting
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Manifest, NoteKind

__all__ = ["are_ranks_of_one_run", "differing"]

#: Settings of the manifest, and what a reader calls them.
_PLAIN = {
    "nanhunt_version": "nanhunt", "torch_version": "torch", "python_version": "python", "device": "device",
    "checkpoint_digest": "checkpoint", "checkpoint_step": "checkpoint's step", "rank": "rank", "world_size": "ranks",
    "parameters": "parameters",
}  # fmt: skip
#: What says how long the replay looked, and nothing of what it ran.
_OF_THE_LOOK = ("steps", "zoom", "trials", "trials_budget")


def differing(a: Trace, b: Trace) -> tuple[Setting, ...]:
    """Return what differs in manifests, configs and optimizers, in this order."""
    pairs = [*_manifest(a.manifest, b.manifest)]
    pairs += _flat("config", a.manifest.config, b.manifest.config)
    kept = [{k: v for k, v in t.manifest.settings.items() if k not in _OF_THE_LOOK} for t in (a, b)]
    pairs += _flat("setting", *kept)
    pairs += _flat("optimizer", *(t.note_of(NoteKind.OPTIMIZER) or {} for t in (a, b)))
    return tuple(pairs)


def are_ranks_of_one_run(a: Trace, b: Trace) -> bool:
    """Whether both are files of one run's ranks: same checkpoint, config and world, other ranks."""
    first, second = a.manifest, b.manifest
    same = all(getattr(first, n) == getattr(second, n) for n in ("checkpoint_digest", "config", "world_size"))
    return same and first.world_size > 1 and first.rank != second.rank and a.rank_count == b.rank_count == 1


def _manifest(a: Manifest, b: Manifest) -> Iterator[Setting]:
    for key, name in _PLAIN.items():
        here, there = getattr(a, key), getattr(b, key)
        if here != there:
            yield Setting(name=name, a=_short(here), b=_short(there))


def _flat(name: str, a: Any, b: Any) -> Iterator[Setting]:
    """Yield the leaves that differ, by their dotted path."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            yield from _flat(f"{name}.{key}", a.get(key), b.get(key))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for at, (here, there) in enumerate(zip(a, b, strict=True)):
            yield from _flat(f"{name}.{at}", here, there)
    elif a != b:
        yield Setting(name=name, a=_short(a), b=_short(b))


def _short(value: object) -> str:
    text = "none" if value is None or value == "" else str(value)
    # a digest's first characters tell it from another
    text = text[:19] if text.startswith("sha256:") else text
    return text if len(text) <= 60 else f"{text[:59]}…"
