"""What the softmax probe hears is what numpy computes of the same numbers, and no more than attention is called so."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.probes.probe import RowBuffer
from nanhunt.probes.softmax import watch_softmax


class _Run:
    train_step = None

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def roots(self) -> dict[str, nn.Module]:
        return {"": self.model}


def heard(model: nn.Module, *args: Any, exact: bool = False) -> dict[tuple[str, str], list[float]]:
    rows = RowBuffer()
    with watch_softmax(_Run(model), rows, exact=exact):  # type: ignore[arg-type]
        model(*args)
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows.take():
        assert row.value is not None
        found.setdefault((row.module, row.name), []).append(row.value)
    return found


class Attention(nn.Module):
    """q = k = v = x, with a mask of -inf on what is ahead."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 / math.sqrt(x.shape[-1])
        if self.how == "fused":
            return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True)[:, 0]
        ahead = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = (x @ x.transpose(1, 2) * scale).masked_fill(ahead, -math.inf)
        p = torch.softmax(scores, -1) if self.how == "torch" else scores.softmax(dim=-1)
        return torch.einsum("bqk,bkd->bqd", self.drop(p), x) if self.how == "torch" else self.drop(p) @ x


class Net(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.attn = Attention(how)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x)


def expected(x: Tensor) -> tuple[float, float]:
    values = x.double().numpy()
    scores = values @ values.transpose(0, 2, 1) / math.sqrt(values.shape[-1])
    scores[:, np.triu(np.ones(scores.shape[1:], dtype=bool), 1)] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    logs = np.log(np.where(p > 0, p, 1.0))
    return float(scores.max()), float(-(p * logs).sum(-1).mean())


@pytest.mark.parametrize("how", ["torch", "method"])
def test_scores_and_entropy_of_an_attention_by_hand_are_those_of_numpy(how: str) -> None:
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0)) * 3
    found, (score, entropy) = heard(Net(how), x), expected(x)
    assert found["attn", "attention.score_max"] == pytest.approx([score], rel=1e-5)
    assert found["attn", "attention.entropy"] == pytest.approx([entropy], rel=1e-4)
    assert found["attn", "attention.keys"] == [6.0]


def test_no_score_of_a_fused_attention_passes_its_bound_and_an_exact_look_gives_the_score() -> None:
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0)) * 3
    found, (score, entropy) = heard(Net("fused"), x, exact=True), expected(x)
    assert found["attn", "attention.score_bound"][0] >= score - 1e-6
    assert found["attn", "attention.score_max"] == pytest.approx([score], rel=1e-5)
    assert found["attn", "attention.entropy"] == pytest.approx([entropy], rel=1e-4)
    assert ("attn", "attention.score_max") not in heard(Net("fused"), x)


@pytest.mark.parametrize("weights", [True, False])
def test_attention_inside_of_multihead_attention_is_heard(weights: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, x, x, need_weights=weights)[0]

    names = {name for module, name in heard(Model(), torch.randn(2, 5, 8)) if module == "inner"}
    assert names & {"attention.score_max", "attention.score_bound"}


class Edges(nn.Module):
    """Attention along the edges of a graph, with the maximum of each node taken from its scores or not."""

    def __init__(self, *, shifted: bool, weighs: bool = True) -> None:
        super().__init__()
        self.shifted, self.weighs = shifted, weighs

    def forward(self, scores: Tensor, to: Tensor, values: Tensor) -> Tensor:
        n = int(to.max()) + 1
        top = scores.new_full((n,), -math.inf).scatter_reduce(0, to, scores, "amax")
        e = torch.exp(scores - top[to] if self.shifted else scores)
        p = e / scores.new_zeros(n).index_add(0, to, e)[to]
        return p[:, None] * values if self.weighs else (p * scores).sum()


@pytest.mark.parametrize("shifted", [True, False])
def test_a_softmax_by_hand_over_a_graphs_edges_is_heard_where_it_weighs_vectors(shifted: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    to = torch.arange(6).repeat_interleave(5)
    scores, values = 4 * torch.randn(30, generator=draw), torch.randn(30, 3, generator=draw)
    found = heard(Edges(shifted=shifted), scores, to, values)
    rows = scores.double().numpy().reshape(6, 5)
    p = np.exp(rows - rows.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    score = (rows.max(1) - rows.min(1)).max() if shifted else rows.max()
    assert found["", "attention.score_max"] == pytest.approx([score], rel=1e-5)
    assert found["", "attention.entropy"] == pytest.approx([-(p * np.log(p)).sum(1).mean()], rel=1e-5)
    assert found["", "attention.keys"] == pytest.approx([5.0], rel=1e-5)
    assert heard(Edges(shifted=shifted, weighs=False), scores, to, values) == {}


class Kernel(nn.Module):
    """A mean under a Gaussian kernel: an exp that is divided by a number."""

    def forward(self, x: Tensor) -> Tensor:
        return (torch.exp(-torch.cdist(x, x).square()) / len(x)) @ x


class Router(nn.Module):
    """Experts that are weighed by a softmax, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        gates = torch.softmax(40 * x, -1)
        return torch.stack([gates[:, i : i + 1] * x for i in range(3)]).sum(0)


@pytest.mark.parametrize("model", [Kernel(), Router()])
def test_a_kernel_and_a_router_are_no_attention(model: nn.Module) -> None:
    assert heard(model, torch.randn(6, 3, generator=torch.Generator().manual_seed(0))) == {}


def test_a_softmax_that_multiplies_nothing_is_no_attention() -> None:
    class Policy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(x, -1).log().sum()

    assert heard(Policy(), torch.randn(4, 3)) == {}


def test_log_z_of_a_cross_entropy_is_that_of_numpy_and_masked_logits_do_not_shift_it() -> None:
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)) + 40
    masked = logits.clone()
    masked[0, 1] = -math.inf

    class Loss(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.CrossEntropyLoss()(x, torch.zeros(7, dtype=torch.long))

    plain, with_mask = heard(Loss(), logits), heard(Loss(), masked)
    want = np.log(np.exp(logits.double().numpy()).sum(1)).mean()
    assert plain["", "logits.log_z"] == pytest.approx([want], rel=1e-6)
    assert plain["", "logits.shift"] == pytest.approx([float(logits.double().mean())], rel=1e-6)
    assert with_mask["", "logits.shift"][0] == pytest.approx(float(logits.double().mean()), rel=1e-2)


def test_an_error_of_the_users_code_comes_through_as_it_is() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.zeros(99, 3)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        heard(Broken(), torch.randn(4, 3))
    assert F.softmax.__module__ == "torch.nn.functional"  # nothing of ours is left there


class Mapped(nn.Module):
    """Attention and a loss of each sample by itself, under `vmap`; and one of shapes alone."""

    def forward(self, x: Tensor) -> Tensor:
        def of_one(sample: Tensor) -> Tensor:
            p = torch.softmax(sample @ sample.mT, -1) @ sample
            fused = F.scaled_dot_product_attention(p[None, None], p[None, None], p[None, None])
            e = torch.exp(fused - 1)
            return (
                F.binary_cross_entropy(sample.sigmoid(), sample.sigmoid()) + (e / e.sum(-1, keepdim=True) @ p.mT).sum()
            )

        F.log_softmax(x.to("meta"), -1)
        return torch.func.vmap(of_one)(x)


class Differentiated(nn.Module):
    """A loss that `torch.func.grad` differentiates."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.grad(lambda own: F.log_softmax(own, -1).sum())(x)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_what_has_no_numbers_of_its_own_leaves_no_row() -> None:
    assert heard(Mapped(), torch.randn(3, 5, 8)) == {}


def test_what_grad_differentiates_is_heard() -> None:
    x = torch.randn(5, 8)
    found = heard(Differentiated(), x)
    assert found["", "logits.log_z"] == [pytest.approx(float(x.logsumexp(-1).mean()), rel=1e-6)]
