"""The nanhunt.yaml that repeats a recorded loop: the user's code by its import strings, the rest as it was heard."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.recorder.alarm import Scalars
from nanhunt.recorder.code import CodeRef, code_ref, digests, sources_of
from nanhunt.recorder.hearing import NormClip
from nanhunt.recorder.history import Micro
from nanhunt.training.bundle import BATCHES, LOSSES, alone
from nanhunt.training.generators import generators_in
from nanhunt.training.replicated import Replication
from nanhunt.training.run import DTYPES, TrainingRun

__all__ = ["Code", "Recipe", "config_of"]

Code = Callable[..., Any] | str | None

_HALVES = {torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(slots=True, kw_only=True)
class Recipe:
    """How the loop is built and goes. What is heard is filled in as it is heard."""

    #: the user's code by its key in nanhunt.yaml: model, loss, optimizer, train_step
    code: dict[str, Code]
    model: nn.Module
    world_size: int = 1
    #: how DistributedDataParallel is around it; None where none was seen
    replication: Replication | None = None
    #: "fp16", "bf16" or None, in the first forward pass
    autocast: str | None = None
    #: of the clip by a norm that was heard: its bound, the norm's order, whether it was asked to be fused or not to be,
    #: whether each parameter was clipped by itself, whether the loop took the norm by its own means
    max_norm: float | None = None
    norm_type: float = 2.0
    foreach: bool | None = None
    clips_each: bool = False
    takes_norm: bool = False
    #: of the clip of each element that was heard
    max_value: float | None = None
    #: whether the loop told its losses itself
    told: bool = False
    #: whether losses are known by what backward begins with alone
    hears_shares: bool = True
    #: what the framework around the loop knows that a replay cannot repeat, in sentences
    known: tuple[str, ...] = ()
    _refs: dict[str, CodeRef | None] = field(init=False)
    #: ids of the parameters that had a gradient at the first clip, and of those that were clipped
    _graded: set[int] = field(default_factory=set, init=False)
    _clipped: set[int] = field(default_factory=set, init=False)
    _clips_some: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Find the import strings while the modules are as they were imported."""
        self._refs = {key: code_ref(code) for key, code in self.code.items()}

    def heard_clip(self, clip: NormClip) -> None:
        """Take how the loop clips by a norm."""
        self.max_norm, self.foreach = clip.max_norm, clip.foreach
        self.takes_norm |= clip.norm_type is None
        self.norm_type = 2.0 if clip.norm_type is None else clip.norm_type
        given = [clip.parameters] if isinstance(clip.parameters, Tensor) else clip.parameters
        if not isinstance(given, list):
            return
        ids = {id(p) for p in given if isinstance(p, Tensor)}
        self._clipped |= ids
        self.clips_each = len(ids) == 1 and sum(p.requires_grad for p in self.model.parameters()) > 1
        if not self._graded:
            self._graded = {id(p) for p in self.model.parameters() if p.grad is not None}
        self._clips_some |= not self.clips_each and not self._graded <= ids

    def batches(self, micros: Sequence[Micro], accumulate: int) -> list[Any]:
        """Return the batches as the loss function takes them, of steps of so many micro-batches each."""
        return [micro.batch for micro in micros]

    def config(self, run: TrainingRun, *, steps: int, accumulate: int, known: Sequence[Scalars]) -> dict[str, Any]:
        """Return nanhunt.yaml's content; `described` stands for a model that lies as config.json beside it."""
        found: dict[str, Any] = {key: ref.spec for key in ("model", "loss") if (ref := self._refs.get(key)) is not None}
        if "model" not in found and config_of(self.model) is not None:
            found["described"] = True
        found["data"] = BATCHES
        ref = self._refs.get("optimizer")
        found["optimizer"] = ref.spec if ref is not None else _optimizer(run.optimizer)
        moved = _moved(known) if len(run.optimizers) == 1 else {}
        if moved:
            found["scheduler"] = {"call": "nanhunt.training.recorded_rates:RecordedRates", "kwargs": moved}
        step = self._refs.get("train_step")
        if step is not None:
            found["train_step"] = step.spec
        precision = self._precision(run)
        found |= {"precision": precision} if precision else {}
        found["train"] = {"steps": steps, "accumulate": accumulate}
        if step is None and not self.told and self.hears_shares and accumulate & (accumulate - 1):
            found["train"]["loss_from_shares"] = True
        if step is None:
            found["train"] |= self._clip()
        if step is None or self.told:
            found["losses"] = LOSSES
        return found

    def _clip(self) -> dict[str, Any]:
        if self.max_norm is None:
            return {} if self.max_value is None else {"clip_grad_value": self.max_value}
        found: dict[str, Any] = {"clip_param_norm" if self.clips_each else "clip_grad_norm": self.max_norm}
        found |= {} if self.norm_type == 2.0 else {"clip_norm_type": self.norm_type}
        return found | ({} if self.foreach is None else {"clip_foreach": self.foreach})

    def _precision(self, run: TrainingRun) -> dict[str, Any]:
        found: dict[str, Any] = {"autocast": self.autocast} if self.autocast else {}
        kinds = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        if len(kinds) == 1 and (kind := next(iter(kinds))) in _HALVES:
            found["params"] = next(name for name, dtype in DTYPES.items() if dtype is kind)
        scaler = run.scaler
        if scaler is not None and scaler.is_enabled() and self._refs.get("train_step") is None:
            found["grad_scaler"] = {
                "growth_factor": scaler.get_growth_factor(),
                "backoff_factor": scaler.get_backoff_factor(),
                "growth_interval": scaler.get_growth_interval(),
            }
        return found

    def remarks(self, accumulate: int) -> list[str]:
        """Return what a replay of the bundle cannot repeat, or takes for granted, in sentences."""
        found = list(self.known)
        for key, code in self.code.items():
            if code is not None and self._refs[key] is None:
                found.append(f"{key}: {_named(code)} has no import string: give the recorder a function of a module")
        if self.world_size > 1 and self.replication is None:
            found.append(alone(self.world_size))
        if self.max_norm is not None and self.max_value is not None and self._refs.get("train_step") is None:
            found.append("the loop clips by a norm and by a value: the replay does the first alone")
        is_part = self._clips_some or (self.clips_each and not self._graded <= self._clipped)
        if self.max_norm is not None and is_part and self._refs.get("train_step") is None:
            found.append("the loop clips parts of the model by themselves: the replay clips all of it alike")
        if self.takes_norm and self._refs.get("train_step") is None:
            found.append("the loop clips by a norm that it takes by its own means: the replay takes the Euclidean norm")
        if self._refs.get("train_step") is None and (own := generators_in(self.model)):
            found.append(f"the model draws from a generator of its own ({next(iter(own))}), whose state is not kept")
        if accumulate > 1 and not self.told and self._refs.get("train_step") is None:
            found.append(f"the loop was taken to divide each loss by its {accumulate} micro-batches, as most do")
        return found

    def write_model(self, folder: Path) -> None:
        """Write a transformers model's own config.json, which rebuilds it."""
        described = config_of(self.model)
        if described is not None and self._refs.get("model") is None:
            (folder / "config.json").write_text(json.dumps(described, indent=1))

    def whereabouts(self) -> dict[str, Any]:
        """Return import strings, folders of import and digests, for run.json."""
        refs = {key: ref for key, ref in self._refs.items() if ref is not None}
        kind = type(self.model)
        return {
            "code": {key: ref.call for key, ref in refs.items()},
            "world_size": self.world_size,
            "replication": self.replication,
            "model_class": f"{kind.__module__}:{kind.__qualname__}",
            "paths": list(dict.fromkeys(ref.folder for ref in refs.values() if ref.folder)),
            "sources": digests(sources_of([c for c in self.code.values() if callable(c)], self.model)),
        }


def _moved(known: Sequence[Scalars]) -> dict[str, Any]:
    """Return the rates of each step, and what else a schedule moved; {} where nothing was moved."""
    rates, settings = [list(s.lr) for s in known], [list(s.settings) for s in known]
    is_more = any(row != settings[0] for row in settings)
    if not is_more and all(row == rates[0] for row in rates):
        return {}
    return {"rates": rates} | ({"settings": settings} if is_more else {})


def _named(code: Code) -> str:
    return str(getattr(code, "__qualname__", code))


def _optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimizer's class and its plain defaults; the checkpoint's groups are put over them."""
    kind = type(optimizer)
    plain = {k: _plain(v) for k, v in optimizer.defaults.items()}
    wanted = _parameters_of(kind)
    kwargs = {k: v for k, v in plain.items() if k in wanted and v is not None}
    return {"call": f"{kind.__module__}:{kind.__qualname__}", "kwargs": kwargs}


def _parameters_of(kind: type) -> set[str]:
    """Return the names of a class's own arguments; none where they cannot be told."""
    try:
        return set(inspect.signature(kind).parameters)
    except (TypeError, ValueError):
        return set()


def _plain(value: Any) -> Any:
    """Return a hyper-parameter as YAML holds it; None of what it does not."""
    if isinstance(value, Tensor):
        return float(value)
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (bool, int, float, str)) else None


def config_of(model: nn.Module) -> dict[str, Any] | None:
    """Return the config of a transformers model; None of any other."""
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    if not callable(to_dict) or not type(model).__module__.startswith("transformers."):
        return None
    content = json.loads(model.config.to_json_string())  # type: ignore[union-attr, operator]
    content["architectures"] = [type(model).__name__]
    return dict(content)
