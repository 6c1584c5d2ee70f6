"""An optimizer's numbers are given to parameters by groups' sizes, moments' shapes and the habits of programs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nanhunt.inspection.naming import names_of
from nanhunt.training.parameter_orders import fits, usual_orders


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.ln, self.out = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)

    def forward(self, x):
        return self.out(self.ln(self.fc(x)))


def groups_of(net, cut):
    named = dict(net.named_parameters())
    return [[name for name, p in named.items() if inside(p)] for inside in cut]


ALL = [lambda p: True]
MATRICES = [lambda p: p.dim() >= 2, lambda p: p.dim() < 2]


@pytest.mark.parametrize("cut", [ALL, MATRICES])
@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_an_inspection_names_as_torch_numbered_also_where_no_moment_tells(kind, cut):
    torch.manual_seed(0)
    net = Net()
    named = dict(net.named_parameters())
    names = groups_of(net, cut)
    optimizer = getattr(torch.optim, kind)([{"params": [named[n] for n in group]} for group in names], lr=0.1)
    net(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    found, _ = names_of(state["param_groups"], state["state"], [dict(net.state_dict())])
    assert found == dict(enumerate(n for group in names for n in group))


def test_an_order_with_the_states_group_sizes_comes_first_and_a_trainers_own_before_it():
    shapes = {name: tuple(p.shape) for name, p in Net().named_parameters()}
    assert usual_orders(shapes, [6])[0].sizes == [6]
    assert usual_orders(shapes, [2, 4])[0].sizes == [2, 4]
    assert "Trainer" in usual_orders(shapes, [6], by_trainer=True)[0].told


def test_no_order_is_believed_whose_shapes_are_not_the_moments():
    groups = [{"params": [0, 1]}]
    entries = {0: {"exp_avg": torch.zeros(3)}, 1: {"exp_avg": torch.zeros(4), "exp_avg_sq": torch.zeros(())}}
    assert fits([(3,), (4,)], groups, entries)
    assert not fits([(4,), (3,)], groups, entries)
    assert not fits([(3,)], groups, entries)
    assert not fits([(3,), (4,)], groups, {0: {"exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(5)}})
