"""A look at every op of a healthy step, for faults that leave no NaN: values erased, pinned at a format's end, flushed.

No statistic of modules shows them for sure: a bias or a residual hides the zeros of one token. So some steps are run
again op by op: the first, the last, some in between, and those whose module outputs have zeros that they never had.
What a survey finds is told beside any other fault; where the run has no other, it is the onset, at the first step that
shows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nanhunt.probes.birth import describe_birth
from nanhunt.probes.closer import Closer
from nanhunt.probes.elements import samples_of
from nanhunt.probes.event import Capture, OpEvent
from nanhunt.probes.lost.casts import Lossy
from nanhunt.probes.lost.erased import Erased, chains_of, erased_in, norms_in
from nanhunt.probes.lost.moves import Unmoved
from nanhunt.probes.lost.rounded import Rounded
from nanhunt.probes.lost.sums import Absorbed
from nanhunt.probes.lost.watch import LostValues
from nanhunt.probes.op import OpProbe
from nanhunt.probes.op_facts import facts_of
from nanhunt.probes.probe import RowBuffer
from nanhunt.probes.source import code_of, place
from nanhunt.replay import Replayed, replay_step
from nanhunt.rewind import kept, rewind
from nanhunt.trace.schema import Phase, Role
from nanhunt.trace.step_rows import StepRows
from nanhunt.training.ring import SnapshotRing
from nanhunt.training.run import TrainingRun

__all__ = ["SilentFault", "ZeroWatch", "call_of", "classes_of", "loses_at", "survey"]

#: Share of a tensor's energy that a saturating cast cuts off, from which it is a fault: the amax alone, a tenth over the
#: end, loses less than a hundredth of that.
PINNED = 0.01
#: Share of elements that it pins, from which it is: of a block of 32 scaled by its amax one element may be.
CROWDED = 0.25
#: Share of elements that a decay or an average leaves as they were, from which it is one in name only; and the smallest
#: decay a step that matters: below it weights take more than 2000 steps to forget.
UNMOVED, MATERIAL = 0.9, 5e-4
#: The same of an average: what is far away still moves.
AVERAGED = 0.6
#: Share of distinct whole numbers that become another's, and of sums that are a tenth off, from which it is a fault.
ROUNDED = {"collided": 0.25, "rounded": 0.02}
#: Share of rows that an 8-bit or narrower cast makes zero, or of a gradient's energy that fp16 does, from which it is.
FLUSHED = 0.1
#: Additions of one line in one step that change nothing, from which a counter or a sum stands still.
ABSORBED = 4
#: Formats whose range a scale must fit: what fp16 and bf16 flush of a tensor is next to nothing.
_SCALED = ("float8", "float4")


@dataclass(frozen=True, slots=True, kw_only=True)
class SilentFault:
    """One loss of values: "erased", "pinned", "flushed" or "absorbed", with the body of its note."""

    kind: str
    #: whether it is a fault by itself, and not only worth telling
    serious: bool
    body: dict[str, Any]

    @property
    def place(self) -> tuple[str, str, str, str | None]:
        """What stays the same from step to step: kind, module, op and line."""
        return self.kind, str(self.body["module"]), str(self.body["op"]), self.body["source"]


def survey(run: TrainingRun, ring: SnapshotRing, step: int) -> list[SilentFault]:
    """Run `step` again op by op and return what it loses silently, the worst first. The run is put back."""
    with kept(run, step + 1):
        watch, quiet = LostValues(), RowBuffer()
        probe, replayed = _looked(run, ring, step, quiet, watch)
        chains = chains_of(probe.events)
        erased = norms_in(watch.norms)
        if chains:
            closer = Closer({index for chain in chains.values() for index in chain})
            _looked(run, ring, step, quiet, closer)
            closer.release()
            for index in chains:
                kept_call = closer.captures.get(index)
                is_same = kept_call is not None and facts_of(kept_call.func).name == probe.events[index].op
                probe.events[index].capture = kept_call if is_same else None
            found = (erased_in(probe.events[i], chain, probe.events, closer) for i, chain in chains.items())
            erased += [e for e in found if e is not None]
        told = [_erased(run, e, probe, replayed, step) for e in erased]
        told += [_absorbed(run, a, step) for a in watch.absorbed.values() if _stands_still(a)]
        told += [_rounded(run, r, step) for r in watch.rounded if r.share >= ROUNDED[r.kind]]
        told += [_unmoved(run, u, step) for u in watch.unmoved if _stays(u)]
        told += [f for f in (_lossy(run, found, step) for found in watch.casts) if f is not None]
    unique = {fault.place: fault for fault in sorted(told, key=lambda f: f.serious)}
    return sorted(unique.values(), key=lambda f: (not f.serious, -float(f.body["weight"])))


def call_of(run: TrainingRun, ring: SnapshotRing, fault: SilentFault) -> Capture | None:
    """Look at a fault's step once more and return the call that loses the values; None where it is not met again."""
    step, index = int(fault.body["step"]), int(fault.body["seq"])
    if step < ring.oldest_step:
        return None
    with kept(run, step + 1):
        closer = Closer({index})
        _looked(run, ring, step, RowBuffer(), closer)
        closer.release()
    found = closer.captures.get(index)
    return found if found is not None and facts_of(found.func).name == fault.body["op"] else None


@dataclass(slots=True)
class _LossWatch:
    """Notes the classes of a negative log-likelihood."""

    classes: int | None = None

    def settle(self) -> None:
        """Nothing waits here."""

    def wants(self, index: int, op: str) -> bool:
        """Nothing that is read here is overwritten."""
        return False

    def took(self, event: OpEvent, func: Any, before: tuple[tuple[Any, ...], dict[str, Any]], outputs: Any) -> None:
        """Read the scores' second dimension, (N, classes) or (N, classes, …), of a loss that is a mean."""
        args = before[0]
        if event.op.startswith("aten.nll_loss") and event.phase.value == "forward" and args[0].dim() >= 2:
            is_mean = len(args) > 3 and args[3] == 1  # at::Reduction: 0 none, 1 mean, 2 sum
            self.classes = int(args[0].shape[1]) if is_mean else None


def _stands_still(found: Absorbed) -> bool:
    return found.is_counter or found.count >= ABSORBED


def classes_of(run: TrainingRun, ring: SnapshotRing, step: int) -> int | None:
    """Return over how many classes a step's mean cross-entropy is taken; None where its loss is none."""
    with kept(run, step + 1):
        watch = _LossWatch()
        _looked(run, ring, step, RowBuffer(), watch)
    return watch.classes


def loses_at(line: str | None, probe: OpProbe, watch: LostValues) -> bool:
    """Whether an op of a source line overflows into a zero, or loses values in a cast, as a fault does."""
    births = [probe.events[i] for i in chains_of(probe.events)]
    births += [event for event, _ in watch.norms]
    births += [f.event for f in watch.casts if f.energy >= PINNED or f.rows_lost >= FLUSHED * max(1, f.rows)]
    births += [a.event for a in watch.absorbed.values() if _stands_still(a)]
    return any((place(e.source, probe.root) if e.source else None) == line for e in births)


def _looked(run: TrainingRun, ring: SnapshotRing, step: int, quiet: RowBuffer, watch: Any) -> tuple[OpProbe, Replayed]:
    rewind(run, ring, step)
    probe = OpProbe(run, quiet, watch, exact=True)
    replayed = replay_step(run, step, quiet, recorded=False, zoom=probe)
    quiet.drop()
    return probe, replayed


def _erased(run: TrainingRun, found: Erased, probe: OpProbe, replayed: Replayed, step: int) -> SilentFault:
    layout = replayed.layouts[found.birth.micro]
    birth = describe_birth(found.birth, probe.events, run.root, layout) if found.birth.births else None
    body = _placed(run, found.birth, step) | {
        "kind": "erased",
        "at": {"op": found.at.op, "module": found.at.module, "source": _source(run, found.at)},
        "dtype": birth.outputs[0].dtype if birth and birth.outputs else "",
        "elements": found.count,
        "of": found.numel,
        "amax": found.amax,
        "weight": found.count / max(1, found.numel),
        "samples": samples_of(found.mask, layout),
        "birth": birth.to_json() if birth else None,
    }
    return SilentFault(kind="erased", serious=True, body=body)


def _lossy(run: TrainingRun, found: Lossy, step: int) -> SilentFault | None:
    """Return a cast or clamp that lost something worth telling."""
    share_of_rows = found.rows_lost / max(1, found.rows)
    scaled = found.dtype.startswith(_SCALED)
    # where all of a block lies between the last number and the end, little energy is cut off and all is the same
    crowded = scaled and found.pinned >= CROWDED * found.numel
    pinned, flushed = found.energy >= PINNED or crowded, scaled and share_of_rows >= FLUSHED
    # behind the loss fp16 may flush the whole signal, which no scale brought along
    flushed |= found.dtype == "float16" and found.event.phase is not Phase.FORWARD and found.flushed_energy >= FLUSHED
    if not (pinned or flushed or found.pinned):
        return None
    kind = "flushed" if flushed and not pinned else "pinned"
    body = _placed(run, found.event, step) | {
        "kind": kind,
        "dtype": found.dtype,
        "end": found.end,
        "amax": found.amax,
        "elements": found.flushed if kind == "flushed" else found.pinned,
        "of": found.numel,
        "energy": found.energy,
        "flushed_energy": found.flushed_energy,
        "rows": found.rows,
        "rows_lost": found.rows_lost,
        "weight": max(share_of_rows, found.flushed_energy) if kind == "flushed" else found.energy,
        "samples": [],
        "birth": None,
    }
    return SilentFault(kind=kind, serious=pinned or flushed, body=body)


def _stays(found: Unmoved) -> bool:
    is_material = found.factor is None or 1.0 - found.factor >= MATERIAL
    return is_material and found.kept >= (AVERAGED if found.factor is None else UNMOVED) * found.asked


def _rounded(run: TrainingRun, found: Rounded, step: int) -> SilentFault:
    body = _placed(run, found.event, step) | {
        "kind": found.kind,
        "dtype": found.dtype,
        "end": 0.0,
        "amax": found.amax,
        "elements": round(found.share * found.of),
        "of": found.of,
        "weight": found.share,
        "samples": [],
        "birth": None,
    }
    return SilentFault(kind=found.kind, serious=True, body=body)


def _unmoved(run: TrainingRun, found: Unmoved, step: int) -> SilentFault:
    name = found.origin.partition(" ")[2]
    body = _placed(run, found.event, step) | {
        "kind": "unmoved",
        "dtype": found.dtype,
        "end": 0.0,
        "amax": found.amax,
        "elements": found.kept,
        "of": found.asked,
        "factor": found.factor,
        "parameter": name,
        "weight": found.asked,
        "samples": [],
        "birth": None,
    }
    return SilentFault(kind="unmoved", serious=True, body=body | {"module": name.rpartition(".")[0] or body["module"]})


def _absorbed(run: TrainingRun, found: Absorbed, step: int) -> SilentFault:
    body = _placed(run, found.event, step) | {
        "kind": "absorbed",
        "dtype": found.dtype,
        "end": 0.0,
        "amax": found.amax,
        "elements": found.count,
        "of": found.count,
        "weight": 1.0,
        "samples": [],
        "birth": None,
    }
    return SilentFault(kind="absorbed", serious=True, body=body)


def _placed(run: TrainingRun, event: OpEvent, step: int) -> dict[str, Any]:
    return {
        "step": step,
        "seq": event.index,
        "micro": event.micro,
        "phase": event.phase.value,
        "module": event.module,
        "op": event.op,
        "source": _source(run, event),
        "code": code_of(event.source) if event.source else "",
    }


def _source(run: TrainingRun, event: OpEvent) -> str | None:
    return place(event.source, run.root) if event.source else None


@dataclass(slots=True)
class ZeroWatch:
    """Notices module outputs with zeros that they never had; a dead unit, a dropout and a ReLU have theirs from the start."""

    most: dict[tuple[str, str], int] = field(default_factory=dict)

    def observe(self, rows: StepRows) -> bool:
        """Take a recorded step's rows; True where a step other than the first has an output with far more zeros."""
        rose, first = False, not self.most
        sites, outputs = rows.of_role(Role.OUTPUT)
        for site, numel, zeros in zip(sites, outputs.numel.tolist(), outputs.zero.tolist(), strict=True):
            if numel < 2:
                continue
            key = (site.module, site.name)
            before = self.most.get(key)
            if before is not None and zeros > 2 * before + max(4, numel // 1000):
                rose = True
            self.most[key] = max(zeros, before or 0)
        return rose and not first
