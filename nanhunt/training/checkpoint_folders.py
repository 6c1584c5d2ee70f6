"""Checkpoints in folders of shards: torch.distributed.checkpoint, and those that are to be converted first."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from nanhunt.errors import CheckpointError
from nanhunt.training.checkpoint_layout import Parts, find_parts

if TYPE_CHECKING:
    from nanhunt.training.config import CheckpointKeys

__all__ = [
    "is_dcp",
    "is_deepspeed",
    "is_megatron",
    "load_dcp",
    "refuse_deepspeed",
    "refuse_megatron",
]

_Read = tuple[Parts, frozenset[str]]


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
