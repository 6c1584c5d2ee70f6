"""CUDA's autocast lists on a CPU: the listed functions run in fp32, everything else as it would."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.training.cuda_autocast import CudaAutocastLists

X = torch.linspace(0.1, 0.9, 12).reshape(3, 4).half()
Y = torch.tensor([0, 1, 2])

PROMOTED: list[Callable[[Tensor], Tensor]] = [
    torch.exp,
    torch.log,
    torch.acos,
    torch.rsqrt,
    lambda x: x.pow(2),
    lambda x: x**2,
    lambda x: 2**x,
    lambda x: x.softmax(-1),
    lambda x: torch.softmax(x, -1),
    lambda x: F.softmax(x, dim=-1),
    lambda x: F.log_softmax(x, dim=-1),
    lambda x: x.sum(),
    lambda x: x.cumsum(0),
    lambda x: x.norm(),
    lambda x: torch.linalg.vector_norm(x),
    lambda x: F.normalize(x),
    lambda x: F.layer_norm(x, (4,)),
    lambda x: nn.GroupNorm(2, 4, dtype=torch.float16)(x),
    lambda x: F.cross_entropy(x, Y),
    lambda x: F.mse_loss(x, x),
    lambda x: F.binary_cross_entropy_with_logits(x, x),
    lambda x: F.softplus(x),
    lambda x: torch.cdist(x, x),
    lambda x: torch.logsumexp(x, -1),
]
OTHERS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x + 1,
    lambda x: x * x,
    torch.relu,
    torch.tanh,
    lambda x: x @ x.t(),
    lambda x: x.mean(),
    lambda x: x.sum(dtype=torch.float16),
    lambda x: torch.softmax(x, -1, torch.float16),
    lambda x: x.max(),
]


@pytest.fixture
def lists() -> Iterator[None]:
    with torch.autocast("cpu", torch.float16), CudaAutocastLists():
        yield


@pytest.mark.usefixtures("lists")
@pytest.mark.parametrize("index", range(len(PROMOTED)))
def test_a_listed_function_runs_in_fp32(index: int) -> None:
    assert PROMOTED[index](X).dtype == torch.float32


@pytest.mark.usefixtures("lists")
@pytest.mark.parametrize("index", range(len(OTHERS)))
def test_any_other_function_keeps_the_autocast_dtype(index: int) -> None:
    assert OTHERS[index](X).dtype == torch.float16


@pytest.mark.usefixtures("lists")
def test_an_exponential_that_fp16_cannot_hold_is_finite_as_on_cuda() -> None:
    big = torch.tensor([12.0], dtype=torch.float16)
    assert torch.isfinite(big.exp())
    with torch.autocast("cpu", enabled=False):
        assert torch.isinf(big.exp())


@pytest.mark.usefixtures("lists")
def test_in_place_and_out_variants_keep_their_target() -> None:
    x, out = X.clone(), torch.empty_like(X)
    assert x.pow_(2) is x
    assert torch.equal(x, X * X)
    torch.cumsum(X, 0, out=out)
    assert torch.allclose(out.float(), X.float().cumsum(0), rtol=1e-2)


def test_outside_of_autocast_nothing_is_widened() -> None:
    with CudaAutocastLists():
        assert X.exp().dtype == torch.float16
    assert X.exp().dtype == torch.float16


@pytest.mark.usefixtures("lists")
def test_gradients_flow_back_into_fp16() -> None:
    leaf = X.clone().requires_grad_()
    leaf.exp().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.float16
    assert torch.allclose(leaf.grad.float(), X.float().exp(), rtol=1e-2)


@pytest.mark.usefixtures("lists")
def test_full_precision_arguments_stay_what_they_are() -> None:
    assert torch.exp(X.double()).dtype == torch.float64
    assert torch.sum(Y).dtype == torch.int64
