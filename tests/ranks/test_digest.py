"""What ranks are held to, and what may be each one's own."""

from __future__ import annotations

import torch
from torch import nn

from nanhunt.ranks.digest import own_by_design, state_digests
from tests.conftest import tiny_run


class Counting(nn.Module):
    """Counts what it has seen, as a router does of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        nn.init.zeros_(self.layer.bias)
        self.register_buffer("seen", torch.zeros(4))


def test_without_a_wrapper_counters_and_zeros_may_be_a_ranks_own_and_weights_may_not() -> None:
    run = tiny_run(Counting(), lambda model, batch: model.layer(batch).sum(), [torch.ones(2, 4)])
    own = own_by_design(run)
    assert own == {"seen", "layer.bias"}
    assert set(state_digests(run)) - own == {"layer.weight"}
