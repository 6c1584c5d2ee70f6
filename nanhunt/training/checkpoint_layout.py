"""Find the model, optimizer, scheduler, scaler, step and random state in the dict that a training loop saved."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from nanhunt.errors import CheckpointError
from nanhunt.inert import few
from nanhunt.training.dotted_places import STEP_KEYS, count_below, paths, places
from nanhunt.training.lightning_layout import is_lightning, lightning_content, lightning_loader
from nanhunt.training.names import clean_name
from nanhunt.training.saved_rng import RNG_KEYS, RNG_NAMES, rng_states
from nanhunt.training.saved_value import (
    as_step,
    elements_of,
    kind_of,
    loader_state,
    model_state,
    optimizer_state,
    plain_state,
    tensors_in,
    whole_state,
)

if TYPE_CHECKING:
    from nanhunt.training.config import CheckpointKeys

__all__ = ["Parts", "find_parts"]

# in the order in which they are tried; an EMA is not what was trained, so its keys are not among them
MODEL_KEYS = ("model", "model_state_dict", "state_dict", "model_state", "module", "net", "weights", "params")
OPTIMIZER_KEYS = ("optimizer", "optimizer_state_dict", "optim", "opt", "optimizer_state", "optimizer_states")
SCHEDULER_KEYS = ("scheduler", "lr_scheduler", "scheduler_state_dict", "lr_scheduler_state_dict", "lr_schedulers")
SCALER_KEYS = ("scaler", "grad_scaler", "scaler_state_dict", "grad_scaler_state_dict")
#: dicts that hold the step further down: torchtitan's, Megatron Bridge's, and what loops call them
PROGRESS_KEYS = (
    *("train_state", "trainer_state", "progress", "meta", "metadata", "info", "state", "status", "training_state"),
    *("run_state", "loop", "trainer", "training", "run"),
)
LOADER_KEYS = (
    *("dataloader", "train_dataloader", "loader", "train_loader", "data_loader"),
    *("dataloader_state_dict", "train_dataloader_state_dict", "loader_state_dict", "dl_state_dict", "dataloader_state"),
)
#: tensor elements up to which a leftover value is kept: counters and configs, not a second set of weights
SMALL = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a checkpoint's dict holds, each part None where it is not there."""

    container: str
    model: Mapping[str, Tensor]
    optimizer: dict[str, Any] | None = None
    #: the states of further optimizers, in the checkpoint's order
    more_optimizers: tuple[dict[str, Any], ...] = ()
    scheduler: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None
    step: int | None = None
    rng: dict[str, Any] | None = None
    #: where the data loader stood, as its `state_dict` told
    loader: Any = None
    #: further modules' states by their key: a discriminator, a target network, an average
    more_models: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    #: what was taken for granted
    notes: tuple[str, ...] = ()


def find_parts(content: object, *, path: Path, keys: CheckpointKeys | None) -> Parts:
    """Return the parts of a loaded checkpoint; the config's keys win over the known layouts.

    Raises CheckpointError where there is no model state, or a configured key is absent.
    """
    if isinstance(content, nn.Module):
        content = {"model": content}
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: holds {kind_of(content)}, not a dict",
            hint="save a dict: torch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict(), …}, path)",
        )
    if _is_state_dict(content) and not (keys and any(dict(keys).values())):
        return Parts(container="state-dict", model=_cleaned(tensors_in(content)))
    lightning, notes = is_lightning(content), list[str]()
    if lightning:
        content, notes = lightning_content(content, keys)
    search = _Search(content=content, path=path, keys=keys, notes=notes)
    optimizer = search.part("optimizer", OPTIMIZER_KEYS, optimizer_state)
    more_optimizers = search.more_optimizers()
    if optimizer is None and more_optimizers:
        optimizer, more_optimizers = more_optimizers[0], more_optimizers[1:]
    scheduler = search.part("scheduler", SCHEDULER_KEYS, plain_state)
    scaler = search.part("scaler", (*SCALER_KEYS, *_scaler_like(content)), plain_state)
    step = search.part("step", STEP_KEYS, as_step)
    rng = search.rng()
    loader = search.part("loader", LOADER_KEYS, loader_state) or loader_state(_first_of(lightning_loader(content)))
    model = search.model()
    return Parts(
        container="lightning" if lightning else "torch",
        model=_cleaned(model),
        optimizer=optimizer,
        more_optimizers=tuple(more_optimizers),
        more_models=search.more_models(),
        scheduler=scheduler,
        scaler=scaler,
        step=search.nested_step() if step is None else step,
        rng=rng,
        loader=loader,
        extra=search.left_over(),
        notes=tuple(search.notes),
    )


@dataclass(slots=True, kw_only=True)
class _Search:
    """One look through a checkpoint's dict; notes which keys were used."""

    content: Mapping[str, Any]
    path: Path
    keys: CheckpointKeys | None
    used: set[str] = field(default_factory=set)
    #: ids of the values that a part was made of
    taken: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def part(self, name: str, known: Iterable[str], accept: Callable[[Any], Any]) -> Any:
        """Return the part under its configured key, else under the first known key whose value fits."""
        configured = getattr(self.keys, name) if self.keys else None
        if configured:
            value = self.configured(name, configured)
            accepted = accept(_first_of(value))
            self.taken.add(id(_first_of(value)))
            if accepted is None and value not in (None, {}):
                raise CheckpointError(
                    f"{self.path}: checkpoint.{name}: {configured!r} holds {kind_of(value)}, not the {name}'s"
                )
            return accepted
        for key in known:
            accepted = accept(_first_of(self.content.get(key)))
            if accepted is not None:
                self.used.add(key)
                self.taken.add(id(_first_of(self.content.get(key))))
                self.say_if_several(name, key)
                return accepted
        return None

    def more_optimizers(self) -> list[dict[str, Any]]:
        """Return every optimizer state that is not the one already taken, wherever at the top it stands."""
        found = []
        for key, value in self.content.items():
            inside = value if isinstance(value, (list, tuple)) else [value]
            if isinstance(value, Mapping) and optimizer_state(value) is None:
                inside = list(value.values())
            states = [(item, optimizer_state(item)) for item in inside if id(item) not in self.taken]
            found += [state for _, state in states if state is not None]
            self.used.update([key] if any(state is not None for _, state in states) else [])
        return found

    def more_models(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the states of modules that are not the model's, by their key at the top."""
        found: dict[str, Mapping[str, Tensor]] = {}
        for key, value in self.content.items():
            state = model_state(value) if key not in self.used and isinstance(key, str) else None
            if state and id(value) not in self.taken:
                found[key] = _cleaned(state)
        return found

    def say_if_several(self, name: str, key: str) -> None:
        """Note that a list of schedulers was cut to its first."""
        value = self.content[key]
        if name != "optimizer" and isinstance(value, list) and len(value) > 1:
            self.notes.append(f"the checkpoint holds {len(value)} states under {key!r}: the first is the {name}'s")

    def configured(self, name: str, dotted: str) -> Any:
        """Return the value at a dotted path; raises CheckpointError naming the keys where it leaves the dict."""
        if dotted in self.content or "." not in dotted:
            self.used.add(dotted)
        if dotted in self.content:
            return self.content[dotted]
        value: Any = self.content
        above = ""
        for part in dotted.split("."):
            inside = dict(enumerate(value)) if isinstance(value, (list, tuple)) else value
            there = {str(k): k for k in inside} if isinstance(inside, Mapping) else {}
            if part not in there:
                raise self._absent(name, dotted, above, list(there))
            value, above = inside[there[part]], f"{above}{part}."
        return value

    def _absent(self, name: str, dotted: str, above: str, there: list[str]) -> CheckpointError:
        """Return the error of a path that leaves the dict; what it proposes is a whole path, as the config takes it."""
        every = list(paths(self.content))
        below = [path for path in every if path.endswith(f".{dotted}")]
        near = below or difflib.get_close_matches(dotted, every, n=1)
        mend = f"; did you mean {near[0]!r}?" if near else ""
        where = f"under {above.rstrip('.')!r} there" if above else "there"
        return CheckpointError(
            f"{self.path}: checkpoint.{name}: no key {dotted!r}; {where}: {few(there, 12) or 'nothing'}{mend}",
            hint="mend or remove the key under checkpoint: in nanhunt.yaml",
        )

    def nested_step(self) -> int | None:
        """Return the step that a dict of the run's progress holds."""
        found = count_below(self.content, STEP_KEYS, within=PROGRESS_KEYS)
        return found[1] if found is not None else None

    def left_over(self) -> dict[str, Any]:
        """Return what else is there and small: of a dict that a part was taken out of, the rest."""
        rest = {k: self._without_parts(v) for k, v in self.content.items() if k not in self.used}
        return {k: v for k, v in rest.items() if elements_of(v) <= SMALL}

    def _without_parts(self, value: Any) -> Any:
        if type(value) is not dict or id(value) in self.taken:
            return value
        return {
            k: self._without_parts(v)
            for k, v in value.items()
            if not (isinstance(v, (Mapping, list)) and id(v) in self.taken)
        }

    def rng(self) -> dict[str, Any] | None:
        """Return random states from a dict of them, or from keys at the top."""
        found: dict[str, Any] = {}
        for key in RNG_KEYS:
            states = rng_states(self.content.get(key))
            if states:
                self.used.add(key)
                found = {**states, **found}
        flat = {name for names in RNG_NAMES.values() for name in names if "_" in name and name in self.content}
        found = {**(rng_states({n: self.content[n] for n in flat}) or {}), **found}
        self.used.update(flat)
        return found or None

    def model(self) -> dict[str, Tensor]:
        """Return the model's state: configured, under a known key, or the tensors at the top."""
        state: dict[str, Tensor] | None = self.part("model", MODEL_KEYS, whole_state)
        if state:
            return state
        state = {k: v for k, v in tensors_in(self.content).items() if k not in self.used and k not in STEP_KEYS}
        if state:
            self.used.update(state)
            return state
        raise _no_model(self.content, self.path)


def _scaler_like(content: Mapping[str, Any]) -> list[str]:
    """Return the keys whose value looks like a GradScaler's state; Lightning files it under its plugin's name."""
    return [k for k, v in content.items() if isinstance(v, Mapping) and "_growth_tracker" in v]


def _first_of(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and value else value


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    """Whether every value is a tensor, apart from what modules save as `_extra_state`."""
    tensors = tensors_in(content)
    return bool(tensors) and all(k in tensors or str(k).endswith("_extra_state") for k in content)


def _cleaned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop wrappers from the names, unless two of them would then be one."""
    cleaned = {clean_name(name): tensor for name, tensor in state.items()}
    return cleaned if len(cleaned) == len(state) else state


def _no_model(content: Mapping[Any, Any], path: Path) -> CheckpointError:
    if not elements_of(content):
        return CheckpointError(
            f"{path}: holds no tensors; its keys: {few(content, 12) or 'none'}",
            hint="save the model's state_dict() in it",
        )
    if "param_groups" in content:
        return CheckpointError(
            f"{path}: is an optimizer's state alone", hint="name the checkpoint that holds the model's weights"
        )
    candidates = [path for path, value in places(content) if whole_state(value)]
    message = f"{path}: no model state found under {', '.join(MODEL_KEYS)}; its keys: {few(content, 12)}"
    if candidates:
        example = f"`checkpoint: {{model: {candidates[0]}}}`"
        return CheckpointError(message, hint=f"name it in nanhunt.yaml, for example {example}")
    return CheckpointError(message, hint="save the model's state_dict() under 'model'")
