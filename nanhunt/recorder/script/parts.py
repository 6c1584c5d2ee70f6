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

__all__ = ["Parts", "parts_of"]


class Parts(nn.Module):
    """The networks of a script, and trained tensors that lie in none of them, by name. It is never called."""

    def __init__(self, networks: dict[str, nn.Module], loose: dict[str, Tensor]) -> None:
        super().__init__()
        for name, module in networks.items():
            self.add_module(name, module)
        # past the check for a Parameter: any leaf can be trained
        self._parameters.update(loose)  # type: ignore[arg-type]


def parts_of(births: Births) -> Parts:
    """Return the outermost modules that hold what the script's optimizers train, and the rest of what they train."""
    trained = {id(p): p for o in births.optimizers() for p in parameters_of(o)}
    modules = [module for module in births.modules() if not isinstance(module, Parts)]
    inside = {id(child) for module in modules for child in module._modules.values()}
    roots = [module for module in modules if id(module) not in inside]
    found = list({id(bare): bare for root in roots if any(id(p) in trained for p in root.parameters())
                  for bare in [_bare(root)]}.values())  # fmt: skip
    held = {id(p) for module in found for p in module.parameters()}
    loose = [p for key, p in trained.items() if key not in held]
    names = _named([*found, *loose])
    return Parts({names[id(m)]: m for m in found}, {names[id(p)]: p for p in loose})


def _bare(module: nn.Module) -> nn.Module:
    """Return the module inside of DDP or DataParallel; torch.compile's wrapper bears its own names, and stays."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    return _bare(module.module) if isinstance(module, wrappers) else module


def _named(values: list[nn.Module | Tensor]) -> dict[int, str]:
    """Return a name for each: a variable of the script's that holds it, else its class's."""
    wanted = {id(value) for value in values}
    found: dict[int, str] = {}
    for name, value in _variables():
        if id(value) in wanted and id(value) not in found and name.isidentifier() and name not in found.values():
            found[id(value)] = name
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
