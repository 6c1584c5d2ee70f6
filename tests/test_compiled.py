"""Compiled models: hunted in eager mode, told by their own names, and held against what the compiler makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanhunt.compiled import compiled_pass, eager, is_compiled
from nanhunt.probes.probe import RowBuffer
from nanhunt.replay import replay_step
from nanhunt.training.ring import SnapshotRing
from nanhunt.training.run import TrainingRun
from nanhunt.verdicts import Known, fault_of
from tests.conftest import tiny_run


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # torch._dynamo switches the validation of distributions off for the whole process
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def faithful(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
    return graph.forward


def poisoning(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
    def run(*args: Any) -> Any:
        return tuple(out * float("nan") if isinstance(out, Tensor) else out for out in graph.forward(*args))

    return run


def refusing(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
    raise RuntimeError


def run_with(backend: Any) -> tuple[TrainingRun, SnapshotRing]:
    torch.manual_seed(0)
    model = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)), backend=backend)
    run = tiny_run(model, lambda m, b: m(b).square().mean(), [torch.randn(3, 4) for _ in range(3)])
    run.root = Path(__file__).parent
    ring = SnapshotRing(run)
    ring.offer(run, 0)
    return run, ring


def test_the_names_are_those_of_the_model_that_was_compiled() -> None:
    run, _ = run_with(faithful)
    assert is_compiled(run)
    assert list(run.parameters()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_what_only_the_compiler_does_shows_in_the_compiled_pass_alone() -> None:
    run, ring = run_with(poisoning)
    known = Known.of(run)
    with eager(run):
        seen = replay_step(run, 0, RowBuffer(), recorded=False)
    assert fault_of(seen, known) is None
    body, fault = compiled_pass(run, ring, 0, 0, known)
    assert fault is not None
    assert (fault.kind, body["step"], body["fault"]) == ("loss", 0, "loss is NaN")


def test_a_faithful_compiler_is_found_innocent_and_the_run_is_put_back() -> None:
    run, ring = run_with(faithful)
    before = {n: t.clone() for n, t in run.parameters().items()}
    body, fault = compiled_pass(run, ring, 0, 0, Known.of(run))
    assert (fault, body["fault"], body["trouble"]) == (None, "", "")
    assert all(torch.equal(before[n], t) for n, t in run.parameters().items())


def test_the_compiled_pass_compiles_the_users_own_graph_whole() -> None:
    sizes = []

    def measuring(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        sizes.append(len(list(graph.graph.nodes)))
        return graph.forward

    run, ring = run_with(measuring)
    run.model(torch.ones(3, 4))
    alone = list(sizes)
    torch._dynamo.reset()
    sizes.clear()
    compiled_pass(run, ring, 0, 0, Known.of(run))
    assert sizes == alone


def test_a_compilation_that_fails_is_told_and_is_no_fault() -> None:
    run, ring = run_with(refusing)
    body, fault = compiled_pass(run, ring, 0, 0, Known.of(run))
    assert fault is None
    assert body["trouble"].startswith("BackendCompilerFailed")


def test_the_hunt_leaves_the_compiler_to_compile_again() -> None:
    calls = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        calls.append(1)
        return graph.forward

    run, _ = run_with(counting)
    with eager(run):
        run.model(torch.ones(1, 4))
    assert not calls
    run.model(torch.ones(1, 4))
    assert calls
