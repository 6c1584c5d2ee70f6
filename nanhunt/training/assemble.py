"""Assemble a run: build the user's objects by their import strings and load the checkpoint into them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.errors import CheckpointError, ConfigError
from nanhunt.training.batches import BatchSource
from nanhunt.training.built_model import built_model
from nanhunt.training.checkpoint import Checkpoint, Match, load_into
from nanhunt.training.config import RunConfig
from nanhunt.training.custom_step import closure_step, needs_closure
from nanhunt.training.data_source import batch_source
from nanhunt.training.epochs import Track, untracked
from nanhunt.training.inferred_optimizer import inferred_optimizer
from nanhunt.training.loss import default_loss
from nanhunt.training.optimizer_state import load_optimizers
from nanhunt.training.owned import find_owned
from nanhunt.training.owned_state import load_owned
from nanhunt.training.recipe_choice import PrecisionChoice, built_emulator, chosen_precision
from nanhunt.training.replicated import Replication
from nanhunt.training.rng import restore_saved, seed_everything
from nanhunt.training.run import DTYPES, TrainingRun, optimizers_in
from nanhunt.training.scaler_state import load_scaler
from nanhunt.training.scheduler import built_scheduler
from nanhunt.training.user_code import call_user, resolve, resolve_callable

__all__ = ["assemble"]


#: Steps that no run has: a trace counts in 64 bits.
_STEPS = 1 << 53
#: keys of `train:` that are the run's own fields
_CLIPS = {"clip_grad_norm", "clip_grad_value", "clip_param_norm", "agc"}
_LOOP = {"accumulate", "loss_from_shares", "clip_norm_type", "clip_foreach", *_CLIPS}


def assemble(
    config: RunConfig,
    checkpoint: Checkpoint,
    *,
    root: Path,
    device: torch.device,
    precision: str | None = None,
    start_step: int | None = None,
    seed: int | None = None,
    track: Track | None = untracked,
    replication: Replication | None = None,
) -> TrainingRun:
    """Build the user's objects, load the checkpoint into them, and return the run, ready for its first step.

    Raises ConfigError, CheckpointError or UserCodeError, each naming the key. What was taken for granted stands in
    `assumptions`. `track` shows how far the skipping of batches is; None skips none. A bundle's model had `replication`.
    """
    assumptions: list[str] = []
    seed = config.train.seed if seed is None else seed
    if seed is not None:
        seed_everything(seed)
    choice = chosen_precision(config.precision, precision)
    model = built_model(config, root, device, choice, checkpoint, assumptions, replication)
    match = _loaded(model, checkpoint, assumptions)
    step = _first_step(checkpoint, start_step, assumptions)
    _compare_clips(config, checkpoint, assumptions)
    custom = resolve_callable(config.train_step.call, key="train_step", root=root) if config.train_step else None
    handed = _built_optimizer(config, root, model, checkpoint, assumptions, custom)
    optimizers = optimizers_in(handed)
    unused = load_optimizers(optimizers, model, checkpoint, assumptions)
    # a scheduler of one optimizer; a loop with several makes its own
    rates = tuple(float(group["lr"]) for group in optimizers[0].param_groups)
    scheduler = built_scheduler(config, root, optimizers[0], checkpoint, assumptions)
    emulator = built_emulator(choice, model, device, custom is not None, assumptions)
    run = TrainingRun(
        model=model,
        optimizer=optimizers[0],
        handed=handed,
        scheduler=scheduler,
        scaler=_built_scaler(choice, checkpoint, device, assumptions),
        loss=_loss_function(config, root, assumptions),
        train_step=custom,
        batches=_batches(config, checkpoint, root, step, device, choice, assumptions, track),
        device=device,
        autocast=choice.autocast,
        cuda_lists=_wants_cuda_lists(choice.autocast, device, checkpoint, assumptions),
        recipe=choice.name,
        emulator=emulator,
        **config.train.model_dump(include=_LOOP),
        start_step=step,
        root=root,
        assumptions=assumptions,
        matched=match,
        left_rates=rates if scheduler is not None and checkpoint.optimizer and checkpoint.scheduler is None else (),
    )
    run.look_around()
    load_owned(run, checkpoint, unused)
    _give_closure(run)
    _seed_for_replay(checkpoint, seed, assumptions)
    return run


def _give_closure(run: TrainingRun) -> None:
    if run.train_step is None and needs_closure(run.optimizer):
        run.train_step = closure_step(run)
        run.assumptions.append(f"{type(run.optimizer).__name__} asks for a closure: it gets one that repeats the loss")


def _compare_clips(config: RunConfig, checkpoint: Checkpoint, assumptions: list[str]) -> None:
    """Tell of a Trainer's clip where the config has none."""
    is_trainers = checkpoint.container == "hf-trainer" and config.train_step is None
    if is_trainers and not any(config.train.model_dump(include=_CLIPS).values()):
        assumptions.append(
            "train: the config does not clip; a Trainer does, at max_grad_norm 1.0, unless its training_args.bin, which "
            "is pickle and not read, says otherwise"
        )


def _loaded(model: nn.Module, checkpoint: Checkpoint, assumptions: list[str]) -> Match:
    """Load the weights, and return how they matched."""
    match = load_into(model, checkpoint)
    if match.unexpected or match.missing or match.renaming or match.cast:
        assumptions.append(f"checkpoint: {match.sentence}")
    assumptions += [f"checkpoint: {note}" for note in checkpoint.notes]
    return match


def _first_step(checkpoint: Checkpoint, start_step: int | None, assumptions: list[str]) -> int:
    if start_step is None and checkpoint.step is None:
        assumptions.append("the checkpoint does not tell its step: steps are counted from 0")
    step = (checkpoint.step or 0) if start_step is None else start_step
    if 0 <= step < _STEPS:
        return step
    told = f"{checkpoint.path}: tells the step" if start_step is None else "--start-step:"
    raise CheckpointError(
        f"{told} {str(step)[:24]}, which is the number of no step", hint="name the first one's with --start-step"
    )


def _built_optimizer(
    config: RunConfig,
    root: Path,
    model: nn.Module,
    checkpoint: Checkpoint,
    assumptions: list[str],
    custom: Callable[..., Any] | None,
) -> Any:
    """Return the optimizer, or the several that a custom loop is handed."""
    own = find_owned([custom, model], model).optimizers if custom is not None and config.optimizer is None else []
    if own:
        assumptions.append(
            f"optimizer: not in the config; train_step keeps its own ({', '.join(type(o).__name__ for o in own)})"
        )
        return own[0] if len(own) == 1 else own
    if config.optimizer is None:
        return inferred_optimizer(model, checkpoint, assumptions)
    target = resolve(config.optimizer.call, key="optimizer", root=root)
    if not callable(target):
        raise ConfigError(f"optimizer: {config.optimizer.call} is not callable")
    is_class = inspect.isclass(target) and issubclass(target, torch.optim.Optimizer)
    with call_user("optimizer"):
        optimizer = target(model.parameters() if is_class else model, **config.optimizer.kwargs)
    found = optimizers_in(optimizer)
    if not found:
        raise ConfigError(f"optimizer: {config.optimizer.call} returned {type(optimizer).__name__}, not an Optimizer")
    if len(found) > 1 and config.train_step is None:
        raise ConfigError(
            f"optimizer: {config.optimizer.call} returned {len(found)} optimizers, and the built-in step uses one",
            hint="name your own step under train_step: a callable (model, batch, optimizers) -> loss",
        )
    return optimizer


def _built_scaler(
    choice: PrecisionChoice, checkpoint: Checkpoint, device: torch.device, assumptions: list[str]
) -> torch.amp.GradScaler | None:
    arguments = choice.scaler
    if arguments is None:
        if checkpoint.scaler is not None and choice.autocast == "fp16":
            assumptions.append("the checkpoint holds a gradient scaler, the config turns it off: it is not used")
        return None
    scaler = torch.amp.GradScaler(device.type, **arguments)
    if checkpoint.scaler:
        load_scaler(scaler, checkpoint)
    else:
        assumptions.append(f"the checkpoint holds no scaler state: the loss scale starts at {scaler.get_scale():g}")
    return scaler


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


def _loss_function(config: RunConfig, root: Path, assumptions: list[str]) -> Callable[[nn.Module, Any], Tensor]:
    if config.loss is None:
        if config.train_step is None:
            assumptions.append(
                "loss: not in the config; the model's own is taken: .loss, or the one scalar that it returns"
            )
        return default_loss
    function = resolve_callable(config.loss.call, key="loss", root=root)
    kwargs = config.loss.kwargs
    return lambda model, batch: function(model, batch, **kwargs)


def _batches(
    config: RunConfig,
    checkpoint: Checkpoint,
    root: Path,
    step: int,
    device: torch.device,
    choice: PrecisionChoice,
    assumptions: list[str],
    track: Track | None,
) -> BatchSource:
    floats = DTYPES[choice.recipe_params] if choice.recipe_params else None
    return batch_source(
        config, checkpoint, root=root, step=step, device=device, floats=floats, assumptions=assumptions, track=track
    )


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
