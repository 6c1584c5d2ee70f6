"""The bound on a fused attention's scores: never below the largest, and the same on every device."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nanhunt.probes.score_bound import score_bound


def bound(query: Tensor, key: Tensor, scale: float) -> float:
    held, finish = score_bound(query, key, scale)
    return finish(held.cpu().numpy())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_no_score_is_larger(heads: tuple[int, int]) -> None:
    query, key = random(3, heads[0], 17, 8), random(3, heads[1], 9, 8, seed=1)
    scores = query @ key.repeat_interleave(heads[0] // heads[1], dim=1).transpose(-2, -1) * 0.3
    assert float(scores.abs().amax()) <= bound(query, key, 0.3) < 10 * float(scores.abs().amax())


def test_a_nan_makes_it_a_nan_and_an_infinity_infinite() -> None:
    query, key = random(2, 3, 5, 4), random(2, 3, 5, 4, seed=1)
    query[1, 2, 3, 0] = math.inf
    assert bound(query, key, 0.5) == math.inf
    query[0, 0, 0, 0] = math.nan
    assert math.isnan(bound(query, key, 0.5))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 40, 64, 128, 300])
def test_a_gpu_says_what_the_cpu_says(dtype: torch.dtype, width: int) -> None:
    packed = random(2, 70, 3, 5, width).to(dtype)
    query, key, _ = packed.permute(2, 0, 3, 1, 4)  # as a fused projection leaves them, (batch, heads, tokens, width)
    cases = [(query, key), (query, key[:, :1]), (query[..., ::2], key[..., ::2]), (query[0], key[0])]
    for q, k in cases:
        if q.shape[-1]:
            device = packed.cuda()
            there = [device.as_strided(t.shape, t.stride(), t.storage_offset()) for t in (q, k)]
            for _ in range(2):  # the second time by its compiled code
                assert bound(*there, 0.25) == pytest.approx(bound(q, k, 0.25), rel=1e-6)
    there[0][..., -1, 0] = math.nan
    assert math.isnan(bound(*there, 0.25))


@pytest.mark.cuda
def test_nothing_waits_for_the_device() -> None:
    query, key = random(2, 3, 5, 64).cuda(), random(2, 3, 5, 64, seed=1).cuda()
    bound(query, key, 0.5)  # compiled once, by waiting
    torch.cuda.set_sync_debug_mode("error")
    try:
        held, finish = score_bound(query, key, 0.5)
        with pytest.raises(RuntimeError, match="synchroniz"):
            held.cpu()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert finish(held.cpu().numpy()) == pytest.approx(bound(query.cpu(), key.cpu(), 0.5), rel=1e-6)
