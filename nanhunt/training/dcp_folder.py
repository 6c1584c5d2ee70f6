"""Folders of torch.distributed.checkpoint: FSDP's, torchtitan's, Lightning's; shards of all ranks in one process.

The index `.metadata` and the plain values are pickles that torch reads without a guard, so nothing here is read without
the user's trust. Small tensors are read at once, for a step or a random state may be among them; large ones stay in
their shards until they are copied into the model, and of one that is spread over ranks each rank reads its part.
"""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nanhunt.errors import CheckpointError
from nanhunt.training.checkpoint_layout import Parts, find_parts
from nanhunt.training.on_demand import OnDemand, Read
from nanhunt.training.shards import Part
from nanhunt.training.torch_file import read_torch_file

if TYPE_CHECKING:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata

    from nanhunt.training.config import CheckpointKeys

__all__ = ["is_dcp", "is_dcp_shard", "load_dcp", "refuse_dcp_shard"]

#: Bytes up to which a tensor is read at once: torch's random state is one of 5056.
SMALL = 1 << 16
#: what Lightning lays beside the shards: loops, schedulers, step
LIGHTNING = "meta.pt"


def is_dcp(path: Path) -> bool:
    """Whether torch.distributed.checkpoint wrote the folder."""
    return path.is_dir() and (path / ".metadata").is_file()


def is_dcp_shard(path: Path) -> bool:
    """Whether the file is one rank's shard, or the index, of such a folder."""
    return path.is_file() and (path.suffix == ".distcp" or path.name == ".metadata")


def refuse_dcp_shard(path: Path, keys: CheckpointKeys | None, trust_pickle: bool) -> Any:
    """Raise CheckpointError with the folder that the file is a part of."""
    raise CheckpointError(
        f"{path}: is one file of a torch.distributed.checkpoint folder", hint=f"name the folder: {path.parent}"
    )


def load_dcp(path: Path, keys: CheckpointKeys | None, trust_pickle: bool) -> tuple[Parts, frozenset[str]]:
    """Read a folder's small values, and find its parts; large tensors are left where they are.

    Raises CheckpointError without the user's trust, and where a shard is missing or damaged.
    """
    if not trust_pickle:
        raise CheckpointError(
            f"{path}: is a torch.distributed.checkpoint folder, whose .metadata is a pickle",
            hint=f"if you trust this folder: --trust-pickle; or convert it with `{_conversion(path)}`",
        )
    shards = _Shards.open(path)
    with _reading(path):
        content = _nested([(shards.paths.get(n, (n,)), value) for n, value in shards.outline.items()])
    if (path / LIGHTNING).is_file():
        content = {**read_torch_file(path / LIGHTNING, trust_pickle=trust_pickle)[0], **content}
    parts = find_parts(content, path=path, keys=keys)
    read = shards.read
    optimizers = [_lazy_optimizer(state, read) for state in (parts.optimizer, *parts.more_optimizers) if state]
    return replace(
        parts,
        container="dcp",
        model=OnDemand(parts.model, read),
        more_models={key: OnDemand(state, read) for key, state in parts.more_models.items()},
        optimizer=optimizers[0] if optimizers else None,
        more_optimizers=tuple(optimizers[1:]),
    ), frozenset()


def _conversion(path: Path) -> str:
    """Return the command that makes one file of torch.save of the folder."""
    source = shlex.quote(str(path))
    if (path / LIGHTNING).is_file():
        return f"python -m lightning.pytorch.utilities.consolidate_checkpoint {source}"
    target = shlex.quote(f"{path.resolve().name}.pt")
    return f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {source} {target}"


def _lazy_optimizer(saved: dict[str, Any], read: Read) -> dict[str, Any]:
    """Return an optimizer's state whose tensors are read when they are looked at, a parameter at a time."""

    def lazy(state: Any) -> Any:
        # what lies deeper than one level (Shampoo keeps lists of factors) is rare, and read at once
        flat = isinstance(state, Mapping) and not any(isinstance(v, (Mapping, list)) for v in state.values())
        return OnDemand(state, read) if flat else _read_all(state, read)

    return {**saved, "state": {key: lazy(state) for key, state in saved["state"].items()}}


def _read_all(value: Any, read: Read) -> Any:
    if isinstance(value, Tensor):
        return read(value) if value.is_meta else value
    if isinstance(value, Mapping):
        return {key: _read_all(inner, read) for key, inner in value.items()}
    if isinstance(value, list):
        return [_read_all(inner, read) for inner in value]
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shards:
    """An open folder: what it holds by flat name, and how a placeholder is read."""

    path: Path
    reader: FileSystemReader
    metadata: Metadata = field(repr=False)
    #: flat name -> value, or a meta tensor in the place of a large one
    outline: dict[str, Any]
    #: flat name -> the keys that lead to it in the dict that was saved
    paths: dict[str, Sequence[str | int]]
    #: id of a placeholder -> flat name; the outline keeps the placeholders alive
    names: dict[int, str] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> _Shards:
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        with _reading(path):
            reader = FileSystemReader(path)
            metadata = reader.read_metadata()
            # a load for each tensor would unpickle the index each time
            reader.read_metadata = lambda *_, **__: metadata  # type: ignore[method-assign]
            _check_complete(path, metadata)
            outline: dict[str, Any] = {
                name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
                if isinstance(entry, TensorStorageMetadata)
                else 0
                for name, entry in metadata.state_dict_metadata.items()
            }
            small = {
                name: torch.empty_like(value, device="cpu") if isinstance(value, Tensor) else value
                for name, value in outline.items()
                if not isinstance(value, Tensor) or value.numel() * value.element_size() <= SMALL
            }
            _fill(small, reader)
        outline |= small
        names = {id(value): name for name, value in outline.items() if isinstance(value, Tensor) and value.is_meta}
        return cls(
            path=path, reader=reader, metadata=metadata, outline=outline, paths=metadata.planner_data or {}, names=names
        )

    def read(self, placeholder: Tensor, part: Part | None = None, /) -> Tensor:
        """Return the tensor that a placeholder stands for, or a part of it, put together from its shards."""
        from nanhunt.training.dcp_part import read_part

        part = part or Part(offset=(0,) * placeholder.dim(), shape=tuple(placeholder.shape))
        held = torch.empty(part.shape, dtype=placeholder.dtype)
        with _reading(self.path):
            read_part(self.reader, self.metadata, self.names[id(placeholder)], held, part)
        return held


def _check_complete(path: Path, metadata: Metadata) -> None:
    """Tell a folder that lacks the shards of a rank: large ones would be missed only when they are copied."""
    named = {getattr(info, "relative_path", None) for info in (metadata.storage_data or {}).values()}
    absent = sorted(name for name in named if name and not (path / name).is_file())
    if absent:
        listed = ", ".join(absent[:3]) + (f" … ({len(absent) - 3} more)" if len(absent) > 3 else "")
        raise CheckpointError(
            f"{path}: cannot be read: its .metadata names {listed}, not in the folder",
            hint="the copy is incomplete, or the run was killed while it saved: use an earlier checkpoint",
        )


def _fill(flat: dict[str, Any], reader: FileSystemReader) -> None:
    """Read values under flat names; tensors into the memory that they have there."""
    from torch.distributed.checkpoint.state_dict_loader import load

    if not flat:
        return
    with warnings.catch_warnings():
        # torch says that no process group is there; one process is all that is wanted
        warnings.simplefilter("ignore")
        load(flat, storage_reader=reader)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the folder in whatever goes wrong while it is read."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointError:
        raise
    except (Exception, CheckpointException) as error:
        # CheckpointException derives from BaseException, and wraps an interrupt too
        cause = error.failures[min(error.failures)][0] if isinstance(error, CheckpointException) else error
        if isinstance(cause, KeyboardInterrupt):
            raise cause from None
        told = str(cause).strip().splitlines()[:1]
        raise CheckpointError(
            f"{path}: cannot be read: {type(cause).__name__}{': ' + told[0] if told else ''}",
            hint="is a shard damaged, or does a pickle name a module that is not installed here?",
        ) from error


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
