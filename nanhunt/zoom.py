"""The bad step again, op by op: which op broke first, with its certificate, its lineage and its samples."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from nanhunt.culprit import Culprit, culprit_of, raised_culprit
from nanhunt.probes.birth import ancestry, consumers, describe_birth, masked_facts, with_discard, with_slope
from nanhunt.probes.closer import Closer
from nanhunt.probes.discard import ways_to_selects
from nanhunt.probes.elements import Layout
from nanhunt.probes.event import OpEvent
from nanhunt.probes.lineage import Root, find_root, hops_from
from nanhunt.probes.op import OpProbe
from nanhunt.probes.probe import RowBuffer, split_name
from nanhunt.probes.source import SourceLine, excerpt, place
from nanhunt.raised import complaint, located, raising_module, user_line
from nanhunt.repeat import repeat_step
from nanhunt.replay import Replayed, replay_step
from nanhunt.rewind import kept, rewind
from nanhunt.samples import Cutter, attribute_samples, cut_to
from nanhunt.trace.schema import Birth, NoteKind, Onset, Phase, Role
from nanhunt.trace.step_rows import StepRows
from nanhunt.training.batch_layout import why_no_samples
from nanhunt.training.ring import SnapshotRing
from nanhunt.training.run import TrainingRun
from nanhunt.verdicts import Known, StepFault, scale_held_at, shows

__all__ = ["Zoomed", "locate_exception", "zoom_in"]

#: Other births on the way that are told besides the root.
_OTHERS = 6
#: Times that the step is looked at, until what was looked at closely is what broke.
_LOOKS = 4


@dataclass(slots=True, kw_only=True)
class Zoomed:
    """What the zoom found: the onset, rows of every op, and notes in the order in which to write them."""

    onset: Onset
    rows: StepRows = field(default_factory=lambda: StepRows.of([]))
    notes: list[tuple[NoteKind, dict[str, Any]]] = field(default_factory=list)
    #: the look did not show the fault, which plain repetitions had shown
    gone: bool = False
    #: the call that shows the fault by itself, or why there is none; None where no op was looked at
    culprit: Culprit | str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """The step op by op, and its root, None where everything that must be finite is."""

    probe: OpProbe
    replayed: Replayed
    root: Root | None
    closer: Closer
    rows: StepRows

    @property
    def events(self) -> list[OpEvent]:
        """Every op of the step."""
        return self.probe.events


@dataclass(frozen=True, slots=True, kw_only=True)
class _Zoom:
    """One bad step under the lens."""

    run: TrainingRun
    ring: SnapshotRing
    step: int
    fault: StepFault
    known: Known

    def look(self, rows: RowBuffer) -> _Look:
        """Run the step with every op looked at, and again with a row of every op and the operands of those that matter.

        A fault that comes and goes may break out elsewhere the second time, or not at all: then once more.
        """
        closer, recorded, rows.pass_ = Closer(), False, "zoom"
        for _ in range(_LOOKS):
            rewind(self.run, self.ring, self.step)
            probe = OpProbe(self.run, rows, closer)
            rows.take()
            with self._unscaled():
                replayed = replay_step(self.run, self.step, rows, recorded=recorded, zoom=probe)
            closer.release()
            root = self._root(probe, replayed)
            wanted, spare = _wanted(root, probe)
            if recorded and wanted.keys() <= closer.wanted.keys():
                break
            closer, recorded = Closer(wanted, spare), True
        rows.pass_ = "replay"
        for index, capture in closer.captures.items():
            probe.events[index].capture = capture
        return _Look(probe=probe, replayed=replayed, root=root, closer=closer, rows=rows.take())

    def _root(self, probe: OpProbe, replayed: Replayed) -> Root | None:
        if self.fault.kind == "exception":
            micro = max(0, len(replayed.layouts) - 1)  # the one that was running
            complained = complaint(replayed.error, probe.events, micro) if replayed.error is not None else None
            probe.terminals = [complained] if complained is not None else []
        else:
            probe.terminals = [t for t in probe.terminals if not _was_known(t.kind, t.name, self.known)]
        return find_root(probe)

    def is_faulty(self, samples: list[int], cutter: Cutter, quiet: RowBuffer) -> bool | None:
        """Run the step with some of its samples only; None where it cannot run so."""
        rewind(self.run, self.ring, self.step)
        try:
            with cut_to(self.run, cutter, samples), self._unscaled():
                replayed = replay_step(self.run, self.step, quiet, recorded=False)
        finally:
            quiet.take()
        if self.fault.kind == "exception":
            return replayed.error is not None and type(replayed.error).__name__ == self.fault.name
        return None if replayed.error is not None else shows(replayed, self.fault, self.known)

    def _unscaled(self) -> AbstractContextManager[None]:
        """A gradient that no loss scale mends is looked at without one: what the scale overflows is not the fault."""
        return scale_held_at(self.run, 1.0) if self.fault.unscaled else contextlib.nullcontext()


def zoom_in(
    run: TrainingRun, ring: SnapshotRing, rows: RowBuffer, seen: Replayed, fault: StepFault, known: Known
) -> Zoomed:
    """Run the bad step again: plain, to see that it repeats, and with every op looked at."""
    step = seen.step
    zoom = _Zoom(run=run, ring=ring, step=step, fault=fault, known=known)
    with kept(run, step + 1) as after:
        again = repeat_step(run, ring, seen, after, fault, known)
        if not again.shown:
            # no look will find it again: the first module that put out something bad is all there is
            onset = replace(_coarse_onset(zoom), kind="mismatch")
            if fault.kind == "loss":
                onset = replace(onset, module=next(iter(seen.finite.modules), ""))
            return Zoomed(onset=onset, notes=[(NoteKind.REPEAT, again.body)])
        zoomed = _exception(zoom, rows, again.last) if fault.kind == "exception" else _look(zoom, rows)
        if zoomed.gone:  # the repetitions had it by chance
            again.body |= {"runs": again.runs + 1, "reproduced": False}
        if again.shown < again.runs or zoomed.gone:  # it comes and goes: where it is born says less than that
            zoomed.onset = replace(zoomed.onset, kind="mismatch")
        zoomed.notes.insert(0, (NoteKind.REPEAT, again.body))
        return zoomed


def locate_exception(run: TrainingRun, replayed: Replayed, fault: StepFault, *, module: str = "") -> Zoomed:
    """Locate an exception by its traceback alone, without another run."""
    onset, body = located(run, replayed, fault.detail, module=module)
    assert replayed.error is not None
    line = user_line(replayed.error)
    notes = [(NoteKind.EXCEPTION, body)]
    return Zoomed(onset=onset, notes=[*notes, *([(NoteKind.SOURCE, _source_note(line, run))] if line else [])])


def _exception(zoom: _Zoom, rows: RowBuffer, raised: Replayed) -> Zoomed:
    """Locate an exception; where it complains of bad numbers, find where those were born."""
    run = zoom.run
    rewind(run, zoom.ring, zoom.step)
    zoomed = locate_exception(run, raised, zoom.fault, module=raising_module(run, zoom.step))
    look = zoom.look(rows)
    micro = max(0, len(look.replayed.layouts) - 1)
    same = look.probe.raised is not None and str(look.probe.raised) == str(raised.error)
    zoomed.onset = replace(zoomed.onset, micro=micro, op=look.probe.raising if same else None)
    zoomed.culprit = raised_culprit(look.probe.raising_call if same else None, look.probe.raised)
    births: list[Birth] = []
    if look.root is not None and look.root.event is not None:
        zoomed.rows, births = look.rows, _told_births(zoom, look)
        placed = _fine_onset(zoom, look.root, births)
        zoomed.onset = replace(placed, kind="exception", detail=zoom.fault.detail)
        zoomed.culprit = culprit_of(look.root.event, look.closer, look.root.inherited)
        zoomed.notes = [n for n in zoomed.notes if n[0] is not NoteKind.SOURCE]
        zoomed.notes += _root_notes(zoom, look, births)
    return _with_samples(zoom, zoomed, births, {})


def _look(zoom: _Zoom, rows: RowBuffer) -> Zoomed:
    look = zoom.look(rows)
    zoomed = Zoomed(onset=_coarse_onset(zoom), rows=look.rows)
    if look.root is None:
        zoomed.gone = not shows(look.replayed, zoom.fault, zoom.known)
        return zoomed
    births = _told_births(zoom, look)
    zoomed.onset = _fine_onset(zoom, look.root, births)
    zoomed.culprit = culprit_of(look.root.event, look.closer, look.root.inherited)
    zoomed.notes += _root_notes(zoom, look, births)
    # of a tuple the first: what comes after it is a recurrent module's last state
    made = (r for r in zoomed.rows if r.role == Role.OUTPUT.value and r.name in ("", "0"))
    return _with_samples(zoom, zoomed, births, {r.module: r.shape for r in made if r.shape is not None})


def _layout(replayed: Replayed, fault: StepFault) -> Layout:
    return replayed.layouts[fault.micro] if fault.micro < len(replayed.layouts) else Layout()


def _root_notes(zoom: _Zoom, look: _Look, births: list[Birth]) -> list[tuple[NoteKind, dict[str, Any]]]:
    notes = [(NoteKind.BIRTH, b.to_json()) for b in births]
    root, base = look.root, zoom.run.root
    assert root is not None
    hops = hops_from(root, look.events, base)
    if hops:
        notes.append((NoteKind.LINEAGE, {"hops": [h.to_json() for h in hops], "to": root.terminal.kind}))
    if root.event is not None:
        # of a backward op the operands of its forward op tell more than its own
        at = root.event if root.event.forward is None else look.events[root.event.forward]
        ops = ancestry(at, look.events, look.rows, base)
        own = ancestry(root.event, look.events, look.rows, base) if at is not root.event else []
        notes.append((NoteKind.ANCESTRY, {"ops": [*own, *(o for o in ops if o not in own)]}))
        if root.event.source is not None:
            notes.append((NoteKind.SOURCE, _source_note(root.event.source, zoom.run)))
    return notes


def _wanted(root: Root | None, probe: OpProbe) -> tuple[dict[int, str], list[int]]:
    """Return the ops whose operands are to be kept, and of an op on lists which lane: the root's, and those around it.

    And which of them may go without: those on the way to a select that may throw the root's elements away.
    """
    if root is None or root.event is None:
        return {}, []
    event = root.event
    births = [event.index, *_other_births(root, probe)]
    wanted = {i: probe.events[i].birth_lane or "" for i in births}
    if event.forward is not None and event.phase is Phase.BACKWARD:
        around = [event.forward, *consumers(event.forward, probe.events)]
        wanted |= {i: "" for i in around if i not in wanted}
    made = event.forward if event.forward is not None else event.index
    behind = ways_to_selects(made, probe.events) if probe.events[made].phase is Phase.FORWARD else []
    spare = [i for i in behind if i not in wanted]
    return wanted | dict.fromkeys(spare, ""), spare


def _other_births(root: Root, probe: OpProbe) -> list[int]:
    events = (probe.events[i] for i in root.births)
    return [e.index for e in events if e is not root.event and e.birth and not e.constant][:_OTHERS]


def _was_known(kind: str, name: str, known: Known) -> bool:
    return name in {"weight": known.weights, "buffer": known.buffers, "state": known.state}.get(kind, frozenset())


# --- births -----------------------------------------------------------------------------------------------------------


def _told_births(zoom: _Zoom, look: _Look) -> list[Birth]:
    """Describe the root's birth first, then others that lie between it and what was spoiled."""
    root, events, run = look.root, look.events, zoom.run
    if root is None or root.event is None:
        return []
    event, layout = root.event, _layout(look.replayed, zoom.fault)
    first = describe_birth(event, events, run.root, layout)
    if root.inherited:
        first = replace(first, kind="carried", facts={**first.facts, "inherited": root.inherited})
    elif root.mask is not None:
        first = _escaped(first, root, layout)
    else:
        first = with_discard(first, event, events, look.closer, run.root)
        if event.forward is not None and event.phase is Phase.BACKWARD:
            first = with_slope(first, event, events, look.closer, layout)
    others = [events[i] for i in _other_births(root, look.probe) if events[i].capture]
    return [first, *(describe_birth(e, events, run.root, layout) for e in others)]


def _escaped(birth: Birth, root: Root, layout: Layout) -> Birth:
    """Describe the op at which a mask's -inf got out."""
    event, mask = root.event, root.mask
    assert event is not None
    assert mask is not None
    facts, samples = masked_facts(event, event.capture, layout) if event.capture is not None else ({}, [])
    facts |= {"mask_op": mask.op, "mask_module": mask.module}
    return replace(birth, kind="mask-escaped", samples=samples, facts={**birth.facts, **facts})


# --- the onset --------------------------------------------------------------------------------------------------------


def _coarse_onset(zoom: _Zoom) -> Onset:
    fault, step = zoom.fault, zoom.step
    module, name = _split(fault.kind, fault.name) if fault.kind != "exception" else ("", "")
    return Onset(
        kind="nan" if fault.nan else "inf",
        step=step,
        phase=_phase(fault),
        micro=fault.micro,
        module=module,
        name=name,
        detail=fault.detail,
    )


def _fine_onset(zoom: _Zoom, root: Root, births: list[Birth]) -> Onset:
    """Place the onset at the root: an op, or the weight, buffer or batch field that was bad before it."""
    event = root.event
    onset = replace(_coarse_onset(zoom), kind="nan" if root.terminal.nan else "inf")
    if root.inherited:
        kind, _, name = root.inherited.partition(" ")
        if kind in ("parameter", "buffer", "state"):
            module, leaf = _split(kind, name)
            return replace(onset, phase=Phase.LOAD.value, module=module, name=leaf, op=None, source=None)
        if kind == "batch":
            return replace(onset, phase=Phase.BATCH.value, module="", name=name, micro=event.micro if event else 0)
    if event is None:
        return onset
    birth = births[0] if births else None
    module, name = split_name(birth.parameter) if birth and birth.parameter else (event.module, "")
    return replace(
        onset,
        phase=event.phase.value,
        micro=event.micro,
        module=module,
        name=name,
        op=event.op,
        source=place(event.source, zoom.run.root) if event.source else None,
    )


def _split(kind: str, name: str) -> tuple[str, str]:
    """Split `h.0.weight` into module and leaf; a moment's leaf is `weight.exp_avg_sq`."""
    module, leaf = split_name(name)
    if kind != "state":
        return module, leaf
    module, parameter = split_name(module)
    return module, f"{parameter}.{leaf}"


def _with_samples(zoom: _Zoom, zoomed: Zoomed, births: list[Birth], outputs: dict[str, tuple[int, ...]]) -> Zoomed:
    """Find the samples that carry the fault by running the step with some of them only; say why where none can be."""
    run, micro = zoom.run, zoomed.onset.micro
    reason = why_no_samples(run.batches.peek(zoom.step, micro), run.model, outputs)
    cutter = Cutter.of(run, zoom.step, micro)
    if reason or cutter is None:
        body: dict[str, Any] = {"samples": [], "reason": reason or "the batch has no samples that can be told apart"}
    else:
        quiet, candidates = RowBuffer(), births[0].samples if births else []
        if cutter.by == "replacement" and zoom.is_faulty([], cutter, quiet) is not False:
            cutter = cutter.by_removal()  # the donors fail on this state as well
        body = attribute_samples(cutter.size, candidates, lambda some: zoom.is_faulty(some, cutter, quiet))
        body["by"] = cutter.by
        if births and body["samples"]:
            body["positions"] = _positions(births[0], body["samples"])
    zoomed.notes.append((NoteKind.SAMPLES, body))
    zoomed.onset = replace(zoomed.onset, samples=body["samples"])
    return zoomed


def _positions(birth: Birth, samples: list[int]) -> dict[str, list[int]]:
    """Return the positions in their sequence at which the samples are bad; none of one that is bad at every position."""
    found = birth.facts.get("positions") or {}
    return {str(sample): found.get(str(sample), []) for sample in samples}


def _phase(fault: StepFault) -> str:
    if fault.kind in ("loss", "exception"):
        return Phase.FORWARD.value
    return Phase.BACKWARD.value if fault.kind == "gradient" else Phase.UPDATE.value


def _source_note(line: SourceLine, run: TrainingRun) -> dict[str, Any]:
    file, _, number = place(line, run.root).rpartition(":")
    return {"file": file, "line": int(number), "text": excerpt(line)}
