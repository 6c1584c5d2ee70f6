"""Build a recorded script's model and optimizer again: the class with the arguments that the script gave it.

What was done to the model behind its constructor is done again where the bundle tells it: modules that were replaced,
weights that were tied, parameters that were frozen. The checkpoint's match says whether that was all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.errors import ConfigError
from nanhunt.training.names import clean_name
from nanhunt.training.spelled import imported, made, value_of
from nanhunt.training.taped_step import SCALERS

__all__ = ["rebuilt_model", "rebuilt_optimizer", "rebuilt_optimizers", "rebuilt_parts"]


def rebuilt_model(
    *,
    made_by: dict[str, Any],
    replaced: Mapping[str, dict[str, Any]] | None = None,
    tied: Sequence[Sequence[str]] = (),
    frozen: Sequence[str] = (),
    evaluating: Sequence[str] = (),
) -> nn.Module:
    """Return the model.

    `made_by` is its class with its arguments, `replaced` the same of modules by name that the script put in later,
    `tied` the names that share one parameter, `frozen` those of parameters that ask for no gradient, `evaluating` those
    of modules in eval mode.
    """
    model: nn.Module = made(made_by)
    for name, own in (replaced or {}).items():
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, made(own))
    for first, *others in tied:
        parameter = model.get_parameter(first)
        for name in others:
            owner, _, last = name.rpartition(".")
            if model.get_parameter(name) is not parameter:
                setattr(model.get_submodule(owner), last, parameter)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    for name in evaluating:
        model.get_submodule(name).training = False
    return model


def rebuilt_parts(
    *, parts: Mapping[str, dict[str, Any]], loose: Mapping[str, Sequence[int]] | None = None
) -> nn.Module:
    """Return networks, each as `rebuilt_model` builds it, as one module that is never called.

    `loose` are the shapes of trained tensors that lie in none of them.
    """
    whole = nn.Module()
    for name, part in parts.items():
        whole.add_module(name, rebuilt_model(**part))
    for name, shape in (loose or {}).items():
        whole.register_parameter(name, nn.Parameter(torch.zeros(list(shape))))
    return whole


def rebuilt_optimizers(
    model: nn.Module, *, optimizers: Sequence[dict[str, Any]], scaler: Mapping[str, Any] | None = None
) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a script, each as `rebuilt_optimizer` makes it; its gradient scaler goes to the taped step."""
    device = next((p.device.type for p in model.parameters()), "cpu")
    SCALERS[:] = [torch.amp.GradScaler(device, **scaler)] if scaler is not None else []
    return [rebuilt_optimizer(model, **made) for made in optimizers]


def rebuilt_optimizer(
    model: nn.Module, *, kind: str, groups: Sequence[Sequence[str]], settings: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Return an optimizer of a class whose groups hold the parameters of these names; the checkpoint has the rest.

    Raises ConfigError where the model has no such parameter.
    """
    named: dict[str, Tensor] = {clean_name(name): p for name, p in model.named_parameters(remove_duplicate=False)}
    missing = [name for group in groups for name in group if name not in named]
    if missing:
        raise ConfigError(
            f"optimizer: the recorded optimizer held {missing[0]}, which the model does not have",
            hint="let model: build the model that was trained",
        )
    members = [{"params": [named[name] for name in group]} for group in groups]
    optimizer: torch.optim.Optimizer = imported(kind)(members, **value_of(dict(settings)))
    return optimizer
