"""Read safetensors: one file, shards with their index, or a folder of shards without one.

A tensor is a view of the mapped file, on the CPU: reading takes no memory of its own until it is copied somewhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from nanhunt.errors import CheckpointError
from nanhunt.inert import printable
from nanhunt.training.checkpoint_layout import Parts
from nanhunt.training.json_file import read_json
from nanhunt.training.names import clean_name

__all__ = ["indexed_files", "is_safetensors", "load_safetensors", "read_tensors", "shard_of"]

#: `model-00001-of-00003.safetensors`, as save_pretrained and save_torch_model name shards
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{3,})-of-(?P<count>\d{3,})\.safetensors")


def is_safetensors(path: Path) -> bool:
    """Whether the path is a file of safetensors by its header or name, an index of such files, or a folder of shards."""
    if path.is_dir():
        return any(_shards_in(path)) or any(path.glob("*.safetensors.index.json"))
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(10)
    is_index = path.name.endswith(".safetensors.index.json")
    return head != b"" and (path.suffix == ".safetensors" or is_index or head[8:10] == b'{"')


def load_safetensors(path: Path) -> Parts:
    """Read what the path names: the model alone, for the format keeps neither step nor optimizer.

    Raises CheckpointError where a shard is missing, two hold the same name, or a file is damaged.
    """
    notes = []
    files = _files_of(path)
    state, metadata = read_tensors(files)
    folder = path if path.is_dir() else path.parent
    if (folder / "trainer_state.json").is_file():
        notes.append(f"optimizer and step lie beside the weights: name the folder {folder} to load them")
    shard = shard_of(path)
    if shard is not None:
        notes.append(f"it is shard {shard[0]} of {shard[1]}: name the folder {folder} to load all of them")
    return Parts(container="safetensors", model=state, extra=dict(metadata), notes=tuple(notes))


def read_tensors(files: Sequence[Path]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of all files by name, without the names of wrappers, and the last file's metadata."""
    from safetensors import SafetensorError, safe_open

    state: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                found = {clean_name(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                metadata = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read as safetensors: {error}", hint="is it cut short?") from error
        if not found:
            raise CheckpointError(f"{path}: holds no tensors", hint="name the file with the model's weights")
        twice = sorted(found.keys() & state.keys())
        if twice:
            raise CheckpointError(
                f"{path}: holds {twice[0]!r}, which another shard holds too", hint="shards of two runs are mixed"
            )
        state |= found
    return state, metadata


def indexed_files(index: Path) -> list[Path]:
    """Return the files that an index of shards names. Raises CheckpointError where one is not there."""
    weights = read_json(index).get("weight_map", {})
    listed = list(weights.values()) if isinstance(weights, dict) else [weights]
    astray = next((name for name in listed if not _is_file_name(name)), None)
    if astray is not None:
        raise CheckpointError(
            f"{index}: weight_map names {printable(str(astray))[:80]!r}, which is no file of the folder",
            hint="an index names files beside it; this one is damaged, or made to read others: do not use it",
        )
    names = set(listed)
    absent = sorted(name for name in names if not (index.parent / name).is_file())
    if absent or not names:
        raise CheckpointError(
            f"{index}: names {', '.join(absent) or 'no file'}, which is not in the folder",
            hint="the copy is incomplete, or the run was killed while it saved: use an earlier checkpoint",
        )
    return [index.parent / name for name in sorted(names)]


def _is_file_name(name: object) -> bool:
    """Whether a value names a file of a folder, and nothing above or below it; file systems take 255 bytes."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        return False
    return len(name.encode("utf-8", "surrogatepass")) <= 255


def shard_of(path: Path) -> tuple[int, int] | None:
    """Return (number, count) of a file that is one shard of several by its name; None of others."""
    match = _SHARD.fullmatch(path.name)
    return (int(match["number"]), int(match["count"])) if match and int(match["count"]) > 1 else None


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return indexed_files(path) if path.suffix == ".json" else [path]
    indices = sorted(path.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        raise CheckpointError(
            f"{path}: holds {len(indices)} sharded models", hint=f"name one, for example {indices[0]}"
        )
    return indexed_files(indices[0]) if indices else _whole(path, _shards_in(path))


def _shards_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.safetensors") if _SHARD.fullmatch(p.name))


def _whole(folder: Path, shards: Sequence[Path]) -> list[Path]:
    """Return the shards if they are all of one model. Raises CheckpointError where they are not."""
    named = [m for p in shards if (m := _SHARD.fullmatch(p.name))]
    models = Counter((m["stem"], int(m["count"])) for m in named)
    if len(models) > 1:
        told = ", ".join(f"{stem} ({there} of {count})" for (stem, count), there in models.items())
        raise CheckpointError(f"{folder}: holds shards of several models: {told}", hint="leave one in the folder")
    ((_, count), _) = models.most_common(1)[0]
    missing = sorted(set(range(1, count + 1)) - {int(m["number"]) for m in named})
    if missing:
        raise CheckpointError(
            f"{folder}: lacks shard {', '.join(map(str, missing[:5]))} of {count}",
            hint="the copy is incomplete, or the run was killed while it saved: use an earlier checkpoint",
        )
    return list(shards)
