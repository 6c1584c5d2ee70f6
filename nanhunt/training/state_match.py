"""Match: which tensors of a checkpoint belong to which of the model, and the copying of them."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nanhunt.errors import CheckpointError
from nanhunt.inert import few
from nanhunt.training.names import best_renaming, clean_name
from nanhunt.training.on_demand import outline, part_of
from nanhunt.training.safetensors_file import shard_of
from nanhunt.training.shards import own_part
from nanhunt.training.transformers_names import converted_state

if TYPE_CHECKING:
    from nanhunt.training.checkpoint import Checkpoint

__all__ = ["Match", "load_into", "match_state", "tensors_for"]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The names of a model's state against those of a checkpoint."""

    #: the model's name -> the checkpoint's
    matched: dict[str, str]
    missing: tuple[str, ...] = ()
    #: names of the checkpoint that the model has no use for
    unexpected: tuple[str, ...] = ()
    #: (name, the model's shape, the checkpoint's shape)
    mismatched: tuple[tuple[str, Shape, Shape], ...] = ()
    #: "the leading 'module.' was dropped", or ''
    renaming: str = ""
    #: "12 tensors were cast from float32 to bfloat16", or ''
    cast: str = ""

    @property
    def total(self) -> int:
        """Tensors of the model."""
        return len(self.matched) + len(self.missing) + len(self.mismatched)

    @property
    def sentence(self) -> str:
        """The match in one line, as for an assumption."""
        parts = [f"matched {len(self.matched)} of {self.total} tensors"]
        parts += [text for text in (self.renaming, self.cast) if text]
        if self.missing:
            parts.append(f"missing, left as built: {few(self.missing)}")
        if self.unexpected:
            parts.append(f"of the checkpoint not used: {few(self.unexpected)}")
        if self.mismatched:
            parts.append(f"shape differs: {few([_shapes(*m) for m in self.mismatched])}")
        return "; ".join(parts)


def match_state(model_keys: Mapping[str, Shape], state: Mapping[str, Tensor]) -> Match:
    """Match a checkpoint's state against a model's names and shapes.

    Wrappers are dropped from the names; a leading `module.`, `model.`, `net.` or `_forward_module.` is dropped or
    added where that makes more names match, and only there.
    """
    ours = {clean_name(name): name for name in model_keys}
    state = outline(state)
    theirs, renaming = best_renaming(ours, {clean_name(name): name for name in state})
    matched: dict[str, str] = {}
    mismatched: list[tuple[str, Shape, Shape]] = []
    for clean, name in ours.items():
        if clean not in theirs:
            continue
        shape, found = tuple(model_keys[name]), tuple(state[theirs[clean]].shape)
        if shape == found:
            matched[name] = theirs[clean]
        else:
            mismatched.append((name, shape, found))
    return Match(
        matched=matched,
        missing=tuple(name for clean, name in ours.items() if clean not in theirs),
        unexpected=tuple(name for clean, name in theirs.items() if clean not in ours),
        mismatched=tuple(mismatched),
        renaming=renaming,
    )


def load_into(model: nn.Module, checkpoint: Checkpoint) -> Match:
    """Copy the checkpoint's weights and buffers into the model, in place, and return how they matched.

    Names that the model has no use for are no error, nor are buffers that the checkpoint lacks, nor a parameter tied
    to one that matched, nor a part of the model that the checkpoint does not have at all (a new head): that is told. Raises
    CheckpointError, and copies nothing, where a parameter has another shape, or is missing while the checkpoint has
    names to spare, or fewer than half of the model's tensors match.
    """
    live = _live(model)
    lazy = [name for name, tensor in live.items() if nn.parameter.is_lazy(tensor)]
    if lazy:
        raise CheckpointError(
            f"{checkpoint.path}: cannot be matched: the model's {few(lazy)} have no shape yet (lazy modules)",
            hint="run one batch through the model before `model:` returns it",
        )
    match, state = _matched(model, live, checkpoint)
    buffers = {name for name, tensor in live.items() if not isinstance(tensor, nn.Parameter)}
    unmet = [name for name in match.missing if name not in buffers]
    renamed = unmet and match.unexpected  # what is missing may be there under another name
    if renamed or match.mismatched or 2 * len(match.matched) < match.total or not match.matched:
        raise _does_not_fit(match, checkpoint)
    casts: Counter[str] = Counter()
    with torch.no_grad():
        for name, key in match.matched.items():
            saved = part_of(state, key, live[name])
            if saved.dtype != live[name].dtype:
                casts[f"{_dtype(saved)} to {_dtype(live[name])}"] += 1
            own_part(live[name]).copy_(saved)
    told = ", ".join(f"{number} from {change}" for change, number in casts.items())
    return replace(match, cast=f"cast: {told}" if told else "")


def tensors_for(model: nn.Module, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the checkpoint's tensors by the model's names, wrappers dropped; those of another shape are left out.

    Raises CheckpointError where no weight of the model is among them.
    """
    live = _live(model)
    match, state = _matched(model, live, checkpoint)
    if not any(isinstance(live[name], nn.Parameter) for name in match.matched):
        raise _does_not_fit(match, checkpoint)
    return {clean_name(name): state[key] for name, key in match.matched.items()}


def _matched(
    model: nn.Module, live: Mapping[str, Tensor], checkpoint: Checkpoint
) -> tuple[Match, Mapping[str, Tensor]]:
    """Return the match, and the tensors that it is about: the checkpoint's, converted where transformers must do so."""
    shapes = {name: tuple(t.shape) for name, t in live.items()}
    match = _with_ties(match_state(shapes, checkpoint.model), live)
    converted = converted_state(model, checkpoint.model) if match.missing and match.unexpected else None
    if converted is None:
        return match, checkpoint.model
    told = "the file's names were converted by transformers"
    return replace(_with_ties(match_state(shapes, converted), live), renaming=told), converted


def _live(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the model's state by name: its own memory, into which a checkpoint can be copied.

    FSDP 1 gives copies in its state_dict, and what is copied into those is lost: the parameters of the same names stand
    for them. What stands for nothing is left out. Raises CheckpointError where a parameter is not reached that way.
    """
    own: dict[str, Tensor] = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    memory = {_memory(tensor) for tensor in own.values()}
    by_name = {clean_name(name): tensor for name, tensor in own.items()}
    live: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and _memory(tensor) not in memory:
            tensor = by_name.get(clean_name(name))
        if isinstance(tensor, Tensor):
            live[name] = tensor
    reached = {_memory(tensor) for tensor in live.values()}
    lost = [name for name, parameter in model.named_parameters() if _memory(parameter) not in reached]
    if lost:
        raise CheckpointError(
            f"model: its state_dict() does not give its own parameters {few(lost)}, so nothing can be loaded into "
            "them (FSDP with use_orig_params=False?)",
            hint="let `model:` return the model without the wrapper: a replay needs no shards",
        )
    return live


def _with_ties(match: Match, live: Mapping[str, Tensor]) -> Match:
    """Count a missing name as matched where it is the same memory as a matched one: safetensors drops such twins."""
    holders = {_memory(live[name]): key for name, key in match.matched.items()}
    tied = {name: holders[_memory(live[name])] for name in match.missing if _memory(live[name]) in holders}
    missing = tuple(name for name in match.missing if name not in tied)
    return replace(match, matched={**match.matched, **tied}, missing=missing)


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """Return what two tensors share when they are one; by object where there is no memory (meta, empty, lazy)."""
    if nn.parameter.is_lazy(tensor):
        return (id(tensor),)
    address = tensor.data_ptr() if tensor.numel() and tensor.device.type != "meta" else 0
    return (address, tuple(tensor.shape), tensor.stride(), tensor.dtype) if address else (id(tensor),)


def _does_not_fit(match: Match, checkpoint: Checkpoint) -> CheckpointError:
    parts = [f"matched {len(match.matched)} of {match.total} tensors"]
    if match.missing:
        parts.append(f"missing: {few(match.missing)}")
    if match.unexpected:
        parts.append(f"unexpected: {few(match.unexpected)}")
    if match.mismatched:
        parts.append(f"shape differs: {few([_shapes(*m) for m in match.mismatched])}")
    near = list(_nearest(match.missing, match.unexpected))
    if near:
        parts.append(f"nearest names: {', '.join(near)}")
    shard = shard_of(checkpoint.path)
    mend = f"it is shard {shard[0]} of {shard[1]}: name the folder {checkpoint.path.parent}" if shard else _mend(match)
    return CheckpointError(f"{checkpoint.path}: the checkpoint does not fit the model: {'; '.join(parts)}", hint=mend)


def _mend(match: Match) -> str:
    if not match.total:
        return "model: must return a model with parameters"
    if match.mismatched and not match.missing:
        return "build the model with the sizes of the training run, through `model: {call: …, kwargs: {…}}`"
    if not match.matched:
        return "is `model:` the code of this run? if the weights lie elsewhere in the file, set checkpoint.model"
    return "build the model as the training run did, through `model: {call: …, kwargs: {…}}`"


def _nearest(missing: Sequence[str], unexpected: Sequence[str]) -> Iterator[str]:
    """Yield up to three pairs: the model's name, and the checkpoint's that it may be."""
    for name in missing[:3]:
        close = difflib.get_close_matches(name, unexpected[:2000], n=1, cutoff=0.7)
        if close:
            yield f"{name} ~ {close[0]}"


def _shapes(name: str, model: Shape, checkpoint: Shape) -> str:
    return f"{name} model {model} checkpoint {checkpoint}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
