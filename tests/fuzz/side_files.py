"""Inputs for what lies beside a checkpoint: files of batches, logs of losses."""

from __future__ import annotations

import functools
import io
import json
import random
import struct
from pathlib import Path

import safetensors.torch
import torch

from nanhunt.training.batch_file import FORMAT, read_batches
from nanhunt.training.config_data import LossesSpec
from nanhunt.training.loss_log import read_losses
from tests.fuzz.mutation import mutated
from tests.fuzz.odd import changed, odd_object

__all__ = ["make_batches", "make_losses", "read_all_batches", "read_log"]


def read_all_batches(path: Path) -> None:
    """Read a file of batches, each of them, as a replay takes them."""
    before = torch.get_rng_state()
    try:
        list(read_batches(path).starting_at(0))
    finally:
        torch.set_rng_state(before)


@functools.cache
def _batches() -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Return sound files of batches: those of torch.save, and those of safetensors."""
    batch = {"x": torch.zeros(2, 3), "labels": torch.tensor([0, 1])}
    body = {"format": FORMAT, "first_step": 7, "accumulate": 1, "batches": [batch, batch]}
    body["random_states"] = [{"torch": torch.get_rng_state()}] * 2
    saved = []
    for content in (body, [batch, batch], [(batch["x"], batch["labels"])] * 2):
        file = io.BytesIO()
        torch.save(content, file)
        saved.append(file.getvalue())
    tensors = {
        "0.x": torch.zeros(2, 3),
        "0.y": torch.tensor([1, 2]),
        "1.x": torch.ones(2, 3),
        "1.y": torch.tensor([3, 4]),
    }
    return tuple(saved), (safetensors.torch.save(tensors, {"first_step": "7", "accumulate": "1"}),)


def make_batches(folder: Path, rng: random.Random) -> Path:
    """Write a file of batches that is damaged, or sound and odd."""
    kind = rng.randrange(3)
    suffix = rng.choice((".pt", ".safetensors"))
    path = folder / f"batches{suffix}"
    sound = _batches()[suffix == ".safetensors"]
    if kind == 0:
        path.write_bytes(mutated(rng.choice(sound), sound, rng))
    elif suffix == ".safetensors":
        content = sound[0]
        size = struct.unpack("<Q", content[:8])[0]
        header = json.dumps(changed(json.loads(content[8 : 8 + size]), rng)).encode("utf-8", "surrogatepass")
        path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])
    else:
        body = {"format": FORMAT, "first_step": 7, "accumulate": 1, "batches": [odd_object(rng) for _ in range(2)]}
        body[rng.choice((*body, "random_states"))] = odd_object(rng)
        try:
            torch.save(body if rng.random() < 0.8 else body["batches"], path)
        except (UnicodeEncodeError, NotImplementedError, RuntimeError):
            torch.save([], path)  # a text or tensor that torch cannot write
    return path


def read_log(path: Path) -> None:
    """Read a log of losses."""
    read_losses(LossesSpec(file=path.name), path.parent)


_CSV = (
    b"step,loss,grad_norm\n1,2.5,0.5\n2,2.25,0.5\n3,nan,inf\n",
    b"_step;train/loss\n1;2,5\n2;2,25\n",
    b"epoch\tglobal_step\tlr\ttraining_loss\n0\t1\t0.1\t2.5\n0\t2\t0.1\t1e-3\n",
)
_STATE = {
    "global_step": 3,
    "log_history": [
        {"step": 1, "loss": 2.5, "grad_norm": 0.5, "learning_rate": 1e-3},
        {"step": 2, "loss": 0.0, "grad_norm": float("nan")},
        {"step": 3, "eval_loss": 2.0},
    ],
}


def make_losses(folder: Path, rng: random.Random) -> Path:
    """Write a CSV or a trainer state that is damaged or odd."""
    if rng.random() < 0.5:
        path = folder / rng.choice(("log.csv", "log.tsv"))
        path.write_bytes(mutated(rng.choice(_CSV), _CSV, rng))
        return path
    path = folder / "trainer_state.json"
    text = json.dumps(_STATE).encode()
    path.write_bytes(mutated(text, [text], rng) if rng.random() < 0.3 else json.dumps(changed(_STATE, rng)).encode())
    return path
