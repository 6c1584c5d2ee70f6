"""Checkpoints in safetensors, and in the folders of Hugging Face."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nanhunt.errors import CheckpointError
from nanhunt.training.checkpoint_layout import Parts, as_step, find_parts, rng_states
from nanhunt.training.names import clean_name
from nanhunt.training.torch_file import read_torch_file

if TYPE_CHECKING:
    from nanhunt.training.config import CheckpointKeys

__all__ = ["is_hf", "load_hf", "read_safetensors"]

#: in the order in which Hugging Face's own loading prefers them
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

_Read = tuple[Parts, frozenset[str]]


def read_safetensors(path: Path) -> Parts:
    """Read a file of safetensors: the model alone, for the format keeps neither step nor optimizer."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {clean_name(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}", hint="is it cut short?") from error
    if not state:
        raise CheckpointError(f"{path}: holds no tensors", hint="name the file with the model's weights")
    beside = path.parent / "trainer_state.json"
    notes = (f"optimizer and step lie beside the file: name the folder {path.parent} to load them",)
    return Parts(container="safetensors", model=state, extra=dict(metadata), notes=notes if beside.is_file() else ())


def is_hf(path: Path) -> bool:
    """Whether the folder holds weights under the names of Hugging Face."""
    return path.is_dir() and any((path / name).is_file() for name in WEIGHTS)


def load_hf(path: Path, keys: CheckpointKeys | None, trust_pickle: bool) -> _Read:
    """Read a Trainer's `checkpoint-N`, a folder of accelerate's `save_state`, or a saved model.

    `training_args.bin` is left alone: it pickles classes of transformers and says nothing about the state.
    """
    tags: set[str] = set()
    notes: list[str] = []

    def part(*names: str) -> Any:
        for name in names:
            if (path / name).is_file():
                content, found = read_torch_file(path / name, trust_pickle=trust_pickle)
                tags.update(found)
                return content
        return None

    model = _hf_weights(path, trust_pickle, tags)
    optimizer = part("optimizer.pt", "optimizer.bin")
    scheduler, scaler = part("scheduler.pt", "scheduler.bin"), part("scaler.pt")
    random = part("rng_state.pth", "rng_state_0.pth", "random_states_0.pkl")
    if (path / "rng_state_0.pth").is_file():
        notes.append("random state: of rank 0")
    if keys is not None and any(dict(keys).values()):
        notes.append("checkpoint: in the config is not used: a Hugging Face folder names its parts itself")
    trainer = _json(path / "trainer_state.json")
    parts = Parts(
        container="hf-trainer" if trainer else "hf-model",
        model=model,
        optimizer=optimizer or None,
        scheduler=scheduler or None,
        scaler=scaler or None,
        step=as_step(trainer.get("global_step")),
        rng=rng_states(random),
        extra={k: v for k, v in (("trainer_state", trainer), ("config", _json(path / "config.json"))) if v},
        notes=tuple(notes),
    )
    return parts, frozenset(tags)


def _hf_weights(path: Path, trust_pickle: bool, tags: set[str]) -> dict[str, Tensor]:
    source = next(path / name for name in WEIGHTS if (path / name).is_file())
    files = [source]
    if source.suffix == ".json":
        names = sorted(set(_json(source).get("weight_map", {}).values()))
        files = [path / name for name in names]
        absent = [file.name for file in files if not file.is_file()]
        if absent or not files:
            raise CheckpointError(
                f"{source}: names {', '.join(absent) or 'no file'}, which is not in the folder",
                hint="the copy is incomplete, or the run was killed while it saved: use an earlier checkpoint",
            )
    state: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            state |= read_safetensors(file).model
        else:
            content, found = read_torch_file(file, trust_pickle=trust_pickle)
            state |= find_parts(content, path=file, keys=None).model
            tags |= found
    return state


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: is not valid JSON: {error}", hint="use an earlier checkpoint") from error
    return content if isinstance(content, dict) else {}
