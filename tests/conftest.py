"""A training run made of a model, a loss and some batches: no files, no configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from nanhunt.training.batches import BatchSource
from nanhunt.training.run import TrainingRun

# A replay takes the GPU where there is one, and an index out of range spoils it for every test behind it: the suite sees
# none, but for the tests that are about it (`make test-gpu`).
ON_GPU = os.environ.get("NANHUNT_TEST_GPU") == "1"
if not ON_GPU:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# The same draws each time: what one draw in a thousand breaks is for `make fuzz`, or for --hypothesis-profile=default, and
# not for whoever lands next.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests marked `cuda` on a GPU, and no others there."""
    for item in items:
        is_cuda = item.get_closest_marker("cuda") is not None
        if is_cuda != ON_GPU:
            item.add_marker(pytest.mark.skip(reason="needs `make test-gpu`" if is_cuda else "runs on the CPU"))


def tiny_run(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    start_step: int = 0,
    accumulate: int = 1,
    **settings: Any,
) -> TrainingRun:
    """Return a run on the CPU; `settings` are fields of `TrainingRun`. The optimizer is plain SGD unless one is given."""
    device = torch.device("cpu")
    return TrainingRun(
        model=model,
        optimizer=optimizer or torch.optim.SGD(model.parameters(), lr=0.01),
        loss=loss,
        batches=BatchSource(batches, first_step=start_step, accumulate=accumulate, device=device),
        device=device,
        start_step=start_step,
        accumulate=accumulate,
        **settings,
    )


#: What a recorder wraps for as long as it listens.
_WRAPPED = (
    (torch.autograd, "backward"),
    (Tensor, "backward"),
    (nn.Module, "__call__"),
    (nn.Module, "zero_grad"),
    (torch.optim.Optimizer, "zero_grad"),
)


@pytest.fixture(autouse=True)
def leaves_torch_as_it_was() -> Iterator[None]:
    """A wrapper that one test leaves on misleads those behind it: a line was ours and no longer the user's, once in a suite."""
    before = _now()
    yield
    left_on = [name for (_, name), own, now in zip(_WRAPPED, before, _now(), strict=True) if now is not own]
    assert not left_on


def _now() -> list[object]:
    return [getattr(owner, name) for owner, name in _WRAPPED]
