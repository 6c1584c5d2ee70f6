"""`nanhunt replay --dry-run`: what would be loaded, matched, replayed and assumed, what it would take, and how long."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.text import Text

from nanhunt.commands.estimate import BYTES_A_ROW, Estimate, estimate_of
from nanhunt.commands.terminal import color_wanted, terminal_width
from nanhunt.errors import ConfigError
from nanhunt.hunt.state import HuntSettings
from nanhunt.report.page import Page
from nanhunt.report.words import counted, duration, listed, prose, size
from nanhunt.training.batches import DataEndedError
from nanhunt.training.checkpoint import Checkpoint
from nanhunt.training.footprint import Footprint, footprint_of
from nanhunt.training.room import available_memory
from nanhunt.training.run import TrainingRun
from nanhunt.training.tree import tensors_of

__all__ = ["Plan", "show_plan"]

#: Fields of the first batch that are shown.
_FIELDS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A replay that is ready to begin, and where it would read and write."""

    run: TrainingRun
    checkpoint: Checkpoint
    settings: HuntSettings
    config_path: Path
    out: Path


def show_plan(plan: Plan, say: Callable[[str], None]) -> None:
    """Print the plan, then run a step to tell how long it will take; nothing is written.

    `say` takes progress. Raises what a replay would raise before its first step; what the step itself raises is printed.
    """
    try:
        batch = plan.run.batches.get(plan.run.start_step, 0)
    except DataEndedError:
        raise ConfigError(
            "data: yielded no batch at all", hint="the iterable must have a batch for the checkpoint's step"
        ) from None
    footprint = footprint_of(plan.run, plan.settings.steps)
    page = _page()
    source = prose(str(plan.checkpoint.path))
    page.put(Text("dry run", "bold"), Text(f" of a replay from {source}: nothing is written", "dim"), indent=0)
    sections = {"loaded": _loaded(plan), "matched": _matched(plan), "replayed": _replayed(plan, batch)}
    for title, rows in sections.items():
        page.heading(title)
        _put(page, rows)
    page.heading("assumed")
    for text in plan.run.assumptions or ["nothing"]:
        page.put(Text("• "), Text(prose(text)))
    page.heading("memory", "counted from the run's tensors; activations come on top")
    _put(page, _memory(plan, footprint))
    print(page.text(color=color_wanted()), end="", flush=True)
    say("running one step, to tell how long the replay will take …")
    print(_costs_page(estimate_of(plan.run, plan.settings), plan).text(color=color_wanted()), end="")


_Rows = Iterator[tuple[str, str]]


def _page() -> Page:
    return Page(max(terminal_width(), 40))


def _put(page: Page, rows: _Rows) -> None:
    for label, text in rows:
        page.put(Text(f"{label:<14}", "dim"), Text(prose(text)))


def _loaded(plan: Plan) -> _Rows:
    checkpoint = plan.checkpoint
    yield "config", str(plan.config_path)
    yield "checkpoint", f"{checkpoint.path}, {checkpoint.container}, {_short(checkpoint.digest)}"
    tags = f", saved from {', '.join(sorted(checkpoint.locations))}" if checkpoint.locations else ""
    yield "step", ("not told" if checkpoint.step is None else f"{checkpoint.step}") + tags
    parts: dict[str, Any] = {
        "optimizer": checkpoint.optimizer, "scheduler": checkpoint.scheduler, "scaler": checkpoint.scaler,
        "random state": checkpoint.rng, "data loader": checkpoint.loader,
    }  # fmt: skip
    held = [name for name, part in parts.items() if part]
    yield "parts", ", ".join(["model", *held, *sorted(checkpoint.more_models)])
    lacking = [name for name, part in parts.items() if not part and name != "data loader"]
    if lacking:
        yield "not in it", ", ".join(lacking)
    if plan.settings.reference:
        yield "reference", plan.settings.reference


def _short(digest: str) -> str:
    kind, _, number = digest.partition(":")
    return f"{kind}:{number[:12]}"


def _matched(plan: Plan) -> _Rows:
    run, match = plan.run, plan.run.matched
    parameters = run.parameters().values()
    yield "model", f"{type(run.model).__name__}, {sum(p.numel() for p in parameters):,} parameters"
    if match is not None:
        yield "weights", "; ".join(t for t in (f"{len(match.matched)} of {match.total} tensors", match.renaming) if t)
        if match.cast:
            yield "cast", match.cast.removeprefix("cast: ")
        if match.missing:
            yield "missing", f"{listed(match.missing)} (left as built)"
        if match.unexpected:
            yield "unexpected", f"{listed(match.unexpected)} (of the checkpoint, not used)"
    for optimizer in run.optimizers:
        yield "optimizer", _optimizer(optimizer)
    for scheduler in run.schedulers:
        saved = "as saved" if plan.checkpoint.scheduler else "from its start"
        yield "scheduler", f"{type(scheduler).__name__}, {saved}"
    for scaler in run.scalers:
        saved = "as saved" if plan.checkpoint.scaler else "from its start"
        yield "scaler", f"loss scale {scaler.get_scale():g}, {saved}"
    yield "random state", ", ".join(sorted(plan.checkpoint.rng)) if plan.checkpoint.rng else "seeded"


def _optimizer(optimizer: torch.optim.Optimizer) -> str:
    groups = optimizer.param_groups
    parameters = [p for group in groups for p in group["params"]]
    held = sum(bool(optimizer.state.get(p)) for p in parameters)
    rates = sorted({float(group["lr"]) for group in groups})
    rate = f"lr {rates[0]:g}" if len(rates) == 1 else f"lr {rates[0]:g} to {rates[-1]:g}"
    return f"{type(optimizer).__name__}, {counted(len(groups), 'group')}, {rate}, state for {held} of {len(parameters)} parameters"


def _replayed(plan: Plan, batch: Any) -> _Rows:
    run, settings = plan.run, plan.settings
    every = "each recorded" if settings.every == 1 else f"recorded every {settings.every}"
    yield "steps", f"{run.start_step} to {run.start_step + settings.steps - 1}, {settings.steps} in all, {every}"
    yield "each of", f"{_micro(run.accumulate)}, {_loop(run)}"
    yield "precision", _precision(run)
    yield "clip", _clip(run)
    yield "device", _device(run.device)
    yield "a fault", _looks(settings)
    yield "first batch", _fields(batch)
    yield "trace", str(plan.out)


def _micro(count: int) -> str:
    return "one batch" if count == 1 else f"{count} micro-batches"


def _loop(run: TrainingRun) -> str:
    return "by your train_step" if run.train_step is not None else "by the built-in step"


def _precision(run: TrainingRun) -> str:
    lists = " with CUDA's lists" if run.cuda_lists else ""
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in run.parameters().values()})
    scaler = "with a gradient scaler" if run.scaler else "no gradient scaler"
    recipe = f", recipe {run.recipe}" if run.recipe else ""
    return f"autocast {run.autocast or 'off'}{lists}, {scaler}, weights in {' and '.join(dtypes)}{recipe}"


def _clip(run: TrainingRun) -> str:
    clips = {
        "global norm": run.clip_grad_norm, "each element": run.clip_grad_value, "each parameter's norm": run.clip_param_norm,
        "norm over weight's norm": run.agc,
    }  # fmt: skip
    order = f" of order {run.clip_norm_type:g}" if run.clip_norm_type != 2.0 else ""
    told = [f"{name}{order} at {value:g}" for name, value in clips.items() if value is not None]
    return told[0] if told else "by your train_step, if at all" if run.train_step is not None else "none"


def _device(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _looks(settings: HuntSettings) -> str:
    zoom = "the step again op by op" if settings.zoom else "no zoom"
    if not settings.trials:
        return f"{zoom}, no trials"
    named = f", {', '.join(settings.trial_names)} among them" if settings.trial_names else ""
    return f"{zoom}, then trials{named}"


def _fields(batch: Any) -> str:
    found = [
        f"{path or 'a tensor'} {str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for path, t in tensors_of(batch)
    ]
    return listed(found, _FIELDS) if found else f"a {type(batch).__name__} without tensors"


def _memory(plan: Plan, footprint: Footprint) -> _Rows:
    device = plan.run.device
    buffers = f", buffers {size(footprint.buffers)}" if footprint.buffers else ""
    yield "weights", size(footprint.parameters) + buffers
    yield "gradients", size(footprint.gradients)
    assumed = " (two moments, assumed)" if footprint.is_optimizer_assumed else ""
    yield "optimizer", size(footprint.optimizer) + assumed
    where = {"memory": "host memory", "disk": "a file", None: "host memory, the only one"}[footprint.place]
    kept = f"{footprint.snapshots} of {size(footprint.snapshot)} in {where}"
    yield "snapshots", f"{size(footprint.kept)} at most: {kept}"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        yield "on the GPU", f"{size(footprint.on_device)} of {size(total)}; {size(free)} are free now"
        yield "on the host", f"{size(footprint.kept)}; {size(available_memory())} are available"
    else:
        yield "together", f"{size(footprint.on_device + footprint.kept)}; {size(available_memory())} are available"


def _costs_page(estimate: Estimate, plan: Plan) -> Page:
    page = _page()
    page.heading("cost", "" if estimate.step is None else f"estimated from one step of {duration(estimate.step)}")
    _put(page, _costs(estimate, plan))
    return page


def _costs(estimate: Estimate, plan: Plan) -> _Rows:
    if estimate.step is None:
        yield "the step", f"raised {estimate.raised}: a replay would find this first, and its cost cannot be told"
        return
    settings = plan.settings
    assert estimate.replay is not None
    steps = counted(settings.steps, "step")
    yield "replay", f"about {duration(estimate.replay)}: {steps}, with what looking at them costs"
    if estimate.zoom is not None or estimate.trials is not None:
        zoom = f"{duration(estimate.zoom)} for the step op by op" if estimate.zoom is not None else ""
        trials = f"trials for up to {duration(estimate.trials)}" if estimate.trials is not None else ""
        yield "of a fault", ", ".join(t for t in (zoom, trials) if t)
    if estimate.peak is not None:
        yield "on the GPU", f"{size(estimate.peak)} at the step's peak, activations included"
    if estimate.trace is not None:
        rows = f"{estimate.rows:,} rows a recorded step, {BYTES_A_ROW} bytes each"
        yield "trace", f"about {size(estimate.trace)}: {rows}{_room_for(plan.out)}"


def _room_for(out: Path) -> str:
    """Say what is free where the trace will lie; '' where its folder is not there yet."""
    folder = out.absolute().parent
    return f"; {size(shutil.disk_usage(folder).free)} are free on its disk" if folder.is_dir() else ""
