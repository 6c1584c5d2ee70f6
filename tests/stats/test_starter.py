"""A kernel's second launch, by its compiled code, on every Triton that torch comes with: fakes stand in for Triton."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch


def fake_triton(version: str) -> dict[str, ModuleType]:
    """Return modules with all that nanhunt's device code asks for when it is imported."""

    def jit(function: Callable[..., Any] | None = None, **_: Any) -> Any:
        return function if function is not None else lambda own: own

    language = ModuleType("triton.language")
    vars(language).update(constexpr=int, float32="fp32", bfloat16="bf16", float16="fp16")
    triton = ModuleType("triton")
    vars(triton).update(__version__=version, jit=jit, language=language)
    return {"triton": triton, "triton.language": language}


class Compiled:
    """A compiled kernel of four arguments and two constants, as a Triton calls its launcher.

    3.2's has its arguments alone (`non_constexpr_vals` in its jit.py), later ones the constants too (`bound_args`).
    """

    def __init__(self, version: str) -> None:
        self._wanted = 4 if version == "3.2.0" else 6
        self.function, self.packed_metadata = "function", "packed"
        self.launched: list[tuple[Any, ...]] = []

    def run(self, *args: Any) -> None:
        grid, (stream, function, packed, *hooks), own = args[:3], args[3:9], args[9:]
        assert (function, packed, hooks) == ("function", "packed", [None, None, None])
        if len(own) != self._wanted:
            raise TypeError(f"function takes exactly {9 + self._wanted} arguments ({len(args)} given)")
        self.launched.append((grid, stream, own[:4]))

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
        return lambda *args: self.run(*grid, 7, "function", "packed", None, None, None, *args)


@pytest.mark.parametrize("version", ["3.2.0", "3.3.1", "3.6.0"])
def test_a_second_launch_hands_over_what_this_tritons_launcher_takes(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, module in fake_triton(version).items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("nanhunt.stats.triton_kernel", "nanhunt.stats.device_code"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 7, raising=False)
    kernel = importlib.import_module("nanhunt.stats.triton_kernel")
    for name in ("nanhunt.stats.triton_kernel", "nanhunt.stats.device_code"):
        monkeypatch.delitem(sys.modules, name)  # nobody after this test is to find the fakes
    compiled = Compiled(version)
    start = kernel._starter(compiled, SimpleNamespace(index=0), (16, 2048))
    start((5, 1), 1, 2, 3, 4)
    assert compiled.launched == [((5, 1, 1), 7, (1, 2, 3, 4))]
