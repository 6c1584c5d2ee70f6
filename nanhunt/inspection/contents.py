"""Open a checkpoint for inspection: whatever tensors are in it, whether or not a replay could start from them.

A replay needs a model's weights; an inspection takes an optimizer's state alone, or tensors under names that no layout
has. So a file of `torch.save` is read as it is, its known parts are named, and what is left is called by its path. All
else goes the way that a replay takes, with the same refusals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanhunt.errors import CheckpointError
from nanhunt.inspection.facts import Role
from nanhunt.training.checkpoint import LOADERS, Checkpoint, load_checkpoint
from nanhunt.training.checkpoint_layout import Parts, find_parts
from nanhunt.training.dotted_places import EPOCH_KEYS, STEP_KEYS, count_below, is_scaler, is_scheduler, places
from nanhunt.training.saved_value import as_step, is_optimizer_state, model_state
from nanhunt.training.torch_file import read_torch_file
from nanhunt.training.tree import tensors_of

__all__ = ["Contents", "Held", "place", "read_contents"]

#: Last parts of names that models register as buffers: without their code, the name is what tells.
BUFFERS = (
    "running_mean", "running_var", "num_batches_tracked", "inv_freq", "original_inv_freq", "position_ids", "token_type_ids",
    "masked_bias", "mask", "attn_mask", "causal_mask", "tril", "freqs_cis", "cos_cached", "sin_cached", "cos", "sin", "pe",
    "relative_position_index", "amax_history", "scale", "zero_point",
)  # fmt: skip
#: where a random state lies: bytes that are random by design
_RANDOM = ("rng", "random", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A tensor that lies in the file until it is read."""

    name: str
    tensor: Tensor
    role: Role
    #: key of the module that it belongs to, '' of the model itself
    owner: str = ""
    #: of an average, the name of its weight
    average_of: str = ""


@dataclass(slots=True, kw_only=True)
class Contents:
    """What a checkpoint holds, not yet looked at."""

    path: Path
    container: str
    step: int | None
    tensors: list[Held]
    epoch: int | None = None
    #: states of optimizers by the name they are told under
    optimizers: dict[str, dict[str, Any]] = field(default_factory=dict)
    schedulers: list[dict[str, Any]] = field(default_factory=list)
    scaler: dict[str, Any] | None = None
    #: a Trainer's state, {} without one
    trainer: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of the file, or of all files of the folder."""
        files = [self.path] if self.path.is_file() else [p for p in self.path.rglob("*") if p.is_file()]
        return sum(p.stat().st_size for p in files)


def read_contents(path: Path, *, trust_pickle: bool) -> Contents:
    """Return what the checkpoint holds, its tensors mapped where the file allows it.

    Raises CheckpointError where a replay would, and where there is no tensor at all.
    """
    loader = next((loader for loader in LOADERS if path.exists() and loader.recognises(path)), None)
    if loader is None or loader.name != "torch":
        checkpoint = load_checkpoint(path, keys=None, trust_pickle=trust_pickle)
        return _of_parts(path, checkpoint)
    content, _ = read_torch_file(path, trust_pickle=trust_pickle)
    try:
        contents = _of_parts(path, find_parts(content, path=path, keys=None))
    except CheckpointError:
        contents = Contents(path=path, container="torch", step=None, tensors=list(_states_in(content)))
        contents.optimizers = dict(_optimizers_in(content, ""))
    contents.tensors += _left_over(content, contents)
    if not contents.tensors and not contents.optimizers:
        raise CheckpointError(f"{path}: holds no tensors", hint="name the file with weights or an optimizer's state")
    return _with_what_lies_below(contents, content)


def _with_what_lies_below(contents: Contents, content: Any) -> Contents:
    """Return the contents with step, epoch, scaler and schedules from wherever in the file they lie."""
    if not isinstance(content, Mapping):
        return contents
    below = [value for _, value in places(content)]
    if contents.step is None:
        step = count_below(content, STEP_KEYS)
        contents.step = step[1] if step is not None else None
    epoch = next((e for e in (as_step(content.get(key)) for key in EPOCH_KEYS) if e is not None), None)
    found = count_below(content, EPOCH_KEYS)
    contents.epoch = epoch if epoch is not None or found is None else found[1]
    contents.scaler = contents.scaler or next((dict(value) for value in below if is_scaler(value)), None)
    contents.schedulers = contents.schedulers or [dict(value) for value in below if is_scheduler(value)]
    return contents


def _of_parts(path: Path, parts: Parts | Checkpoint) -> Contents:
    """Take what was found, in a dict or by a loader: both name their parts alike."""
    states = [s for s in (parts.optimizer, *parts.more_optimizers) if s is not None and is_optimizer_state(s)]
    labels = ["optimizer", *(f"optimizer {i}" for i in range(1, len(states)))]
    models = {"": parts.model, **parts.more_models}
    trainer = parts.extra.get("trainer_state")
    return Contents(
        path=path,
        container=parts.container,
        step=parts.step,
        tensors=[
            Held(name=f"{prefix}.{name}".lstrip("."), tensor=tensor, role=_role(name, tensor), owner=prefix)
            for prefix, state in models.items()
            for name, tensor in state.items()
        ],
        optimizers=dict(zip(labels, states, strict=False)),
        schedulers=[dict(parts.scheduler)] if isinstance(parts.scheduler, Mapping) else [],
        scaler=parts.scaler,
        trainer=trainer if isinstance(trainer, dict) else {},
        notes=tuple(parts.notes),
    )


def _role(name: str, tensor: Tensor) -> Role:
    """A buffer by its name, or because no gradient trains whole numbers."""
    is_buffer = name.rpartition(".")[2] in BUFFERS or not (tensor.is_floating_point() or tensor.is_complex())
    return Role.BUFFER if is_buffer else Role.WEIGHT


def _states_in(content: Any) -> Iterator[Held]:
    """Yield the tensors of every state below the top of a layout that nobody knows, with its dotted path.

    A dict whose tensors have one element each is a state beside larger ones, if it holds nothing else: a loss is none.
    """
    found = places(content) if isinstance(content, Mapping) else ()
    states = [(path, value, state) for path, value in found if (state := model_state(value))]
    large = {path for path, _, state in states if any(t.numel() > 1 for t in state.values())}
    tops = {path.partition(".")[0] for path in large}
    for path, value, state in states:
        if path in large or (path.partition(".")[0] in tops and len(state) == len(value)):
            for name, tensor in state.items():
                yield Held(name=f"{path}.{name}", tensor=tensor, role=_role(name, tensor), owner=path)


def _optimizers_in(content: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every optimizer's state in nested dicts and lists, with its path."""
    if not isinstance(content, (Mapping, list, tuple)):
        return
    if is_optimizer_state(content):
        yield path or "optimizer", dict(content)
        return
    items = content.items() if isinstance(content, Mapping) else enumerate(content)
    for key, value in items:
        yield from _optimizers_in(value, f"{path}.{key}".lstrip("."))


def _left_over(content: Any, contents: Contents) -> list[Held]:
    """Return the tensors of a file that no known part has: they share no memory with one."""
    known = {place(held.tensor) for held in contents.tensors}
    known |= {place(t) for state in contents.optimizers.values() for _, t in tensors_of(state)}
    found = [
        (path, tensor)
        for path, tensor in tensors_of(content)
        if tensor.numel() and place(tensor) not in known and not _is_random(path, tensor)
    ]
    # one element below the key of larger tensors is a parameter (a temperature, a gate); alone it is a loss or a setting
    states = {path.partition(".")[0] for path, tensor in found if tensor.numel() > 1 and "." in path}
    return [
        Held(
            name=path or "tensor",
            tensor=tensor.detach(),
            role=Role.OTHER if contents.tensors else _role(path, tensor),
            owner=path.rpartition(".")[0] if path.rpartition(".")[2].isdecimal() else "",
        )
        for path, tensor in found
        if tensor.numel() > 1 or path.partition(".")[0] in states
    ]


def place(tensor: Tensor) -> tuple[Any, ...]:
    """Return what tells one tensor's memory from another's."""
    is_plain = tensor.layout is torch.strided and type(tensor) in (Tensor, torch.nn.Parameter)
    return (tensor.data_ptr(), tensor.numel(), tensor.dtype) if is_plain else (id(tensor),)


def _is_random(path: str, tensor: Tensor) -> bool:
    return tensor.dtype == torch.uint8 and any(word in path.lower() for word in _RANDOM)
