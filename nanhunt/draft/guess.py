"""Guesses: which definition of the user's source each key of the config may mean, and with which arguments.

How it works. Each key has names that loops give such a function, the usual ones first, and shapes that tell (a class
that derives from nn.Module, a function that returns a DataLoader). A definition counts only where the call that nanhunt
will make of it can succeed: every parameter without a default is one that nanhunt fills in, or that the checkpoint's
own arguments and settings name. One that fails this is reported as a near miss, with what it asks for.

What it costs. A guess may be wrong: it is never called one that is known. A file that trains when it is imported gives
near misses alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanhunt.draft.losses import LossPlace
from nanhunt.draft.shown import Shown
from nanhunt.draft.source import Definition

__all__ = ["Guess", "Guesses", "guesses_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """An import string with its arguments, and the reason for it."""

    spec: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    reason: str

    @property
    def value(self) -> Any:
        """What stands in the config: the import string alone, or with its arguments."""
        return {"call": self.spec, "kwargs": self.kwargs} if self.kwargs else self.spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Guesses:
    """The best guess for each key, None without one; of each key without one, why what comes near is none.

    `others` are what else a key may mean, as a reader can look it up: "train:other (train.py:12)".
    """

    of: dict[str, Guess] = field(default_factory=dict)
    near: dict[str, str] = field(default_factory=dict)
    others: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What is looked for under a key: names, the usual ones first, and what the call hands over by position."""

    names: tuple[str, ...]
    #: number of positional arguments that nanhunt gives
    given: int = 0
    #: parameters that it fills in by name
    filled: tuple[str, ...] = ()
    #: what a function of another name must lead to: its return annotation, or a call that it returns
    leads_to: frozenset[str] = frozenset()


#: Near misses, and other candidates, that are told of a key.
_MOST_NEAR = 3
_MODULES = frozenset({"Module", "LightningModule", "PreTrainedModel", "Sequential"})
_WANTED = {
    "model": _Wanted(
        names=("build_model", "make_model", "get_model", "create_model", "init_model", "model_fn", "build", "model"),
        leads_to=_MODULES,
    ),
    "data": _Wanted(
        names=(
            "batches", "train_batches", "make_batches", "get_batches", "train_loader", "get_train_loader", "make_loader",
            "train_dataloader", "get_train_dataloader", "build_dataloader", "make_dataloader", "get_dataloader",
            "dataloader", "data_loader", "get_loader", "loader",
        ),
        filled=("start_step", "rank", "world_size"),
        leads_to=frozenset({"DataLoader", "StatefulDataLoader", "Iterator", "Iterable", "Generator"}),
    ),
    "loss": _Wanted(
        names=("compute_loss", "loss_fn", "get_loss", "calc_loss", "training_loss", "train_loss", "loss"), given=2
    ),
    "optimizer": _Wanted(
        names=(
            "configure_optimizer", "configure_optimizers", "make_optimizer", "build_optimizer", "get_optimizer",
            "create_optimizer", "init_optimizer",
        ),
        given=1,
        leads_to=frozenset({"Optimizer", "Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "NAdam", "RAdam"}),
    ),
    "scheduler": _Wanted(
        names=("make_scheduler", "build_scheduler", "get_scheduler", "configure_scheduler", "lr_scheduler", "scheduler"),
        given=1,
        leads_to=frozenset({"LRScheduler", "LambdaLR", "SequentialLR", "OneCycleLR", "CosineAnnealingLR"}),
    ),
    "train_step": _Wanted(names=("train_step", "training_step", "one_step", "step_fn"), given=3),
}  # fmt: skip


def guesses_of(definitions: Sequence[Definition], shown: Shown, losses: Sequence[LossPlace] = ()) -> Guesses:
    """Return the guesses for every key of the config that names code; `losses` are where the source computes one."""
    kinds = {place.spec: place.kind for place in losses if place.spec}
    others: dict[str, tuple[str, ...]] = {}
    found: dict[str, Guess] = {}
    near: dict[str, str] = {}
    modules = [m for m in _module_classes(definitions) if kinds.get(m.spec) != "criterion"]
    for key, wanted in _WANTED.items():
        candidates = list(_candidates(key, wanted, definitions, modules, shown))
        if key == "loss":
            candidates = _loss_functions(candidates, definitions, kinds)
        for definition in candidates:
            problem = _problem(definition, wanted, _arguments_at_hand(key, shown))
            if key in found:
                others[key] = (*others.get(key, ()), _placed(definition)) if problem is None else others.get(key, ())
                continue
            if problem is None:
                found[key] = _guess(key, definition, wanted, shown)
                continue
            near.setdefault(key, f"{_placed(definition)} {problem}")
        if key in found:
            near.pop(key, None)
    one = next((d for d in definitions if d.name == "get_batch" and d.kind == "function"), None)
    if "data" not in found and one is not None:
        near["data"] = f"{_placed(one)} returns one batch, where a loop over it is wanted"
    if "loss" not in found and (step := _lightning_step(definitions, found.get("model"))) is not None:
        found["loss"] = step
        near.pop("loss", None)
    if "loss" not in found:
        own = found["model"].spec if "model" in found else ""
        told = list(dict.fromkeys(_near_losses(losses, own)))
        near |= {"loss": "; ".join([*([near["loss"]] if "loss" in near else []), *told][:_MOST_NEAR])} if told else {}
    return Guesses(of=found, near=near, others={k: v[:_MOST_NEAR] for k, v in others.items() if k == "loss" and v})


def _placed(definition: Definition) -> str:
    return f"{definition.spec} ({definition.file.name}:{definition.line})"


def _loss_functions(
    by_name: Sequence[Definition], definitions: Sequence[Definition], kinds: Mapping[str, str]
) -> list[Definition]:
    """Return what could be a function (model, batch), by its name or by what it does; a criterion is none."""
    named = [d for d in by_name if kinds.get(d.spec) != "criterion"]
    doing = [d for d in definitions if kinds.get(d.spec) == "step" and d.kind == "function" and d not in named]
    apart = ("val", "test", "eval", "train_step", "training_step")
    doing = [d for d in doing if not any(word in d.name for word in apart)]
    return [*named, *sorted(doing, key=lambda d: (d.runs_at is not None, len(d.required) != 2))]


def _near_losses(losses: Sequence[LossPlace], model: str) -> Iterator[str]:
    """Yield what computes a loss and is no function (model, batch), and what is to be done about it."""
    for place in sorted(losses, key=lambda p: ("forward", "criterion", "loop", "step").index(p.kind)):
        where = f"{place.file.name}:{place.line}"
        if place.kind == "forward" and place.spec == model:
            yield f"{place.spec} ({where}) returns its loss from its forward"
        elif place.kind in ("forward", "criterion"):
            yield f"{place.spec} ({where}) takes what the model returned: call it in a function (model, batch) of your own"
        elif place.kind == "loop":
            yield f"{where} computes it inside of the loop, `{place.text}`: move it into a function (model, batch)"


def _candidates(
    key: str, wanted: _Wanted, definitions: Sequence[Definition], modules: Sequence[Definition], shown: Shown
) -> Iterator[Definition]:
    """Yield what could be meant by a key, the likeliest first; of equal names the one that can be imported."""
    by_name = [d for d in definitions if d.name in wanted.names and _is_of_kind(key, d)]
    by_name.sort(key=lambda d: (d.runs_at is not None, wanted.names.index(d.name)))
    if key == "model" and shown.container == "lightning":
        yield from (d for d in modules if "LightningModule" in d.leads_to)
    yield from by_name
    if key == "optimizer":
        # nanoGPT's model makes its own: a method is a function of the model
        yield from (d for d in definitions if d.kind == "method" and d.name.partition(".")[2] in wanted.names)
    names = wanted.leads_to | {m.name for m in modules} if key == "model" else wanted.leads_to
    others = (d for d in definitions if d.leads_to & names and d not in by_name and d.kind in ("function", "object"))
    if wanted.leads_to:
        yield from (d for d in others if _is_of_kind(key, d) and not d.name.startswith("_") and d.name != "main")
    if key == "model":
        yield from modules
    if key == "data":
        loops = (d for d in definitions if d.is_generator and "batch" in d.name and d not in by_name)
        yield from (d for d in loops if _is_of_kind(key, d))


def _is_of_kind(key: str, definition: Definition) -> bool:
    """Whether a definition can stand under a key at all: only data, and a model, may be objects."""
    if definition.kind == "object":
        return key == "data" and bool(definition.leads_to & _WANTED["data"].leads_to)
    if key == "data" and any(word in definition.name for word in ("val", "test", "eval")):
        return False
    return definition.kind == "function"


def _module_classes(definitions: Sequence[Definition]) -> list[Definition]:
    """Return the classes of modules that no other class is made of, those below a class of ours included."""
    classes = {d.name: d for d in definitions if d.kind == "class"}
    known = set(_MODULES)
    for _ in classes:
        known |= {name for name, d in classes.items() if d.leads_to & known}
    found = [d for name, d in classes.items() if name in known]
    parts = {called for d in found for called in d.calls if called != d.name}
    parts |= {base for d in found for base in d.leads_to}
    return [d for d in found if d.name not in parts]


def _arguments_at_hand(key: str, shown: Shown) -> Mapping[str, Any]:
    if key == "model":
        # a class's own arguments may be the command line's, which the checkpoint has under args
        return {**shown.settings, **shown.model_arguments}
    if key == "loss":
        return shown.settings
    if key != "optimizer":
        return {}
    settings = dict(shown.settings)
    settings.setdefault("lr", settings.get("learning_rate"))
    settings.setdefault("learning_rate", settings.get("lr"))
    if "beta1" in settings and "beta2" in settings:
        settings.setdefault("betas", [settings["beta1"], settings["beta2"]])
    settings.setdefault("device_type", str(settings.get("device", "cpu")).partition(":")[0])
    return {k: v for k, v in settings.items() if v is not None}


def _problem(definition: Definition, wanted: _Wanted, at_hand: Mapping[str, Any]) -> str | None:
    """Return why the call that nanhunt would make of a definition cannot succeed; None where it may."""
    if definition.runs_at is not None:
        return f"is in a file that starts to work when it is imported, in line {definition.runs_at}"
    if definition.kind == "object":
        return None
    asked = [p for p in definition.required[wanted.given :] if p not in wanted.filled and p not in at_hand]
    if asked:
        return f"asks for {', '.join(asked)}, which the checkpoint does not show"
    takes = (
        len(definition.required)
        if definition.accepted is None
        else max(len(definition.accepted), len(definition.required))
    )
    if takes < wanted.given and definition.accepted is not None:
        return f"takes {takes} arguments, not the {wanted.given} that it would be given"
    return None


def _guess(key: str, definition: Definition, wanted: _Wanted, shown: Shown) -> Guess:
    at_hand = _arguments_at_hand(key, shown)
    takes = definition.accepted
    if key == "model" and definition.kind != "object":
        own = {k: v for k, v in shown.model_arguments.items() if takes is None or k in takes}
        # of settings that are not the model's alone only what it names: a **kwargs would take the whole command line
        kwargs = {k: v for k, v in at_hand.items() if k in definition.required or k in (takes or ())} | own
    else:
        kwargs = {k: at_hand[k] for k in definition.required[wanted.given :] if k in at_hand}
    place = f"{definition.file.name}:{definition.line}"
    return Guess(spec=definition.spec, kwargs=kwargs, reason=f"{_why(definition, wanted)}, {place}")


def _why(definition: Definition, wanted: _Wanted) -> str:
    if definition.kind == "class":
        return "a module that is no part of another"
    if definition.name in wanted.names or definition.kind == "method":
        return f"a {definition.kind} of a usual name"
    if wanted is _WANTED["loss"]:
        return "a function that calls its first argument and returns a loss"
    if definition.leads_to & wanted.leads_to:
        return f"a {definition.kind} that makes a {min(definition.leads_to & wanted.leads_to)}"
    return f"a {definition.kind} that may be it"


def _lightning_step(definitions: Iterable[Definition], model: Guess | None) -> Guess | None:
    """Return a LightningModule's own `training_step` as the loss: called with the model, it is a function of the batch."""
    wanted = f"{model.spec}.training_step" if model is not None else ""
    step = next((d for d in definitions if d.spec == wanted and d.runs_at is None), None)
    if step is None or len(step.required) not in (2, 3):
        return None
    kwargs = dict.fromkeys(step.required[2:], 0)
    return Guess(spec=step.spec, kwargs=kwargs, reason=f"the module's own, {step.file.name}:{step.line}")
