"""The shape of each kind of note: what is there, of which type, and what must be there for the note to mean anything.

`Required` is what the diagnosis cannot do without; all else an earlier version may not have written. A key without a
type here is a later version's, and left alone.
"""

# no annotations from the future here: `Required` is not seen in those
from typing import Any, Required, TypedDict

from nanhunt.trace.fits import misfit
from nanhunt.trace.schema import Birth, Hop, NoteKind, Onset

__all__ = ["note_misfit"]


class _Assumption(TypedDict):
    text: str


class _Lineage(TypedDict, total=False):
    hops: Required[list[Hop]]
    to: str


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


class _Micro(TypedDict):
    micro: int
    size: int | None
    fields: list[_Field]


class _Batch(TypedDict):
    step: int
    micros: list[_Micro]


class _Original(TypedDict, total=False):
    """What the original run logged of the steps that are replayed."""

    source: Required[str]
    mean: Required[bool | None]
    steps: Required[list[int]]
    losses: Required[list[float]]
    resolution: Required[list[float]]
    hides: list[int]
    logged: list[int]


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
    skipped: list[int]
    lr: list[float | None]


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


class _Poison(TypedDict, total=False):
    where: Required[str]
    module: Required[str]
    name: Required[str]
    nan: Required[int]
    posinf: Required[int]
    neginf: Required[int]
    numel: Required[int]
    coordinates: list[Any]


class _Loop(TypedDict, total=False):
    step: int
    order: list[str]
    before: list[str]
    alike: int
    reused: list[list[str]]
    reused_steps: list[int]
    loss_scale: float | None
    clip_coefficient: float | None


class _Ancestor(TypedDict, total=False):
    index: Required[int]
    op: Required[str]
    source: str | None
    code: str
    module: str
    writers: list[int]
    origins: list[str]
    scalars: list[float]
    numel: int
    nan: int
    zero: int
    neginf: int
    posinf: int
    amax: float


class _Ancestry(TypedDict):
    ops: list[_Ancestor]


class _Function(TypedDict, total=False):
    function: Required[str]
    verdict: Required[str]
    module: str | None
    source: str | None
    numeric: float | None
    analytic: float | None
    input: Any
    trouble: str


class _Gradcheck(TypedDict, total=False):
    step: int
    functions: Required[list[_Function]]


class _Compiled(TypedDict, total=False):
    first: int
    last: int
    step: int | None
    fault: str
    trouble: str
    eager: str


class _Bad(TypedDict):
    bad: int
    of: int


class _BadGradients(_Bad):
    zero: int | None


class _BadMoments(TypedDict):
    bad: int


class _Damage(TypedDict, total=False):
    step: int
    loss: Required[str]
    gradients: Required[_BadGradients]
    weights: Required[_Bad]
    buffers: Required[_Bad]
    moments: Required[_BadMoments]
    skipped: Required[bool]
    raised: bool


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


class _Skipped(TypedDict, total=False):
    step: int
    scale: float | None
    unscaled_nonfinite: bool
    unscaled_amax: float | None
    in_a_row: int


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


class _Stall(TypedDict, total=False):
    reason: Required[str]
    step: int


class _Accumulation(TypedDict):
    step: int
    error: float
    passes: int
    dtype: str
    worst: str
    worst_error: float


class _Targets(TypedDict, total=False):
    step: Required[int]
    source: Required[str | None]
    function: Required[str]
    low: Required[float]
    high: Required[float | None]
    outside: Required[int]
    of: Required[int]
    least: Required[float]
    most: Required[float]
    samples: Required[list[int]]
    rows: list[int]
    size: int


class _Drift(TypedDict):
    module: str
    step: int
    first: float
    last: float


class _Spot(TypedDict):
    op: str
    module: str
    source: str | None


class _Silent(TypedDict, total=False):
    kind: Required[str]
    step: Required[int]
    phase: Required[str]
    module: Required[str]
    op: Required[str]
    source: Required[str | None]
    dtype: Required[str]
    elements: Required[int]
    of: Required[int]
    amax: Required[float]
    samples: Required[list[int]]
    serious: bool
    seq: int
    micro: int
    code: str
    weight: float
    at: _Spot
    birth: Birth | None
    end: float
    energy: float
    flushed_energy: float
    rows: int
    rows_lost: int
    factor: float | None
    parameter: str | None


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


class _Exception(TypedDict, total=False):
    step: int
    type: str
    message: Required[str]
    module: str
    source: str | None
    traceback: str


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


class _Blocks(TypedDict):
    step: int
    looks: list[tuple[str, str]]
    #: role, module, name, elements, elements seen, of them finite and not zero, their energy, three numbers a look
    tensors: list[tuple[str, str, str, int, int, int, float, *tuple[float, ...]]]


class _Source(TypedDict):
    file: str
    line: int
    text: list[tuple[int, str]]


_SHAPES: dict[str, Any] = {
    NoteKind.ASSUMPTION: _Assumption,
    NoteKind.ONSET: Onset,
    NoteKind.BIRTH: Birth,
    NoteKind.LINEAGE: _Lineage,
    NoteKind.BATCH: _Batch,
    NoteKind.OPTIMIZER: _Optimizer,
    NoteKind.POISON: _Poison,
    NoteKind.LOOP: _Loop,
    NoteKind.ANCESTRY: _Ancestry,
    NoteKind.GRADCHECK: _Gradcheck,
    NoteKind.COMPILED: _Compiled,
    NoteKind.DAMAGE: _Damage,
    NoteKind.SAMPLES: _Samples,
    NoteKind.FACTORIAL: _Factorial,
    NoteKind.LOSS_TWIN: _LossTwin,
    NoteKind.RECIPE: _Recipe,
    NoteKind.SAMPLE_LOSSES: _SampleLosses,
    NoteKind.REPEAT: _Repeat,
    NoteKind.SKIPPED: _Skipped,
    NoteKind.TWIN: _Twin,
    NoteKind.STALL: _Stall,
    NoteKind.ACCUMULATION: _Accumulation,
    NoteKind.TARGETS: _Targets,
    NoteKind.DRIFT: _Drift,
    NoteKind.SILENT: _Silent,
    NoteKind.BENIGN: _Benign,
    NoteKind.MEANT: _Meant,
    NoteKind.EXCEPTION: _Exception,
    NoteKind.WINDOW: _Window,
    NoteKind.TRIAL: _Trial,
    NoteKind.REPRO: _Repro,
    NoteKind.BLOCKS: _Blocks,
    NoteKind.SOURCE: _Source,
    NoteKind.ORIGINAL: _Original,
    NoteKind.PARTED: _Parted,
    NoteKind.COMPLETE: dict[str, Any],
}


def note_misfit(kind: str, body: dict[str, Any]) -> str:
    """Return what is wrong with a note's body, `hops[3].op is not a text`; '' where the diagnosis may rely on it."""
    if kind not in _SHAPES:
        return ""  # a later version's: nobody here reads it
    wrong = misfit(body, _SHAPES[kind])
    if not wrong and kind == NoteKind.ORIGINAL and len({len(body[k]) for k in ("steps", "losses", "resolution")}) > 1:
        return "steps, losses and resolution are not of one length"
    if not wrong and kind == NoteKind.BLOCKS:
        count = 7 + 3 * len(body["looks"])
        wrong = next(
            (f"tensors[{i}] does not have {count} entries" for i, t in enumerate(body["tensors"]) if len(t) != count),
            "",
        )
    return wrong
