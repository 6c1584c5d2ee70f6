"""The nanhunt.yaml of a script's bundle: model, loss and optimizer from what was seen of them, without a line of the user's."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.recorder.alarm import Scalars
from nanhunt.recorder.code import CodeRef
from nanhunt.recorder.history import Micro
from nanhunt.recorder.live import parameters_of
from nanhunt.recorder.recipe import Recipe, config_of
from nanhunt.recorder.script.births import Births
from nanhunt.recorder.script.globals_of_script import main_script
from nanhunt.recorder.script.likeness import likeness
from nanhunt.recorder.script.reconstruction import reconstruction
from nanhunt.recorder.script.references import UntapedError
from nanhunt.recorder.script.spelling import Speller, UnspelledError
from nanhunt.recorder.script.tape import Tape
from nanhunt.training.names import clean_name
from nanhunt.training.run import TrainingRun

__all__ = ["ScriptRecipe"]

_LOSS = "nanhunt.training.taped_loss:taped_loss"
_MODEL = "nanhunt.training.rebuilt:rebuilt_model"
_OPTIMIZER = "nanhunt.training.rebuilt:rebuilt_optimizer"


@dataclass(slots=True, kw_only=True)
class ScriptRecipe(Recipe):
    """How a script's training is built and goes."""

    births: Births
    #: whether torch.compile is around the model
    is_compiled: bool = False
    _speller: Speller = field(init=False)
    #: what the bundle has not, by its key in nanhunt.yaml, and why
    _missing: dict[str, str] = field(default_factory=dict)
    _scripts: dict[str, Any] = field(default_factory=dict)
    _notes: list[str] = field(default_factory=list)
    _has_loss: bool = False

    def batches(self, micros: Sequence[Micro], accumulate: int) -> list[Any]:
        """Return the batches: what the model is called with where it returns its loss, else the tapes."""
        self._speller, self._notes, self._missing = Speller(self.births), [], {}
        tapes: list[Tape] = [micro.batch["tape"] for micro in micros]
        # the last may have been broken off by an exception: its calls lead to that
        whole = [tape for tape in tapes if tape.has_results] or tapes
        try:
            texts = [tape.text() for tape in tapes]
        except UntapedError as error:
            self._missing["loss"] = f"loss: what leads from the model to backward could not be kept: {error}"
            return [_arguments(tape, self.model) for tape in tapes]
        self._has_loss = True
        if all(tape.is_plain(accumulate) for tape in whole):
            return [_arguments(tape, self.model) for tape in tapes]
        kwargs = {"accumulate": accumulate} if accumulate > 1 else {}
        self._refs["loss"] = CodeRef(call=_LOSS, kwargs=kwargs)
        return [{"inputs": tape.inputs, "tape": text} for tape, text in zip(tapes, texts, strict=True)]

    def config(self, run: TrainingRun, *, steps: int, accumulate: int, known: Sequence[Scalars]) -> dict[str, Any]:
        """Return nanhunt.yaml's content."""
        try:
            self._refs["optimizer"] = self._optimizer_ref(run)
        except UnspelledError as error:
            self._missing["optimizer"] = f"optimizer: {error}"
        if config_of(self.model) is None:
            try:
                self._refs["model"] = self._model_ref()
            except UnspelledError as error:
                self._missing["model"] = f"model: how it was built could not be kept: {error}"
        self._scripts = main_script(self._speller, self._refs)
        return Recipe.config(self, run, steps=steps, accumulate=accumulate, known=known)

    @property
    def lacks(self) -> str:
        """What a replay of the bundle needs still; '' where nothing."""
        return next(iter(self._missing.values()), "")

    def remarks(self, accumulate: int) -> list[str]:
        """Return what the bundle lacks or takes for granted, in sentences."""
        found = Recipe.remarks(self, accumulate)
        if self._refs.get("loss") is not None:
            found = [remark for remark in found if "divide each loss" not in remark]
        trained = {id(p): p for o in self.births.optimizers() for p in parameters_of(o)}
        own = {id(p) for p in self.model.parameters()}
        outside = [p for key, p in trained.items() if key not in own]
        if outside:
            share = sum(p.numel() for p in outside) / sum(p.numel() for p in trained.values())
            found.append(
                f"{type(self.model).__name__} is the largest module that the script trains; {share:.0%} of the trained "
                "parameters lie elsewhere and are not in the bundle"
            )
        if self.is_compiled:
            found.append("the script compiles the model: the replay runs it as it is written, and may round otherwise")
        return [*found, *self._missing.values()]

    def whereabouts(self) -> dict[str, Any]:
        """Return import strings, folders, digests, and the script whose definitions are taken."""
        found = Recipe.whereabouts(self)
        found["paths"] = list(dict.fromkeys([*found["paths"], *self._speller.folders]))
        return found | ({"scripts": self._scripts} if self._scripts else {})

    def _model_ref(self) -> CodeRef:
        """Return what builds the model. Raises UnspelledError."""
        return CodeRef(call=_MODEL, kwargs=reconstruction(self.model, self.births, self._speller))

    def _optimizer_ref(self, run: TrainingRun) -> CodeRef:
        """Return what makes the optimizer: its class alone where it holds all parameters in one group, else its groups."""
        optimizer = run.optimizer
        if len(run.optimizers) > 1:
            names = ", ".join(type(o).__name__ for o in run.optimizers)
            raise UnspelledError(
                f"the model has {len(run.optimizers)} optimizers ({names}): name them and your train_step"
            )
        made = self._in_groups(optimizer)
        every = [clean_name(name) for name, _ in self.model.named_parameters()]
        if made["groups"] == [every] and not any(isinstance(v, dict) for v in made["settings"].values()):
            return CodeRef(call=made["kind"], kwargs=made["settings"])
        return CodeRef(call=_OPTIMIZER, kwargs=made)

    def _in_groups(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return an optimizer's class, its groups as parameters' names, and its defaults. Raises UnspelledError."""
        kind = self._speller.name(type(optimizer))
        wanted = _arguments_of(type(optimizer))
        settings = {
            k: _spelled(self._speller, v) for k, v in optimizer.defaults.items() if k in wanted and v is not None
        }
        names_of = {id(p): clean_name(name) for name, p in self.model.named_parameters()}
        groups = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
        strangers = sum(number not in names_of for group in groups for number in group)
        if strangers:
            raise UnspelledError(f"{type(optimizer).__name__} also trains {strangers} parameters outside of the model")
        named = [[names_of[number] for number in group] for group in groups]
        return {"kind": kind, "groups": named, "settings": settings}


def _arguments_of(kind: type) -> set[str]:
    try:
        return set(inspect.signature(kind).parameters)
    except (TypeError, ValueError):
        return set()


def _spelled(speller: Speller, value: Any) -> Any:
    """Return a hyper-parameter's spelling; a tensor's number, a pair as a list, which optimizers take likewise."""
    if isinstance(value, Tensor):
        return float(value)
    if isinstance(value, tuple):
        return [_spelled(speller, item) for item in value]
    return speller.value(likeness(value))


def _arguments(tape: Tape, model: nn.Module) -> Any:
    """Return what the model was called with: a dict where names are known, else a list."""
    args, kwargs = tape.first_arguments()
    if not kwargs:
        return args
    if not args:
        return kwargs
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return {"args": args, **kwargs}
    return dict(bound.arguments)
