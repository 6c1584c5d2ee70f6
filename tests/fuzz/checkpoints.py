"""Inputs for the reading of checkpoints: files of torch.save, safetensors, folders; damaged, or whole and odd."""

from __future__ import annotations

import functools
import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from nanhunt.training.checkpoint import load_checkpoint
from nanhunt.training.config import CheckpointKeys
from nanhunt.training.state_match import load_into
from tests.fuzz.mutation import mutated
from tests.fuzz.odd import changed, odd_checkpoint, well_formed_checkpoint, well_formed_model

__all__ = [
    "load", "make_dcp", "make_folder", "make_legacy", "make_odd", "make_pickle", "make_safetensors", "make_zip", "seeds", "written",
]  # fmt: skip


def load(path: Path) -> None:
    """Read the checkpoint, with and without keys of a config, and copy it into a model that it may fit."""
    keys = CheckpointKeys(model="model", optimizer="optimizer", step="iter_num")
    checkpoint = load_checkpoint(path, keys=keys if len(path.name) % 2 else None, trust_pickle=False)
    load_into(_model(), checkpoint)


@functools.cache
def _model() -> torch.nn.Module:
    return well_formed_model()


def _saved(content: object, **how: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


@functools.cache
def seeds(*, zipped: bool) -> tuple[bytes, ...]:
    """Return sound files of torch.save; the first one fits the model."""
    whole = well_formed_checkpoint()
    contents = (
        whole,
        whole["model"],
        {"state_dict": whole["model"], "pytorch-lightning_version": "2.6.0", "global_step": 3, "optimizer_states": [whole["optimizer"]]},
        {"model": whole["model"], "numpy_rng_state": ("MT19937", np.arange(624, dtype=np.uint32), 1, 0, 0.5), "step": np.float64(3), "d": np.array([1, 2])},
        torch.zeros(3),
    )  # fmt: skip
    return tuple(_saved(c, _use_new_zipfile_serialization=zipped) for c in contents)


def make_zip(folder: Path, rng: random.Random) -> Path:
    """Write a damaged file of torch.save."""
    return written(
        folder / rng.choice(("a.pt", "b0.pt", "c.ckpt")),
        mutated(rng.choice(seeds(zipped=True)), seeds(zipped=True), rng),
    )


def make_legacy(folder: Path, rng: random.Random) -> Path:
    """Write a damaged file of the kind that torch.save wrote before 1.6."""
    return written(
        folder / rng.choice(("a.pt", "b0.pt")), mutated(rng.choice(seeds(zipped=False)), seeds(zipped=False), rng)
    )


def make_pickle(folder: Path, rng: random.Random) -> Path:
    """Write a sound zip, checksums and all, in which one member is damaged: it is the unpickler that meets it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(rng.choice(seeds(zipped=True)))) as source, zipfile.ZipFile(out, "w") as target:
        names = source.namelist()
        hit = next(n for n in names if n.endswith("data.pkl")) if rng.random() < 0.8 else rng.choice(names)
        for name in names:
            content = source.read(name)
            if name == hit:
                content = mutated(content, [source.read(n) for n in names], rng)
            target.writestr(name, content, rng.choice((*[zipfile.ZIP_STORED] * 50, zipfile.ZIP_DEFLATED)))
        if rng.random() < 0.1:
            target.writestr(
                rng.choice(("../../escape", "archive/../../data.pkl", "/etc/passwd", "data.pkl")), b"\x80\x02}."
            )
    return written(folder / "a.pt", out.getvalue())


def make_odd(folder: Path, rng: random.Random) -> Path:
    """Write a sound file of torch.save whose content is odd."""
    content = odd_checkpoint(rng)
    path = folder / rng.choice(("a.pt", "b0.pt"))
    # a text with a lone surrogate is nothing that torch can write
    try:
        return written(path, _saved(content, _use_new_zipfile_serialization=rng.random() < 0.7))
    except (UnicodeEncodeError, NotImplementedError, RuntimeError):
        return written(path, _saved({"model": {"a": torch.zeros(1)}}))


@functools.cache
def _tensors() -> tuple[bytes, ...]:
    whole = well_formed_checkpoint()["model"]
    few = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.zeros(0), "c": torch.tensor(3)}
    return safetensors.torch.save(whole, {"format": "pt"}), safetensors.torch.save(few)


def make_safetensors(folder: Path, rng: random.Random) -> Path:
    """Write a damaged file of safetensors, or a sound one whose header is odd."""
    content = rng.choice(_tensors())
    path = folder / rng.choice(("model.safetensors", "model.pt"))
    if rng.random() < 0.6:
        return written(path, mutated(content, _tensors(), rng))
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(changed(json.loads(content[8 : 8 + size]), rng), allow_nan=True).encode(
        "utf-8", "surrogatepass"
    )
    return written(path, len(header).to_bytes(8, "little") + header + content[8 + size :])


@functools.cache
def _folder() -> dict[str, bytes]:
    """Return the files of a Trainer's checkpoint folder."""
    whole = well_formed_checkpoint()
    log = [
        {"step": 1, "loss": 2.5, "grad_norm": 0.5, "learning_rate": 1e-3},
        {"step": 2, "loss": 0.0, "grad_norm": float("nan")},
    ]
    return {
        "config.json": json.dumps({"model_type": "llama", "hidden_size": 4}).encode(),
        "trainer_state.json": json.dumps({"global_step": 7, "log_history": log}).encode(),
        "optimizer.pt": _saved(whole["optimizer"]),
        "scheduler.pt": _saved(whole["scheduler"]),
        "scaler.pt": _saved(whole["scaler"]),
        "rng_state.pth": _saved(
            {"cpu": whole["rng_state"]["torch"], "numpy": ("MT19937", np.arange(624, dtype=np.uint32), 1, 0, 0.5)}
        ),
        "training_args.bin": _saved({"a": 1}),
    }


def make_folder(folder: Path, rng: random.Random) -> Path:
    """Write a Trainer's folder, its weights whole or in shards, with one file damaged or odd."""
    path = folder / "checkpoint-7"
    path.mkdir()
    files = dict(_folder())
    if rng.random() < 0.5:
        files["model.safetensors"] = _tensors()[0]
    else:
        suffix = rng.choice(("safetensors", "bin"))
        name = "model" if suffix == "safetensors" else "pytorch_model"
        shards = _tensors() if suffix == "safetensors" else seeds(zipped=True)[1:3]
        files |= {f"{name}-{i}.{suffix}": shard for i, shard in enumerate(shards)}
        weights = {"embed.weight": f"{name}-0.{suffix}", "a": f"{name}-1.{suffix}"}
        index = {"metadata": {"total_size": 1}, "weight_map": weights}
        files[f"{name}.{suffix}.index.json"] = json.dumps(index).encode()
    hit = rng.choice(sorted(files))
    if hit.endswith(".json") and rng.random() < 0.6:
        files[hit] = json.dumps(changed(json.loads(files[hit]), rng)).encode()
    elif rng.random() < 0.3 and not hit.endswith(".json"):
        files[hit] = make_odd(folder, rng).read_bytes()
    else:
        files[hit] = mutated(files[hit], [*files.values()], rng)
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def make_dcp(folder: Path, rng: random.Random) -> Path:
    """Write a folder with the names of torch.distributed.checkpoint, DeepSpeed or Megatron; what is in it is noise."""
    path = folder / "step-7"
    path.mkdir()
    for name in rng.sample(
        (".metadata", "__0_0.distcp", "latest", "zero_to_fp32.py", "latest_checkpointed_iteration.txt", "x.pt"), 3
    ):
        (path / name).write_bytes(mutated(rng.choice(seeds(zipped=True)), seeds(zipped=False), rng))
    return path


def written(path: Path, content: bytes) -> Path:
    """Write a file and return its path."""
    path.write_bytes(content)
    return path
