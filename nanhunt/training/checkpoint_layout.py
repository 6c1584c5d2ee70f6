"""Find the model, optimizer, scheduler, scaler, step and random state in the dict that a training loop saved."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nanhunt.errors import CheckpointError
from nanhunt.inert import few
from nanhunt.training.lightning_layout import is_lightning, lightning_content
from nanhunt.training.names import clean_name
from nanhunt.training.optimizer_names import unflattened, with_numbers

if TYPE_CHECKING:
    from nanhunt.training.config import CheckpointKeys

__all__ = ["Parts", "find_parts", "rng_states", "is_optimizer_state"]

# in the order in which they are tried; an EMA is not what was trained, so its keys are not among them
MODEL_KEYS = ("model", "model_state_dict", "state_dict", "model_state", "module", "net", "weights", "params")
OPTIMIZER_KEYS = ("optimizer", "optimizer_state_dict", "optim", "opt", "optimizer_state", "optimizer_states")
SCHEDULER_KEYS = ("scheduler", "lr_scheduler", "scheduler_state_dict", "lr_scheduler_state_dict", "lr_schedulers")
SCALER_KEYS = ("scaler", "grad_scaler", "scaler_state_dict", "grad_scaler_state_dict")
# an epoch is no step
STEP_KEYS = ("step", "iter_num", "global_step", "iteration", "it", "steps")
#: dicts that hold the step one level down (torchtitan, Megatron Bridge)
PROGRESS_KEYS = ("train_state", "trainer_state", "progress")
LOADER_KEYS = (
    *("dataloader", "train_dataloader", "loader", "train_loader", "data_loader"),
    *("dataloader_state_dict", "train_dataloader_state_dict", "loader_state_dict", "dl_state_dict", "dataloader_state"),
)
RNG_KEYS = ("rng", "rng_state", "rng_states", "random_states")

#: one generator's state under the names that loops give it
RNG_NAMES = {
    "torch": ("torch", "cpu", "torch_rng_state", "torch_rng", "cpu_rng_state", "torch_manual_seed", "rng_state"),
    "cuda": ("cuda", "cuda_rng_state", "cuda_rng_state_all", "cuda_rng", "torch_cuda_manual_seed"),
    "numpy": ("numpy", "np", "numpy_rng_state", "np_rng_state", "np_random_state", "numpy_random_seed"),
    "python": ("python", "random", "python_rng_state", "random_rng_state", "py_rng_state", "random_state"),
}

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
            f"{path}: holds {_kind(content)}, not a dict",
            hint="save a dict: torch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict(), …}, path)",
        )
    if _is_state_dict(content) and not (keys and any(dict(keys).values())):
        return Parts(container="state-dict", model=_cleaned(_tensors(content)))
    lightning, notes = is_lightning(content), list[str]()
    if lightning:
        content, notes = lightning_content(content, keys)
    search = _Search(content=content, path=path, keys=keys, notes=notes)
    optimizer = search.part("optimizer", OPTIMIZER_KEYS, _optimizer_state)
    more_optimizers = search.more_optimizers()
    if optimizer is None and more_optimizers:
        optimizer, more_optimizers = more_optimizers[0], more_optimizers[1:]
    scheduler = search.part("scheduler", SCHEDULER_KEYS, _plain_state)
    scaler = search.part("scaler", (*SCALER_KEYS, *_scaler_like(content)), _plain_state)
    step = search.part("step", STEP_KEYS, as_step)
    rng = search.rng()
    loader = search.part("loader", LOADER_KEYS, _loader_state) or _lightning_loader(content)
    model = search.model()
    return Parts(
        container="lightning" if lightning else "torch",
        model=_cleaned(model),
        optimizer=optimizer,
        more_optimizers=tuple(more_optimizers),
        more_models=search.more_models(),
        scheduler=scheduler,
        scaler=scaler,
        step=step if step is not None else _nested_step(content),
        rng=rng,
        loader=loader,
        extra={k: v for k, v in content.items() if k not in search.used and _tensor_elements(v) <= SMALL},
        notes=tuple(search.notes),
    )


def rng_states(content: object) -> dict[str, Any] | None:
    """Return random states by generator (`torch`, `cuda`, `numpy`, `python`), None where there is none.

    A list is taken for one entry a rank, of which the first counts; a bare tensor is torch's own state.
    """
    if isinstance(content, (list, tuple)) and content and isinstance(content[0], Mapping):
        content = content[0]
    if isinstance(content, Tensor):
        return {"torch": content} if content.dtype == torch.uint8 else None
    if not isinstance(content, Mapping):
        return None
    found: dict[str, Any] = {}
    for generator, names in RNG_NAMES.items():
        states = (content[name] for name in names if _is_rng_state(generator, content.get(name)))
        state = next(states, None)
        if state is not None:
            found[generator] = state
    return found or None


def _is_rng_state(generator: str, value: object) -> bool:
    """Whether a value can be that generator's state; `random_state: 42` is a seed, and no state."""
    if generator == "torch":
        return isinstance(value, Tensor)
    if generator == "cuda":
        return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and len(value) > 0)
    return isinstance(value, (tuple, list, Mapping) if generator == "numpy" else (tuple, list)) and len(value) > 1


def as_step(value: object) -> int | None:
    """Return a step count held as an int, a whole float, a NumPy integer or a tensor of one element; else None."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        value = value.item() if (value.numel() if isinstance(value, Tensor) else value.size) == 1 else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        return None
    return int(value)


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
                    f"{self.path}: checkpoint.{name}: {configured!r} holds {_kind(value)}, not the {name}'s"
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
            if isinstance(value, Mapping) and _optimizer_state(value) is None:
                inside = list(value.values())
            states = [(item, _optimizer_state(item)) for item in inside if id(item) not in self.taken]
            found += [state for _, state in states if state is not None]
            self.used.update([key] if any(state is not None for _, state in states) else [])
        return found

    def more_models(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the states of modules that are not the model's, by their key at the top."""
        found: dict[str, Mapping[str, Tensor]] = {}
        for key, value in self.content.items():
            state = _model_state(value) if key not in self.used and isinstance(key, str) else None
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
        self.used.add(dotted.split(".")[0])
        if dotted in self.content:
            self.used.add(dotted)
            return self.content[dotted]
        value: Any = self.content
        for part in dotted.split("."):
            inside = dict(enumerate(value)) if isinstance(value, (list, tuple)) else value
            there = {str(k): k for k in inside} if isinstance(inside, Mapping) else {}
            if part not in there:
                near = difflib.get_close_matches(part, list(there), n=1)
                mend = f"; did you mean {near[0]!r}?" if near else ""
                raise CheckpointError(
                    f"{self.path}: checkpoint.{name}: no key {dotted!r}; there: {few(there, 12) or 'nothing'}{mend}",
                    hint="mend or remove the key under checkpoint: in nanhunt.yaml",
                )
            value = inside[there[part]]
        return value

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
        state: dict[str, Tensor] | None = self.part("model", MODEL_KEYS, _model_state)
        if state:
            return state
        state = {k: v for k, v in _tensors(self.content).items() if k not in self.used and k not in STEP_KEYS}
        if state:
            self.used.update(state)
            return state
        raise _no_model(self.content, self.path)


def _model_state(value: object) -> dict[str, Tensor] | None:
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if not isinstance(value, Mapping) or "param_groups" in value:
        return None
    return _tensors(value) or None


def _optimizer_state(value: object) -> dict[str, Any] | None:
    if isinstance(value, torch.optim.Optimizer):
        value = value.state_dict()
    if not isinstance(value, Mapping):
        return None
    if "param_groups" not in value:
        return unflattened(value)
    if not is_optimizer_state(value):
        return None
    return {**value, "state": with_numbers(value.get("state", {}), value["param_groups"])}


def is_optimizer_state(value: object) -> bool:
    """Whether a value has the structure that every optimizer of torch saves: a state, and groups of parameters."""
    if not isinstance(value, Mapping) or not isinstance(value.get("state", {}), Mapping):
        return False
    groups = value.get("param_groups")
    return isinstance(groups, (list, tuple)) and all(map(_is_group, groups))


def _is_group(group: object) -> bool:
    if not isinstance(group, Mapping) or not isinstance(group.get("param_names"), (list, tuple, type(None))):
        return False
    params = group.get("params")
    return isinstance(params, (list, tuple)) and all(isinstance(p, (int, str)) for p in params)


def _plain_state(value: object) -> dict[str, Any] | None:
    """Accept the state of a scheduler or scaler; {} is what a disabled scaler saves."""
    return dict(value) if isinstance(value, Mapping) and value else None


def _loader_state(value: object) -> dict[str, Any] | None:
    """Accept a loader's position; its settings, which some files keep under the same key, have a batch size."""
    return dict(value) if isinstance(value, Mapping) and value and "batch_size" not in value else None


def _lightning_loader(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state of the first loader that Lightning's fit loop read, where it was one that has a state."""
    inside: Any = content
    for key in ("loops", "fit_loop", "state_dict", "combined_loader"):
        inside = inside.get(key) if isinstance(inside, Mapping) else None
    return _loader_state(_first_of(inside))


def _scaler_like(content: Mapping[str, Any]) -> list[str]:
    """Return the keys whose value looks like a GradScaler's state; Lightning files it under its plugin's name."""
    return [k for k, v in content.items() if isinstance(v, Mapping) and "_growth_tracker" in v]


def _first_of(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and value else value


def _nested_step(content: Mapping[str, Any]) -> int | None:
    for holder in PROGRESS_KEYS:
        inner = content.get(holder)
        if isinstance(inner, Mapping):
            steps = (as_step(inner[key]) for key in STEP_KEYS if key in inner)
            return next((s for s in steps if s is not None), None)
    return None


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    """Whether every value is a tensor, apart from what modules save as `_extra_state`."""
    tensors = _tensors(content)
    return bool(tensors) and all(k in tensors or str(k).endswith("_extra_state") for k in content)


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    # a tensor that asks for no gradient stays the very object, by which a reader of shards knows it again
    return {
        k: v.detach() if v.requires_grad else v
        for k, v in content.items()
        if isinstance(k, str) and isinstance(v, Tensor)
    }


def _cleaned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop wrappers from the names, unless two of them would then be one."""
    cleaned = {clean_name(name): tensor for name, tensor in state.items()}
    return cleaned if len(cleaned) == len(state) else state


def _tensor_elements(value: object) -> int:
    if isinstance(value, (Tensor, np.ndarray)):
        return value.numel() if isinstance(value, Tensor) else value.size
    if isinstance(value, nn.Module):
        return _tensor_elements(value.state_dict())
    if isinstance(value, Mapping):
        return sum(map(_tensor_elements, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_tensor_elements, value))
    return 0


def _no_model(content: Mapping[Any, Any], path: Path) -> CheckpointError:
    if not _tensor_elements(content):
        return CheckpointError(
            f"{path}: holds no tensors; its keys: {few(content, 12) or 'none'}",
            hint="save the model's state_dict() in it",
        )
    if "param_groups" in content:
        return CheckpointError(
            f"{path}: is an optimizer's state alone", hint="name the checkpoint that holds the model's weights"
        )
    candidates = list(_states_below(content, ""))
    message = f"{path}: no model state found under {', '.join(MODEL_KEYS)}; its keys: {few(content, 12)}"
    if candidates:
        example = f"`checkpoint: {{model: {candidates[0]}}}`"
        return CheckpointError(message, hint=f"name it in nanhunt.yaml, for example {example}")
    return CheckpointError(message, hint="save the model's state_dict() under 'model'")


def _states_below(content: Mapping[Any, Any], above: str, depth: int = 3) -> Iterator[str]:
    """Yield the dotted paths of dicts that could be a model's state."""
    for key, value in content.items():
        if _model_state(value):
            yield f"{above}{key}"
        elif isinstance(value, Mapping) and depth > 1 and "param_groups" not in value:
            yield from _states_below(value, f"{above}{key}.", depth - 1)


def _kind(value: object) -> str:
    names: dict[type, str] = {dict: "a dict", list: "a list", tuple: "a tuple", str: "a text", type(None): "nothing"}
    if isinstance(value, Tensor):
        return "one tensor"
    return names.get(type(value), f"a {type(value).__name__}")
