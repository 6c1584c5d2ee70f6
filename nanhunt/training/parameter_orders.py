"""Orders in which training programs hand a model's parameters to its optimizer.

torch keys optimizer state by a parameter's place in that order, so a state says nothing of whose moments it holds. What
tells is the number of parameters in each group, the moments' shapes, and the programs' habits, which stand here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from nanhunt.training.names import clean_name

__all__ = ["trainer_groups", "usual_orders"]

#: names that transformers.Trainer gives no weight decay, since 4.50 (`get_decay_parameter_names`)
_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def usual_orders(
    model: nn.Module, param_groups: Sequence[dict[str, Any]], *, by_trainer: bool
) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield (what the order is called, the trainable parameters in it), the likeliest first.

    Groups that carry `param_names`, as torch writes them of an optimizer made from `named_parameters()`, leave no doubt:
    theirs is the only order then. `by_trainer`: whether a Hugging Face Trainer saved the state.
    """
    named = _by_name(model, param_groups)
    if named is not None:
        yield "the order of their names", named
        return
    decayed, rest = trainer_groups(model)
    trainable: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trainable if p.dim() >= 2], [p for p in trainable if p.dim() < 2]
    orders: list[tuple[str, list[Tensor]]] = [
        ("the model's order", trainable),
        ("weights of two or more dimensions first, the rest after", matrices + vectors),
    ]
    trainers = ("the order of a Trainer's groups: decayed weights, then biases and norms", decayed + rest)
    sizes = [len(group["params"]) for group in param_groups]
    yield from [trainers, *orders] if by_trainer or sizes == [len(decayed), len(rest)] else [*orders, trainers]


def trainer_groups(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the trainable parameters as transformers.Trainer groups them: decayed ones, and biases and norms.

    Norms are told by their name; those of the class LayerNorm by their class as well.
    """
    norms = tuple(f"{name}." for name, module in model.named_modules() if name and isinstance(module, nn.LayerNorm))
    decayed: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_spared = name.startswith(norms) or _UNDECAYED.search(name.lower())
            (rest if is_spared else decayed).append(parameter)
    return decayed, rest


def _by_name(model: nn.Module, param_groups: Sequence[dict[str, Any]]) -> list[Tensor] | None:
    """Return the parameters that the groups name, in their order; None where they name none, or others."""
    if not all(len(group.get("param_names") or ()) == len(group["params"]) for group in param_groups):
        return None
    ours = {clean_name(name): p for name, p in model.named_parameters()}
    names = [clean_name(str(name)) for group in param_groups for name in group.get("param_names") or ()]
    return [ours[name] for name in names] if names and all(name in ours for name in names) else None
