"""What a checkpoint shows of the run that saved it: its parts, its formats, its optimizer, its settings."""

from __future__ import annotations

import argparse
import math
import types
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanhunt.draft.keys import found_keys
from nanhunt.errors import CheckpointError
from nanhunt.training.checkpoint import Checkpoint, load_checkpoint
from nanhunt.training.config import CheckpointKeys
from nanhunt.training.dcp_folder import is_dcp
from nanhunt.training.dotted_places import EPOCH_KEYS, MODEL_ARGUMENT_KEYS, SETTINGS_KEYS, count_below, places
from nanhunt.training.saved_value import as_step

__all__ = ["Shown", "plain", "shown_by", "shown_of"]

#: Bounds of what is written into a config: a checkpoint can hold anything.
_LONGEST_TEXT, _MOST_ITEMS, _DEEPEST = 200, 64, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a checkpoint tells. `checkpoint` is None where there is none, or it could not be read: `unread` says why."""

    path: Path | None = None
    checkpoint: Checkpoint | None = None
    #: where parts lie that are not found by themselves
    keys: CheckpointKeys | None = None
    unread: str = ""
    #: arguments of the model by name, and settings of the loop by their names in lower case: plain values
    model_arguments: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    #: under which name each was found
    model_arguments_in: str = ""
    settings_in: str = ""
    #: under which key an epoch is told, and which
    epoch: tuple[str, int] | None = None

    @property
    def updates(self) -> int | None:
        """The updates that the optimizer counted, None where its state has no counter."""
        state = ((self.checkpoint.optimizer if self.checkpoint else None) or {}).get("state")
        entries = [e for e in state.values() if isinstance(e, Mapping)] if isinstance(state, Mapping) else []
        return max((s for s in (as_step(e.get("step")) for e in entries) if s is not None), default=None)

    @property
    def container(self) -> str:
        """The checkpoint's container, '' without one."""
        return self.checkpoint.container if self.checkpoint else ""

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups, [] where there are none."""
        groups = ((self.checkpoint.optimizer if self.checkpoint else None) or {}).get("param_groups")
        return [g for g in groups if isinstance(g, dict)] if isinstance(groups, list) else []

    @property
    def dtypes(self) -> Counter[str]:
        """Elements of the floating weights by dtype: {"float32": 124_000_000}."""
        found: Counter[str] = Counter()
        for tensor in self.checkpoint.model.values() if self.checkpoint else ():
            if tensor.is_floating_point():
                found[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
        return found

    def setting(self, *names: str) -> Any:
        """Return the first setting of these names, None where there is none."""
        return next((self.settings[n] for n in names if self.settings.get(n) is not None), None)


def shown_of(path: Path | None, *, trust_pickle: bool) -> Shown:
    """Read a checkpoint for what it shows.

    Raises CheckpointError as `load_checkpoint` does, except of a folder of torch.distributed.checkpoint, of which a
    config can be written unread.
    """
    if path is None:
        return Shown()
    try:
        checkpoint, keys = _read(path, trust_pickle)
    except CheckpointError as error:
        if trust_pickle or not is_dcp(path):
            raise
        return Shown(path=path, unread=error.message)
    return shown_by(checkpoint, keys)


def shown_by(checkpoint: Checkpoint, keys: CheckpointKeys | None = None) -> Shown:
    """Return what a loaded checkpoint shows; `keys` are those that it had to be loaded by."""
    extra = _opened(checkpoint.extra)
    below = dict([*_at_top(extra), *places(extra)])
    arguments_in = next((path for key in MODEL_ARGUMENT_KEYS for path in _called(key, below)), "")
    if not arguments_in and checkpoint.container == "lightning" and "hyper_parameters" in below:
        arguments_in = "hyper_parameters"
    # in a Hugging Face folder `config` is its config.json, which describes the model and not the loop
    is_described = checkpoint.container.startswith("hf-")
    names = [path for key in SETTINGS_KEYS for path in _called(key, below)] if not is_described else ["trainer_state"]
    settings_in = [name for name in names if name in below]
    arguments = plain(below[arguments_in]) if arguments_in else None
    return Shown(
        path=checkpoint.path,
        checkpoint=checkpoint,
        keys=keys,
        model_arguments=arguments if isinstance(arguments, dict) else {},
        settings={k: v for name in settings_in for k, v in _flat(below[name])},
        model_arguments_in=arguments_in,
        settings_in=", ".join(settings_in),
        epoch=_epoch(extra),
    )


def _at_top(extra: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield the dicts at the top, those of odd names too."""
    return ((key, value) for key, value in extra.items() if isinstance(key, str) and isinstance(value, Mapping))


def _called(key: str, below: Mapping[str, Mapping[Any, Any]]) -> list[str]:
    """Return the dotted paths that end in a key, the shallowest first."""
    return sorted((path for path in below if path.rpartition(".")[2] == key), key=lambda path: path.count("."))


def _opened(value: Any, depth: int = _DEEPEST) -> Any:
    """Return a value whose namespaces, as argparse makes them, are dicts: a trusted pickle may hold some."""
    if isinstance(value, (argparse.Namespace, types.SimpleNamespace)):
        value = dict(vars(value))
    if depth and type(value) is dict:
        return {k: _opened(v, depth - 1) for k, v in value.items()}
    return value


def _epoch(extra: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return under which key the checkpoint tells an epoch, and which."""
    counts = ((key, as_step(extra.get(key))) for key in EPOCH_KEYS)
    return next(((key, count) for key, count in counts if count is not None), None) or count_below(extra, EPOCH_KEYS)


def _read(path: Path, trust_pickle: bool) -> tuple[Checkpoint, CheckpointKeys | None]:
    """Return the checkpoint, and the keys of what is not found by itself."""
    try:
        checkpoint = load_checkpoint(path, keys=None, trust_pickle=trust_pickle)
    except CheckpointError:
        keys = found_keys(path, trust_pickle=trust_pickle)
        if keys is None or keys.model is None:
            raise
        return load_checkpoint(path, keys=keys, trust_pickle=trust_pickle), keys
    wanting = [n for n in ("optimizer", "scheduler", "scaler", "step") if getattr(checkpoint, n) is None]
    below = found_keys(path, trust_pickle=trust_pickle) if wanting and checkpoint.container == "torch" else None
    named = {n: key for n in wanting if below is not None and (key := getattr(below, n)) is not None and "." in key}
    if not named:
        return checkpoint, None
    keys = CheckpointKeys(**named)
    return load_checkpoint(path, keys=keys, trust_pickle=trust_pickle), keys


def plain(value: object, depth: int = _DEEPEST) -> Any:
    """Return a value as YAML's own types, as a copy; None of what has none, or is too large to stand in a config.

    A tensor or NumPy scalar of one element is its number, a dtype its name. A dict loses what is not plain in it.
    """
    if isinstance(value, (bool, float)):
        return bool(value) if isinstance(value, bool) else float(value)
    if isinstance(value, int):
        return int(value) if abs(value) < 1 << 63 else None
    if isinstance(value, str):
        return str(value) if len(value) <= _LONGEST_TEXT else None
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        item = value.item() if getattr(value, "size", None) == 1 or _is_scalar(value) else None  # type: ignore[attr-defined]
        return plain(item) if isinstance(item, (bool, int, float)) else None
    if depth and isinstance(value, Mapping) and len(value) <= _MOST_ITEMS:
        items = ((k, plain(v, depth - 1)) for k, v in value.items() if isinstance(k, str) and k.isidentifier())
        return {str(k): v for k, v in items if v is not None}
    if depth and isinstance(value, (list, tuple)) and len(value) <= _MOST_ITEMS:
        inside = [plain(v, depth - 1) for v in value]
        return None if any(v is None for v in inside) else inside
    return None


def _is_scalar(value: object) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()


def _flat(value: object, depth: int = _DEEPEST) -> Iterator[tuple[str, Any]]:
    """Yield the plain settings of nested dicts by their last key, the outer ones last, so that they win."""
    if not isinstance(value, Mapping):
        return
    for inner in list(value.values())[: 16 * _MOST_ITEMS]:
        if isinstance(inner, Mapping) and depth > 1:
            yield from _flat(inner, depth - 1)
    for key, inner in list(value.items())[: 16 * _MOST_ITEMS]:
        found = None if isinstance(inner, Mapping) else plain(inner)
        if isinstance(key, str) and found is not None and not (isinstance(found, float) and not math.isfinite(found)):
            yield key.lower(), found
