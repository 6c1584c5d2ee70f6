"""Where the parts of a checkpoint lie when its layout is none that is known: dotted paths, found by what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nanhunt.training.checkpoint import LOADERS
from nanhunt.training.checkpoint_layout import STEP_KEYS
from nanhunt.training.config import CheckpointKeys
from nanhunt.training.saved_value import as_step
from nanhunt.training.torch_file import read_torch_file

__all__ = ["found_keys"]

#: Levels that are looked through, and dicts: a file can nest as it likes.
_DEPTH, _MOST = 4, 5000
#: Words in a key that tell of an average rather than of what was trained.
_AVERAGES = ("ema", "avg", "average", "shadow", "teacher", "target")


def found_keys(path: Path, *, trust_pickle: bool) -> CheckpointKeys | None:
    """Return the keys of a torch file's parts that lie below its top; None where it is no such file, or has none.

    Of several states that could be the model's the largest is taken that is not named as an average.
    """
    loader = next((loader for loader in LOADERS if loader.recognises(path)), None)
    if loader is None or loader.name != "torch":
        return None
    content, _ = read_torch_file(path, trust_pickle=trust_pickle)
    if not isinstance(content, Mapping):
        return None
    places = list(_places(content))
    models = [(key, value) for key, value in places if _is_state(value)]
    chosen: dict[str, str] = {}
    if models:
        chosen["model"] = max(models, key=lambda m: (not _is_average(m[0]), _elements(m[1])))[0]
    for name, is_it in (("optimizer", _is_optimizer), ("scheduler", _is_scheduler), ("scaler", _is_scaler)):
        first = next((key for key, value in places if is_it(value)), None)
        chosen |= {name: first} if first is not None else {}
    steps = (
        f"{key}.{k}"
        for key, value in places
        for k in STEP_KEYS
        if not (_is_optimizer(value) or _is_scheduler(value)) and as_step(value.get(k)) is not None
    )
    step = next(steps, None)
    chosen |= {"step": step} if step is not None else {}
    # a key at the top that is known is found without being named
    return CheckpointKeys(**chosen) if chosen else None


def _places(
    content: Mapping[Any, Any], above: str = "", depth: int = _DEPTH
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield each dict below the top with its dotted path; optimizers' insides are left alone."""
    count = 0
    for key, value in content.items():
        if not isinstance(value, Mapping) or not isinstance(key, str) or not key or "." in key or not key.isprintable():
            continue
        count += 1
        if count > _MOST:
            return
        yield f"{above}{key}", value
        if depth > 1 and "param_groups" not in value and not _is_state(value):
            yield from _places(value, f"{above}{key}.", depth - 1)


def _is_state(value: Mapping[Any, Any]) -> bool:
    return "param_groups" not in value and any(isinstance(v, Tensor) and isinstance(k, str) for k, v in value.items())


def _is_optimizer(value: Mapping[Any, Any]) -> bool:
    return "param_groups" in value and "state" in value


def _is_scheduler(value: Mapping[Any, Any]) -> bool:
    return "last_epoch" in value and ("_step_count" in value or "base_lrs" in value)


def _is_scaler(value: Mapping[Any, Any]) -> bool:
    return "_growth_tracker" in value and "scale" in value


def _is_average(key: str) -> bool:
    return any(word in key.lower() for word in _AVERAGES)


def _elements(value: Mapping[Any, Any]) -> int:
    return sum(v.numel() for v in value.values() if isinstance(v, Tensor))
