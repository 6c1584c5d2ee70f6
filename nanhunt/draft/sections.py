"""The keys of a drafted config: from what a checkpoint shows, and what the source suggests, each with its reason."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nanhunt.draft.guess import Guesses
from nanhunt.draft.loop import precision_entry, train_entry
from nanhunt.draft.optimizer import optimizer_arguments, optimizer_of, scheduler_arguments, scheduler_of
from nanhunt.draft.shown import Shown
from nanhunt.draft.text import Draft, Entry
from nanhunt.report.words import counted, prose
from nanhunt.training.json_file import read_json
from nanhunt.training.model_from_config import config_beside

__all__ = ["draft_of"]

#: What stands where nothing was found: a module that is not there, so that a replay says which key is still open.
_FUNCTIONS = {
    "model": "build_model", "data": "batches", "loss": "compute_loss", "optimizer": "configure_optimizer",
    "scheduler": "make_scheduler", "train_step": "train_step",
}  # fmt: skip

_WHAT = {
    "model": "callable -> nn.Module.",
    "data": "callable -> batches, or an iterable of them. A parameter start_step is filled in with the first step.",
    "loss": "callable (model, batch) -> scalar. Without it: model(**batch).loss, or what model(*batch) returns.",
    "optimizer": "Optimizer class, which gets model.parameters(), or callable (model) -> Optimizer. The rates, betas and "
    "decays are the checkpoint's where it holds the optimizer's state.",
    "scheduler": "callable (optimizer) -> LR scheduler. Without it the learning rate stays as it was saved.",
    "train_step": "callable (model, batch, optimizer) -> loss, for a loop that runs backward and the update itself.",
}


def draft_of(shown: Shown, guesses: Guesses, *, root: Path, command: str) -> Draft:
    """Return the draft for a config in `root`; `command` is what its reader types next."""
    module = "train" if not any((root / name).exists() for name in ("train.py", "train")) else "my_run"
    entries, unknown, placeholders = [], [], []
    for key in ("model", "data", "loss", "optimizer", "scheduler", "train_step"):
        entry, told, is_open = _ENTRIES[key](shown, guesses, module)
        entries += [entry] if entry is not None else []
        unknown += [told] if told else []
        placeholders += [key] if is_open else []
    settled = [precision_entry(shown), train_entry(shown), _checkpoint_entry(shown)]
    entries += [entry for entry in settled if entry is not None]
    return Draft(
        head=tuple(_head(shown, command)),
        entries=tuple(entries),
        unknown=(*unknown, *_of_the_checkpoint(shown)),
        placeholders=tuple(placeholders),
    )


_Made = tuple[Entry | None, str, bool]


def _guessed(key: str, guesses: Guesses) -> Entry | None:
    guess = guesses.of.get(key)
    if guess is None:
        return None
    return Entry(key=key, value=guess.value, notes=(f"{_WHAT[key]} A guess: {guess.reason}.",))


def _open(key: str, guesses: Guesses, module: str, *, active: bool) -> Entry:
    """Return a placeholder; an inactive one is a comment."""
    notes = [_WHAT[key]]
    if active:
        notes.append("NOT FOUND: name your own here.")
    if key in guesses.near:
        notes.append(f"What comes near: {guesses.near[key]}.")
    return Entry(key=key, value=f"{module}:{_FUNCTIONS[key]}", notes=(" ".join(notes),), active=active)


def _model(shown: Shown, guesses: Guesses, module: str) -> _Made:
    if _is_described(shown):
        notes = (f"{_WHAT['model']} Left out: the model is built from the config.json that lies with the weights.",)
        return Entry(key="model", value=f"{module}:build_model", notes=notes, active=False), "", False
    entry = _guessed("model", guesses)
    if entry is None:
        return _open("model", guesses, module, active=True), _not_found("model", "that builds the model", guesses), True
    if shown.model_arguments_in and isinstance(entry.value, dict):
        notes = (*entry.notes, f"Its arguments: {shown.model_arguments_in} of the checkpoint.")
        entry = Entry(key="model", value=entry.value, notes=notes)
    return entry, f"model: whether {_spec(entry)} builds the model of this run", False


def _is_described(shown: Shown) -> bool:
    """Whether a config.json beside the weights names a class of transformers, and no code of its own."""
    path = config_beside(shown.path) if shown.path is not None else None
    content = read_json(path) if path is not None else {}
    names = content.get("architectures")
    return bool(isinstance(names, list) and names and str(names[0]).isidentifier() and not content.get("auto_map"))


def _data(shown: Shown, guesses: Guesses, module: str) -> _Made:
    entry = _guessed("data", guesses)
    if entry is None:
        return _open("data", guesses, module, active=True), _not_found("data", "that yields batches", guesses), True
    told = f"data: whether {_spec(entry)} yields the batches of the steps after the checkpoint"
    return entry, told, False


def _loss(shown: Shown, guesses: Guesses, module: str) -> _Made:
    entry = _guessed("loss", guesses)
    if entry is not None:
        return entry, f"loss: whether {_spec(entry)} is the loss of this run", False
    entry = _open("loss", guesses, module, active=False)
    if shown.container.startswith("hf-"):
        return entry, "", False
    return entry, "loss: no function (model, batch) found; the model itself is asked for its loss", False


def _optimizer(shown: Shown, guesses: Guesses, module: str) -> _Made:
    entry = _guessed("optimizer", guesses)
    groups, name = shown.groups, optimizer_of(shown.groups)
    notes = (_groups_in_words(groups),) if groups else ()
    if entry is not None:
        told = (
            f"optimizer: whether {_spec(entry)} builds the groups in the checkpoint's order" if len(groups) > 1 else ""
        )
        return Entry(key="optimizer", value=entry.value, notes=(*entry.notes, *notes)), told, False
    if name is None and not groups and "optimizer" not in guesses.near:
        value = {"call": "torch.optim:AdamW", "kwargs": {"lr": _rate(shown)}}
        told = "optimizer: the checkpoint holds no optimizer state: AdamW is written, its moments start from zero"
        return Entry(key="optimizer", value=value, notes=(f"{_WHAT['optimizer']} The usual one.",)), told, False
    if name is None:
        entry = _open("optimizer", guesses, module, active=True)
        return (
            Entry(key="optimizer", value=entry.value, notes=(*entry.notes, *notes)),
            _not_found("optimizer", "that makes the optimizer", guesses),
            True,
        )
    value = {"call": f"torch.optim:{name}", "kwargs": optimizer_arguments(name, groups[0])}
    told = ""
    if len(groups) > 1 and shown.container != "hf-trainer":  # how a Trainer cuts its groups is known
        told = f"optimizer: how its {len(groups)} groups were cut; torch.optim:{name} over all parameters is regrouped by shape"
    notes = (f"{_WHAT['optimizer']} The class by the state's hyper-parameters.", *notes)
    return Entry(key="optimizer", value=value, notes=notes), told, False


def _groups_in_words(groups: list[dict[str, Any]]) -> str:
    if len(groups) == 1:
        return ""
    sizes = [len(g["params"]) if isinstance(g.get("params"), list) else 0 for g in groups]
    decays = [g.get("weight_decay", 0) for g in groups]
    parts = [f"{size} parameters with weight decay {_short(decay)}" for size, decay in zip(sizes, decays, strict=True)]
    more = f" and {len(parts) - 4} more" if len(parts) > 4 else ""
    return (
        f"The checkpoint's has {len(groups)} groups: {'; '.join(parts[:4])}{more}. A callable of yours must build them in this"
        " order."
    )


def _scheduler(shown: Shown, guesses: Guesses, module: str) -> _Made:
    state = shown.checkpoint.scheduler if shown.checkpoint else None
    kind = scheduler_of(state)
    if kind is None:  # the run had none, or the file does not say
        return None, "", False
    saved = f"The checkpoint holds the state of a {kind or 'scheduler that is none of torch’s'}."
    if shown.container == "hf-trainer":
        notes = (
            f"{_WHAT['scheduler']} Left out: it is inferred from the rates that the Trainer logged, where they show it.",
        )
        return Entry(key="scheduler", value=f"{module}:make_scheduler", notes=notes, active=False), "", False
    arguments = scheduler_arguments(kind, state or {}, shown.groups)
    if arguments is not None:
        value = {"call": f"torch.optim.lr_scheduler:{kind}", "kwargs": arguments}
        return Entry(key="scheduler", value=value, notes=(f"{_WHAT['scheduler']} {saved}",)), "", False
    entry = _guessed("scheduler", guesses)
    if entry is not None:
        return Entry(key="scheduler", value=entry.value, notes=(*entry.notes, saved)), "", False
    entry = _open("scheduler", guesses, module, active=False)
    told = (
        f"scheduler: the checkpoint holds the state of a {kind or 'scheduler'}, not what made it: the rate stays fixed"
    )
    return Entry(key="scheduler", value=entry.value, notes=(*entry.notes, saved), active=False), told, False


def _train_step(shown: Shown, guesses: Guesses, module: str) -> _Made:
    several = len(shown.checkpoint.more_optimizers) + 1 if shown.checkpoint and shown.checkpoint.more_optimizers else 0
    guess = guesses.of.get("train_step")
    if not several and guess is None:
        return None, "", False
    value = guess.value if guess is not None else f"{module}:train_step"
    saved = f"The checkpoint holds {several} optimizers." if several else ""
    why = f"A guess: {guess.reason}." if guess is not None else ""
    notes = (prose(f"{_WHAT['train_step']} {saved} {why}"),)
    told = (
        f"train_step: the checkpoint holds {several} optimizers, which the built-in step cannot use" if several else ""
    )
    return Entry(key="train_step", value=value, notes=notes, active=False), told, False


def _checkpoint_entry(shown: Shown) -> Entry | None:
    if shown.keys is None:
        return None
    value = {k: v for k, v in dict(shown.keys).items() if v is not None}
    notes = ("Where the parts lie in the file: its layout is none that is known by itself.",)
    return Entry(key="checkpoint", value=value, notes=notes)


def _spec(entry: Entry) -> str:
    return entry.value["call"] if isinstance(entry.value, dict) else str(entry.value)


def _not_found(key: str, what: str, guesses: Guesses) -> str:
    near = guesses.near.get(key)
    return f"{key}: nothing found {what}" + (f"; {near}" if near else "")


def _rate(shown: Shown) -> float:
    rate = shown.setting("lr", "learning_rate")
    return rate if isinstance(rate, float) and rate > 0 else 3.0e-4


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else prose(str(value))[:20]


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
    told = f"It holds {_joined(held)} state" if held else "It holds no further state"
    told += (
        f", and no {_joined([n.removeprefix('the ').removeprefix('a ') for n in lacking])} state."
        if held and lacking
        else "."
    )
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
        yield "step: the checkpoint does not tell at which step it was saved; --start-step gives it"
    if not checkpoint.rng:
        yield "random state: not in the checkpoint; dropout and shuffling are other numbers than the run's"
    if not shown.setting("grad_clip", "max_grad_norm", "gradient_clip_val", "clip_grad_norm"):
        yield "clipping, accumulation: the checkpoint does not tell; see train:"
    if any(tag.startswith("cuda") for tag in checkpoint.locations):
        yield "kernels: saved from CUDA; a replay on a CPU rounds otherwise"


_ENTRIES = {
    "model": _model, "data": _data, "loss": _loss, "optimizer": _optimizer, "scheduler": _scheduler, "train_step": _train_step,
}  # fmt: skip
