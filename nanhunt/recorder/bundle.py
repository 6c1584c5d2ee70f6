"""Write a bundle: into a folder beside its place, synced, and put there by one rename.

A kill at any moment leaves the bundles from before whole, and of this one nothing that would be taken for one. What is
in a bundle says `training.bundle`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml

import nanhunt
from nanhunt import jsonsafe
from nanhunt.recorder.alarm import Fault, Scalars
from nanhunt.recorder.history import History, PastStep
from nanhunt.recorder.recipe import Recipe
from nanhunt.trace.schema import Manifest, NoteKind, Observation, Onset, Phase, Role
from nanhunt.trace.writer import TraceWriter
from nanhunt.training.batch_file import write_batches
from nanhunt.training.bundle import BATCHES, CHECKPOINT, CONFIG, FORMAT, LOSSES, RUN, TRACE
from nanhunt.training.run import TrainingRun

__all__ = ["write_bundle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contents:
    """What goes into one bundle."""

    fault: Fault
    checkpoint: dict[str, Any]
    steps: Sequence[PastStep]
    batches: Sequence[Any]
    #: batches a step; the last step may have fewer, where the loop broke off inside it
    accumulate: int
    config: dict[str, Any]
    remarks: Sequence[str]

    @property
    def first_step(self) -> int:
        """The step that the checkpoint stands before."""
        return int(self.checkpoint["step"])


def write_bundle(out: Path, fault: Fault, history: History, run: TrainingRun, recipe: Recipe, rank: int) -> Path:
    """Write the bundle of a fault and return its folder. Raises OSError where the disk refuses."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()  # batches from a GPU were queued only
    snapshot = history.snapshot_for(fault.lead_step)
    every = history.since(snapshot.step)
    steps, accumulate = _regular(every)
    checkpoint = snapshot.saved(run)
    known = [past.scalars for past in steps if past.scalars is not None]
    batches = recipe.batches([micro for past in steps for micro in past.micros], accumulate)
    remarks = recipe.remarks(accumulate)
    if len(steps) < len(every):
        at = steps[-1].step
        remarks.append(
            f"steps behind {at} are left out: step {at} has not {accumulate} batches, as those before it had"
        )
    config = recipe.config(run, steps=len(steps), accumulate=accumulate, known=known)
    if "scheduler" in config:
        checkpoint["scheduler"] = {"position": 0}
    if not _with_losses(steps):
        config.pop("losses", None)  # it broke in its first step: a log without a loss is none
    contents = _Contents(
        fault=fault,
        checkpoint=checkpoint,
        steps=steps,
        batches=batches,
        accumulate=accumulate,
        config=config,
        remarks=remarks,
    )
    name = f"step-{fault.step}" + (f"-rank{rank}" if rank else "")
    out.mkdir(parents=True, exist_ok=True)
    unfinished = out / f".{name}.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        _write(unfinished, contents, history, recipe, run)
        _sync(unfinished)
        return _put(unfinished, out / name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _with_losses(steps: Sequence[PastStep]) -> list[Scalars]:
    return [past.scalars for past in steps if past.scalars is not None and past.scalars.losses]


def _regular(steps: list[PastStep]) -> tuple[list[PastStep], int]:
    """Return the steps up to the first irregular one, and the batches of each: a file of batches counts by division."""
    accumulate = len(steps[0].micros)
    end = next((i for i, past in enumerate(steps) if len(past.micros) != accumulate), len(steps) - 1)
    return steps[: end + 1], accumulate


def _write(folder: Path, contents: _Contents, history: History, recipe: Recipe, run: TrainingRun) -> None:
    torch.save(contents.checkpoint, folder / CHECKPOINT)
    micros = [micro for past in contents.steps for micro in past.micros]
    write_batches(
        folder / BATCHES,
        contents.batches,
        first_step=contents.first_step,
        accumulate=contents.accumulate,
        random_states=[micro.rng.saved() for micro in micros],
    )
    known = _with_losses(contents.steps)
    if "losses" in contents.config:
        # every digit written out, or a short one would be taken for a rounded one
        rows = [f"{scalars.step},{scalars.loss:.16e}" for scalars in known]
        (folder / LOSSES).write_text("\n".join(["step,loss", *rows]) + "\n")
    recipe.write_model(folder)
    (folder / CONFIG).write_text(_commented(contents))
    _write_trace(folder / TRACE, contents, history, run)
    body = _run_json(contents, recipe, run)
    (folder / RUN).write_text(json.dumps(jsonsafe.spell_nonfinite(body), indent=1, allow_nan=False) + "\n")


def _commented(contents: _Contents) -> str:
    fault = contents.fault
    head = [
        f"# Written by nanhunt.Recorder: {fault.detail} in step {fault.step}.",
        "#",
        "#   nanhunt replay THIS_FOLDER",
        *(f"#\n# {remark}" for remark in contents.remarks),
    ]
    missing = [] if "model" in contents.config or contents.config.get("described") else [_NO_MODEL]
    missing += [_NO_LOSS] if any(remark.startswith("loss:") for remark in contents.remarks) else []
    body = {key: value for key, value in contents.config.items() if key != "described"}
    text = yaml.safe_dump(body, sort_keys=False, default_flow_style=None, width=120)
    return "\n".join([*head, "", *missing, text])


_NO_MODEL = "# model: train:build_model   # complete this: the recorder was not told what builds the model\n"
_NO_LOSS = "# loss: train:compute_loss     # complete this: (model, batch) -> loss, batch as the model is called\n"


def _run_json(contents: _Contents, recipe: Recipe, run: TrainingRun) -> dict[str, Any]:
    fault = contents.fault
    recorded = [past.scalars for past in contents.steps if past.scalars is not None]
    return {
        "format": FORMAT,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "fault": {"kind": fault.kind, "step": fault.step, "lead_step": fault.lead_step, "detail": fault.detail}
        | ({"raised": fault.raised.body()} if fault.raised is not None else {}),
        "steps": [contents.first_step, contents.steps[-1].step],
        "accumulate": contents.accumulate,
        "losses": {str(s.step): s.loss for s in recorded if s.losses},
        "versions": {
            "nanhunt": nanhunt.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
        },
        "device": str(run.device),
        "threads": torch.get_num_threads(),
        "command": sys.argv,
        "directory": str(Path.cwd()),
        **recipe.whereabouts(),
        "remarks": list(contents.remarks),
    }


def _write_trace(path: Path, contents: _Contents, history: History, run: TrainingRun) -> None:
    manifest = Manifest(
        nanhunt_version=nanhunt.__version__,
        torch_version=torch.__version__,
        python_version=platform.python_version(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=sys.argv,
        device=str(run.device),
        checkpoint=CHECKPOINT,
        checkpoint_step=history.scalars[0].step if history.scalars else contents.first_step,
        config_path=CONFIG,
        config={k: v for k, v in contents.config.items() if k != "described"},
        settings={"recorder": True},
        parameters=sum(p.numel() for p in run.model.parameters()),
    )
    looks = {int(rows.step[0]): rows for rows in history.rows if len(rows)}
    with TraceWriter(path, manifest, force=True) as writer:
        for text in contents.remarks:
            writer.note(NoteKind.ASSUMPTION, {"text": text})
        writer.note(
            NoteKind.ASSUMPTION, {"text": f"{_looked_at(sorted(looks))}; a replay of the bundle finds the cause"}
        )
        for first, end in pairwise([-1, *sorted(looks), sys.maxsize]):
            if first in looks:
                writer.write(looks[first])
            writer.write(list(_rows_of([s for s in history.scalars if first <= s.step < end])))
        writer.note(NoteKind.ONSET, _onset(contents.fault).to_json())


def _looked_at(steps: Sequence[int]) -> str:
    of = f"tensors of step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))} only" if steps else "no tensors"
    return f"recorded beside the run, with {of}"


def _onset(fault: Fault) -> Onset:
    return Onset(
        kind=fault.kind,
        step=fault.step,
        phase=Phase.FORWARD.value,
        lead_step=fault.lead_step if fault.lead_step < fault.step else None,
        detail=fault.detail,
    )


def _rows_of(steps: Sequence[Scalars] | Any) -> Any:
    """Yield the scalars of each step as a replay records them."""
    seq = 1 << 40  # behind the rows of the steps that were looked at
    for step in steps:
        named: list[tuple[str, Phase, float | None]] = [
            ("loss", Phase.FORWARD, step.loss if step.losses else None),
            ("grad_norm", Phase.UNSCALE, step.grad_norm),
            ("loss_scale", Phase.BACKWARD, step.loss_scale),
            ("skipped", Phase.UPDATE, float(step.skipped) if step.loss_scale is not None else None),
            *((f"lr.{i}" if i else "lr", Phase.UPDATE, rate) for i, rate in enumerate(step.lr)),
        ]
        for name, phase, value in named:
            if value is not None:
                seq += 1
                yield Observation(
                    step=step.step, phase=phase.value, role=Role.SCALAR.value, name=name, value=value, seq=seq
                )


def _sync(folder: Path) -> None:
    """Put the files onto the disk before the name that says that they are whole."""
    for path in [*folder.iterdir(), folder]:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _put(unfinished: Path, place: Path) -> Path:
    """Rename a folder into its place; one of an earlier run goes first, aside, and is removed when the new one stands."""
    before = place.with_name(f".{place.name}.old")
    shutil.rmtree(before, ignore_errors=True)
    if place.exists():
        os.rename(place, before)
    os.rename(unfinished, place)
    shutil.rmtree(before, ignore_errors=True)
    return place
