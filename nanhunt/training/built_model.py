"""Build the model: by the config's callable, or from the config.json that lies with the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nanhunt.errors import ConfigError
from nanhunt.training.bundle import CONFIG, RUN
from nanhunt.training.checkpoint import Checkpoint
from nanhunt.training.config import ModelSpec, RunConfig
from nanhunt.training.launch import is_launched, rank_and_size
from nanhunt.training.mesh import mesh_of
from nanhunt.training.model_from_config import build_from_config, config_beside
from nanhunt.training.recipe_choice import PrecisionChoice
from nanhunt.training.replicated import Replication, replicated
from nanhunt.training.run import DTYPES
from nanhunt.training.user_code import call_user, fill_parameters, resolve_callable

__all__ = ["built_model"]


def built_model(
    config: RunConfig,
    root: Path,
    device: torch.device,
    choice: PrecisionChoice,
    checkpoint: Checkpoint,
    assumptions: list[str],
    replication: Replication | None = None,
) -> nn.Module:
    """Return the model on its device, in the run's dtype and in training mode, its weights as they were initialised.

    Raises ConfigError where there is nothing to build it from, UserCodeError where the user's callable raises.
    """
    model = _described_model(checkpoint, assumptions) if config.model is None else _users_model(config.model, root)
    # with an update in fp32, weights are cast behind the moments: loading would cast those as well
    late = choice.recipe is not None and choice.recipe.wide_update
    params = None if late else choice.recipe_params or choice.params
    if params is not None:
        model = model.to(DTYPES[params])
    placed: nn.Module = model.to(device)
    if not placed.training:
        placed.train()  # from_pretrained gives eval; a model in train keeps what its builder froze
    return placed if replication is None or not is_launched() else replicated(placed, replication, assumptions)


def _users_model(spec: ModelSpec, root: Path) -> nn.Module:
    build = resolve_callable(spec.call, key="model", root=root)
    if isinstance(build, nn.Module):
        model: Any = build
    else:
        with call_user("model"):
            model = build(**_of_this_rank(build, spec), **spec.kwargs)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: {spec.call} returned {type(model).__name__}, not an nn.Module")
    if any(hasattr(parameter, "_st_info") for parameter in model.parameters()):
        # its first forward pass puts DTensors in the place of the parameters, and `named_parameters` has none of them any more
        raise ConfigError(
            "model: DistributedDataParallel around layers that tensor parallelism cuts is not replayed: its forward pass takes "
            "the parameters out of the model",
            hint='replicate it with `fully_shard(model, mesh=mesh["dp"])`, which averages the same gradients',
        )
    return model


def _of_this_rank(build: Callable[..., Any], spec: ModelSpec) -> dict[str, object]:
    """Return what the callable asks for of `mesh`, `rank` and `world_size`; the config's own go before."""
    rank, size = rank_and_size()
    if size == 1:  # as a run in one process has always been built
        return {}
    available: dict[str, object] = {"mesh": mesh_of(spec.mesh), "rank": rank, "world_size": size}
    return {name: v for name, v in fill_parameters(build, available).items() if name not in spec.kwargs}


def _described_model(checkpoint: Checkpoint, assumptions: list[str]) -> nn.Module:
    """Build the model from the config.json that lies with the checkpoint."""
    described = config_beside(checkpoint.path)
    if described is None:
        folder = checkpoint.path.parent
        recorded = f" to {folder / CONFIG}; a recorder takes it as `build=`" if (folder / RUN).exists() else ""
        raise ConfigError(
            f"model: is missing, and {checkpoint.path} has no config.json to build it from",
            hint=f"add for example `model: train:build_model`, a callable that returns the nn.Module,{recorded}".rstrip(
                ","
            ),
        )
    return build_from_config(described, checkpoint.model, assumptions)
