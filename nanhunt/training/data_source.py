"""The run's batches as nanhunt.yaml and the checkpoint say: from a file or from code, resumed, skipped to, or as they come.

What decides is tried in this order: a file knows its steps; a loader that can be resumed gets the state that the
checkpoint holds; a callable with a parameter `start_step` places itself; `skip:` reads up to the place. Else the first
batch is taken for the checkpoint's step. What is not known of the order is said.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from nanhunt.errors import CheckpointError, ConfigError, NanhuntError
from nanhunt.training.batch_file import read_batches
from nanhunt.training.batches import BatchSource, batches_in
from nanhunt.training.checkpoint import Checkpoint
from nanhunt.training.config import RunConfig
from nanhunt.training.config_data import DataSpec
from nanhunt.training.data_order import holds_order, order_told
from nanhunt.training.epochs import Epochs, Track, is_endless, length_of, set_epoch, untracked
from nanhunt.training.launch import rank_and_size
from nanhunt.training.mesh import mesh_of
from nanhunt.training.user_code import call_user, fill_parameters, resolve

__all__ = ["batch_source"]


def batch_source(
    config: RunConfig,
    checkpoint: Checkpoint,
    *,
    root: Path,
    step: int,
    device: torch.device,
    floats: torch.dtype | None,
    assumptions: list[str],
    track: Track | None,
) -> BatchSource:
    """Return the batches from `step` on.

    Raises ConfigError, CheckpointError or UserCodeError. What is taken for granted is appended to `assumptions`, also
    later, when an epoch ends.
    """
    accumulate = config.train.accumulate
    batches: Iterable[Any]
    if config.data.file is not None:
        batches = _from_file(root / config.data.file, step, accumulate, assumptions)
    else:
        mesh = config.model.mesh if config.model is not None else None
        batches = _from_code(config.data, checkpoint, root, step, accumulate, assumptions, track, mesh)
    return BatchSource(batches, first_step=step, accumulate=accumulate, device=device, floats=floats)


def _from_file(path: Path, step: int, accumulate: int, assumptions: list[str]) -> Iterator[Any]:
    found = read_batches(path)
    if found.accumulate not in (None, accumulate):
        raise ConfigError(
            f"data: {path}: holds {found.accumulate} batches a step, train.accumulate is {accumulate}",
            hint=f"write `accumulate: {found.accumulate}` under train:",
        )
    if found.random_states is not None:
        assumptions.append(f"random state: of each batch restored from {path.name}")
    if found.first_step is None:
        if step:
            assumptions.append(f"data: {path.name} does not tell its step: its first batch is taken for step {step}")
        return found.starting_at(0)
    end = found.first_step + len(found.batches) // accumulate
    if not found.first_step <= step < end:
        raise ConfigError(
            f"data: {path}: holds steps {found.first_step} to {end - 1}, the replay begins with step {step}",
            hint="name the checkpoint that was saved before these steps, or give --start-step",
        )
    return found.starting_at((step - found.first_step) * accumulate)


def _from_code(
    spec: DataSpec,
    checkpoint: Checkpoint,
    root: Path,
    step: int,
    accumulate: int,
    assumptions: list[str],
    track: Track | None,
    mesh: Mapping[str, int] | None,
) -> Iterable[Any]:
    data, filled = _built(spec, root, step, mesh)
    _say_which_rank(spec, filled, assumptions)
    is_resumed = _resumed(data, spec, checkpoint, step, assumptions)
    is_ordered = is_resumed and holds_order(checkpoint.loader)
    if is_resumed and not is_ordered:
        _enter_epoch(data, step * accumulate)
    is_placed = is_resumed or "start_step" in filled or "start_step" in spec.kwargs
    count = _to_skip(spec, filled, step * accumulate, is_resumed=is_resumed)
    endless = is_endless(data, is_skipped=count > 0)
    epochs = _begun(data, spec, checkpoint if is_resumed else None, endless=endless)
    if count:
        with call_user("data"):
            epochs.skip(count if track else 0, track or untracked, name=spec.name)
        assumptions.append(_skipped(spec, epochs, count, step, accumulate))
    elif step and not is_placed:
        assumptions.append(
            f"data: {spec.name} takes no start_step: its first batch is taken for step {step} "
            "(`skip: true` under data: reads up to it)"
        )
    assumptions += [f"data: {text}" for text in order_told(data, is_ordered=is_ordered, epoch=epochs.epoch)]
    epochs.on_anew = _teller(spec, epochs, step, accumulate, assumptions)
    return epochs


def _built(spec: DataSpec, root: Path, step: int, mesh: Mapping[str, int] | None) -> tuple[object, dict[str, object]]:
    """Return the user's data, and the arguments that were filled in; the config's own go before them."""
    assert spec.call is not None
    target = resolve(spec.call, key="data", root=root)
    if not callable(target) or _is_loader(target):
        return target, {}
    rank, size = rank_and_size()
    available: dict[str, object] = {"start_step": step, "rank": rank, "world_size": size}
    if size > 1:  # in one process a parameter of that name may mean anything
        available["mesh"] = mesh_of(mesh)
    asked = fill_parameters(target, available)
    filled = {name: value for name, value in asked.items() if name not in spec.kwargs}
    with call_user("data"):
        data = target(**filled, **spec.kwargs)
    return data, filled


def _is_loader(target: object) -> bool:
    """Whether the object yields batches itself rather than being a function that makes them."""
    return hasattr(target, "__iter__") and not inspect.isclass(target)


def _say_which_rank(spec: DataSpec, filled: dict[str, object], assumptions: list[str]) -> None:
    size = rank_and_size()[1]
    if size > 1:
        if filled.keys().isdisjoint(("rank", "mesh")) and spec.kwargs.keys().isdisjoint(("rank", "world_size")):
            assumptions.append(
                f"data: {spec.name} takes no rank: unless it asks torch for it, all {size} ranks read the same batches"
            )
    elif "rank" in filled or "world_size" in filled:
        assumptions.append(
            f"data: {spec.name} was called with rank 0 of 1: in a run of several ranks each read other batches"
        )


def _to_skip(spec: DataSpec, filled: dict[str, object], read: int, *, is_resumed: bool) -> int:
    """Return how many batches to skip; a loader that was resumed has done what `skip: true` asks for."""
    if spec.skip and "start_step" in filled:
        raise ConfigError(
            f"data: skip: {spec.name} is at its place already: it takes start_step", hint="leave skip: out"
        )
    if spec.skip is True:
        return 0 if is_resumed else read
    if spec.skip and is_resumed:
        raise ConfigError(
            f"data: skip: {spec.name} is at its place already: the checkpoint holds its loader's state",
            hint="leave skip: out, or write `skip: true`, which means the checkpoint's place however it is reached",
        )
    return int(spec.skip)


def _resumed(data: object, spec: DataSpec, checkpoint: Checkpoint, step: int, assumptions: list[str]) -> bool:
    """Load the loader's state from the checkpoint; return whether there is one, of this step, that the data takes."""
    state = checkpoint.loader
    if state is None:
        return False
    load = getattr(data, "load_state_dict", None)
    if not callable(load):
        assumptions.append(f"data: the checkpoint holds a loader's state, and {spec.name} has no load_state_dict")
        return False
    if step != checkpoint.step and checkpoint.step is not None:
        assumptions.append(f"data: the checkpoint's loader state is of step {checkpoint.step}, not {step}: not used")
        return False
    try:
        load(state)
    except Exception as error:
        raise _unfit(spec, checkpoint, error) from error
    assumptions.append(f"data: {spec.name} was resumed from the loader's state in the checkpoint")
    return True


def _enter_epoch(data: object, batches: int) -> None:
    """Tell a sampler its epoch where the loader's state keeps the place inside the epoch alone."""
    length = length_of(data)
    if length:
        with call_user("data"):
            set_epoch(data, batches // length)


def _begun(data: object, spec: DataSpec, resumed: Checkpoint | None, *, endless: bool) -> Epochs:
    """Return the data's batches; a StatefulDataLoader looks at the state that it was given only now."""
    try:
        return Epochs(batches_in(data), endless=endless)
    except NanhuntError:
        raise
    except Exception as error:
        if resumed is not None:
            raise _unfit(spec, resumed, error) from error
        with call_user("data"):
            raise


def _unfit(spec: DataSpec, checkpoint: Checkpoint, error: Exception) -> CheckpointError:
    told = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
    return CheckpointError(
        f"{checkpoint.path}: its loader's state does not fit {spec.name}: {told}",
        hint="build the loader as the run did: the same class, batch size, shuffling and number of workers",
    )


def _skipped(spec: DataSpec, epochs: Epochs, count: int, step: int, accumulate: int) -> str:
    why = f", {accumulate} a step before step {step}" if spec.skip is True else ""
    where = f"; the next one is number {epochs.within + 1} of its epoch {epochs.epoch + 1}" if epochs.epoch else ""
    text = f"data: the first {count} batches of {spec.name} were skipped{why}{where}"
    length = epochs.length or 0
    if spec.skip is True and length % accumulate and count > length:
        whole, rest = divmod(step, -(-length // accumulate))
        text += (
            f". An epoch of {length} batches is no multiple of {accumulate}: a loop that updates early at its end, as "
            f"Trainer, accelerate and Lightning do, had read {whole * length + rest * accumulate} (`skip: N` sets that)"
        )
    return text


def _teller(
    spec: DataSpec, epochs: Epochs, step: int, accumulate: int, assumptions: list[str]
) -> Callable[[int], None]:
    """Return what adds an assumption the first time that an epoch ends inside the replay."""
    before, told = epochs.read, [False]

    def tell(read: int) -> None:
        if told[0]:
            return
        told[0] = True
        at, micro = divmod(read - before, accumulate)
        cut = " (in the middle of it: many loops update early at an epoch's end)" if micro else ""
        assumptions.append(
            f"data: {spec.name} ended and was begun anew in step {step + at}{cut}, as by a loop over epochs"
        )

    return tell
