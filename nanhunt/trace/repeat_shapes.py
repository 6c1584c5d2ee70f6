"""Shapes of the notes on steps that were run again: as they were, sample by sample, in other formats, with one thing changed."""

# no annotations from the future here: `Required` is not seen in those
from typing import Any, NotRequired, Required, TypedDict

from nanhunt.trace.schema import NoteKind

__all__ = ["REPEAT_SHAPES"]


class _Samples(TypedDict, total=False):
    samples: list[int]
    method: str
    by: str
    size: int | None
    reason: str
    placebo: list[int] | None
    placebo_faulty: bool | None
    positions: dict[int, list[int]] | None


class _SampleLosses(_Samples, total=False):
    step: Required[int]
    losses: Required[list[float]]
    outliers: Required[list[int]]
    norms: dict[int, float]
    usual: float | None


class _Factorial(TypedDict):
    step: int
    healthy_step: int
    baseline: float
    losses: dict[str, float | None]
    #: of a classifier, in nats
    chance: NotRequired[float | None]


class _LossTwin(TypedDict, total=False):
    step: Required[int]
    format: str | None
    recipe: str | None
    own: Required[float]
    fp32: Required[float]
    baseline: Required[float]


class _WorstGradient(TypedDict):
    name: str
    error: float
    cosine: float | None


class _Recipe(TypedDict, total=False):
    recipe: Required[str]
    step: Required[int]
    loss: float
    loss_fp32: float
    cosine: float | None
    error: float | None
    worst: list[_WorstGradient]
    quantized: int
    skipped: list[str]
    others: int
    formats: dict[str, str]


class _Difference(TypedDict, total=False):
    kind: str
    relative: float
    elements: int
    one_bit: int


class _Departure(TypedDict):
    step: int
    low: float
    high: float
    same: int


class _Repeat(TypedDict, total=False):
    step: int
    runs: int
    shown: int
    gradients: int
    differing_count: int
    differing: list[str]
    reproduced: bool
    same_loss: bool
    same_gradients: bool
    same_as_seen: bool
    judged_by: str
    difference: _Difference
    healthy: _Difference
    deterministic: _Difference
    seen_difference: _Difference
    departs: _Departure | None


class _Flushed(TypedDict):
    parameter: str
    flushed: float


class _Twin(TypedDict, total=False):
    step: Required[int]
    flushed: Required[float]
    energy_lost: Required[float]
    amax_twin: Required[float]
    flushed_large: float
    zero_twin: float
    zero_share: float | None
    nonzero_twin: int
    worst: list[_Flushed]


class _Accumulation(TypedDict):
    step: int
    error: float
    passes: int
    dtype: str
    worst: str
    worst_error: float


class _Change(TypedDict, total=False):
    """The intervention of a trial; the fields of its change beside its own."""

    name: str
    change: str
    question: str
    placebo_of: str | None
    module: str | None
    samples: list[int]
    parameters: list[str] | None


class _Trial(TypedDict, total=False):
    name: Required[str]
    outcome: Required[str]
    detail: Required[str]
    readback: str
    intervention: _Change
    loss: float | None
    grad_norm: float | None
    loss_before: float | None
    grad_norm_before: float | None
    seconds: float | None
    asked: bool


class _Repro(TypedDict, total=False):
    step: int
    phase: str
    micro: int
    module: str
    op: str | None
    source: str | None
    file: str
    sha256: str
    call: str
    check: str
    output: str
    end: float
    error: str
    operands: dict[str, str]
    arguments: dict[str, str]
    cut: str
    draws: bool
    forward: str
    flags: dict[str, bool | str]
    torch: str
    device: str
    reason: str


#: kind of note -> the shape of its body
REPEAT_SHAPES: dict[str, Any] = {
    NoteKind.SAMPLES: _Samples,
    NoteKind.FACTORIAL: _Factorial,
    NoteKind.LOSS_TWIN: _LossTwin,
    NoteKind.RECIPE: _Recipe,
    NoteKind.SAMPLE_LOSSES: _SampleLosses,
    NoteKind.REPEAT: _Repeat,
    NoteKind.TWIN: _Twin,
    NoteKind.ACCUMULATION: _Accumulation,
    NoteKind.TRIAL: _Trial,
    NoteKind.REPRO: _Repro,
}
