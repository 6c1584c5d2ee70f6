"""Shapes of the notes on the run: what it is made of, what it assumed, what its steps looked like."""

# no annotations from the future here: `Required` is not seen in those
from typing import Any, Required, TypedDict

from nanhunt.trace.schema import NoteKind

__all__ = ["RUN_SHAPES"]


class _Assumption(TypedDict):
    text: str


class _Excerpt(TypedDict):
    """Tokens or labels of one sample: the first `values` of `of`."""

    sample: int
    of: int
    values: list[int]


class _Field(TypedDict, total=False):
    """One tensor of a micro-batch."""

    field: Required[str]
    dtype: str
    shape: list[int]
    numel: int
    nan: int
    inf: int
    amax: float
    min: int
    max: int
    ignored: int
    sample_amax: list[float]
    sample_nonfinite: list[int]
    sample_ignored: list[int]
    sample_top_share: list[float]
    sample_repeats: list[int]
    sample_true: list[int]
    excerpts: list[_Excerpt]


class _Micro(TypedDict):
    micro: int
    size: int | None
    fields: list[_Field]


class _Batch(TypedDict):
    step: int
    micros: list[_Micro]


class _Parted(TypedDict):
    """Ranks that hold different values."""

    step: int
    tensor: str
    count: int
    of: int
    world_size: int
    ranks: list[int]
    gradients: int | None
    gradient: str
    gradient_ranks: list[int]
    clip: list[float | None]
    same_batch: bool
    same_rng: bool
    skipped: list[int]
    lr: list[float | None]


class _Swap(TypedDict):
    """The bad step, each rank on its neighbour's batch."""

    step: int
    failed: list[int]
    swapped: list[int]
    world_size: int


class _Shard(TypedDict):
    """The part that a rank holds of a tensor."""

    shape: list[int]
    held: list[int]
    offset: list[int]
    partial: bool


class _Shards(TypedDict):
    tensors: dict[str, _Shard]


class _Original(TypedDict, total=False):
    """What the original run logged of the steps that are replayed."""

    source: Required[str]
    mean: Required[bool | None]
    steps: Required[list[int]]
    losses: Required[list[float]]
    resolution: Required[list[float]]
    hides: list[int]
    logged: list[int]


#: "class" is no name that a class body could hold
_Optimizer = TypedDict(
    "_Optimizer",
    {
        "class": str,
        "optimizers": list[str],
        "groups": list[dict[str, Any]],
        "state_dtypes": list[str],
        "weight_dtypes": list[str],
        "state_steps": list[float],
        "with_state": int,
        "trainable": int,
        "parameters": int,
        "held": int,
        "embeddings": list[str],
        "autocast": str | None,
        "scaler": bool,
        "clip_grad_norm": float | None,
        "clip_grad_value": float | None,
        "clip_param_norm": float | None,
        "agc": float | None,
        "custom_step": bool,
    },
    total=False,
)


class _Loop(TypedDict, total=False):
    step: int
    order: list[str]
    before: list[str]
    alike: int
    reused: list[list[str]]
    reused_steps: list[int]
    loss_scale: float | None
    clip_coefficient: float | None


class _Compiled(TypedDict, total=False):
    first: int
    last: int
    step: int | None
    fault: str
    trouble: str
    eager: str


class _Skipped(TypedDict, total=False):
    step: int
    scale: float | None
    unscaled_nonfinite: bool
    unscaled_amax: float | None
    in_a_row: int


class _Drift(TypedDict):
    module: str
    step: int
    first: float
    last: float


class _Benign(TypedDict, total=False):
    step: Required[int]
    loss: float
    baseline: float
    z: float
    recovered_after: int


class _Meant(TypedDict):
    step: int
    how: str
    source: str
    parameters: list[str]
    before: float
    loss: float


class _Window(TypedDict, total=False):
    first: Required[int]
    last: Required[int]
    limit: float | None
    alarm: int | None
    zero_share: float | None
    motion: bool
    silent: str | None
    loss: float | None
    grad_norm: float | None


class _Blocks(TypedDict):
    step: int
    looks: list[tuple[str, str]]
    #: role, module, name, elements, elements seen, of them finite and not zero, their energy, three numbers a look
    tensors: list[tuple[str, str, str, int, int, int, float, *tuple[float, ...]]]


#: kind of note -> the shape of its body
RUN_SHAPES: dict[str, Any] = {
    NoteKind.ASSUMPTION: _Assumption,
    NoteKind.BATCH: _Batch,
    NoteKind.OPTIMIZER: _Optimizer,
    NoteKind.LOOP: _Loop,
    NoteKind.COMPILED: _Compiled,
    NoteKind.SKIPPED: _Skipped,
    NoteKind.DRIFT: _Drift,
    NoteKind.BENIGN: _Benign,
    NoteKind.MEANT: _Meant,
    NoteKind.WINDOW: _Window,
    NoteKind.BLOCKS: _Blocks,
    NoteKind.ORIGINAL: _Original,
    NoteKind.PARTED: _Parted,
    NoteKind.SWAP: _Swap,
    NoteKind.SHARDS: _Shards,
}
