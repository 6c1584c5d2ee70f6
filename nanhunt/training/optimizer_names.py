"""Optimizer state that is keyed by a parameter's name, given to the parameter of that name.

torch's own `state_dict` numbers parameters in the order of their groups. torch.distributed.checkpoint's names them, in
one of two layouts, because a number means nothing to another cut of the model:

- by name: `state: {name: {exp_avg, …}}`, `param_groups: [{params: [name, …], lr, …}]` (get_optimizer_state_dict, and
  FSDP 1);
- flat: `state.<name>.exp_avg`, `param_groups.<name>.lr`, the hyper-parameters repeated for each parameter (torchtitan).

Both become the first here. A numbered state whose groups carry `param_names`, as of an optimizer that was made of
`named_parameters()`, becomes it too. What is then left is to find each name in the model, whatever wrappers added to
it, and to number the parameters as the live optimizer does. One such state may serve several optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.errors import CheckpointError
from nanhunt.inert import few
from nanhunt.training.names import best_renaming, clean_name

__all__ = ["by_name", "covers", "numbered", "unflattened", "with_numbers", "without"]

State = dict[str, Any]


def with_numbers(state: Any, groups: Any) -> Any:
    """Turn '0' back into 0: torch.distributed.checkpoint makes texts of numbers. Names of digits stay."""
    if not isinstance(state, Mapping) or any(isinstance(p, str) for p in _members(groups)):
        return state
    if state and all(isinstance(key, str) and key.isdecimal() for key in state):
        return {int(key): value for key, value in state.items()}
    return state


def unflattened(content: Mapping[str, Any]) -> State | None:
    """Return a flat state by name; None where the dict is not one.

    Parameters with the same hyper-parameters make a group: the flat layout does not tell which they were.
    """
    hyper: dict[str, dict[str, Any]] = {}
    for key, value in content.items():
        if isinstance(key, str) and key.startswith("param_groups."):
            name, _, setting = key.removeprefix("param_groups.").rpartition(".")
            if name:
                hyper.setdefault(name, {})[setting] = value
    if not hyper:
        return None
    state: dict[str, dict[str, Any]] = {}
    for key, value in content.items():
        name = _owner(key.removeprefix("state."), hyper) if isinstance(key, str) and key.startswith("state.") else ""
        if name:
            _put(state.setdefault(name, {}), key.removeprefix(f"state.{name}.").split("."), value)
    groups: dict[str, dict[str, Any]] = {}
    for name, settings in hyper.items():
        alike = repr(sorted((k, _plain(v)) for k, v in settings.items()))
        groups.setdefault(alike, {**settings, "params": []})["params"].append(name)
    return {"state": state, "param_groups": list(groups.values())}


def by_name(saved: State) -> State | None:
    """Return the state keyed by name, where the checkpoint tells the names; None where it does not."""
    groups, members = saved["param_groups"], _members(saved["param_groups"])
    if members and all(isinstance(member, str) for member in members):
        return saved
    if not members or not all(isinstance(group, Mapping) and "params" in group for group in groups):
        return None
    names = [str(name) for group in groups for name in group.get("param_names") or ()]
    if len(names) != len(members) or len(set(names)) != len(names):
        return None
    name_of = dict(zip(members, names, strict=True))
    return {
        "state": {name_of[key]: state for key, state in saved["state"].items() if key in name_of},
        "param_groups": [{**group, "params": list(group["param_names"])} for group in groups],
    }


def covers(saved: State, optimizer: torch.optim.Optimizer, model: nn.Module) -> bool:
    """Whether a state by name names every parameter of the optimizer."""
    found = _keys(saved, model)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return bool(parameters) and all(id(p) in found for p in parameters)


def without(saved: State, optimizer: torch.optim.Optimizer, model: nn.Module) -> State | None:
    """Return what a state by name holds of other parameters than the optimizer's; None where that is nothing."""
    keys = _keys(saved, model)
    taken = {keys.get(id(p)) for group in optimizer.param_groups for p in group["params"]}
    groups = [{**group, "params": [n for n in group["params"] if n not in taken]} for group in saved["param_groups"]]
    groups = [group for group in groups if group["params"]]
    state = {name: value for name, value in saved["state"].items() if name not in taken}
    return {**saved, "state": state, "param_groups": groups} if groups else None


def numbered(saved: State, optimizer: torch.optim.Optimizer, model: nn.Module, assumptions: list[str]) -> State:
    """Return a state by name in the numbers of this optimizer, whose groups are cut where hyper-parameters differ.

    Parameters that the checkpoint does not name keep their hyper-parameters, and start without moments: that is told.
    Raises CheckpointError where it names none of them, or a moment has another shape than its parameter.
    """
    keys = _keys(saved, model)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(id(p) in keys for p in parameters):
        raise CheckpointError(
            f"optimizer: none of the checkpoint's names ({few(_members(saved['param_groups']))}) is one of the "
            f"model's ({few([name for name, _ in model.named_parameters()])})",
            hint="is `optimizer:` given the parameters of the model that `model:` builds?",
        )
    group_of = {name: index for index, group in enumerate(saved["param_groups"]) for name in group["params"]}
    _cut_groups(optimizer, {p: group_of.get(key) for p, key in keys.items()}, assumptions)
    groups, state, number = [], {}, 0
    for live in optimizer.param_groups:
        first = keys.get(id(live["params"][0])) if live["params"] else None
        source = live if first is None else saved["param_groups"][group_of[first]]
        settings = {k: v for k, v in source.items() if k not in ("params", "param_names")}
        groups.append({**settings, "params": list(range(number, number + len(live["params"])))})
        for parameter in live["params"]:
            key = keys.get(id(parameter))
            if key in saved["state"]:
                state[number] = saved["state"][key]
            number += 1
    unnamed = [name for name, p in model.named_parameters() if id(p) not in keys and p in set(parameters)]
    if unnamed:
        assumptions.append(f"optimizer: the checkpoint has no state for {few(unnamed)}: moments start from zero")
    return {**saved, "state": state, "param_groups": groups}


def _keys(saved: State, model: nn.Module) -> dict[int, str]:
    """Return the checkpoint's name for each parameter of the model, by id; for a tied one whichever is there."""
    known = {member for member in _members(saved["param_groups"]) if isinstance(member, str)}
    ours = {clean_name(name): name for name, _ in model.named_parameters(remove_duplicate=False)}
    theirs, _ = best_renaming(ours, {clean_name(name): name for name in known})
    return {
        id(parameter): theirs[clean_name(name)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if clean_name(name) in theirs
    }


def _cut_groups(optimizer: torch.optim.Optimizer, group_of: Mapping[int, int | None], assumptions: list[str]) -> None:
    """Cut the optimizer's groups so that each holds parameters of one of the checkpoint's groups.

    The pieces of a group stand in the checkpoint's order, by which a schedule's base rates are told apart, and what the
    checkpoint does not name behind them.
    """
    cut: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        parts: dict[int | None, list[Tensor]] = {}
        for parameter in group["params"]:
            parts.setdefault(group_of.get(id(parameter)), []).append(parameter)
        settings = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        order = sorted(parts, key=lambda index: (index is None, index or 0))
        cut += [group] if len(parts) < 2 else [{**settings, "params": parts[index]} for index in order]
    if len(cut) != len(optimizer.param_groups):
        optimizer.param_groups[:] = cut
        sizes = [len(group["params"]) for group in cut]
        assumptions.append(f"optimizer: regrouped as in the checkpoint ({sizes} parameters), by name")


def _members(groups: Any) -> list[Any]:
    """Return what the groups list as parameters: numbers or names; nothing of what is no list of groups."""
    inside = groups if isinstance(groups, (list, tuple)) else ()
    listed = (group.get("params") for group in inside if isinstance(group, Mapping))
    return [member for members in listed if isinstance(members, (list, tuple)) for member in members]


def _owner(key: str, names: Mapping[str, Any]) -> str:
    """Return the longest name that a flat key begins with: what follows may have dots of its own."""
    end = len(key)
    while (end := key.rfind(".", 0, end)) > 0:
        if key[:end] in names:
            return key[:end]
    return ""


def _put(state: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        state = state.setdefault(part, {})
    state[path[-1]] = value


def _plain(value: Any) -> str:
    return repr(value.tolist() if isinstance(value, Tensor) else value)
