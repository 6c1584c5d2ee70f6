"""Optimizer state from a checkpoint into an optimizer whose groups may be cut differently.

torch keys optimizer state by a parameter's index in group order. The same model trained with one group, or with decayed
and undecayed weights in two, gives two different orders, and mapping one into the other by index gives every tensor a
stranger's moments. Where the checkpoint tells names, those decide (`optimizer_names.py`); else shapes tell the orders
apart.

The state becomes the optimizer's own: a copy of what is mapped from a file, for a run that still trains may write that
file anew, and a mapping whose file is cut short ends the process.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nanhunt.errors import CheckpointError
from nanhunt.training.names import clean_name
from nanhunt.training.on_demand import OnDemand, outline, part_of
from nanhunt.training.optimizer_names import by_name, covers, numbered, without
from nanhunt.training.overruled import overruled_settings
from nanhunt.training.parameter_orders import fits, names_in_groups, usual_orders
from nanhunt.training.saved_value import is_optimizer_state
from nanhunt.training.shards import Spread, is_spread, own_part

if TYPE_CHECKING:
    from nanhunt.training.checkpoint import Checkpoint

__all__ = ["load_optimizer", "load_optimizers", "take_fitting"]

#: Hyper-parameters that tell one family of optimizers from another.
_TELLING = frozenset({"betas", "momentum", "alpha", "rho", "lambd"})


def load_optimizers(
    optimizers: list[torch.optim.Optimizer], model: nn.Module, checkpoint: Checkpoint, assumptions: list[str]
) -> list[dict[str, Any]]:
    """Load the checkpoint's states into the optimizers that the config made; return the states that none took.

    One optimizer takes the checkpoint's own or none; of several each takes the first state that fits it.
    """
    states = [*([checkpoint.optimizer] if checkpoint.optimizer else []), *checkpoint.more_optimizers]
    for state in states:
        _refuse_malformed(state)
    if not states:
        assumptions.append("the checkpoint holds no optimizer state: moments start from zero")
        return []
    if len(optimizers) == 1:
        fitting = take_fitting(optimizers[0], states, model) if len(states) > 1 else None
        saved = states.pop(0) if fitting is None else fitting
        by_trainer = checkpoint.container == "hf-trainer"
        load_optimizer(optimizers[0], model, saved, assumptions, by_trainer=by_trainer)
        return states
    for index, optimizer in enumerate(optimizers):
        fitting = take_fitting(optimizer, states, model)
        if fitting is None:
            name = f"optimizer {index} ({type(optimizer).__name__})"
            assumptions.append(f"the checkpoint holds no state that fits {name}: its moments start from zero")
        else:
            load_optimizer(optimizer, model, fitting, assumptions)
    return states


def take_fitting(
    optimizer: torch.optim.Optimizer, states: list[dict[str, Any]], model: nn.Module
) -> dict[str, Any] | None:
    """Remove and return the first state that fits this optimizer; None without one.

    One by name fits where it names all parameters, and what it holds of others stays; one by number where it has the
    optimizer's groups, shapes and hyper-parameters.
    """
    ours = _parameters(optimizer)
    telling = set(optimizer.param_groups[0]) & _TELLING
    for index, saved in enumerate(states):
        groups = saved["param_groups"]
        names = by_name(saved)
        if names is not None and covers(names, optimizer, model):
            rest = without(names, optimizer, model)
            states[index : index + 1] = [rest] if rest is not None else []
            return names
        if names is saved:
            continue
        sizes = [len(group["params"]) for group in groups]
        if sizes != [len(group["params"]) for group in optimizer.param_groups] or not _fits(ours, saved):
            continue
        if set().union(*(g.keys() for g in groups)) & _TELLING <= telling:
            return states.pop(index)
    return None


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    saved: dict[str, Any],
    assumptions: list[str],
    *,
    by_trainer: bool = False,
) -> None:
    """Load `saved` into `optimizer`, by name where it tells names, else in the order of parameters that fits.

    `by_trainer`: whether a Hugging Face Trainer saved it, whose groups are known. Regroups the optimizer as the
    checkpoint's was, which is told. Raises CheckpointError where no order fits the moments' shapes.
    """
    _refuse_malformed(saved)
    names = by_name(saved)
    if names is not None and (names is saved or covers(names, optimizer, model)):
        saved = numbered(names, optimizer, model, assumptions)
    _refuse_another_optimizer(optimizer, saved)
    sizes = [len(group["params"]) for group in saved["param_groups"]]
    if sizes != [len(group["params"]) for group in optimizer.param_groups]:
        _regroup(optimizer, model, saved, sizes, assumptions, by_trainer)
    elif not _fits(_parameters(optimizer), saved):
        raise CheckpointError(
            "optimizer: the checkpoint's moments do not have the shapes of its parameters",
            hint="optimizer: must build its parameter groups in the order of the run that saved the checkpoint",
        )
    else:
        assumptions += overruled_settings(optimizer, saved)
    _refuse_other_decay(optimizer, saved)
    # a key that another version of torch does not save has this one's default
    loadable = copy.copy(saved)
    loadable["param_groups"] = [
        {**{k: v for k, v in ours.items() if k != "params"}, **theirs, **_switched_off(ours)}
        for ours, theirs in zip(optimizer.param_groups, saved["param_groups"], strict=True)
    ]
    owners = {index: p for g, ours in zip(saved["param_groups"], optimizer.param_groups, strict=True)
              for index, p in zip(g["params"], ours["params"], strict=True)}  # fmt: skip
    loadable["state"] = {
        key: _own_moments(state, owners.get(key)) if isinstance(state, Mapping) else state
        for key, state in saved["state"].items()
    }
    try:
        optimizer.load_state_dict(loadable)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        told = (str(error).strip().splitlines() or [""])[0][:200]
        raise CheckpointError(
            f"optimizer: the checkpoint's state cannot be loaded: {type(error).__name__}: {told}",
            hint="it is damaged, or of another kind of optimizer",
        ) from error
    mapped = {
        t.untyped_storage().data_ptr()
        for state in saved["state"].values()
        if not isinstance(state, OnDemand)
        for t in _tensors(state)
    }
    for parameter, state in optimizer.state.items():
        optimizer.state[parameter] = _owned(state, mapped)


def _own_moments(state: Mapping[str, Any], parameter: Tensor | None) -> dict[str, Any]:
    """Return a parameter's state; of one that is spread over ranks this rank's part of what has its shape."""
    spread = Spread.of(parameter) if parameter is not None else None
    if parameter is None or spread is None:
        return dict(state)

    saved = outline(state)

    def own(key: str) -> Any:
        held = saved[key]
        if not isinstance(held, Tensor) or held.shape != parameter.shape or is_spread(held):
            return state[key]
        part, device = part_of(state, key, parameter), own_part(parameter).device
        # what was read for this is nobody else's
        return spread.joined(part.to(device, copy=not isinstance(state, OnDemand)))

    return {key: own(key) for key in saved}


def _switched_off(group: dict[str, Any]) -> dict[str, Any]:
    """Return what a GPU's run had switched on and a CPU refuses to step with: CUDA graphs need `capturable`."""
    on_cpu = "capturable" in group and all(p.is_cpu for p in group["params"])
    return {"capturable": False} if on_cpu else {}


def _owned(state: Any, mapped: set[int]) -> Any:
    """Copy the tensors of a state that lie in the checkpoint's memory: torch keeps what it need not cast or move."""
    if isinstance(state, Tensor):
        return state.clone() if not is_spread(state) and state.untyped_storage().data_ptr() in mapped else state
    if isinstance(state, dict):
        return {key: _owned(value, mapped) for key, value in state.items()}
    if isinstance(state, list):
        return [_owned(value, mapped) for value in state]
    return state


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, (Mapping, list, tuple)):
        for value in state.values() if isinstance(state, Mapping) else state:
            yield from _tensors(value)


def _refuse_malformed(saved: Any) -> None:
    """Raise CheckpointError unless a state has the structure that every optimizer of torch saves."""
    if (
        not isinstance(saved, dict)
        or not isinstance(saved.get("param_groups"), list)
        or not isinstance(saved.get("state"), dict)
    ):
        keys = (
            f"the keys {sorted(map(str, saved))[:8]}"
            if isinstance(saved, dict)
            else f"the form of a {type(saved).__name__}"
        )
        raise CheckpointError(
            f"optimizer: the checkpoint's state has {keys}, not torch's 'state' and 'param_groups'",
            hint="name the right entry under checkpoint.optimizer in nanhunt.yaml",
        )
    if not is_optimizer_state(saved):
        raise CheckpointError(
            "optimizer: the checkpoint's groups of parameters are not what torch saves",
            hint="the file is damaged: use another copy, or an earlier checkpoint",
        )


def _refuse_another_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Torch loads Adam's state into SGD without a word; the replay would be another run's."""
    theirs = set().union(*(group.keys() for group in saved["param_groups"])) & _TELLING
    ours = set(optimizer.param_groups[0]) & _TELLING
    if not theirs <= ours:
        raise CheckpointError(
            f"optimizer: {type(optimizer).__name__} does not know {', '.join(sorted(theirs - ours))}, which the "
            "checkpoint's optimizer had",
            hint="name the optimizer that the run was trained with under optimizer:",
        )


def _refuse_other_decay(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Before 2.7 torch has decoupled weight decay in a class of its own, and leaves the key of later versions unread."""
    kind = type(optimizer)
    if kind not in (torch.optim.Adam, torch.optim.AdamW) or "decoupled_weight_decay" in optimizer.param_groups[0]:
        return
    decoupled = {bool(g["decoupled_weight_decay"]) for g in saved["param_groups"]
                 if "decoupled_weight_decay" in g and g.get("weight_decay")}  # fmt: skip
    if decoupled and decoupled != {kind is torch.optim.AdamW}:
        other = "AdamW" if kind is torch.optim.Adam else "Adam"
        raise CheckpointError(
            f"optimizer: the checkpoint's weight decay is {other}'s, and torch {torch.__version__} has it in that class alone",
            hint=f"write `optimizer: {{call: torch.optim:{other}}}`",
        )


def _regroup(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    saved: dict[str, Any],
    sizes: list[int],
    assumptions: list[str],
    by_trainer: bool,
) -> None:
    """Give the optimizer the checkpoint's groups, in the first usual order whose shapes are those of its moments."""
    ours = set(map(id, _parameters(optimizer)))
    for name, order in _orders(model, saved["param_groups"], by_trainer=by_trainer):
        if len(order) == sum(sizes) and ours == set(map(id, order)) and _fits(order, saved):
            template = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
            optimizer.param_groups.clear()
            for size in sizes:
                optimizer.param_groups.append({"params": order[:size], **copy.deepcopy(template)})
                order = order[size:]
            assumptions.append(f"optimizer: regrouped as in the checkpoint ({sizes} parameters), in {name}")
            return
    raise CheckpointError(
        f"optimizer: has groups of {[len(g['params']) for g in optimizer.param_groups]} parameters, "
        f"the checkpoint's has {sizes}",
        hint="let optimizer: name your own function (model) -> Optimizer that builds the same groups",
    )


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _fits(order: Sequence[Tensor], saved: dict[str, Any]) -> bool:
    """Whether each saved moment has the shape of the parameter that its index names in this order."""
    return fits([tuple(p.shape) for p in order], saved["param_groups"], saved["state"])


def _orders(
    model: nn.Module, groups: Sequence[Mapping[str, Any]], *, by_trainer: bool
) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield (what the order is called, the trainable parameters in it), the likeliest first.

    Names that the groups tell leave no doubt: theirs is the only order then.
    """
    every = {clean_name(name): p for name, p in model.named_parameters()}
    told = [clean_name(name) for name in names_in_groups(groups) or ()]
    if told and all(name in every for name in told):
        yield "the order of their names", [every[name] for name in told]
        return
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
    shapes = {name: tuple(p.shape) for name, p in trained.items()}
    sizes = [len(group["params"]) for group in groups]
    for order in usual_orders(shapes, sizes, norms=norms, by_trainer=by_trainer):
        yield order.told, [trained[name] for name in order.names]
