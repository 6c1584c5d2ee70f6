"""Names that wrappers changed find their tensors, on the side of the checkpoint, the model and the optimizer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from nanhunt.errors import CheckpointError
from nanhunt.training.checkpoint import Checkpoint, load_checkpoint, load_into
from nanhunt.training.names import best_renaming, clean_name
from nanhunt.training.optimizer_state import load_optimizer

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    """Two parts of one shape: a name that went astray would fit."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    """A process group of this process alone, for DDP."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def part(wrap: Callable[[Any], Any]) -> Callable[[Net], Net]:
    """Wrap the encoder's first layer, and the encoder."""

    def wrapped(net: Net) -> Net:
        net.encoder[0] = wrap(net.encoder[0])
        net.encoder = wrap(net.encoder)
        return net

    return wrapped


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


def sharded(module: nn.Module) -> Any:
    return FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)


WRAPS: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda net: net,
    "compile": compiled,
    "ddp": DistributedDataParallel,
    "compile of ddp": lambda net: compiled(DistributedDataParallel(net)),
    "ddp of compile": lambda net: DistributedDataParallel(compiled(net)),
    "a part checkpointed": part(checkpoint_wrapper),
    "a part compiled": part(compiled),
    "a part in ddp": part(DistributedDataParallel),
    "a part in DataParallel": part(nn.DataParallel),
    "fsdp 1, at two levels": lambda net: sharded(part(lambda m: sharded(checkpoint_wrapper(m)))(net)),
    "all of it": lambda net: compiled(
        DistributedDataParallel(part(lambda m: checkpoint_wrapper(compiled(checkpoint_wrapper(m))))(net))
    ),
}


@pytest.fixture
def source(tmp_path: Path) -> Callable[[str], Checkpoint]:
    """Make a checkpoint of a wrapped model: names as `named_parameters` has them, which no state_dict hook cleans."""

    def make(wrap: str) -> Checkpoint:
        torch.manual_seed(0)
        model = WRAPS[wrap](Net())
        torch.save({"model": dict(model.named_parameters())}, tmp_path / "c.pt")
        return load_checkpoint(tmp_path / "c.pt", keys=None, trust_pickle=False)

    return make


@pytest.mark.parametrize("theirs", WRAPS)
@pytest.mark.parametrize("ours", WRAPS)
def test_each_tensor_finds_its_own_whatever_wraps_either_side(source: Any, ours: str, theirs: str) -> None:
    torch.manual_seed(0)
    expected = dict(Net().named_parameters())
    torch.manual_seed(1)
    plain = Net()
    parameters = dict(plain.named_parameters())
    model = WRAPS[ours](plain)
    match = load_into(model, source(theirs))
    assert (len(match.matched), match.missing, match.unexpected) == (6, (), ())
    for name, parameter in parameters.items():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.parametrize("theirs", WRAPS)
@pytest.mark.parametrize("ours", WRAPS)
def test_each_moment_finds_its_parameter_by_name_whatever_wraps_either_side(ours: str, theirs: str) -> None:
    torch.manual_seed(0)
    net = Net()
    live = dict(net.named_parameters())
    wrapped = WRAPS[theirs](net)
    optimizer = torch.optim.AdamW(list(reversed(list(wrapped.named_parameters()))), lr=0.1)
    for parameter in live.values():
        parameter.grad = torch.randn(parameter.shape)
    optimizer.step()
    state = optimizer.state_dict()
    saved = {
        "state": dict(zip(state["param_groups"][0]["param_names"], state["state"].values(), strict=True)),
        "param_groups": [{**state["param_groups"][0], "params": state["param_groups"][0]["param_names"]}],
    }
    plain = Net()
    parameters = dict(plain.named_parameters())
    model = WRAPS[ours](plain)
    for layout in (saved, state):  # by name, and by number with the names beside
        mine = torch.optim.AdamW(model.parameters(), lr=0.1)
        load_optimizer(mine, model, layout, [])
        for name, parameter in parameters.items():
            assert torch.equal(mine.state[parameter]["exp_avg"], optimizer.state[live[name]]["exp_avg"]), name


def test_the_names_of_a_distributed_optimizer_state_need_no_renaming() -> None:
    model = compiled(DistributedDataParallel(part(checkpoint_wrapper)(Net())))
    optimizer = torch.optim.AdamW(model.parameters())
    names = get_optimizer_state_dict(model, optimizer)["param_groups"][0]["params"]
    assert set(names) == {name for name, _ in Net().named_parameters()}


def test_segments_of_wrappers_are_dropped_in_any_order() -> None:
    name = "_fsdp_wrapped_module._orig_mod.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.mlp.weight"
    assert clean_name(name) == "layers.0.mlp.weight"


def test_a_module_called_module_keeps_its_name() -> None:
    ours = {name: name for name in ("module.weight", "head.weight", "inner.module.weight")}
    assert best_renaming(ours, dict(ours)) == (ours, "")


def test_a_model_whose_state_is_not_its_own_memory_is_refused_rather_than_left_as_built(source: Any) -> None:
    flat = FullyShardedDataParallel(Net(), device_id=torch.device("cpu"), use_orig_params=False)
    with pytest.raises(CheckpointError, match="does not give its own parameters") as refused:
        load_into(flat, source("nothing"))
    assert "without the wrapper" in str(refused.value.hint)
