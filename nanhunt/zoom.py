"""The bad step again, op by op: which op broke first, with its certificate, its lineage and its samples."""

from __future__ import annotations

import contextlib
import sys
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nanhunt.probes.birth import consumers, describe_birth, with_slope
from nanhunt.probes.closer import Closer
from nanhunt.probes.elements import Layout
from nanhunt.probes.lineage import Root, find_root, hops_from
from nanhunt.probes.op import OpProbe
from nanhunt.probes.probe import RowBuffer, is_hookable, split_name
from nanhunt.probes.source import SourceLine, excerpt, is_user_file, place
from nanhunt.repeat import repeat_step
from nanhunt.replay import Replayed, replay_step
from nanhunt.rewind import kept, rewind
from nanhunt.samples import Cutter, attribute_samples
from nanhunt.trace.schema import Birth, NoteKind, Observation, Onset, Phase, Role
from nanhunt.training.batch_layout import why_no_samples
from nanhunt.training.run import TrainingRun
from nanhunt.training.state import SnapshotRing
from nanhunt.training.step import StepWatch, train_step
from nanhunt.verdicts import Known, StepFault, scale_held_at, shows

__all__ = ["Zoomed", "locate_exception", "zoom_in"]

#: Other births on the way that are told besides the root.
_OTHERS = 6


@dataclass(slots=True, kw_only=True)
class Zoomed:
    """What the zoom found: the onset, rows of every op, and notes in the order in which to write them."""

    onset: Onset
    rows: list[Observation] = field(default_factory=list)
    notes: list[tuple[NoteKind, dict[str, Any]]] = field(default_factory=list)


def zoom_in(
    run: TrainingRun, ring: SnapshotRing, rows: RowBuffer, seen: Replayed, fault: StepFault, known: Known
) -> Zoomed:
    """Run the bad step again: plain, to see that it repeats, and with every op looked at."""
    step = seen.step
    with kept(run, step + 1) as after:
        again = repeat_step(run, ring, seen, after, fault, known)
        if not again.shown:
            kind = Onset(kind="mismatch", step=step, phase=_phase(fault), micro=fault.micro, detail=fault.detail)
            return Zoomed(onset=kind, notes=[(NoteKind.REPEAT, again.body)])
        if fault.kind == "exception":
            rewind(run, ring, step)
            zoomed = locate_exception(run, again.last, fault, module=_raising_module(run, step))
        else:
            zoomed = _look(run, ring, rows, step, fault, known)
        if again.shown < again.runs:  # it comes and goes: where it is born says less than that
            zoomed.onset = replace(zoomed.onset, kind="mismatch")
        zoomed.notes.insert(0, (NoteKind.REPEAT, again.body))
        return zoomed


def _look(run: TrainingRun, ring: SnapshotRing, rows: RowBuffer, step: int, fault: StepFault, known: Known) -> Zoomed:
    rewind(run, ring, step)
    rows.pass_ = "zoom"
    probe = OpProbe(run, rows)
    # a gradient that no loss scale mends is looked at without one: what the scale overflows is not the fault
    with scale_held_at(run, 1.0) if fault.unscaled else contextlib.nullcontext():
        replayed = replay_step(run, step, rows, recorded=True, zoom=probe)
    rows.pass_ = "replay"
    zoomed = Zoomed(onset=_coarse_onset(step, fault), rows=rows.take())
    probe.terminals = [t for t in probe.terminals if not _was_known(t.kind, t.name, known)]
    root = find_root(probe)
    if root is None:
        return zoomed
    layout = replayed.layouts[fault.micro] if fault.micro < len(replayed.layouts) else Layout()
    births = _births(root, probe, run.root, layout)
    births = _with_slope(run, ring, step, fault, births, root, probe, layout)
    zoomed.onset = _fine_onset(step, fault, root, births, run.root)
    zoomed.notes += [(NoteKind.BIRTH, b.to_json()) for b in births]
    hops = hops_from(root, probe.events, run.root)
    if hops:
        zoomed.notes.append((NoteKind.LINEAGE, {"hops": [h.to_json() for h in hops], "to": root.terminal.kind}))
    if root.event is not None and root.event.source is not None:
        zoomed.notes.append((NoteKind.SOURCE, _source_note(root.event.source, run.root)))
    # of a tuple the first: what comes after it is a recurrent module's last state
    made = (r for r in zoomed.rows if r.role == Role.OUTPUT.value and r.name in ("", "0"))
    outputs = {r.module: r.shape for r in made if r.shape is not None}
    attributed = _attribute(run, ring, zoomed.onset, births, fault, known, outputs)
    zoomed.notes.append((NoteKind.SAMPLES, attributed))
    zoomed.onset = replace(zoomed.onset, samples=attributed["samples"])
    return zoomed


def _was_known(kind: str, name: str, known: Known) -> bool:
    return name in {"weight": known.weights, "buffer": known.buffers, "state": known.state}.get(kind, frozenset())


def _with_slope(
    run: TrainingRun,
    ring: SnapshotRing,
    step: int,
    fault: StepFault,
    births: list[Birth],
    root: Root,
    probe: OpProbe,
    layout: Layout,
) -> list[Birth]:
    """Run the step once more for a root of the backward pass, and judge the slope of its forward op in fp64."""
    event = root.event
    if not births or event is None or event.forward is None or event.phase is not Phase.BACKWARD:
        return births
    closer = Closer([event.forward, *consumers(event.forward, probe.events)])
    quiet = RowBuffer()
    rewind(run, ring, step)
    with scale_held_at(run, 1.0) if fault.unscaled else contextlib.nullcontext():
        replay_step(run, step, quiet, recorded=False, zoom=OpProbe(run, quiet, closer))
    quiet.drop()
    return [with_slope(births[0], event, probe.events, closer, layout), *births[1:]]


def _births(root: Root, probe: OpProbe, base: Path, layout: Layout) -> list[Birth]:
    """Describe the root's birth first, then others that lie between it and what was spoiled."""
    if root.event is None:
        return []
    first = describe_birth(root.event, probe.events, base, layout)
    if root.inherited:
        first = replace(first, kind="carried", facts={**first.facts, "inherited": root.inherited})
    others = [
        probe.events[i]
        for i in root.births
        if i != root.event.index and probe.events[i].birth and probe.events[i].capture and not probe.events[i].constant
    ]
    return [first, *(describe_birth(e, probe.events, base, layout) for e in others[:_OTHERS])]


def _coarse_onset(step: int, fault: StepFault) -> Onset:
    module, name = split_name(fault.name)
    return Onset(
        kind="nan" if fault.nan else "inf",
        step=step,
        phase=_phase(fault),
        micro=fault.micro,
        module=module,
        name=name,
        detail=fault.detail,
    )


def _fine_onset(step: int, fault: StepFault, root: Root, births: list[Birth], base: Path) -> Onset:
    """Place the onset at the root: an op, or the weight, buffer or batch field that was bad before it."""
    event = root.event
    onset = replace(_coarse_onset(step, fault), kind="nan" if root.terminal.nan else "inf")
    if root.inherited:
        kind, _, name = root.inherited.partition(" ")
        module, leaf = split_name(name)
        if kind in ("parameter", "buffer", "state"):
            owner, leaf = (
                (module, leaf) if kind != "state" else (split_name(module)[0], f"{split_name(module)[1]}.{leaf}")
            )
            return replace(onset, phase=Phase.LOAD.value, module=owner, name=leaf, op=None, source=None)
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
        source=place(event.source, base) if event.source else None,
    )


def _attribute(
    run: TrainingRun,
    ring: SnapshotRing,
    onset: Onset,
    births: list[Birth],
    fault: StepFault,
    known: Known,
    outputs: dict[str, tuple[int, ...]],
) -> dict[str, Any]:
    """Find the samples that carry the fault by running the step with some of them only; say why where none can be."""
    step, micro = onset.step, onset.micro
    reason = why_no_samples(run.batches.peek(step, micro), run.model, outputs)
    cutter = Cutter.of(run, step, micro)
    if reason or cutter is None:
        return {"samples": [], "reason": reason or "the batch has no samples that can be told apart"}
    quiet = RowBuffer()

    def faulty(samples: list[int]) -> bool | None:
        rewind(run, ring, step)
        run.batches.transform = cutter.only(samples)
        try:
            with scale_held_at(run, 1.0) if fault.unscaled else contextlib.nullcontext():
                replayed = replay_step(run, step, quiet, recorded=False)
        finally:
            run.batches.transform = None
            quiet.take()
        return None if replayed.error is not None else shows(replayed, fault, known)

    candidates = births[0].samples if births else []
    body = {**attribute_samples(cutter.size, candidates, faulty), "by": cutter.by}
    return body | {"positions": _positions(births[0], body["samples"])} if births and body["samples"] else body


def _positions(birth: Birth, samples: list[int]) -> dict[str, list[int]]:
    """Return the positions in their sequence at which the samples' shown elements are bad."""
    places = {(e.sample, e.position) for e in (*birth.elements, *birth.slope_elements) if e.position is not None}
    return {str(s): sorted(p for owner, p in places if owner == s and p is not None) for s in samples}


def _phase(fault: StepFault) -> str:
    if fault.kind in ("loss", "exception"):
        return Phase.FORWARD.value
    return Phase.BACKWARD.value if fault.kind == "gradient" else Phase.UPDATE.value


def _source_note(line: SourceLine, base: Path) -> dict[str, Any]:
    file, _, number = place(line, base).rpartition(":")
    return {"file": file, "line": int(number), "text": excerpt(line)}


# --- a model that raises -----------------------------------------------------------------------------------------------


def locate_exception(run: TrainingRun, replayed: Replayed, fault: StepFault, *, module: str = "") -> Zoomed:
    """Locate an exception of the user's code: the innermost frame that is theirs; `module` was running."""
    error, step = replayed.error, replayed.step
    assert error is not None
    line = _user_frame(error)
    source = place(line, run.root) if line else None
    body: dict[str, Any] = {
        "step": step,
        "type": type(error).__name__,
        "message": str(error)[:500],
        "module": module,
        "source": source,
        "traceback": "".join(traceback.format_exception(error))[-4000:],
    }
    onset = Onset(
        kind="exception",
        step=step,
        phase=Phase.FORWARD.value,
        module=module,
        source=source,
        detail=fault.detail,
    )
    notes: list[tuple[NoteKind, dict[str, Any]]] = [(NoteKind.EXCEPTION, body)]
    if line is not None:
        notes.append((NoteKind.SOURCE, _source_note(line, run.root)))
    return Zoomed(onset=onset, notes=notes)


def _user_frame(error: BaseException) -> SourceLine | None:

    frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)]
    return next((f for f in reversed(frames) if is_user_file(f[0])), None)


def _raising_module(run: TrainingRun, step: int) -> str:
    """Run the step once more and return the innermost module whose forward the exception came out of.

    By the exception itself: one that the model catches inside leads nowhere.
    """
    raised: dict[BaseException, str] = {}

    def leaving(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            error = sys.exc_info()[1]
            if error is not None:
                raised.setdefault(error, name)

        return hook

    modules = [(name, module) for name, module in run.model.named_modules() if is_hookable(module)]
    handles = [module.register_forward_hook(leaving(name), always_call=True) for name, module in modules]
    error: BaseException | None = None
    try:
        train_step(run, step, StepWatch())
    except Exception as caught:  # the very exception that is being located
        error = caught
    finally:
        for handle in handles:
            handle.remove()
    module = ""
    while error is not None:  # an exception that was raised anew in the place of another leads to that one's module
        module = raised.get(error, module)
        error = error.__cause__ or error.__context__
    return module
