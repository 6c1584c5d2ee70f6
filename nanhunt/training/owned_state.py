"""Load what else a checkpoint holds into what else the user's code keeps: a critic, its optimizer, a scaler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from nanhunt.training.checkpoint import Checkpoint, load_into
from nanhunt.training.on_demand import outline
from nanhunt.training.optimizer_state import load_optimizer, take_fitting
from nanhunt.training.run import TrainingRun, optimizers_in
from nanhunt.training.scaler_state import load_scaler
from nanhunt.training.state_match import tensors_for

__all__ = ["load_owned", "reference_tensors"]


def load_owned(run: TrainingRun, checkpoint: Checkpoint, unused: list[dict[str, Any]]) -> None:
    """Load leftover states into owned modules, optimizers and scalers where they fit; say what was found in any case.

    `unused` are the optimizer states that no optimizer of the config took.
    """
    for name, module in run.owned.modules.items():
        key = _key_of(name, module, checkpoint.more_models)
        if key is not None:
            load_into(module, replace(checkpoint, model=checkpoint.more_models[key]))
        loaded = f"loaded from the checkpoint's {key!r}" if key is not None else "as your code made it"
        run.assumptions.append(f"your code keeps a module {name} besides the model: watched too, {loaded}")
    handed = {id(o) for o in (run.optimizer, *optimizers_in(run.handed))}
    for optimizer in run.owned.optimizers:
        if id(optimizer) in handed:
            continue
        state = take_fitting(optimizer, unused, run.model)
        if state is not None:
            load_optimizer(optimizer, run.model, state, run.assumptions)
        loaded = "its state loaded from the checkpoint" if state is not None else "as your code made it"
        run.assumptions.append(f"your code keeps an optimizer of its own ({type(optimizer).__name__}): {loaded}")
    if unused:
        run.assumptions.append(f"the checkpoint holds {len(unused)} more optimizer states, which nothing here takes")
    if run.scaler is None and checkpoint.scaler and run.owned.scalers:
        load_scaler(run.owned.scalers[0], checkpoint)
        run.assumptions.append("your code keeps a gradient scaler of its own: its state loaded from the checkpoint")


def reference_tensors(run: TrainingRun, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return another checkpoint's weights and buffers by the run's names: the model's, and those of modules besides it.

    Raises CheckpointError where it names no weight of the model.
    """
    found = tensors_for(run.model, checkpoint)
    for name, module in run.owned.modules.items():
        key = _key_of(name, module, checkpoint.more_models)
        if key is not None:
            theirs = tensors_for(module, replace(checkpoint, model=checkpoint.more_models[key]))
            found |= {f"{name}.{inner}": tensor for inner, tensor in theirs.items()}
    return found


def _key_of(name: str, module: nn.Module, models: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """Return the key of the state with this module's very names and shapes: the one of its name, else the only one."""
    own = {k: tuple(v.shape) for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    fitting = [key for key, state in models.items() if _shapes(state) == own]
    last = name.rpartition(".")[2].lower()
    named = [key for key in fitting if last and (last in key.lower() or key.lower() in last)]
    return named[0] if named else (fitting[0] if len(fitting) == 1 else None)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in outline(state).items()}
