"""A file of batches: what a run was fed, kept to be fed again, with the random state behind each batch.

`data: batches.pt` in nanhunt.yaml replays from it. It is also what a recorder leaves: its batches, the step that the
first of them belongs to, and the random states. docs/batches.md describes both containers.

A `.pt` is a dict of `torch.save`, or a bare list of batches. A `.safetensors` names its tensors by batch and field,
`0.input_ids`, `0.labels`, `1.input_ids`, and keeps numbers in its metadata; tensors are all that it can hold. Either is
mapped, so a file larger than memory costs one batch at a time, and neither can run code.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from nanhunt.errors import CheckpointError, ConfigError
from nanhunt.training.found_file import is_there
from nanhunt.training.rng import restore_saved
from nanhunt.training.torch_file import read_torch_file

__all__ = ["FORMAT", "BatchFile", "plain_batch", "read_batches", "write_batches"]

#: What a dict says that was written here; a dict of the user's own need not.
FORMAT = "nanhunt.batches"

#: Fields inside fields that a batch may have; a deeper name is no batch's.
DEEPEST = 16

#: Digits that a batch's or a field's number may have.
_DIGITS = 9

_HOW_TO_WRITE = "nanhunt.training.batch_file.write_batches(path, batches, first_step=N) writes one"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFile:
    """The batches of consecutive micro-steps."""

    path: Path
    batches: Sequence[Any]
    #: the step that the first batch belongs to; None where the file does not say
    first_step: int | None = None
    #: batches a step; None where the file does not say
    accumulate: int | None = None
    #: for each batch the generators as its reading left them, in the shape of a checkpoint's; None where not kept
    random_states: Sequence[Mapping[str, Any]] | None = None

    def starting_at(self, index: int) -> Iterator[Any]:
        """Yield the batches from one on; the generators are put where the run had them, where the file knows."""
        for place in range(index, len(self.batches)):
            batch = self.batches[place]
            if self.random_states is not None:
                _restore(self.random_states[place], f"data: {self.path}: random_states[{place}]")
            yield batch


def _restore(state: Mapping[str, Any], what: str) -> None:
    """Put the generators into a saved state. Raises ConfigError where it is none of theirs."""
    try:
        restore_saved(dict(state))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(
            f"{what}: cannot be restored: {str(error).strip().splitlines()[0][:200]}",
            hint="keep RngState.capture().saved() of each batch, or leave random_states out",
        ) from error


def write_batches(
    path: Path | str,
    batches: Sequence[Any],
    *,
    first_step: int | None = None,
    accumulate: int = 1,
    random_states: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write batches to a `.pt` or `.safetensors`; an existing file is replaced only when all is written.

    A batch is tensors, numbers and texts in dicts, lists and tuples; a mapping of another class becomes a dict. Tensors
    are copied to the CPU first, so that a slice of a large array is not saved with all of it. `random_states` are
    those of `RngState.capture().saved()` behind the reading of each batch. Raises ValueError for what the container
    cannot hold.
    """
    path = Path(path)
    if random_states is not None and len(random_states) != len(batches):
        raise ValueError(f"{len(random_states)} random states for {len(batches)} batches")
    plain = [plain_batch(batch, f"batches[{index}]") for index, batch in enumerate(batches)]
    if path.suffix == ".safetensors" and random_states is not None:
        raise ValueError(f"{path}: a .safetensors keeps no random states; write a .pt")
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        if path.suffix == ".safetensors":
            _save_tensors(unfinished, plain, first_step, accumulate)
        else:
            body = {"format": FORMAT, "first_step": first_step, "accumulate": accumulate, "batches": plain}
            kept = {} if random_states is None else {"random_states": [dict(state) for state in random_states]}
            torch.save(body | kept, unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_batches(path: Path) -> BatchFile:
    """Open a file of batches; their tensors are read when they are used. Raises ConfigError where it is none."""
    if not is_there(path, "data") or not path.is_file():
        raise ConfigError(f"data: no file {path}", hint=_HOW_TO_WRITE)
    found = _from_safetensors(path) if path.suffix == ".safetensors" else _from_torch(path)
    if not found.batches:
        raise ConfigError(f"data: {path}: holds no batch", hint=_HOW_TO_WRITE)
    return found


def _from_torch(path: Path) -> BatchFile:
    try:
        content, _ = read_torch_file(path, trust_pickle=False)
    except CheckpointError as error:
        # --trust-pickle is about the checkpoint: batches have no need of it
        raise ConfigError(
            f"data: {error.message}",
            hint=f"save tensors, numbers and texts in dicts, lists and tuples: {_HOW_TO_WRITE}",
        ) from error
    body = content if isinstance(content, Mapping) and "batches" in content else {"batches": content}
    batches = body["batches"]
    if isinstance(batches, tuple) and all(isinstance(b, Tensor) for b in batches):
        raise ConfigError(f"data: {path}: a tuple of tensors may be one batch", hint="save a list of batches")
    if not isinstance(batches, (list, tuple)):
        raise ConfigError(f"data: {path}: holds a {type(batches).__name__}, not a list of batches", hint=_HOW_TO_WRITE)
    return BatchFile(
        path=path,
        batches=batches,
        first_step=_count(body.get("first_step"), f"data: {path}: first_step", least=0),
        accumulate=_count(body.get("accumulate"), f"data: {path}: accumulate", least=1),
        random_states=_random_states(body.get("random_states"), path, len(batches)),
    )


def _random_states(value: object, path: Path, batches: int) -> list[Mapping[str, Any]] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != batches or not all(isinstance(v, Mapping) for v in value):
        raise ConfigError(f"data: {path}: random_states: expected a dict for each of its {batches} batches")
    return value


def _count(value: object, what: str, *, least: int) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
        return value
    raise ConfigError(f"{what}: expected a number of at least {least}, got {value!r:.60}")


# --- safetensors -----------------------------------------------------------------------------------------------------


def _from_safetensors(path: Path) -> BatchFile:
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(path, framework="pt")
        names, metadata = set(file.keys()), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"data: {path}: cannot be read as safetensors: {error}", hint="is it cut short?") from error
    by_batch: dict[int, list[str]] = {}
    for name in names:
        by_batch.setdefault(_batch_of(name, names, path), []).append(name)
    missing = next((i for i in range(len(by_batch)) if i not in by_batch), None)
    if missing is not None:
        raise ConfigError(f"data: {path}: batch {missing} is missing; batches count from 0 without a gap")
    return BatchFile(
        path=path,
        batches=_TensorBatches(file.get_tensor, [sorted(by_batch[i], key=_by_number) for i in range(len(by_batch))]),
        first_step=_count(_whole(metadata.get("first_step")), f"data: {path}: first_step", least=0),
        accumulate=_count(_whole(metadata.get("accumulate")), f"data: {path}: accumulate", least=1),
    )


def _batch_of(name: str, names: set[str], path: Path) -> int:
    """Return the number of the batch that a tensor belongs to."""
    index, *fields = name.split(".")
    if not index.isascii() or not index.isdecimal() or len(index) > _DIGITS or index != str(int(index)):
        raise ConfigError(
            f"data: {path}: the tensor {name!r:.60} names no batch",
            hint="tensors are named by batch and field: 0.input_ids, 0.labels, 1.input_ids, …",
        )
    if len(fields) > DEEPEST or any(".".join([index, *fields[:i]]) in names for i in range(len(fields))):
        raise ConfigError(f"data: {path}: the tensor {name!r:.60} lies inside another, or more than {DEEPEST} deep")
    return int(index)


class _TensorBatches(Sequence[Any]):
    """Batches whose tensors are fetched by name when one is asked for."""

    def __init__(self, fetch: Callable[[str], Tensor], names: list[list[str]]) -> None:
        self._fetch = fetch
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return _TensorBatches(self._fetch, self._names[index])
        root: dict[str, Any] = {}
        for name in self._names[index]:
            *above, last = name.split(".")
            inside = root
            for part in above:
                inside = inside.setdefault(part, {})
            inside[last] = self._fetch(name)
        return _with_tuples(next(iter(root.values())))


def _with_tuples(value: Any) -> Any:
    """Turn dicts whose keys are 0, 1, 2 … into tuples: that is what they were."""
    if not isinstance(value, dict):
        return value
    inside = {key: _with_tuples(item) for key, item in value.items()}
    return tuple(inside.values()) if list(inside) == [str(i) for i in range(len(inside))] else inside


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() and len(part) <= _DIGITS else (-1, part) for part in name.split(".")]


def _whole(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdecimal() and len(text) < 19 else text


def _save_tensors(path: Path, batches: list[Any], first_step: int | None, accumulate: int) -> None:
    from safetensors.torch import save_file

    named: dict[str, Tensor] = {}
    for index, batch in enumerate(batches):
        named |= dict(_named(batch, str(index)))
    numbers = {"format": FORMAT, "accumulate": str(accumulate)}
    save_file(named, path, metadata=numbers if first_step is None else {**numbers, "first_step": str(first_step)})


def _named(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value.contiguous()
        return
    if not isinstance(value, (dict, list, tuple)):
        raise ValueError(f"{name}: a .safetensors holds tensors only, not a {type(value).__name__}; write a .pt")
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if "." in str(key):
            raise ValueError(f"{name}: the field {key!r} has a dot in its name; write a .pt")
        yield from _named(item, f"{name}.{key}")


# --- what is written -------------------------------------------------------------------------------------------------


def _on_the_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()


def plain_batch(value: Any, place: str, keep: Callable[[Tensor], Tensor] = _on_the_cpu) -> Any:
    """Return a copy of a batch as what a file can hold; raises ValueError naming the first value that it cannot.

    `keep` copies a tensor.
    """
    if isinstance(value, Tensor):
        return keep(value)
    if isinstance(value, Mapping):
        return {key: plain_batch(item, f"{place}[{key!r}]", keep) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain_batch(item, f"{place}[{index}]", keep) for index, item in enumerate(value))
    if value is None or isinstance(value, (bool, int, float, str, bytes, np.ndarray, np.generic)):
        return copy.deepcopy(value)
    raise ValueError(f"{place}: a {type(value).__name__} cannot be kept; turn the batch into a dict of tensors")
