"""`init`, then `replay --dry-run`, without an edit between: on what each library itself has saved."""

from __future__ import annotations

import importlib
import shutil
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch

from nanhunt.training.config import load_config

LOOP = """
import torch
from torch import nn


def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def batches(start_step=0):
    while True:
        generator = torch.Generator().manual_seed(start_step)
        yield torch.randn(4, 8, generator=generator), torch.randint(4, (4,), generator=generator)
        start_step += 1


def compute_loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
"""

LIT = """
import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class LitNet(L.LightningModule):
    def __init__(self, width=16, lr=1e-3):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


def train_dataloader():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 8, generator=generator), torch.randint(4, (64,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=8)
"""

TOKENS = """
import torch


def batches(start_step=0):
    while True:
        generator = torch.Generator().manual_seed(start_step)
        ids = torch.randint(64, (4, 16), generator=generator)
        yield {"input_ids": ids, "labels": ids.clone()}
        start_step += 1
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty project, which is the current directory, and first on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delitem(sys.modules, "train", raising=False)  # another test's, where both ran in one process
    return tmp_path


@pytest.fixture
def written(folder, nanhunt):
    """A function that writes train.py, lets a library save, then runs init and the dry run that init names."""

    def run(source, save, checkpoint):
        (folder / "train.py").write_text(textwrap.dedent(source))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save(importlib.import_module("train"), folder)
            told = nanhunt("init", checkpoint)
            assert told.code == 0, told.err
            planned = nanhunt(*told.out.splitlines()[-1].split()[1:])
        assert planned.code == 0, planned.err
        assert "cost" in planned.out
        return load_config(folder / "nanhunt.yaml"), planned.out

    return run


def save_trainer(train, folder):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 64,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_key_value_heads=2))
    ids = torch.arange(16)
    arguments = transformers.TrainingArguments(
        str(folder / "out"), max_steps=4, save_steps=4, logging_steps=1, per_device_train_batch_size=2, report_to=[],
        use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    transformers.Trainer(model=model, args=arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * 16).train()


def test_a_trainers_folder(written):
    config, planned = written(TOKENS, save_trainer, "out/checkpoint-4")
    assert (config.model, config.data.call) == (None, "train:batches")
    assert config.optimizer.call == "torch.optim:AdamW"
    assert config.train.clip_grad_norm == 1.0
    assert "LlamaForCausalLM" in planned
    assert "AdamW, 2 groups" in planned
    assert "4 to 53" in planned


def save_lightning(train, folder):
    lightning = pytest.importorskip("lightning")
    trainer = lightning.Trainer(
        max_steps=6, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(train.LitNet(width=24), train.train_dataloader())
    trainer.save_checkpoint(folder / "last.ckpt")


def test_a_lightning_checkpoint(written):
    config, planned = written(LIT, save_lightning, "last.ckpt")
    assert config.model.model_dump() == {"call": "train:LitNet", "kwargs": {"width": 24, "lr": 0.001}, "mesh": None}
    assert config.loss.model_dump() == {"call": "train:LitNet.training_step", "kwargs": {"batch_idx": 0}}
    assert config.optimizer.call == "train:LitNet.configure_optimizers"
    assert "state for 4 of 4 parameters" in planned


def save_accelerate(train, folder):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = train.build_model()
    optimizer = train.make_optimizer(model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    for _, batch in zip(range(3), train.batches(), strict=False):
        accelerator.backward(train.compute_loss(model, batch))
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    accelerator.save_state(str(folder / "state"))


def test_an_accelerate_folder(written):
    config, planned = written(LOOP, save_accelerate, "state")
    assert config.optimizer.call == "train:make_optimizer"
    assert config.scheduler.model_dump() == {
        "call": "torch.optim.lr_scheduler:CosineAnnealingLR", "kwargs": {"T_max": 100, "eta_min": 0.0},
    }  # fmt: skip
    assert "CosineAnnealingLR" in planned
    assert "SGD, 1 group" in planned


def save_safetensors(train, folder):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(train.build_model().state_dict(), str(folder / "model.safetensors"))


def test_weights_alone(written):
    config, planned = written(LOOP, save_safetensors, "model.safetensors")
    assert config.model.call == "train:build_model"
    assert "state for 0 of 4 parameters" in planned


def save_nested(train, folder):
    model = train.build_model()
    optimizer = train.make_optimizer(model)
    train.compute_loss(model, next(train.batches())).backward()
    optimizer.step()
    torch.save({"run": {"net": model.state_dict(), "opt": optimizer.state_dict(), "iteration": 3}}, folder / "own.pt")


def test_a_layout_of_ones_own(written):
    config, planned = written(LOOP, save_nested, "own.pt")
    assert config.checkpoint.model_dump(exclude_none=True) == {
        "model": "run.net", "optimizer": "run.opt", "step": "run.iteration",
    }  # fmt: skip
    assert "3 to 52" in planned


def test_a_worked_examples_checkpoint_is_drafted_as_its_own_config_has_it(folder, nanhunt):
    shutil.copy(Path(__file__).parents[2] / "configs" / "nanogpt" / "train.py", folder)
    train = importlib.import_module("train")
    train.train(folder / "ckpt.pt", 2, None)
    assert nanhunt("init", "ckpt.pt").code == 0
    config = load_config(folder / "nanhunt.yaml")
    assert config.model.call == "train:build_model"
    assert config.model.kwargs["n_embd"] == 128
    assert (config.data.call, config.loss.call) == ("train:batches", "train:compute_loss")
    assert config.optimizer.call == "train:configure_optimizer"
    assert (config.train.clip_grad_norm, config.train.seed) == (1.0, 1337)
    assert nanhunt("replay", "ckpt.pt", "--dry-run").code == 0
