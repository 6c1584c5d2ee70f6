"""The whole step in another precision, and back: autocast off or changed, weights and moments cast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from nanhunt.recipes.recipe import Recipe
from nanhunt.training.batch_layout import cast_batch
from nanhunt.training.run import DTYPES, TrainingRun
from nanhunt.training.tree import map_tensors

__all__ = ["in_precision"]

_NARROW = (torch.float16, torch.bfloat16)


def in_precision(run: TrainingRun, precision: str) -> AbstractContextManager[None]:
    """Return a context with the whole step in `precision` ("fp64", "fp32", "bf16", "fp16").

    fp32 and fp64 turn autocast off and widen weights, buffers and moments; bf16 and fp16 use autocast over the weights
    as they are, and recast weights that are narrow themselves. A recipe's products are left in that precision, and in fp32
    and fp64 nothing of a recipe is left. Batches follow the weights. The caller restores the
    values from a snapshot afterwards; autocast, the batches and the tensors' own memory are put back here.

    It stands on all ranks. There it raises ValueError where weights would be cast: what reduces or shards their gradients
    has been built for their own dtype.
    """
    body = _in_precision(run, precision)
    return body if run.together is None else run.together.standing("precision", (precision,), body)


@contextlib.contextmanager
def _in_precision(run: TrainingRun, precision: str) -> Iterator[None]:
    autocast, transform = run.autocast, run.batches.transform
    target = DTYPES[precision]
    moved: dict[torch.dtype, torch.dtype] = {}
    if precision in ("fp32", "fp64"):
        run.autocast = None
        moved = dict.fromkeys((*_NARROW, *((torch.float32,) if precision == "fp64" else ())), target)
    else:
        narrow_weights = any(p.dtype in _NARROW for p in run.model.parameters())
        moved = dict.fromkeys(_NARROW, target) if narrow_weights else {}
        run.autocast = run.autocast if narrow_weights and run.autocast is None else precision
    if run.together is not None and any(p.dtype in moved for p in run.parameters().values()):
        raise ValueError("the weights of several ranks cannot be cast: their reduction is built for their own dtype")
    own = [(t, t.data) for t in (*run.parameters().values(), *run.buffers().values()) if t.dtype in moved]
    _cast_state(run, moved)
    run.batches.transform = _casting(moved, transform)
    try:
        with _without_recipe(run, whole=precision in ("fp32", "fp64")):
            yield
    finally:
        run.autocast, run.batches.transform = autocast, transform
        for parameter in run.parameters().values() if own else ():
            parameter.grad = None  # of the other dtype
        for tensor, memory in own:  # what shares this memory (a flat buffer, an RNN's weights) goes on sharing it
            tensor.data = memory


@contextlib.contextmanager
def _without_recipe(run: TrainingRun, *, whole: bool) -> Iterator[None]:
    if run.emulator is None:
        yield
        return
    own = run.emulator.recipe
    plain = Recipe(name="", title="") if whole else replace(own, products=None, tf32=False)
    with run.emulator.instead(plain):
        yield


def _cast_state(run: TrainingRun, moved: dict[torch.dtype, torch.dtype]) -> None:
    with torch.no_grad():
        for tensor in [*run.parameters().values(), *run.buffers().values()]:
            if tensor.dtype in moved:
                tensor.data = tensor.data.to(moved[tensor.dtype])
        for parameter in run.parameters().values():
            parameter.grad = None
        for optimizer in run.optimizers:
            for owner, state in list(optimizer.state.items()):
                optimizer.state[owner] = {
                    key: value if key == "step" else map_tensors(lambda t: t.to(moved.get(t.dtype, t.dtype)), value)
                    for key, value in state.items()
                }


def _casting(moved: dict[torch.dtype, torch.dtype], before: Any) -> Any:
    if not moved:
        return before

    def transform(step: int, micro: int, batch: Any) -> Any:
        batch = batch if before is None else before(step, micro, batch)
        for old, new in moved.items():
            batch = cast_batch(batch, old, new)
        return batch

    return transform
