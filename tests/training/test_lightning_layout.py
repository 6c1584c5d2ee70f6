"""Checkpoints that Lightning's Trainer wrote: each ends in the run that would have gone on."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanhunt.errors import CheckpointError
from nanhunt.training.checkpoint import Checkpoint, load_checkpoint, load_into
from nanhunt.training.config import CheckpointKeys
from nanhunt.training.optimizer_state import load_optimizers

lightning = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings("ignore")


class Module(lightning.LightningModule):
    """One optimizer, a schedule by step; the network is its attribute `model`."""

    def __init__(self, width: int = 4, arguments: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 1))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 0.01)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 4)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Gan(Module):
    """Manual optimization of two networks by two optimizers."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.critic = nn.Linear(1, 1)

    def training_step(self, batch: list[Tensor], index: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.critic(self.model(batch[0])).square().mean())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        made = torch.optim.Adam(self.model.parameters(), 0.001)
        return made, torch.optim.SGD(self.critic.parameters(), 0.01, momentum=0.9)


def fitted(module: Any, folder: Path, *callbacks: Any, **options: Any) -> Path:
    """Train for 6 optimizer steps, saved by ModelCheckpoint; return the file."""
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(80, 3), torch.randn(80, 1))
    saver = lightning.callbacks.ModelCheckpoint(dirpath=folder, filename="last", every_n_train_steps=6)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=6,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[saver, *callbacks],
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4))
    return folder / "last.ckpt"


def load(path: Path, keys: CheckpointKeys | None = None) -> Checkpoint:
    return load_checkpoint(path, keys=keys, trust_pickle=False)


def same_moments(ours: nn.Module, mine: Any, theirs: nn.Module, live: Any, key: str) -> bool:
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    return all(torch.equal(mine.state[a][key], live.state[b][key]) for a, b in pairs if b in live.state)


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}])
def test_a_run_with_automatic_optimization_is_read_whole(tmp_path: Path, options: dict[str, Any]) -> None:
    module = Module()
    found = load(fitted(module, tmp_path, **options))
    assert (found.container, found.step, found.notes) == ("lightning", 6, ())
    assert found.scheduler is not None
    assert found.scheduler["last_epoch"] == 6
    assert found.extra["hyper_parameters"] == {"width": 4, "arguments": None}
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    assert load_into(network, found).renaming == "the leading 'model.' was dropped"
    for whole in (network, Module()):  # the network alone, or the LightningModule
        load_into(whole, found)
        optimizer = torch.optim.AdamW(whole.parameters())
        load_optimizers([optimizer], whole, found, [])
        assert same_moments(whole, optimizer, module, module.optimizers().optimizer, "exp_avg_sq")
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)
    for name, tensor in module.model.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)


def test_a_run_with_two_optimizers_is_counted_in_batches(tmp_path: Path) -> None:
    module = Gan()
    found = load(fitted(module, tmp_path))
    assert found.step == 3  # 6 steps of an optimizer, 2 a batch
    assert "counts the steps of each optimizer" in found.notes[0]
    fresh = Gan()
    load_into(fresh, found)
    made, critic = fresh.configure_optimizers()
    assert load_optimizers([made, critic], fresh, found, []) == []
    live = [o.optimizer for o in module.optimizers()]
    assert same_moments(fresh.model, made, module.model, live[0], "exp_avg")
    assert same_moments(fresh.critic, critic, module.critic, live[1], "momentum_buffer")
    assert load(tmp_path / "last.ckpt", CheckpointKeys(step="global_step")).step == 6


def test_averaged_weights_are_not_taken_for_those_that_were_trained(tmp_path: Path) -> None:
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")
    average = averaging.WeightAveraging(avg_fn=torch.optim.swa_utils.get_ema_avg_fn(0.5))
    module = Module()
    path = fitted(module, tmp_path, average)
    saved = torch.load(path, weights_only=True)
    trained, averaged = saved["current_model_state"], saved["state_dict"]
    assert not torch.equal(trained["model.0.weight"], averaged["model.0.weight"])
    found = load(path)
    assert torch.equal(found.model["model.0.weight"], trained["model.0.weight"])
    assert torch.equal(found.more_models["averaged_state_dict"]["model.0.weight"], averaged["model.0.weight"])
    assert "average" in found.notes[0]
    chosen = load(path, CheckpointKeys(model="state_dict"))
    assert torch.equal(chosen.model["model.0.weight"], averaged["model.0.weight"])


def test_hyperparameters_that_need_pickle_are_refused_by_name(tmp_path: Path) -> None:
    path = fitted(Module(arguments=argparse.Namespace(lr=0.1)), tmp_path)
    with pytest.raises(CheckpointError, match=r"needs pickle: argparse\.Namespace") as refused:
        load(path)
    assert "--trust-pickle" in str(refused.value.hint)
    found = load_checkpoint(path, keys=None, trust_pickle=True)
    assert (found.step, found.extra["hyper_parameters"]["arguments"].lr) == (6, 0.1)


def test_a_gradient_scaler_is_found_under_its_plugins_name(tmp_path: Path) -> None:
    """On a CPU the plugin has no scaler to save; its state is laid where the plugin would lay it."""
    path = fitted(Module(), tmp_path)
    content = torch.load(path, weights_only=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    plugin = lightning.plugins.MixedPrecision("16-mixed", "cpu", scaler)
    torch.save({**content, type(plugin).__qualname__: plugin.state_dict()}, path)
    found = load(path)
    assert found.scaler is not None
    assert found.scaler["scale"] == 512.0
