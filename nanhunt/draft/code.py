"""The keys of a drafted config that name code: a guess, what the checkpoint itself shows, or a placeholder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from nanhunt.draft.guess import Guesses
from nanhunt.draft.optimizer import optimizer_arguments, optimizer_of, scheduler_arguments, scheduler_of
from nanhunt.draft.shown import Shown
from nanhunt.draft.text import Entry
from nanhunt.training.json_file import read_json
from nanhunt.training.model_from_config import config_beside

__all__ = ["Made", "code_entries"]

_WHAT = {
    "model": "callable -> nn.Module.",
    "data": "callable -> batches, an iterable of them, or a saved file: batches.pt. A parameter start_step is filled in; "
    "without one, {call: ..., skip: true} reads up to the checkpoint's place.",
    "loss": "callable (model, batch) -> scalar. Without it: model(**batch).loss, or what model(*batch) returns.",
    "optimizer": "Optimizer class, which gets model.parameters(), or callable (model) -> Optimizer. Rates, betas and decays "
    "are the checkpoint's where it holds the optimizer's state.",
    "scheduler": "callable (optimizer) -> LR scheduler. Without it the learning rate stays as it was saved.",
    "train_step": "callable (model, batch, optimizer) -> loss, for a loop that runs backward and the update itself.",
}
_FUNCTIONS = {
    "model": "build_model", "data": "batches", "loss": "compute_loss", "optimizer": "configure_optimizer",
    "scheduler": "make_scheduler", "train_step": "train_step",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """An entry; what could not be known about it, '' where all is; and whether a placeholder stands in it."""

    entry: Entry
    unknown: str = ""
    is_open: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drafter:
    """Makes the entries; `module` is the one that placeholders name: none that is there, lest it be run."""

    shown: Shown
    guesses: Guesses
    module: str

    def guessed(self, key: str, *more: str) -> Entry | None:
        """Return the guess for a key, with further notes; None where there is none."""
        guess, others = self.guesses.of.get(key), self.guesses.others.get(key, ())
        told = f"Others that may be it: {', '.join(others)}." if others else ""
        notes = (_WHAT[key], f"A guess: {guess.reason}." if guess is not None else "", told, *more)
        return None if guess is None else Entry(key=key, value=guess.value, notes=notes, candidates=told)

    def known(self, key: str, value: Any, *more: str) -> Entry:
        """Return a key whose value the checkpoint shows."""
        return Entry(key=key, value=value, notes=(_WHAT[key], *more))

    def open(self, key: str, *more: str, active: bool) -> Entry:
        """Return a placeholder; one that is not active is a comment, and the key may stay out."""
        near = self.guesses.near.get(key)
        notes = [_WHAT[key], *(["NOT FOUND: name your own here."] if active else []), *more]
        told = f"What comes near: {near}." if near is not None else ""
        value = f"{self.module}:{_FUNCTIONS[key]}"
        return Entry(key=key, value=value, notes=(*notes, told), active=active, candidates=told)

    def missing(self, key: str, what: str) -> str:
        """Say that a key is open, and why what comes near is not it."""
        near = self.guesses.near.get(key)
        return f"{key}: nothing found {what}" + (f"; {near}" if near is not None else "")


def code_entries(shown: Shown, guesses: Guesses, module: str) -> Iterator[Made]:
    """Yield the keys that name code, in the file's order."""
    drafter = _Drafter(shown=shown, guesses=guesses, module=module)
    for make in (_model, _data, _loss, _optimizer, _scheduler, _train_step):
        made = make(drafter)
        if made is not None:
            yield made


def _model(drafter: _Drafter) -> Made:
    shown = drafter.shown
    if _is_described(shown):
        said = "Left out: the model is built from the config.json that lies with the weights."
        return Made(entry=drafter.open("model", said, active=False))
    arguments = f"Its arguments: {shown.model_arguments_in} of the checkpoint." if shown.model_arguments else ""
    entry = drafter.guessed("model")
    if entry is not None:
        has_arguments = isinstance(entry.value, dict)
        return Made(entry=replace(entry, notes=(*entry.notes, arguments)) if has_arguments else entry)
    entry = drafter.open("model", arguments, active=True)
    if shown.model_arguments:
        entry = replace(entry, value={"call": entry.value, "kwargs": shown.model_arguments})
    return Made(entry=entry, unknown=drafter.missing("model", "that builds the model"), is_open=True)


def _is_described(shown: Shown) -> bool:
    """Whether a config.json beside the weights names a class of transformers, and no code of its own."""
    path = config_beside(shown.path) if shown.path is not None else None
    content = read_json(path) if path is not None else {}
    names = content.get("architectures")
    return bool(isinstance(names, list) and names and str(names[0]).isidentifier() and not content.get("auto_map"))


def _data(drafter: _Drafter) -> Made:
    entry = drafter.guessed("data")
    if entry is not None:
        return Made(entry=entry)
    unknown = drafter.missing("data", "that yields batches")
    return Made(entry=drafter.open("data", active=True), unknown=unknown, is_open=True)


def _loss(drafter: _Drafter) -> Made:
    entry = drafter.guessed("loss")
    if entry is not None:
        others = drafter.guesses.others.get("loss", ())
        return Made(entry=entry, unknown=f"loss: {', '.join(others)} may be it as well" if others else "")
    near = drafter.guesses.near.get("loss")
    came = f"; {near}" if near is not None else ""
    said = f"loss: no function (model, batch) found{came}; without one the model itself is asked for its loss"
    return Made(entry=drafter.open("loss", active=False), unknown="" if _is_described(drafter.shown) else said)


def _optimizer(drafter: _Drafter) -> Made:
    groups = drafter.shown.groups
    name, told = optimizer_of(groups), _groups_in_words(groups)
    entry = drafter.guessed("optimizer", told)
    if entry is not None:
        unknown = f"optimizer: whether it builds its {len(groups)} groups in the checkpoint's order"
        return Made(entry=entry, unknown=unknown if len(groups) > 1 else "")
    if name is not None:
        value = {"call": f"torch.optim:{name}", "kwargs": optimizer_arguments(name, groups[0])}
        # how a Trainer cuts its groups is known
        is_cut = len(groups) > 1 and drafter.shown.container != "hf-trainer"
        unknown = (
            f"optimizer: how its {len(groups)} groups were cut; torch.optim:{name} is regrouped by shapes, if it can be"
        )
        entry = drafter.known("optimizer", value, "The class by the state's hyper-parameters.", told)
        return Made(entry=entry, unknown=unknown if is_cut else "")
    if groups or "optimizer" in drafter.guesses.near:
        unknown = drafter.missing("optimizer", "that makes the optimizer")
        return Made(entry=drafter.open("optimizer", told, active=True), unknown=unknown, is_open=True)
    rate = drafter.shown.setting("lr", "learning_rate")
    value = {"call": "torch.optim:AdamW", "kwargs": {"lr": rate if isinstance(rate, float) and rate > 0 else 3.0e-4}}
    unknown = "optimizer: no state of it in the checkpoint; AdamW is written, and its moments start from zero"
    return Made(entry=drafter.known("optimizer", value, "The usual one."), unknown=unknown)


def _groups_in_words(groups: list[dict[str, Any]]) -> str:
    if len(groups) < 2:
        return ""
    parts = []
    for group in groups[:4]:
        parameters, decay = group.get("params"), group.get("weight_decay", 0)
        size = len(parameters) if isinstance(parameters, list) else 0
        parts.append(f"{size} parameters with weight decay {f'{decay:g}' if isinstance(decay, (int, float)) else '?'}")
    more = f" and {len(groups) - 4} more" if len(groups) > 4 else ""
    return (
        f"The checkpoint's has {len(groups)} groups: {'; '.join(parts)}{more}. A callable of yours must build them in this"
        " order."
    )


def _scheduler(drafter: _Drafter) -> Made | None:
    checkpoint = drafter.shown.checkpoint
    state = checkpoint.scheduler if checkpoint is not None else None
    kind = scheduler_of(state)
    if kind is None:  # the run had none, or the file does not say
        return Made(entry=drafter.open("scheduler", active=False)) if checkpoint is None else None
    saved = f"The checkpoint holds the state of a {kind or 'scheduler that torch does not have'}."
    if drafter.shown.container == "hf-trainer":
        said = "Left out: it is inferred from the rates that the Trainer logged, where they show it."
        return Made(entry=drafter.open("scheduler", said, active=False))
    arguments = scheduler_arguments(kind, state or {}, drafter.shown.groups)
    if arguments is not None:
        value = {"call": f"torch.optim.lr_scheduler:{kind}", "kwargs": arguments}
        return Made(entry=drafter.known("scheduler", value, saved))
    entry = drafter.guessed("scheduler", saved)
    if entry is not None:
        return Made(entry=entry)
    unknown = f"scheduler: of a {kind or 'scheduler'} the checkpoint holds no function: the rate stays as it was saved"
    return Made(entry=drafter.open("scheduler", saved, active=False), unknown=unknown)


def _train_step(drafter: _Drafter) -> Made | None:
    checkpoint = drafter.shown.checkpoint
    count = 1 + len(checkpoint.more_optimizers) if checkpoint is not None else 0
    saved = f"The checkpoint holds {count} optimizers, and the built-in step uses one." if count > 1 else ""
    entry = drafter.guessed("train_step", saved)
    if entry is not None:
        return Made(entry=replace(entry, active=count > 1))
    if count == 1:
        return None
    unknown = f"train_step: the checkpoint holds {count} optimizers: the loop that uses them is needed" if count else ""
    return Made(entry=drafter.open("train_step", saved, active=False), unknown=unknown)
