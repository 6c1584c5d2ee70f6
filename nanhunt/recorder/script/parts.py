"""All that a script trains as one module: its outermost networks by the names that the script has for them.

A GAN's two networks, an encoder and a head, a temperature that lies in no module. Nothing is added to the modules
themselves: the whole only refers to them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType

from torch import Tensor, nn

from nanhunt.recorder.live import parameters_of
from nanhunt.recorder.script.births import Births

__all__ = ["Parts", "bare_module", "parts_of"]


class Parts(nn.Module):
    """The networks of a script, and trained tensors that lie in none of them, by name. It is never called."""

    def __init__(self, networks: dict[str, nn.Module], loose: dict[str, Tensor]) -> None:
        super().__init__()
        for name, module in networks.items():
            self.add_module(name, module)
        #: names of networks by the id of what the script calls in their place: DDP or torch.compile around them
        self.wrapped: dict[int, str] = {}
        self.is_compiled = False
        # past the check for a Parameter: any leaf can be trained
        self._parameters.update(loose)  # type: ignore[arg-type]


def parts_of(births: Births) -> Parts:
    """Return the outermost modules that hold what the script's optimizers train, and the rest of what they train."""
    trained = {id(p): p for o in births.optimizers() for p in parameters_of(o)}
    modules = [module for module in births.modules() if not isinstance(module, Parts)]
    inside = {id(child) for module in modules for child in module._modules.values()}
    roots = [module for module in modules if id(module) not in inside]
    bare = {id(root): bare_module(root) for root in roots if any(id(p) in trained for p in root.parameters())}
    found = list({id(module): module for module in bare.values()}.values())
    held = {id(p) for module in found for p in module.parameters()}
    loose = [p for key, p in trained.items() if key not in held]
    names = _named([*found, *loose], {outer: id(module) for outer, module in bare.items()})
    parts = Parts({names[id(m)]: m for m in found}, {names[id(p)]: p for p in loose})
    parts.wrapped = {outer: names[id(module)] for outer, module in bare.items() if outer != id(module)}
    parts.is_compiled = any(hasattr(root, "_orig_mod") for root in roots if id(root) in parts.wrapped)
    return parts


def bare_module(module: nn.Module) -> nn.Module:
    """Return the module inside of wrappers: DDP, DataParallel, torch.compile."""
    inner = getattr(module, "_orig_mod", None)
    if inner is None and isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        inner = module.module
    return bare_module(inner) if isinstance(inner, nn.Module) else module


def _named(values: list[nn.Module | Tensor], inside: dict[int, int]) -> dict[int, str]:
    """Return a name for each: a variable of the script's that holds it or what is around it, else its class's."""
    wanted = {id(value) for value in values}
    found: dict[int, str] = {}
    for name, value in _variables():
        key = inside.get(id(value), id(value))
        if key in wanted and key not in found and name.isidentifier() and name not in found.values():
            found[key] = name
    taken = set(found.values())
    for value in values:
        if id(value) not in found:
            stem = type(value).__name__.lower() if isinstance(value, nn.Module) else "trained"
            number = next(i for i in range(len(values) + 1) if (f"{stem}_{i}" if i else stem) not in taken)
            found[id(value)] = f"{stem}_{number}" if number else stem
            taken.add(found[id(value)])
    # a name of nn.Module's own cannot be a part's
    return {key: f"{name}_" if hasattr(nn.Module, name) else name for key, name in found.items()}


def _variables() -> Iterator[tuple[str, object]]:
    """Yield (name, value) of the variables in reach: of the functions that run, of their `self`, of the script."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_globals.get("__name__", "").startswith(("nanhunt.", "torch.")):
            yield from list(frame.f_locals.items())
            own = getattr(frame.f_locals.get("self"), "__dict__", None)
            if isinstance(own, dict):
                yield from list(own.items())
        frame = frame.f_back
    yield from list(vars(sys.modules["__main__"]).items())
