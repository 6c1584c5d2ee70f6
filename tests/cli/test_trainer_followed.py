"""A Hugging Face Trainer's run, replayed from the middle: its batches by `skip: true`, its losses found by themselves."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

TRAIN = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments


class Samples(torch.utils.data.Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        ids = torch.randint(64, (16,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


def build_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, attention_dropout=0.1, **sizes))


def trainer(model=None, every=1):
    arguments = TrainingArguments(
        "out", max_steps=14, save_steps=7, logging_steps=every, per_device_train_batch_size=4, report_to=[],
        use_cpu=True, disable_tqdm=True, learning_rate=1e-3, lr_scheduler_type="constant",
    )
    return Trainer(model or build_model(), arguments, train_dataset=Samples())


def loader():
    return trainer().get_train_dataloader()


def optimizer(model):
    return trainer(model).create_optimizer()
"""


@pytest.mark.parametrize("every", [1, 3])
def test_the_replay_follows_the_run_to_its_end(project, nanhunt, environment, every):
    pytest.importorskip("transformers")
    project.write("train.py", TRAIN)
    command = [sys.executable, "-c", f"import train; train.trainer(every={every}).train()"]
    subprocess.run(command, cwd=project.root, check=True, env=environment, capture_output=True)
    project.configure(
        data={"call": "train:loader", "skip": True},
        loss=None,
        optimizer="train:optimizer",
        train={"steps": 7, "clip_grad_norm": 1.0},
    )
    assert nanhunt("replay", "out/checkpoint-7", "-c", "nanhunt.yaml", "--no-trials").code == 0
    body = json.loads(nanhunt("report", "trace.parquet", "--format", "json").out)
    original = body["original_run"]
    assert (original["verdict"], original["exact"], original["source"]) == (
        "digits",
        True,
        "checkpoint-14/trainer_state.json",
    )
    # of three steps each, the first mean begins before the checkpoint
    assert (original["compared"], original["through"]) == ((7, 13) if every == 1 else (1, 11))
