"""What a trace is made of: observations (rows), notes (findings), the manifest, and the columns on disk.

A trace is a tidy table, a row an observed tensor or scalar, plus a list of notes. Rows are statistics; notes are what
the replay found out once and cannot be a row: the onset, a birth with its operands, a trial, an assumption. Judgement
is in neither: it belongs to the diagnosis, so that a later version can judge an old trace better.

A null means 'not measured'; a NaN means that the value was NaN.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal, Self

import pyarrow as pa

from nanhunt.stats.tensor_stats import TensorStats

__all__ = [
    "BACKEND_FLAGS",
    "CLIP_OF_NOTHING",
    "COLUMNS",
    "ENDED_KEY",
    "GONE",
    "METADATA_KEY",
    "NOTES_KEY",
    "OF_AN_ONSET",
    "SCHEMA_VERSION",
    "ArrowSchema",
    "Birth",
    "Column",
    "Element",
    "Hop",
    "Manifest",
    "Note",
    "NoteKind",
    "Observation",
    "Onset",
    "OnsetKind",
    "Operand",
    "Phase",
    "Role",
]

#: Version of the columns and notes.
#: 1 - first one.
SCHEMA_VERSION = 1

#: Schema metadata of a stream (the manifest) and of a Parquet file (manifest, notes, completeness).
METADATA_KEY = b"nanhunt"
#: Metadata of one batch of a stream: its notes, and in the last batch why the run ended.
NOTES_KEY = b"notes"
ENDED_KEY = b"ended"

#: How the order of a step calls a clip that was given no gradient: `model.parameters()` is empty the second time.
CLIP_OF_NOTHING = "clip of nothing"
#: How it calls what comes before an update whose gradients, which backward gave, are gone or cleared.
GONE = "gone"


class Phase(StrEnum):
    """Where in the step an observation was made, in the order of the step."""

    LOAD = "load"
    BATCH = "batch"
    FORWARD = "forward"
    BACKWARD = "backward"
    UNSCALE = "unscale"
    CLIP = "clip"
    UPDATE = "update"


class Role(StrEnum):
    """What the observed tensor is to its module."""

    INPUT = "input"
    OUTPUT = "output"
    GRAD_INPUT = "grad_input"
    GRAD_OUTPUT = "grad_output"
    WEIGHT = "weight"
    BUFFER = "buffer"
    GRAD = "grad"
    EXP_AVG = "exp_avg"
    EXP_AVG_SQ = "exp_avg_sq"
    UPDATE = "update"
    BATCH = "batch"
    SCALAR = "scalar"
    OP = "op"


class NoteKind(StrEnum):
    """What a note is about; each kind's body is described where it is written."""

    #: `{"text": …}`: something the tool took for granted
    ASSUMPTION = "assumption"
    #: the fields of `Onset`
    ONSET = "onset"
    #: the fields of `Birth`; the first one is the root that the onset goes back to
    BIRTH = "birth"
    #: `{"hops": [Hop, …]}`: from the root birth to the loss, gradient, parameter or buffer
    LINEAGE = "lineage"
    #: facts of a step's batch, see `training.batches.batch_facts`
    BATCH = "batch"
    #: the optimizer's class and each group's hyper-parameters
    OPTIMIZER = "optimizer"
    #: what is stored non-finite before the first step: `{"where", "module", "name", "nan", "posinf", "neginf"}`
    POISON = "poison"
    #: what a custom loop did in the step of the onset: `{"step", "order", "loss_scale", "clip_coefficient"}`
    LOOP = "loop"
    #: the ops that the root birth's operands come from: `{"ops": [{"index", "op", "source", "writers", "zero", …}]}`
    ANCESTRY = "ancestry"
    #: the user's autograd Functions against finite differences of their forward: `{"step", "functions": [{…}]}`
    GRADCHECK = "gradcheck"
    #: a compiled pass beside the eager hunt: `{"first", "last", "step", "fault", "trouble", "eager"}`
    COMPILED = "compiled"
    #: what the bad step spoiled, counted: `{"loss", "gradients", "weights", "buffers", "moments", "skipped"}`
    DAMAGE = "damage"
    #: `{"samples": […], "method", "by", "positions", "placebo", "reason"}`: which samples carry the fault, or why none
    SAMPLES = "samples"
    #: a spike's batch and its state, each exchanged for a healthy one: `{"step", "healthy_step", "losses": {…}}`
    FACTORIAL = "factorial"
    #: a spike's loss in fp32, on the same weights and batch: `{"step", "format", "recipe", "own", "fp32", "baseline"}`
    LOSS_TWIN = "loss-twin"
    #: a precision recipe's step beside fp32's: `{"recipe", "step", "loss", "loss_fp32", "cosine", "error", "worst", …}`
    RECIPE = "recipe"
    #: `{"losses": […], "norms": {…}, "outliers": […]}`: loss and gradient norm of each sample of the bad step alone
    SAMPLE_LOSSES = "sample-losses"
    #: `{"step", "same_loss", "same_gradients", "differing", "detail"}`: the bad step once more, unchanged
    REPEAT = "repeat"
    #: `{"step", "scale", "unscaled_nonfinite"}`: a step that the gradient scaler skipped
    SKIPPED = "skipped"
    #: `{"step", "flushed", "energy_lost", …}`: low-precision gradients against their fp32 twin
    TWIN = "twin"
    #: what a stall was told by: `{"reason", "step", …}`, the reasons are in `hunt.stalls`
    STALL = "stall"
    #: gradients added up in a narrow format against their fp64 sum: `{"step", "error", "passes", "dtype", "worst"}`
    ACCUMULATION = "accumulation"
    #: targets outside of what their loss is defined for: `{"step", "function", "low", "high", "outside", "rows", …}`
    TARGETS = "targets"
    #: log Z of the output logits ran away: `{"module", "step", "first", "last"}`
    DRIFT = "drift"
    #: values that a step loses without a NaN, see `survey`: `{"kind", "step", "module", "op", "source", "elements", …}`
    SILENT = "silent"
    #: `{"step", "loss", "z", "recovered_after"}`: a spike that left no damage
    BENIGN = "benign"
    #: a spike that no cause explains and that the code means, see `hunt.meant`; the onset before it is none
    MEANT = "meant"
    #: `{"step", "type", "message", "module", "source", "traceback"}`: the model raised inside a step
    EXCEPTION = "exception"
    #: the steps that trials run and what they are judged by: the fields of `bench.Window`
    WINDOW = "window"
    #: the fields of `interventions.Trial`
    TRIAL = "trial"
    #: the culprit's call, kept in a file beside the trace: `{"file", "sha256", "call", "check", …, "reason"}`, see
    #: `saved_call`; `reason` says why there is none
    REPRO = "repro"
    #: what row and block scales leave of each tensor, in a few steps: `{"step", "looks", "tensors"}`, see `probes.blocks`
    BLOCKS = "blocks"
    #: `{"file", "line", "text": […]}`: source around the onset's line
    SOURCE = "source"
    #: losses that the original run logged: `{"source", "mean", "steps", "losses", "resolution", "hides", "logged"}`, see
    #: `training.loss_log`; `diagnosis.original` holds the replay's against them
    ORIGINAL = "original"
    #: ranks that hold different values where they must agree: `{"step", "tensor", "ranks", "gradients", …}`, see `ranks.parted`
    PARTED = "parted"
    #: the bad step with each rank on its neighbour's batch: `{"step", "failed", "swapped", "world_size"}`, see `ranks.swap`
    SWAP = "swap"
    #: which part this rank holds of each tensor that ranks share: `{"tensors": {name: {"shape", "held", "offset", …}}}`
    SHARDS = "shards"
    #: `{"last_step", "reason"}`: the replay ended by itself
    COMPLETE = "complete"


#: What is written of an onset besides it; where the onset is taken back, so are these.
OF_AN_ONSET = frozenset(
    {
        NoteKind.ONSET, NoteKind.WINDOW, NoteKind.TRIAL, NoteKind.BATCH, NoteKind.LOOP, NoteKind.SAMPLES, NoteKind.SAMPLE_LOSSES,
        NoteKind.FACTORIAL, NoteKind.LOSS_TWIN, NoteKind.REPEAT, NoteKind.SWAP, NoteKind.SOURCE, NoteKind.DAMAGE, NoteKind.REPRO,
    }
)  # fmt: skip

#: Flags that decide which kernel runs, as attributes of `torch.backends`: what a kept call may say of them.
BACKEND_FLAGS = (
    "cudnn.enabled",
    "cudnn.allow_tf32",
    "cudnn.benchmark",
    "cudnn.deterministic",
    "cuda.matmul.allow_fp16_reduced_precision_reduction",
    "cuda.matmul.allow_bf16_reduced_precision_reduction",
)

OnsetKind = Literal["nan", "inf", "loss-spike", "divergence", "stall", "mismatch", "exception"]


class _Body:
    """JSON round trip for the frozen values that travel in notes."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON types; non-finite floats stay floats and are spelt out by the writer."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        """Rebuild the value; keys that this version does not know are left out."""
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        return cls(**{k: v for k, v in body.items() if k in known})


@dataclass(frozen=True, slots=True, kw_only=True)
class Onset(_Body):
    """The first bad observation of the run, and the first leading sign before it.

    `samples` are indices into the batch's first dimension, empty where the fault is not a sample's.
    """

    kind: OnsetKind
    step: int
    phase: str
    micro: int = 0
    rank: int = 0
    module: str = ""
    #: parameter, buffer, scalar or batch field; '' for a module's output
    name: str = ""
    op: str | None = None
    source: str | None = None
    samples: list[int] = field(default_factory=list)
    lead_step: int | None = None
    #: what was seen, as a clause: "loss is NaN", "gradient of h.0.weight is inf"
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand(_Body):
    """One tensor argument or output of an op, by its statistics."""

    name: str
    dtype: str
    shape: list[int]
    numel: int = 0
    nan: int = 0
    posinf: int = 0
    neginf: int = 0
    zero: int = 0
    amax: float = 0.0
    amin: float = 0.0
    #: smallest and largest finite value, signed
    low: float = 0.0
    high: float = 0.0
    #: "parameter h.0.weight", "buffer h.0.bias", "batch x", "op 12 aten.mul.Tensor" or "" where not known
    origin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Element(_Body):
    """One offending element: where it is, what went in, what came out, what fp64 gives."""

    coordinate: list[int]
    #: the operands' values at the same place, in the order of the op's tensor arguments; [] where it has no such place
    inputs: list[float]
    output: float
    fp64: float | None = None
    #: of a matrix product: the largest magnitude in the row and in the column that meet here
    reach: dict[str, float] = field(default_factory=dict)
    #: the sample it belongs to and the position in its sequence, where the shape tells
    sample: int | None = None
    position: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth(_Body):
    """An op that made a non-finite value, with what it was given and what fp64 makes of the same inputs.

    `kind` is "inf-from-finite", "nan-from-finite" or "nan-from-inf"; "mask-escaped" where the -inf of a mask got out of
    it, by being averaged or picked; "carried" where the op made nothing itself. `fp64` is the certificate: "beyond-range" (finite,
    but larger than the output's format holds), "in-range" (finite, and the format could hold it), "non-finite" (the
    operation itself), or "unavailable". `slope` says the same of the whole vector-Jacobian product of the forward op
    that a backward birth belongs to; `slope_elements` are elements of the gradient that it gives.
    """

    kind: str
    seq: int
    phase: str
    op: str
    module: str = ""
    micro: int = 0
    source: str | None = None
    #: the source line's text
    code: str = ""
    #: of a backward op: the forward op that it differentiates, and autograd's node
    forward_op: str | None = None
    node: str | None = None
    #: parameter whose state an optimizer op worked on
    parameter: str | None = None
    inputs: list[Operand] = field(default_factory=list)
    outputs: list[Operand] = field(default_factory=list)
    #: the other arguments by name, as JSON values: dim, eps, dtype, scalar …
    arguments: dict[str, Any] = field(default_factory=dict)
    fp64: str = "unavailable"
    fp64_amax: float | None = None
    fp64_detail: str = ""
    slope: str = "unavailable"
    slope_amax: float | None = None
    slope_detail: str = ""
    slope_elements: list[Element] = field(default_factory=list)
    elements: list[Element] = field(default_factory=list)
    #: rows of a reduction, or elements, that are bad, of how many
    bad: int = 0
    of: int = 0
    samples: list[int] = field(default_factory=list)
    #: facts that only the op's own tensors show, by name: "fully_masked_rows", "incoming_zero"; "discarded_by" and
    #: "discarded_at" (the select that throws the bad elements away), "discarded" ("all" of them, or "part"),
    #: "discard_checked" (whether it was asked) …
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Birth:
        """Rebuild a birth and the values inside it."""
        body = dict(body)
        for key in ("inputs", "outputs"):
            body[key] = [Operand.from_json(o) for o in body.get(key, [])]
        for key in ("elements", "slope_elements"):
            body[key] = [Element.from_json(e) for e in body.get(key, [])]
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in body.items() if k in known})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop(_Body):
    """One op on the way from a birth to what it spoiled."""

    seq: int
    phase: str
    op: str
    module: str
    source: str | None = None
    #: "birth", "carries", "absorbs" (non-finite in, finite out) or "reaches"
    does: str = "carries"


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One finding of the replay: a kind and its JSON body."""

    kind: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Statistics of one tensor, or one scalar's value, at one place in one step. One row of a trace."""

    step: int
    phase: str
    role: str
    seq: int = 0
    micro: int = 0
    rank: int = 0
    pass_: str = "replay"
    module: str = ""
    name: str = ""
    op: str | None = None
    source: str | None = None
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    stats: TensorStats | None = None
    value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(_Body):
    """What the replay was: written before the first step, never changed after."""

    schema_version: int = SCHEMA_VERSION
    nanhunt_version: str = ""
    torch_version: str = ""
    python_version: str = ""
    started: str = ""
    command: list[str] = field(default_factory=list)
    device: str = "cpu"
    rank: int = 0
    world_size: int = 1
    checkpoint: str = ""
    checkpoint_digest: str = ""
    checkpoint_step: int = 0
    config_path: str = ""
    #: nanhunt.yaml as it was read, defaults filled in
    config: dict[str, Any] = field(default_factory=dict)
    #: steps asked for, `every`, seed and the like
    settings: dict[str, Any] = field(default_factory=dict)
    #: "matched 52 of 52 tensors …"
    match: str = ""
    parameters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the trace: its Arrow type and its meaning (the schema page is made from these)."""

    name: str
    type: pa.DataType
    meaning: str


COLUMNS: tuple[Column, ...] = (
    Column(name="step", type=pa.int64(), meaning="the optimizer step, counted from the checkpoint's own"),
    Column(name="micro", type=pa.int32(), meaning="micro-batch inside the step"),
    Column(name="rank", type=pa.int32(), meaning="process"),
    Column(name="seq", type=pa.int64(), meaning="order of observation inside the replay"),
    Column(name="phase", type=pa.string(), meaning="load, batch, forward, backward, unscale, clip, update"),
    Column(name="pass", type=pa.string(), meaning="replay, zoom (the bad step again, op by op), or the trial's name"),
    Column(name="role", type=pa.string(), meaning="what the tensor is to its module; scalar; op"),
    Column(name="module", type=pa.string(), meaning="module's name as in state_dict, '' for the root"),
    Column(name="name", type=pa.string(), meaning="parameter, scalar, or batch field"),
    Column(name="op", type=pa.string(), meaning="of a zoomed observation: aten.exp"),
    Column(name="source", type=pa.string(), meaning="of a zoomed observation: model.py:88"),
    Column(name="dtype", type=pa.string(), meaning="the tensor's dtype"),
    Column(name="shape", type=pa.list_(pa.int64()), meaning="the tensor's shape"),
    Column(name="numel", type=pa.int64(), meaning="elements"),
    Column(name="nan", type=pa.int64(), meaning="NaN elements"),
    Column(name="posinf", type=pa.int64(), meaning="+inf elements"),
    Column(name="neginf", type=pa.int64(), meaning="-inf elements"),
    Column(name="zero", type=pa.int64(), meaning="elements that are zero"),
    Column(name="subnormal", type=pa.int64(), meaning="elements subnormal in the tensor's own dtype"),
    Column(name="amax", type=pa.float64(), meaning="largest magnitude over finite elements"),
    Column(name="amin", type=pa.float64(), meaning="smallest magnitude over finite non-zero elements"),
    Column(name="mean", type=pa.float64(), meaning="mean over finite elements"),
    Column(name="std", type=pa.float64(), meaning="standard deviation (population) over finite elements"),
    Column(name="l2", type=pa.float64(), meaning="Euclidean norm over finite elements"),
    Column(name="exp_lo", type=pa.int32(), meaning="binary exponent of the first bin of exp_hist"),
    Column(
        name="exp_hist",
        type=pa.list_(pa.int64()),
        meaning="finite non-zero elements by floor(log2 abs x); from 2^15 elements on estimated from tiles that hold 2^14 or more",
    ),
    Column(name="value", type=pa.float64(), meaning="of a scalar"),
)

ArrowSchema: pa.Schema = pa.schema([(c.name, c.type) for c in COLUMNS])
