"""torch as installed still numbers its autograd nodes the way the hunt relies on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from nanhunt.probes.autograd import backward_node, forward_sequence


class Recorder(TorchDispatchMode):
    """Notes, for each op, the number asked for in forward or the node that runs in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.claimed: dict[int, str] = {}
        self.ran: list[tuple[str, str, int | None]] = []

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        node = backward_node()
        if node is None:
            self.claimed.setdefault(forward_sequence(), str(func))
        else:
            self.ran.append((str(func), *node))
        return func(*args, **(kwargs or {}))


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3), nn.Softmax(-1))


def test_each_backward_op_maps_to_the_forward_op_that_made_its_node() -> None:
    model, x = small_net(), torch.randn(2, 4)
    with Recorder() as seen:
        loss = (model(x).exp().sqrt() + 1).log().sum()
        loss.backward()
    forward = {node: seen.claimed[number] for _, node, number in seen.ran if number is not None}
    assert forward == {
        "SumBackward0": "aten.sum.default",
        "LogBackward0": "aten.log.default",
        "SqrtBackward0": "aten.sqrt.default",
        "ExpBackward0": "aten.exp.default",
        "SoftmaxBackward0": "aten._softmax.default",
        "AddmmBackward0": "aten.addmm.default",
        "NativeLayerNormBackward0": "aten.native_layer_norm.default",
        "GeluBackward0": "aten.gelu.default",
        "TBackward0": "aten.t.default",
    }


def test_the_numbers_are_those_of_the_nodes_themselves() -> None:
    x = torch.ones(3, requires_grad=True)
    with Recorder() as seen:
        y = x.exp()
    number = y.grad_fn._sequence_nr()
    assert seen.claimed[number] == "aten.exp.default"


def test_a_gradients_accumulation_is_no_forward_ops_node() -> None:
    x = torch.ones(3, requires_grad=True)
    x.sum().backward()
    with Recorder() as seen:
        x.sum().backward()
    assert ("aten.add_.Tensor", "torch::autograd::AccumulateGrad", None) in seen.ran


def test_there_is_no_node_outside_of_backward() -> None:
    assert backward_node() is None
    torch.ones(2, requires_grad=True).sum().backward()
    assert backward_node() is None


def test_grad_mode_tells_a_recomputation_from_the_backward_pass_around_it() -> None:
    modes: dict[str, bool] = {}

    class GradMode(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Iterable[type], args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if backward_node() is not None:
                modes[str(func)] = torch.is_grad_enabled()
            return func(*args, **(kwargs or {}))

    def region(v: Tensor) -> Tensor:
        return (v.exp() * 2).sin()

    for reentrant in (True, False):
        modes.clear()
        x = torch.ones(3, requires_grad=True)
        with GradMode():
            checkpoint(region, x, use_reentrant=reentrant).sum().backward()
        assert (modes["aten.exp.default"], modes["aten.cos.default"]) == (True, False)
