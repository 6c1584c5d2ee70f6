"""The functions of torch that a tape may name: those that a mode can be told of, and nothing else of torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import overrides

from nanhunt.errors import ConfigError

__all__ = ["function_named", "is_known", "name_of"]

#: A mode is told of them, and torch's list of functions that can be overridden has them not.
_MORE = (
    "torch.rand_like", "torch.randn_like", "torch.randint_like", "torch.Tensor.data.__set__", "torch.Tensor.grad.__set__",
)  # fmt: skip
#: Functions over lists of tensors, which torch's list has not either: clips and optimizers are made of them.
_OVER_LISTS = "_foreach_"

#: What calls what it is given, or makes an object of it.
_CALLERS = frozenset(
    "apply_ map_ map2_ register_hook register_post_accumulate_grad_hook module_load __setstate__ __reduce__ __reduce_ex__"
    " __deepcopy__".split()
)


@lru_cache(maxsize=4096)
def name_of(function: Any) -> str | None:
    """Return the name by which a tape knows a function; None where it has none."""
    if function is torch.autograd.grad:
        return "torch.autograd.grad"
    name = str(getattr(function, "__name__", ""))
    if name.startswith(_OVER_LISTS) and getattr(torch, name, None) == function:
        return f"torch.{name}"
    resolved: str | None = overrides.resolve_name(function)
    return resolved


def is_known(name: str) -> bool:
    """Whether this version of torch has a function of the name that a tape may call."""
    return name in _functions()


def function_named(name: str) -> Callable[..., Any]:
    """Return the function. Raises ConfigError where the name stands for none."""
    found = _functions().get(name)
    if found is None:
        raise ConfigError(f"loss: the tape names {name:.80}, which this version of torch does not have")
    return found


@lru_cache(maxsize=1)
def _functions() -> dict[str, Callable[..., Any]]:
    every = [f for functions in overrides.get_overridable_functions().values() for f in functions]
    found = {name: f for f in every if (name := overrides.resolve_name(f)) is not None}
    methods = {f"torch.Tensor.{name}": getattr(torch.Tensor, name) for name in dir(torch.Tensor) if name[0] != "_"}
    # new_zeros, unflatten, to_sparse_coo: told of, though nothing lists them
    found |= {name: f for name, f in methods.items() if callable(f) and overrides.resolve_name(f) == name}
    named: dict[Any, str] = overrides._get_overridable_functions()[1]
    found |= {name: f for f, name in named.items() if name in _MORE}
    found |= {f"torch.{name}": getattr(torch, name) for name in dir(torch) if name.startswith(_OVER_LISTS)}
    return {n: f for n, f in found.items() if n.rpartition(".")[2] not in _CALLERS} | {
        "torch.autograd.grad": torch.autograd.grad
    }
