"""Checkpoints in safetensors and in folders: Hugging Face, torch.distributed.checkpoint, and those to be converted."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from nanhunt.errors import CheckpointError
from nanhunt.training.checkpoint_layout import Parts, as_step, clean_name, find_parts, rng_states
from nanhunt.training.torch_file import read_torch_file

if TYPE_CHECKING:
    from nanhunt.training.config import CheckpointKeys

__all__ = [
    "is_dcp",
    "is_deepspeed",
    "is_hf",
    "is_megatron",
    "load_dcp",
    "load_hf",
    "read_safetensors",
    "refuse_deepspeed",
    "refuse_megatron",
]

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
        files = [path / name for name in _shard_names(source)]
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


def _is_file_name(name: Any) -> bool:
    """Whether a value names a file of a folder, and nothing above or below it; 255 bytes are all that file systems take."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        return False
    return len(name.encode("utf-8", "surrogatepass")) <= 255


def _shard_names(index: Path) -> list[str]:
    """Return the files that an index names. Raises CheckpointError where one of them could lie outside of the folder."""
    shards = _json(index).get("weight_map", {})
    names = list(shards.values()) if isinstance(shards, dict) else [shards]
    astray = next((name for name in names if not _is_file_name(name)), None)
    if astray is not None:
        raise CheckpointError(
            f"{index}: weight_map names {str(astray)[:80]!r}, which is no file of the folder",
            hint="an index names files beside it; this one is damaged, or made to read others: do not use it",
        )
    return sorted(set(names))


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON: {error}", hint="use an earlier checkpoint") from error
    return content if isinstance(content, dict) else {}


def is_deepspeed(path: Path) -> bool:
    """Whether DeepSpeed wrote the folder: its conversion script, or partitioned states, lie in it."""
    names = ("zero_to_fp32.py", "*_model_states.pt", "*/*_model_states.pt")
    return path.is_dir() and any(any(path.glob(name)) for name in names)


def refuse_deepspeed(path: Path, keys: CheckpointKeys | None, trust_pickle: bool) -> NoReturn:
    """Raise CheckpointError with the command that makes the folder's shards whole."""
    script = next((p for p in (path, path.parent) if (p / "zero_to_fp32.py").is_file()), path)
    command = f"python {script / 'zero_to_fp32.py'} {script} {path.with_name(path.name + '-fp32')}"
    raise CheckpointError(
        f"{path}: is a DeepSpeed checkpoint, whose weights and moments are cut into flat partitions",
        hint=f"convert it with `{command}` and name the result; it holds the weights, not the optimizer",
    )


def is_megatron(path: Path) -> bool:
    """Whether Megatron wrote the folder: its pointer file, or states by model-parallel rank."""
    if not path.is_dir():
        return False
    names = ("latest_checkpointed_iteration.txt", "mp_rank_*/model_optim_rng.pt", "*/mp_rank_*/model_optim_rng.pt")
    return any(any(path.glob(name)) for name in names)


def refuse_megatron(path: Path, keys: CheckpointKeys | None, trust_pickle: bool) -> NoReturn:
    """Raise CheckpointError with the way from Megatron's shards to one file."""
    sharded = next((p.parent for p in sorted(path.glob("iter_*/.metadata"), reverse=True)), None)
    if sharded is not None:
        mend = f"convert its newest iteration with `{_dcp_command(sharded)}` and name the result"
    else:
        mend = "export it to Hugging Face with Megatron's tools/checkpoint/convert.py or Megatron Bridge"
    raise CheckpointError(f"{path}: is a Megatron checkpoint, cut by tensor- and pipeline-parallel rank", hint=mend)


def is_dcp(path: Path) -> bool:
    """Whether torch.distributed.checkpoint wrote the folder."""
    return path.is_dir() and (path / ".metadata").is_file()


def load_dcp(path: Path, keys: CheckpointKeys | None, trust_pickle: bool) -> _Read:
    """Read a folder of torch.distributed.checkpoint, shards of all ranks, in this one process.

    Its index and its plain values are pickles that torch reads without a guard, so the user's trust is needed.
    """
    if not trust_pickle:
        raise CheckpointError(
            f"{path}: is a torch.distributed.checkpoint folder, whose .metadata is a pickle",
            hint=f"if you trust this folder: --trust-pickle; or convert it with `{_dcp_command(path)}`",
        )
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        content = _read_dcp(path)
    except (Exception, CheckpointException) as error:
        # CheckpointException derives from BaseException, and wraps an interrupt too
        cause = error.failures[min(error.failures)][0] if isinstance(error, CheckpointException) else error
        if isinstance(cause, KeyboardInterrupt):
            raise cause from None
        told = str(cause).strip().splitlines()[:1]
        raise CheckpointError(
            f"{path}: cannot be read: {type(cause).__name__}{': ' + told[0] if told else ''}",
            hint="is a shard missing, or a module that its pickles name?",
        ) from error
    return replace(find_parts(content, path=path, keys=keys), container="dcp"), frozenset()


def _dcp_command(path: Path) -> str:
    return f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} {path.name}.pt"


def _read_dcp(path: Path) -> dict[str, Any]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = FileSystemReader(path)
    metadata = reader.read_metadata()
    flat: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype) if isinstance(entry, TensorStorageMetadata) else 0
        for name, entry in metadata.state_dict_metadata.items()
    }
    with warnings.catch_warnings():
        # torch says that no process group is there; one process is all that is wanted
        warnings.simplefilter("ignore")
        load(flat, storage_reader=reader)
    paths: dict[str, Sequence[str | int]] = metadata.planner_data or {}
    return _nested([(paths.get(name, (name,)), value) for name, value in flat.items()])


def _nested(entries: list[tuple[Sequence[str | int], Any]]) -> dict[str, Any]:
    """Return the dicts and lists that the paths describe: a text is a dict's key, a number a list's index."""
    root: dict[Any, Any] = {}
    for path, value in entries:
        inside = root
        for part in path[:-1]:
            inside = inside.setdefault(part, {})
        inside[path[-1]] = value
    return {key: _as_lists(value) for key, value in root.items()}


def _as_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value and all(isinstance(key, int) for key in value):
        return [_as_lists(value[index]) for index in sorted(value)]
    return {key: _as_lists(inner) for key, inner in value.items()}
