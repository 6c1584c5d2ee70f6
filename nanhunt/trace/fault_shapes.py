"""Shapes of the notes on a fault: where it began, what led there, what it spoiled."""

# no annotations from the future here: `Required` is not seen in those
from typing import Any, Required, TypedDict

from nanhunt.trace.schema import Birth, Hop, NoteKind, Onset

__all__ = ["FAULT_SHAPES"]


class _Lineage(TypedDict, total=False):
    hops: Required[list[Hop]]
    to: str


class _Poison(TypedDict, total=False):
    where: Required[str]
    module: Required[str]
    name: Required[str]
    nan: Required[int]
    posinf: Required[int]
    neginf: Required[int]
    numel: Required[int]
    coordinates: list[Any]


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
    ended: str


class _Stall(TypedDict, total=False):
    reason: Required[str]
    step: int


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


class _Exception(TypedDict, total=False):
    step: int
    type: str
    message: Required[str]
    module: str
    source: str | None
    traceback: str


class _Source(TypedDict):
    file: str
    line: int
    text: list[tuple[int, str]]


#: kind of note -> the shape of its body
FAULT_SHAPES: dict[str, Any] = {
    NoteKind.ONSET: Onset,
    NoteKind.BIRTH: Birth,
    NoteKind.LINEAGE: _Lineage,
    NoteKind.POISON: _Poison,
    NoteKind.ANCESTRY: _Ancestry,
    NoteKind.GRADCHECK: _Gradcheck,
    NoteKind.DAMAGE: _Damage,
    NoteKind.STALL: _Stall,
    NoteKind.TARGETS: _Targets,
    NoteKind.SILENT: _Silent,
    NoteKind.EXCEPTION: _Exception,
    NoteKind.SOURCE: _Source,
}
