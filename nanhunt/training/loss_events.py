"""Steps and losses of TensorBoard event files, read by the tensorboard package where it is installed."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from nanhunt.errors import ConfigError
from nanhunt.training.loss_csv import usual_loss

__all__ = ["event_losses", "is_event_file"]

#: what every writer puts into an event file's name
_MARK = "tfevents"


def is_event_file(path: Path) -> bool:
    """Whether the path is an event file, or a folder with some in it or below."""
    return _MARK in path.name if path.is_file() else next(path.rglob(f"*{_MARK}*"), None) is not None


def event_losses(path: Path, tag: str | None) -> list[tuple[int, str]]:
    """Return (step, loss) of one run's events, the loss as a text of the digits that its float32 has.

    Raises ConfigError where tensorboard is not installed, the files hold no such tag, or several runs do.
    """
    runs = [path] if path.is_file() else sorted({file.parent for file in path.rglob(f"*{_MARK}*") if file.is_file()})
    found = [(run, _scalars(run)) for run in runs]
    named = [(run, scalars, _tag(scalars, tag)) for run, scalars in found]
    having = [(run, scalars[name]) for run, scalars, name in named if name is not None]
    if len(having) == 1:
        return having[0][1]
    if having:
        raise ConfigError(f"losses: {path}: {len(having)} runs lie in it", hint=f"name one of them: {having[-1][0]}")
    tags = sorted({name for _, scalars in found for name in scalars})
    there = ", ".join(tags[:12]) or "none"
    if tag is None:
        raise ConfigError(
            f"losses: {path}: no tag is named as a training loss is; its tags: {there}",
            hint=f"name it: `losses: {{file: {path.name}, tag: TAG}}`",
        )
    near = difflib.get_close_matches(tag, tags, n=1)
    raise ConfigError(
        f"losses.tag: {path} has no tag {tag!r}; its tags: {there}{f'; did you mean {near[0]!r}?' if near else ''}"
    )


def _tag(scalars: dict[str, Any], tag: str | None) -> str | None:
    if tag is not None:
        return tag if tag in scalars else None
    return usual_loss(list(scalars))


def _scalars(run: Path) -> dict[str, list[tuple[int, str]]]:
    """Return every scalar of a file or folder by its tag."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise ConfigError(
            f"losses: {run}: TensorBoard events are read by the tensorboard package, which is not installed",
            hint="pip install 'nanhunt[tensorboard]', or export the loss as CSV",
        ) from error
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0})
    try:
        events.Reload()
        tags = events.Tags()
        found = {tag: [(e.step, _written(e.value)) for e in events.Scalars(tag)] for tag in tags["scalars"]}
        return found | _tensors(events, tags["tensors"])
    except Exception as error:
        # it meets a damaged record with whatever its parser raises
        raise ConfigError(f"losses: {run}: cannot be read as TensorBoard events: {error}") from error


def _tensors(events: Any, tags: list[str]) -> dict[str, list[tuple[int, str]]]:
    """Return the scalars that newer writers keep as tensors without a dimension."""
    from tensorboard.util.tensor_util import make_ndarray

    found = {}
    for tag in tags:
        values = [(event.step, make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
        if values and all(v.size == 1 and v.dtype.kind == "f" for _, v in values):
            found[tag] = [(step, _written(v.item())) for step, v in values]
    return found


def _written(value: float) -> str:
    """Return eight significant digits: a float32 has between seven and eight."""
    return f"{value:.7e}"
