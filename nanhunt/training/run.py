"""TrainingRun: the user's model, optimizer, scaler, scheduler, loss and batches, assembled and loaded."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.errors import CheckpointError, ConfigError
from nanhunt.training.batches import BatchSource
from nanhunt.training.checkpoint import Checkpoint, load_into
from nanhunt.training.config import ImportSpec, RunConfig
from nanhunt.training.cuda_autocast import CudaAutocastLists
from nanhunt.training.optimizer_state import load_optimizer
from nanhunt.training.rng import restore_saved, seed_everything
from nanhunt.training.user_code import call_user, fill_parameters, resolve

__all__ = ["DTYPES", "TrainingRun", "assemble"]

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(slots=True, kw_only=True)
class TrainingRun:
    """The run as it trains, without instruments. Mutable: its tensors change with every step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[nn.Module, Any], Tensor]
    batches: BatchSource
    device: torch.device
    scaler: torch.amp.GradScaler | None = None
    scheduler: Any = None
    train_step: Callable[..., Any] | None = None
    #: "fp16", "bf16" or None
    autocast: str | None = None
    #: apply CUDA's autocast lists on the CPU, for a run that was trained on CUDA
    cuda_lists: bool = False
    accumulate: int = 1
    clip_grad_norm: float | None = None
    clip_grad_value: float | None = None
    agc: float | None = None
    start_step: int = 0
    root: Path = field(default_factory=Path)
    assumptions: list[str] = field(default_factory=list)
    match: str = ""

    @contextlib.contextmanager
    def autocasting(self) -> Iterator[None]:
        """Run the body under the run's autocast."""
        with contextlib.ExitStack() as stack:
            if self.autocast:
                stack.enter_context(torch.autocast(self.device.type, dtype=DTYPES[self.autocast]))
                if self.cuda_lists:
                    stack.enter_context(CudaAutocastLists())
            yield

    def trainable(self) -> list[nn.Parameter]:
        """Parameters that the optimizer updates, in its order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]


def assemble(
    config: RunConfig,
    checkpoint: Checkpoint,
    *,
    root: Path,
    device: torch.device,
    precision: str | None = None,
    start_step: int | None = None,
    seed: int | None = None,
) -> TrainingRun:
    """Build the user's objects, load the checkpoint into them, and return the run, ready for its first step.

    Raises ConfigError, CheckpointError or UserCodeError, each naming the key. Everything that was taken for granted
    stands in `assumptions`.
    """
    assumptions: list[str] = []
    seed = config.train.seed if seed is None else seed
    if seed is not None:
        seed_everything(seed)
    model = _built_model(config, root, device)
    match = load_into(model, checkpoint)
    if match.unexpected or match.missing or match.renaming or match.cast:
        assumptions.append(f"checkpoint: {match.sentence}")
    assumptions += [f"checkpoint: {note}" for note in checkpoint.notes]
    step = _first_step(checkpoint, start_step, assumptions)
    optimizer = _built_optimizer(config, root, model, checkpoint, assumptions)
    if checkpoint.optimizer is not None:
        load_optimizer(optimizer, model, checkpoint.optimizer, assumptions)
    else:
        assumptions.append("the checkpoint holds no optimizer state: moments start from zero")
    scheduler = _built_scheduler(config, root, optimizer, checkpoint, assumptions)
    autocast = _autocast(config, precision)
    if config.train_step is not None:
        assumptions.append(
            "train_step: gradients are seen as the optimizer gets them, after its own unscaling and clip"
        )
    run = TrainingRun(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=_built_scaler(config, checkpoint, device, autocast, assumptions),
        loss=_loss_function(config, root),
        train_step=_callable(config.train_step, "train_step", root) if config.train_step else None,
        batches=_batch_source(config, root, step, device, assumptions),
        device=device,
        autocast=autocast,
        cuda_lists=_wants_cuda_lists(autocast, device, checkpoint, assumptions),
        accumulate=config.train.accumulate,
        clip_grad_norm=config.train.clip_grad_norm,
        clip_grad_value=config.train.clip_grad_value,
        agc=config.train.agc,
        start_step=step,
        root=root,
        assumptions=assumptions,
        match=match.sentence,
    )
    _seed_for_replay(checkpoint, seed, assumptions)
    return run


def _built_model(config: RunConfig, root: Path, device: torch.device) -> nn.Module:
    build = _callable(config.model, "model", root)
    if isinstance(build, nn.Module):
        model: Any = build
    else:
        with call_user("model"):
            model = build(**config.model.kwargs)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: {config.model.call} returned {type(model).__name__}, not an nn.Module")
    if config.precision.params is not None:
        model = model.to(DTYPES[config.precision.params])
    placed: nn.Module = model.to(device)
    if not placed.training:
        placed.train()  # from_pretrained gives eval; a model in train keeps what its builder froze
    return placed


def _first_step(checkpoint: Checkpoint, start_step: int | None, assumptions: list[str]) -> int:
    if start_step is not None:
        return start_step
    if checkpoint.step is None:
        assumptions.append("the checkpoint does not tell its step: steps are counted from 0")
    return checkpoint.step or 0


def _built_optimizer(
    config: RunConfig, root: Path, model: nn.Module, checkpoint: Checkpoint, assumptions: list[str]
) -> torch.optim.Optimizer:
    if config.optimizer is None:
        return _inferred_optimizer(model, checkpoint, assumptions)
    target = resolve(config.optimizer.call, key="optimizer", root=root)
    if not callable(target):
        raise ConfigError(f"optimizer: {config.optimizer.call} is not callable")
    is_class = inspect.isclass(target) and issubclass(target, torch.optim.Optimizer)
    with call_user("optimizer"):
        optimizer = target(model.parameters() if is_class else model, **config.optimizer.kwargs)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optimizer: {config.optimizer.call} returned {type(optimizer).__name__}, not an Optimizer")
    return optimizer


def _inferred_optimizer(model: nn.Module, checkpoint: Checkpoint, assumptions: list[str]) -> torch.optim.Optimizer:
    """Build the optimizer whose hyper-parameters the checkpoint shows: AdamW, Adam or SGD."""
    groups = (checkpoint.optimizer or {}).get("param_groups") or []
    keys = set(groups[0]) if groups else set()
    optimizer: torch.optim.Optimizer
    if "betas" in keys and groups[0].get("decoupled_weight_decay", True):
        optimizer = torch.optim.AdamW(model.parameters())
    elif "betas" in keys:
        optimizer = torch.optim.Adam(model.parameters())
    elif "momentum" in keys and "nesterov" in keys:
        optimizer = torch.optim.SGD(model.parameters())
    else:
        raise ConfigError(
            "optimizer: is missing, and the checkpoint does not show which one it was",
            hint="add for example  optimizer: {call: torch.optim:AdamW, kwargs: {lr: 3.0e-4}}",
        )
    assumptions.append(f"optimizer: not in the config; {type(optimizer).__name__} was inferred from the checkpoint")
    return optimizer


def _built_scheduler(
    config: RunConfig, root: Path, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint, assumptions: list[str]
) -> Any:
    if config.scheduler is None:
        if checkpoint.scheduler is not None:
            assumptions.append("the checkpoint holds a scheduler, the config names none: the learning rate stays fixed")
        return None
    build = _callable(config.scheduler, "scheduler", root)
    # a scheduler's constructor sets initial_lr and the first rate; the checkpoint's rates are put back after it
    rates = [group["lr"] for group in optimizer.param_groups]
    with call_user("scheduler"):
        scheduler = build(optimizer, **config.scheduler.kwargs)
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        assumptions.append("scheduler: ReduceLROnPlateau steps on a metric outside of the replay: the rate stays fixed")
        return None
    if checkpoint.scheduler is None:
        assumptions.append("the checkpoint holds no scheduler state: the schedule starts anew")
        return scheduler
    with call_user("scheduler"):
        scheduler.load_state_dict(checkpoint.scheduler)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    return scheduler


def _built_scaler(
    config: RunConfig, checkpoint: Checkpoint, device: torch.device, autocast: str | None, assumptions: list[str]
) -> torch.amp.GradScaler | None:
    arguments = config.precision.scaler_arguments()
    if arguments is None:
        if checkpoint.scaler is not None and autocast == "fp16":
            assumptions.append("the checkpoint holds a gradient scaler, the config turns it off: it is not used")
        return None
    scaler = torch.amp.GradScaler(device.type, **arguments)
    if checkpoint.scaler:
        try:
            scaler.load_state_dict(checkpoint.scaler)
        except (KeyError, RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"{checkpoint.path}: its gradient scaler state cannot be loaded: {error}",
                hint="name the right entry under checkpoint.scaler in nanhunt.yaml",
            ) from error
    else:
        assumptions.append(f"the checkpoint holds no scaler state: the loss scale starts at {scaler.get_scale():g}")
    return scaler


def _autocast(config: RunConfig, precision: str | None) -> str | None:
    choice = precision or config.precision.autocast
    if precision is not None and precision not in ("fp32", "fp16", "bf16"):
        raise ConfigError(f"--precision {precision}: expected fp32, fp16 or bf16")
    if config.precision.recipe is not None:
        raise ConfigError(
            f"precision.recipe: {config.precision.recipe} cannot be simulated by this version",
            hint="remove the key; `nanhunt report` shows what FP8 would do to each tensor from the trace alone",
        )
    return None if choice in ("none", "fp32") else choice


def _wants_cuda_lists(
    autocast: str | None, device: torch.device, checkpoint: Checkpoint, assumptions: list[str]
) -> bool:
    """Whether a CUDA run is replayed on a CPU under autocast: then CUDA's lists of promoted ops apply."""
    if autocast is None or device.type != "cpu":
        return False
    from_cuda = any(tag.startswith("cuda") for tag in checkpoint.locations)
    if from_cuda:
        assumptions.append(
            "the checkpoint was saved from CUDA and is replayed on the CPU: CUDA's autocast lists are applied "
            "(softmax, norms, exp, pow, losses in fp32); kernels and their rounding differ"
        )
    elif autocast == "fp16":
        assumptions.append(
            "autocast follows the CPU's lists, as the checkpoint was saved from the CPU: "
            "softmax, norms, exp and pow run in fp16, which CUDA's lists keep in fp32"
        )
    return from_cuda


def _loss_function(config: RunConfig, root: Path) -> Callable[[nn.Module, Any], Tensor]:
    if config.loss is None:
        return default_loss
    function = _callable(config.loss, "loss", root)
    kwargs = config.loss.kwargs
    return lambda model, batch: function(model, batch, **kwargs)


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """Call `model(**batch)` or `model(*batch)` and take the loss out of what it returns."""
    from collections.abc import Mapping

    arguments: tuple[Any, ...] = tuple(batch) if isinstance(batch, (list, tuple)) else (batch,)
    named = dict(batch) if isinstance(batch, Mapping) else {}
    arguments = () if named else arguments
    try:
        inspect.signature(model.forward).bind(*arguments, **named)
    except TypeError as error:
        raise ConfigError(
            f"loss: is not given, and the model cannot be called with the batch alone: {error}",
            hint="name a callable (model, batch) -> scalar loss under loss:",
        ) from error
    output = model(*arguments, **named)
    loss = getattr(output, "loss", None)
    if loss is None and isinstance(output, Mapping):
        loss = output.get("loss")
    if loss is None and isinstance(output, Tensor) and output.dim() == 0:
        loss = output
    if loss is None and isinstance(output, tuple):
        scalars = [item for item in output if isinstance(item, Tensor) and item.dim() == 0]
        loss = scalars[0] if len(scalars) == 1 else None
    if loss is None:
        raise ConfigError(
            f"loss: the model returned {type(output).__name__} without a loss in it",
            hint="name a callable (model, batch) -> scalar loss under loss:",
        )
    return loss  # type: ignore[no-any-return]


def _batch_source(
    config: RunConfig, root: Path, step: int, device: torch.device, assumptions: list[str]
) -> BatchSource:
    target = resolve(config.data.call, key="data", root=root)
    available: dict[str, object] = {"start_step": step, "rank": 0, "world_size": 1}
    filled: dict[str, object] = {}
    data: object = target
    if callable(target) and not _is_loader(target):
        filled = fill_parameters(target, available)
        with call_user("data"):
            data = target(**{**filled, **config.data.kwargs})
    if step and "start_step" not in filled and "start_step" not in config.data.kwargs:
        assumptions.append(f"data: {config.data.call} takes no start_step: its first batch is taken for step {step}")
    return BatchSource(data, first_step=step, accumulate=config.train.accumulate, device=device)


def _is_loader(target: object) -> bool:
    """Whether the object yields batches itself rather than being a function that makes them."""
    return hasattr(target, "__iter__") and not inspect.isclass(target)


def _callable(spec: ImportSpec, key: str, root: Path) -> Any:
    target = resolve(spec.call, key=key, root=root)
    if not callable(target):
        raise ConfigError(f"{key}: {spec.call} is a {type(target).__name__}, not a callable")
    return target


def _seed_for_replay(checkpoint: Checkpoint, seed: int | None, assumptions: list[str]) -> None:
    """Put the generators where the first step begins: the checkpoint's own states, the seed for the others."""
    if seed is not None:
        seed_everything(seed)
    try:
        restored = restore_saved(checkpoint.rng or {})
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: its random state cannot be restored: {str(error).splitlines()[0]}",
            hint="name other keys under checkpoint: in nanhunt.yaml, or save the state as torch.get_rng_state() gives it",
        ) from error
    if restored:
        assumptions.append(f"random state: {', '.join(restored)} restored from the checkpoint")
    elif seed is not None:
        assumptions.append(f"random state: not in the checkpoint; generators were seeded with {seed}")
