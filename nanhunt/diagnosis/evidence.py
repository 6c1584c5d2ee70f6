"""Evidence: named, cached views of a trace, so that asking a question of it is cheap and reads well in a cause."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nanhunt.diagnosis.series import by_place, largest_by_place, rows_whose
from nanhunt.interventions import Trial
from nanhunt.trace.columns import integers, mask
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Birth, Hop, NoteKind, Onset

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Ancestor", "Evidence", "Health"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """One scalar of one parameter in one step: `rms_t`, `v_stale`, `frozen` and their kin."""

    step: int
    module: str
    parameter: str
    value: float

    @property
    def qualified(self) -> str:
        """`h.0.attn.weight`."""
        return f"{self.module}.{self.parameter}" if self.module else self.parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor:
    """One op of the graph above a birth, by its first output's counts; `writers` are the ops of its own operands."""

    index: int
    op: str
    source: str = ""
    code: str = ""
    module: str = ""
    writers: tuple[int, ...] = ()
    #: weights, buffers and batch fields among its operands
    origins: tuple[str, ...] = ()
    #: the plain numbers among its arguments
    scalars: tuple[float, ...] = ()
    numel: int = 0
    zero: int = 0
    neginf: int = 0
    posinf: int = 0
    amax: float = 0.0

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Ancestor:
        """Rebuild it from the trace's note."""
        own = set(cls.__dataclass_fields__)
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in body.items() if k in own}
        known["source"] = str(known.get("source") or "")
        return cls(**known)


class Evidence:
    """What a trace says, by question. Every view is computed once, on first use; none changes the trace."""

    def __init__(self, trace: Trace) -> None:
        #: of all ranks
        self.ranks = trace
        #: of the rank that looked into the fault, or the first one
        self.trace = trace if trace.rank_count == 1 else trace.of_rank_with(NoteKind.ONSET)
        self.manifest = self.trace.manifest

    # --- the fault ---------------------------------------------------------------------------------------------------

    @cached_property
    def onset(self) -> Onset | None:
        """The first bad observation; None in a healthy run."""
        body = self.trace.note_of(NoteKind.ONSET)
        return Onset.from_json(body) if body else None

    @property
    def is_nonfinite(self) -> bool:
        """Whether the fault is a NaN or an inf, one that an exception complains of included."""
        if self.onset is None:
            return False
        return self.onset.kind in ("nan", "inf") or (self.onset.kind == "exception" and bool(self.births))

    @property
    def is_spike(self) -> bool:
        """Whether the fault is a finite loss that left its baseline."""
        return self.onset is not None and self.onset.kind in ("loss-spike", "divergence")

    @property
    def is_stall(self) -> bool:
        """Whether the fault leaves no NaN and no spike: zeros, or updates that change nothing."""
        return self.onset is not None and self.onset.kind == "stall"

    @cached_property
    def births(self) -> tuple[Birth, ...]:
        """The births of the zoomed step; the first one is the root."""
        return tuple(Birth.from_json(body) for body in self.trace.notes_of(NoteKind.BIRTH))

    @property
    def birth(self) -> Birth | None:
        """The root birth; None where the fault has none (a spike, a stall) or the zoom was off."""
        return self.births[0] if self.births else None

    @cached_property
    def ancestry(self) -> dict[int, Ancestor]:
        """The ops that the root birth's operands come from, by index; {} where the trace does not tell."""
        body = self.trace.note_of(NoteKind.ANCESTRY)
        return {int(op["index"]): Ancestor.from_json(op) for op in body["ops"]} if body else {}

    @cached_property
    def lineage(self) -> tuple[Hop, ...]:
        """Ops from the root birth to what it spoiled."""
        body = self.trace.note_of(NoteKind.LINEAGE)
        return tuple(Hop.from_json(hop) for hop in body["hops"]) if body else ()

    @property
    def spoiled(self) -> str:
        """What the lineage ends in: "loss", "gradient", "weight", "state", "buffer", or ''."""
        body = self.trace.note_of(NoteKind.LINEAGE)
        return str(body.get("to", "")) if body else ""

    @cached_property
    def trials(self) -> dict[str, Trial]:
        """Trials by name."""
        found = (Trial.from_json(body) for body in self.trace.notes_of(NoteKind.TRIAL))
        return {trial.name: trial for trial in found}

    def outcome(self, trial: str) -> str | None:
        """Return "cured", "persists" or "failed" of a trial, None where it was not run."""
        return self.trials[trial].outcome if trial in self.trials else None

    # --- notes -------------------------------------------------------------------------------------------------------

    def note(self, kind: NoteKind) -> dict[str, Any] | None:
        """Return the first note of a kind."""
        return self.trace.note_of(kind)

    def notes(self, kind: NoteKind) -> list[dict[str, Any]]:
        """Return all notes of a kind, in order."""
        return self.trace.notes_of(kind)

    def silent(self, *kinds: str) -> list[dict[str, Any]]:
        """Return what a look at healthy steps found lost ("erased", "pinned", "flushed", "absorbed"), serious ones only."""
        return [b for b in self.notes(NoteKind.SILENT) if b.get("serious") and b.get("kind") in kinds]

    def wrong_backward(self, node: str | None = None) -> dict[str, Any] | None:
        """Return the first Function of the user's whose backward finite differences contradict; of a node, only its own."""
        checked = [f for body in self.notes(NoteKind.GRADCHECK) for f in body.get("functions", [])]
        wrong = (f for f in checked if f.get("verdict") == "wrong")
        return next((f for f in wrong if node is None or f"{f['function']}Backward" == node), None)

    @property
    def stall_reason(self) -> str:
        """What a stall was told by (`hunt.stalls`); '' of other faults."""
        body = self.note(NoteKind.STALL)
        return str(body["reason"]) if body and self.is_stall else ""

    @property
    def optimizer(self) -> dict[str, Any]:
        """The optimizer's class, groups and state dtypes (`facts.optimizer_facts`); {} where not noted."""
        return self.note(NoteKind.OPTIMIZER) or {}

    def hyper(self, name: str) -> float | None:
        """Return a hyper-parameter of the first group: "eps", "lr", "weight_decay"."""
        groups = self.optimizer.get("groups") or [{}]
        value = groups[0].get(name)
        return float(value) if isinstance(value, (int, float)) else None

    @property
    def beta2(self) -> float | None:
        """Adam's second beta."""
        groups = self.optimizer.get("groups") or [{}]
        betas = groups[0].get("betas")
        return float(betas[1]) if isinstance(betas, list) and len(betas) == 2 else None

    @property
    def is_taped(self) -> bool:
        """Whether the step was written down as a script ran it: what that computed aside of its graph is a field of the batch."""
        calls = (self.trace.manifest.config.get(key) or {} for key in ("loss", "train_step"))
        return any(
            str(call.get("call")).startswith("nanhunt.training.taped") for call in calls if isinstance(call, dict)
        )

    @property
    def batch_fields(self) -> list[dict[str, Any]]:
        """The fields of the bad micro-batch (`facts.batch_facts`); [] where not noted."""
        body, onset = self.note(NoteKind.BATCH), self.onset
        micros = body["micros"] if body else []
        wanted = onset.micro if onset else 0
        return next((m["fields"] for m in micros if m["micro"] == wanted), [])

    @property
    def batch_size(self) -> int | None:
        """Samples of the bad micro-batch."""
        body, onset = self.note(NoteKind.BATCH), self.onset
        micros = body["micros"] if body else []
        wanted = onset.micro if onset else 0
        return next((m["size"] for m in micros if m["micro"] == wanted), None)

    @property
    def autocast(self) -> str | None:
        """The autocast of the run: "fp16", "bf16" or None."""
        value = self.optimizer.get("autocast")
        return str(value) if value else None

    @property
    def weight_dtypes(self) -> frozenset[str]:
        """The trained weights' dtypes: {"float32"}."""
        return frozenset(self.optimizer.get("weight_dtypes", ()))

    # --- numbers over steps ------------------------------------------------------------------------------------------

    def scalars(self, name: str) -> dict[int, float]:
        """Return a scalar of the run by step: loss, grad_norm, clip_coefficient, lr, loss_scale."""
        return self.trace.scalars(name)

    def before(self, series: dict[int, float], step: int | None = None) -> list[float]:
        """Return the finite values of the steps before `step` (the onset's own by default): the baseline."""
        limit = step if step is not None else (self.onset.step if self.onset else math.inf)
        return [v for s, v in sorted(series.items()) if s < limit and math.isfinite(v)]

    @cached_property
    def _health_rows(self) -> dict[str, Any]:
        """Per-parameter scalars by pass, as Arrow tables of step, module, name and value: there are millions."""
        columns = ["step", "module", "name", "value"]
        return {p: self.trace.table(columns, roles=["scalar"], passes=[p]) for p in ("replay", "zoom")}

    def _heard(self, key: str, pass_: str) -> Any:
        """Return the rows of a per-parameter scalar."""
        table = self._health_rows[pass_]
        return rows_whose(table, "name", lambda name: name.endswith(f".{key}"))

    def hears(self, key: str) -> bool:
        """Whether there is a row of a per-parameter scalar."""
        return bool(self._heard(key, "replay").num_rows)

    def health(self, key: str, pass_: str = "replay") -> list[Health]:
        """Return a per-parameter scalar over all recorded steps, in order of step."""
        rows = self._heard(key, pass_)
        return [
            Health(step=s, module=m, parameter=n[: -len(key) - 1], value=math.nan if v is None else v)
            for s, m, n, v in zip(*(column.to_pylist() for column in rows.columns), strict=True)
        ]

    def health_series(self, key: str) -> dict[str, dict[int, float]]:
        """Return a per-parameter scalar as {"h.0.weight": {7: 0.31}}, in order of step."""
        series = by_place(self._heard(key, "replay"))
        return {f"{m}.{n}".lstrip(".").removesuffix(f".{key}"): steps for (m, n), steps in series.items()}

    def health_at(self, key: str, step: int) -> dict[str, float]:
        """Return a per-parameter scalar at one step, by qualified parameter name."""
        rows = self._heard(key, "replay")
        found = by_place(rows.filter(mask(integers(rows.column("step")) == step)))
        return {f"{m}.{n}".lstrip(".").removesuffix(f".{key}"): series[step] for (m, n), series in found.items()}

    def health_of(self, key: str, parameter: str) -> dict[int, float]:
        """Return a scalar of one parameter by step."""
        whole = f"{parameter}.{key}"
        rows = rows_whose(self._heard(key, "replay"), "name", whole.endswith)
        found = by_place(rows_whose(rows, "module", whole.startswith))
        return next((steps for (m, n), steps in found.items() if f"{m}.{n}".lstrip(".") == whole), {})

    def health_step(self, key: str, last: int | None) -> int | None:
        """Return the last step, `last` or before, that has a per-parameter scalar; None where there is none."""
        steps = integers(self._heard(key, "replay").column("step"))
        there = steps if last is None else steps[steps <= last]
        return int(there.max()) if there.size else None

    def frame(
        self,
        role: str,
        columns: Iterable[str],
        *,
        phases: Sequence[str] | None = None,
        modules: Sequence[str] | None = None,
        step: int | None = None,
    ) -> pd.DataFrame:
        """Return rows of one role of the replay pass; of all steps, or of one."""
        steps = None if step is None else (step, step)
        return self.trace.frame(
            [*columns], roles=[role], passes=["replay"], phases=phases, modules=modules, steps=steps
        )

    def cells(
        self,
        role: str,
        columns: Iterable[str],
        *,
        pass_: str = "replay",
        phases: Sequence[str] | None = None,
        modules: Sequence[str] | None = None,
        step: int | None = None,
    ) -> list[tuple[Any, ...]]:
        """Return rows of one role and pass as tuples, NaN for a number that is null: where they are few."""
        steps = None if step is None else (step, step)
        table = self.trace.table([*columns], roles=[role], passes=[pass_], phases=phases, modules=modules, steps=steps)
        lists = (_cells(column) for column in table.columns)
        return list(zip(*lists, strict=True))

    def history(
        self, role: str, column: str = "amax", *, modules: Sequence[str] | None = None
    ) -> dict[tuple[str, str], dict[int, float]]:
        """Return a column by (module, name) and step, the largest over micro-batches: {("h.0", ""): {7: 3.5}}."""
        columns = ["step", "module", "name", column]
        table = self.trace.table(columns, roles=[role], passes=["replay"], modules=modules)
        return largest_by_place(table, column)


def _cells(column: Any) -> list[Any]:
    """Return a column's values, NaN for a number that is null."""
    values: list[Any] = column.to_pylist()
    is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    return [math.nan if value is None else value for value in values] if is_number else values
