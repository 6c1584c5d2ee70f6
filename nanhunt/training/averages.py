"""Averages of the weights that lie beside the weights: told by their names, and by what of the weights each is one.

An exponential moving average has its weights' names below a key of its own (`ema`, `state_dict_ema`, `averaged_state_dict`),
the same without dots (`model_ema.` of latent diffusion), or the weights' order alone (`shadow_params` of diffusers). A name
is not enough: without weights to be an average of, it is what was saved of the run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

__all__ = ["averages_among", "is_average"]

#: Words of a key that whole states of averages, or of copies that follow the weights, are called by; and the one that stands
#: for an average inside of a state too: a layer may be a target, or swa, sliding-window attention.
_STATES = frozenset(
    {"ema", "emas", "avg", "average", "averaged", "averages", "shadow", "swa", "polyak", "teacher", "target"}
)
_INSIDE = frozenset({"ema"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
#: Share of an average's tensors that must have their weight.
_MOST = 0.5
_WRAPPERS = ("module.", "model.")

Shape = tuple[int, ...]


def is_average(path: str) -> bool:
    """Whether a key of a dotted path is called an average, or a copy that follows the weights."""
    return any(_words(key) & _STATES for key in path.split("."))


def averages_among(shapes: Mapping[str, Shape], owners: Mapping[str, str]) -> dict[str, str]:
    """Return the weight that each average is one of: {"ema.fc.weight": "fc.weight"}.

    `shapes` are of all weights by name, `owners` the dotted keys of the state that each stands in.
    """
    groups: dict[str, dict[str, str]] = {}
    for name in shapes:
        key = _average_key(name, owners.get(name, ""))
        if key:
            groups.setdefault(key, {})[name.removeprefix(f"{key}.")] = name
    taken = {name for group in groups.values() for name in group.values()}
    plain = [name for name in shapes if name not in taken]
    index = _by_endings(plain)
    found: dict[str, str] = {}
    for key, group in groups.items():
        pairs = _by_order(group, plain, shapes, owners) if all(rest.isdecimal() for rest in group) else None
        pairs = pairs or _by_name(key, group, index, shapes)
        if len(pairs) >= _MOST * len(group):
            found |= pairs
    return found


def _words(key: str) -> frozenset[str]:
    return frozenset(word.lower() for word in _WORD.findall(key))


def _average_key(name: str, owner: str) -> str:
    """Return a name up to its last key that is called an average; '' where none is. A tensor's own name does not count."""
    keys = name.split(".")
    outer = len(owner.split(".")) if owner else 0
    for last in range(len(keys) - 2, -1, -1):
        if _words(keys[last]) & (_STATES if last < outer else _INSIDE):
            return ".".join(keys[: last + 1])
    return ""


def _by_endings(names: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Return (what precedes, whole name) by each ending of the names, dots left out."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        for before, ending in _endings(name):
            found.setdefault(ending.replace(".", ""), []).append((before, name))
    return found


def _endings(name: str) -> Iterator[tuple[str, str]]:
    keys = name.split(".")
    return ((".".join(keys[:i]), ".".join(keys[i:])) for i in range(len(keys)))


def _by_name(
    key: str, group: Mapping[str, str], index: Mapping[str, list[tuple[str, str]]], shapes: Mapping[str, Shape]
) -> dict[str, str]:
    """Return the pairs under the one prefix that most of the average's names are found below."""
    matches: dict[str, dict[str, str]] = {}
    for rest, name in group.items():
        bare = rest
        for wrapper in _WRAPPERS:
            bare = bare.removeprefix(wrapper)
        for ending in dict.fromkeys((rest, bare)):
            for before, weight in index.get(ending.replace(".", ""), ()):
                if shapes[weight] == shapes[name]:
                    matches.setdefault(before, {}).setdefault(name, weight)
    likely = Counter({before: len(pairs) for before, pairs in matches.items()})
    # of several that fit alike (a generator and its critic) the one whose name the average's key has in it: g_ema, g
    best = max(likely, key=lambda before: (likely[before], len(_words(before) & _words(key))), default=None)
    return matches[best] if best is not None else {}


def _by_order(
    group: Mapping[str, str], plain: Sequence[str], shapes: Mapping[str, Shape], owners: Mapping[str, str]
) -> dict[str, str]:
    """Return the pairs of a list of averages: one state's weights have its shapes, in its order."""
    names = [group[rest] for rest in sorted(group, key=int)]
    states: dict[str, list[str]] = {}
    for name in plain:
        states.setdefault(owners.get(name, ""), []).append(name)
    for weights in (*states.values(), list(plain)):
        if [shapes[w] for w in weights] == [shapes[n] for n in names]:
            return dict(zip(names, weights, strict=True))
    return {}
