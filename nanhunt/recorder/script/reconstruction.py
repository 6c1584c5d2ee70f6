"""How a script's model is built again: its class with its arguments, and what the script did to it afterwards."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from torch import nn

from nanhunt.recorder.script.births import Births, Made
from nanhunt.recorder.script.likeness import Call, Object
from nanhunt.recorder.script.spelling import Speller
from nanhunt.training.names import clean_name

__all__ = ["reconstruction"]


def reconstruction(model: nn.Module, births: Births, speller: Speller) -> dict[str, Any]:
    """Return the arguments of `training.rebuilt.rebuilt_model`. Raises UnspelledError where something has no spelling."""
    found: dict[str, Any] = {"made_by": speller.module(model)}
    replaced = {name: speller.module(module) for name, module in _placed_later(model, births)}
    tied = _tied(model)
    frozen = [clean_name(name) for name, p in model.named_parameters() if not p.requires_grad]
    evaluating = [name for name, module in model.named_modules() if name and not module.training]
    parts = {"replaced": replaced, "tied": tied, "frozen": frozen, "evaluating": evaluating}
    return found | {key: part for key, part in parts.items() if part}


def _tied(model: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(clean_name(name))
    return [group for group in names.values() if len(group) > 1]


def _placed_later(model: nn.Module, births: Births) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, module) of what no constructor made and no argument brought: a head that was replaced.

    What lies inside of such a module comes with it.
    """
    given: set[int] = set()
    taken: list[str] = []
    for name, module in model.named_modules():
        made = births.of(module)
        if made is None:
            continue
        given |= {id(m) for m in _modules_in(made)}
        inside = any(name.startswith(f"{outer}.") for outer in taken)
        if name and not inside and not made.by_constructor and id(module) not in given:
            taken.append(name)
            yield name, module


def _modules_in(made: Made) -> Iterator[nn.Module]:
    queue: list[Any] = [made.args, made.kwargs]
    while queue:
        value = queue.pop()
        if isinstance(value, weakref.ref):
            module = value()
            if isinstance(module, nn.Module):
                yield module
        elif isinstance(value, (list, tuple)):
            queue += value
        elif isinstance(value, dict):
            queue += value.values()
        elif isinstance(value, (Call, Object)):
            queue += [value.args, value.kwargs] if isinstance(value, Call) else [value.attributes]
