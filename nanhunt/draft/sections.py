"""A drafted config from its keys: its head, its entries, and what no checkpoint of its kind tells."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nanhunt.draft.code import code_entries
from nanhunt.draft.guess import Guesses
from nanhunt.draft.loop import precision_entry, train_entry
from nanhunt.draft.shown import Shown
from nanhunt.draft.text import Draft, Entry
from nanhunt.report.words import counted

__all__ = ["draft_of"]


def draft_of(shown: Shown, guesses: Guesses, *, root: Path, command: str) -> Draft:
    """Return the draft for a config in `root`; `command` is what its reader types next."""
    # a placeholder must not name a file that is there: to look for it would run what the file does
    module = "train" if not any((root / name).exists() for name in ("train.py", "train")) else "my_run"
    made = list(code_entries(shown, guesses, module))
    settled = (precision_entry(shown), train_entry(shown), _checkpoint_entry(shown))
    entries = (*(m.entry for m in made), *(entry for entry in settled if entry is not None))
    return Draft(
        head=tuple(_head(shown, command)),
        entries=entries,
        unknown=(*(m.unknown for m in made if m.unknown), *_of_the_checkpoint(shown)),
        placeholders=tuple(m.entry.key for m in made if m.is_open),
        guessed=tuple(e.key for e in entries if e.active and e.key in guesses.of),
    )


def _checkpoint_entry(shown: Shown) -> Entry | None:
    if shown.path is None:
        value = {"model": "model", "optimizer": "optimizer", "step": "step"}
        notes = ("Where the parts lie in the file; needed only for a layout that is not known by itself.",)
        return Entry(key="checkpoint", value=value, notes=notes, active=False)
    if shown.keys is None:
        return None
    value = {k: v for k, v in dict(shown.keys).items() if v is not None}
    return Entry(
        key="checkpoint", value=value, notes=("Where the parts lie in the file: its layout is not a known one.",)
    )


def _head(shown: Shown, command: str) -> Iterable[str]:
    if shown.path is None:
        yield "What nanhunt needs to replay a run, written by `nanhunt init`: fill in what your code is called."
    else:
        yield f"What nanhunt needs to replay from {shown.path}, written by `nanhunt init`."
    yield f"  {command}"
    if shown.unread:
        yield f"The checkpoint was not read: {shown.unread}. With --trust-pickle `nanhunt init` looks into it."
    if shown.checkpoint is not None:
        yield _summary(shown)
    yield (
        "Import strings are `module:attribute` or `path/to/file.py:attribute`, looked up from this file's folder. A guess was "
        "read from the source, and nothing was imported: the dry run says whether it holds."
    )


def _summary(shown: Shown) -> str:
    """Say in two sentences what the checkpoint holds, and what it does not."""
    checkpoint = shown.checkpoint
    assert checkpoint is not None
    elements = sum(t.numel() for t in checkpoint.model.values())
    dtypes = " and ".join(shown.dtypes) or "no floating numbers"
    step = f", saved at step {checkpoint.step}" if checkpoint.step is not None else ""
    tags = f" on {', '.join(sorted(checkpoint.locations))}" if checkpoint.locations else ""
    parts = {
        "an optimizer": checkpoint.optimizer, "a scheduler": checkpoint.scheduler, "a gradient scaler": checkpoint.scaler,
        "random generators": checkpoint.rng,
    }  # fmt: skip
    held = [name for name, part in parts.items() if part]
    lacking = [name for name, part in parts.items() if not part]
    told = f"With the state of {_joined(held)}" if held else "With the weights alone"
    told += f"; without that of {_joined(lacking)}." if held and lacking else "."
    return (
        f"The checkpoint: {checkpoint.container}{step}{tags}, {counted(len(checkpoint.model), 'tensor')} of "
        f"{elements:,} elements in {dtypes}. {told}"
    )


def _joined(words: list[str]) -> str:
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1] if words else ""


def _of_the_checkpoint(shown: Shown) -> Iterable[str]:
    """Yield what no checkpoint of this kind tells, so that a replay must assume it."""
    checkpoint = shown.checkpoint
    if checkpoint is None:
        if shown.unread:
            yield "the checkpoint: it was not read, so formats, optimizer and settings are not in the config"
        return
    if checkpoint.step is None:
        only = f", only epoch {shown.epoch[1]} ({shown.epoch[0]})" if shown.epoch is not None else ""
        counted_to = f"; its optimizer counted {shown.updates} updates" if shown.updates else ""
        given = f"--start-step {shown.updates or 'N'} gives it"
        yield f"step: the checkpoint does not tell at which step it was saved{only}{counted_to}; {given}"
    if not checkpoint.rng:
        yield "random state: not in the checkpoint; dropout and shuffling are other numbers than the run's"
    if not shown.setting("grad_clip", "max_grad_norm", "gradient_clip_val", "clip_grad_norm"):
        yield "clipping, accumulation: the checkpoint does not tell; see train:"
    if any(tag.startswith("cuda") for tag in checkpoint.locations):
        yield "kernels: saved from CUDA; a replay on a CPU rounds otherwise"
