"""The catalogue of planted faults: what each one is, where it shows, and the run that it is planted in.

The fault's own code stands in `train.py`, between `# fault: NAME` and `# end fault`; a project gets its own fault's
lines and no other's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FAULTS", "Fault", "Size"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The GPT's size; the defaults make 0.8 million parameters and steps of 0.1 s on a core."""

    layers: int = 4
    width: int = 128
    heads: int = 4
    #: tokens a sample
    context: int = 64
    #: samples a micro-batch
    batch: int = 16


#: For runs in fp16: a CPU without fp16 arithmetic multiplies matrices some twenty times slower than in fp32.
HALF = Size(width=64, batch=8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A planted fault; `none` is the healthy control."""

    name: str
    #: what is wrong, in one sentence
    title: str
    #: the slug of the cause that a report should name; "" where there is nothing to find
    cause: str
    #: where it first shows: phase, module or sample
    where: str
    #: what its `nanhunt.yaml` sets beside the common keys
    settings: Mapping[str, Any] = field(default_factory=dict)
    #: steps after the checkpoint until it strikes; 0 where the first replayed step is already struck
    delay: int = 6
    size: Size = Size()


FAULTS: tuple[Fault, ...] = (
    Fault(
        name="fp16-overflow",
        title="A gain that warms up without bound takes an MLP's output past fp16's 65504.",
        cause="activation-overflow",
        where="forward, the product with `gain` in one of the blocks' `mlp`",
        settings={"precision": {"autocast": "fp16", "grad_scaler": True}},
        size=HALF,
    ),
    Fault(
        name="bad-sample",
        title="One sample of one batch carries a NaN among its float features.",
        cause="bad-sample",
        where="batch, field `features`, sample 3",
    ),
    Fault(
        name="adam-v-collapse",
        title="The optimizer packs its second moments into 8 bits without a scale, and most of them become zero.",
        cause="adam-v-collapse",
        where="update, the step after the packing: weights move by many times the learning rate",
    ),
    Fault(
        name="gradient-underflow",
        title="A loss divided by the corpus's size is trained in fp16 without a loss scale, so gradients become zero.",
        cause="gradient-underflow",
        where="backward, most weights of the blocks",
        settings={"precision": {"autocast": "fp16", "grad_scaler": False}},
        delay=0,
        size=HALF,
    ),
    Fault(
        name="lr-spike",
        title="A warm restart sets the learning rate to 300 times its peak.",
        cause="learning-rate-too-high",
        where="update, all weights",
    ),
    Fault(
        name="all-labels-ignored",
        title="In one micro-batch every label is ignored, so that the loss is a mean over nothing.",
        cause="empty-reduction",
        where="forward, the loss, micro-batch 1",
        settings={"train": {"accumulate": 2}},
    ),
    Fault(
        name="masked-row",
        title="An empty document leaves the attention of one sample nothing to attend to.",
        cause="fully-masked-softmax",
        where="forward, the softmax of `blocks.0.attention`, sample 5; the loss stays finite, the gradients don't",
    ),
    Fault(
        name="log-zero",
        title="An entropy bonus takes the logarithm of probabilities that a mask has set to zero.",
        cause="domain-error",
        where="forward, `log` in the loss",
    ),
    Fault(
        name="sqrt-zero",
        title="A distance between two equal samples is zero, where the square root's slope is infinite.",
        cause="singular-gradient",
        where="backward, `sqrt` in the loss; then the gradient of `embed.weight`",
    ),
    Fault(
        name="eps-fp16",
        title="Adam's epsilon of 1e-8 is zero in fp16, and the update divides by zero.",
        cause="epsilon-underflow",
        where="update of the first step, weights whose second moment is zero in fp16",
        settings={"precision": {"params": "fp16"}},
        delay=0,
        size=HALF,
    ),
    Fault(
        name="poisoned-state",
        title="One weight of the checkpoint is already NaN.",
        cause="poisoned-state",
        where="load, `blocks.1.attention.qkv.weight`[4, 9]",
        delay=0,
    ),
    Fault(
        name="none",
        title="Nothing is wrong: the healthy control.",
        cause="",
        where="nowhere",
    ),
)
