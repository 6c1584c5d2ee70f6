"""Checkpoint: what was saved of a run, whatever the container; LOADERS, the containers that are known."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nanhunt.errors import CheckpointError
from nanhunt.training import hugging_face
from nanhunt.training import sharded_folders as sharded
from nanhunt.training.checkpoint_layout import Parts, find_parts
from nanhunt.training.dcp_folder import is_dcp, is_dcp_shard, load_dcp, refuse_dcp_shard
from nanhunt.training.safetensors_file import is_safetensors, load_safetensors
from nanhunt.training.state_match import Match, load_into, match_state
from nanhunt.training.torch_file import read_torch_file

if TYPE_CHECKING:
    from nanhunt.training.config import CheckpointKeys

__all__ = ["LOADERS", "Checkpoint", "Loader", "Match", "load_checkpoint", "load_into", "match_state", "no_such"]

#: Files up to this size are hashed whole; of a larger one both ends and the size.
WHOLE = 1 << 30
ENDS = 64 << 20
#: The same of a shard of torch.distributed.checkpoint.
SHARD = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A saved state, its tensors on the CPU. A part that was not saved is None, never {}."""

    path: Path
    #: "torch", "state-dict", "lightning", "safetensors", "hf-trainer", "hf-model", "accelerate" or "dcp"
    container: str
    step: int | None
    #: the model's state dict, without the names of wrappers; of a DCP folder each look at a tensor reads it
    model: Mapping[str, Tensor]
    optimizer: dict[str, Any] | None = None
    #: the states of further optimizers, in the checkpoint's order
    more_optimizers: tuple[dict[str, Any], ...] = ()
    scheduler: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None
    #: random states by generator: "torch", "cuda", "numpy", "python"
    rng: dict[str, Any] | None = None
    #: where the data loader stood, as its `state_dict` told
    loader: Any = None
    #: further modules' states by their key: a discriminator, a target network, an average
    more_models: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)
    #: what else was saved and is small: config, model_args, best_val_loss …
    extra: dict[str, Any] = field(default_factory=dict)
    #: device tags that the tensors were saved from, {"cuda:0"}; empty where the container does not tell
    locations: frozenset[str] = frozenset()
    #: "sha256:…", or "sha256-ends:…" of the size and both ends of large files
    digest: str = ""
    #: what was taken for granted while reading
    notes: tuple[str, ...] = ()


_Read = Callable[[Path, "CheckpointKeys | None", bool], tuple[Parts, frozenset[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """A container: how it is recognised, and how it is read into parts and device tags."""

    name: str
    recognises: Callable[[Path], bool]
    load: _Read


def load_checkpoint(path: Path, *, keys: CheckpointKeys | None, trust_pickle: bool) -> Checkpoint:
    """Read a checkpoint file or folder; nothing in it is run unless `trust_pickle`.

    Raises CheckpointError where it is missing, damaged, of an unknown kind, unsafe, or holds no model state.
    """
    if not path.exists():
        raise no_such(path)
    for loader in LOADERS:
        if loader.recognises(path):
            parts, locations = loader.load(path, keys, trust_pickle)
            return Checkpoint(
                path=path,
                container=parts.container,
                step=parts.step,
                model=parts.model,
                optimizer=parts.optimizer,
                more_optimizers=parts.more_optimizers,
                more_models=parts.more_models,
                scheduler=parts.scheduler,
                scaler=parts.scaler,
                rng=parts.rng,
                loader=parts.loader,
                extra=parts.extra,
                locations=locations,
                digest=_digest(path),
                notes=parts.notes,
            )
    raise _unknown_folder(path) if path.is_dir() else _unknown_file(path)


def _load_torch(path: Path, keys: CheckpointKeys | None, trust_pickle: bool) -> tuple[Parts, frozenset[str]]:
    content, locations = read_torch_file(path, trust_pickle=trust_pickle)
    return find_parts(content, path=path, keys=keys), locations


def _load_safetensors(path: Path, keys: CheckpointKeys | None, trust_pickle: bool) -> tuple[Parts, frozenset[str]]:
    return load_safetensors(path), frozenset()


def _is_torch(path: Path) -> bool:
    """By its first bytes: a zip, or a pickle as torch.save wrote it before 1.6."""
    return path.is_file() and _head(path).startswith((b"PK\x03\x04", b"\x80"))


LOADERS: tuple[Loader, ...] = (
    # a Trainer folder that DeepSpeed wrote has no weights of its own and falls through to the next
    Loader(name="accelerate", recognises=hugging_face.is_accelerate, load=hugging_face.load_accelerate),
    Loader(name="hf-trainer", recognises=hugging_face.has_weights, load=hugging_face.load_hugging_face),
    Loader(name="hf-adapter", recognises=hugging_face.is_adapter, load=hugging_face.refuse_adapter),
    Loader(name="deepspeed", recognises=sharded.is_deepspeed, load=sharded.refuse_deepspeed),
    Loader(name="nemo", recognises=sharded.is_nemo, load=sharded.refuse_nemo),
    Loader(name="megatron", recognises=sharded.is_megatron, load=sharded.refuse_megatron),
    Loader(name="dcp", recognises=is_dcp, load=load_dcp),
    Loader(name="dcp-shard", recognises=is_dcp_shard, load=refuse_dcp_shard),
    Loader(name="safetensors", recognises=is_safetensors, load=_load_safetensors),
    Loader(name="torch", recognises=_is_torch, load=_load_torch),
)

#: first bytes -> what the file is, and the way out
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"PAR1", "is a trace, not a checkpoint", "did you mean `nanhunt report {path}`?"),
    (b"\xff\xff\xff\xff", "is an unfinished trace, not a checkpoint", "did you mean `nanhunt report {path}`?"),
    (b"\x89PNG", "is an image", "name the checkpoint"),
    (b"\xff\xd8\xff", "is an image", "name the checkpoint"),
    (b"GIF8", "is an image", "name the checkpoint"),
    (b"\x93NUMPY", "is a NumPy array", "name the checkpoint"),
    (b"\x89HDF", "is an HDF5 file", "save the state with torch.save"),
    (b"\x1f\x8b", "is compressed with gzip", "unpack it first: `gunzip {path}`"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", "unpack it first: `zstd -d {path}`"),
    (b"GGUF", "is a GGUF file, made for inference", "name the checkpoint of the training run"),
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, not the file itself",
        "fetch the file: `git lfs pull --include {path}`",
    ),
)


def no_such(path: Path) -> CheckpointError:
    """Return the error of a path where nothing lies, with the checkpoints beside it."""
    folder = path.parent
    kinds = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
    there = sorted(p.name for p in folder.iterdir() if p.suffix in kinds) if folder.is_dir() else []
    hint = f"in {folder} there are {', '.join(there[-6:])}" if there else None
    return CheckpointError(f"{path}: no such file or folder", hint=hint)


def _unknown_file(path: Path) -> CheckpointError:
    head = _head(path)
    if path.name.endswith(".index.json"):
        return CheckpointError(f"{path}: is an index of shards", hint=f"name its folder: {path.parent}")
    if not head:
        return CheckpointError(f"{path}: is empty (0 bytes)", hint="the run was probably killed while it saved")
    for magic, what, mend in _FOREIGN:
        if head.startswith(magic):
            return CheckpointError(f"{path}: {what}", hint=mend.format(path=path))
    what = "is a text file" if _is_text(head) else "is no checkpoint of a kind that nanhunt knows"
    return CheckpointError(f"{path}: {what}", hint="checkpoints are files of torch.save, .safetensors, or folders")


def _unknown_folder(path: Path) -> CheckpointError:
    if any(p.suffix in (".parquet", ".partial") for p in path.iterdir()):
        return CheckpointError(f"{path}: is a trace, not a checkpoint", hint=f"did you mean `nanhunt report {path}`?")
    sharded = next(path.glob("pytorch_model_fsdp_0"), None)
    if sharded is not None:
        return CheckpointError(
            f"{path}: holds an FSDP model in shards, as accelerate writes it",
            hint=f"`accelerate merge-weights {sharded} {path}` puts its weights together, not its optimizer",
        )
    if (path / "trainer_state.json").is_file():
        return CheckpointError(
            f"{path}: is a Trainer folder without weights",
            hint="it lacks model.safetensors and pytorch_model.bin; use another checkpoint of the run",
        )
    # torchtitan's steps, and Lightning's files, may lie one folder further down
    inside = _known_in(path) or [p for folder in path.iterdir() if folder.is_dir() for p in _known_in(folder)]
    inside.sort(key=_age)
    if not inside:
        hint = "name the checkpoint file, or a folder that holds one"
        return CheckpointError(f"{path}: is a folder of no kind that nanhunt knows", hint=hint)
    names = inside[0].name if len(inside) == 1 else f"{len(inside)}, {inside[0].name} to {inside[-1].name}"
    healthy = hugging_face.newest_before_hidden_nan(inside[-1])
    mend = f"the newest from before the loss became NaN is {healthy}" if healthy else f"did you mean {inside[-1]}?"
    return CheckpointError(f"{path}: is no checkpoint, but holds checkpoints ({names})", hint=mend)


def _known_in(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, of its first thousand entries; what may not be read is none."""
    found = []
    with contextlib.suppress(OSError):
        for path in itertools.islice(folder.iterdir(), 1000):
            with contextlib.suppress(OSError, CheckpointError):
                found += [path] if any(loader.recognises(path) for loader in LOADERS) else []
    return found


def _age(path: Path) -> tuple[int, float]:
    """Sort by the last number of the name, `step-100` behind `step-90`, then by time: a copy has none of its own."""
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers else -1, path.stat().st_mtime


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _is_text(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        # the head may cut a character in two
        return error.start > len(head) - 4 and b"\0" not in head
    return b"\0" not in head


def _digest(path: Path) -> str:
    """Return the sha256 of a file, or of a folder's files by name and content."""
    if path.is_file():
        partial, hashed = _file_digest(path, WHOLE, ENDS)
    else:
        hashed, partial = hashlib.sha256(), False
        for file in _files(path):
            # of the shards of many ranks each rank would read every byte
            cut, inner = _file_digest(file, *((SHARD, SHARD // 2) if is_dcp_shard(file) else (WHOLE, ENDS)))
            partial = partial or cut
            hashed.update(f"{file.relative_to(path).as_posix()} {inner.hexdigest()}\n".encode())
    return f"{'sha256-ends' if partial else 'sha256'}:{hashed.hexdigest()}"


def _files(folder: Path) -> Iterable[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _file_digest(path: Path, whole: int, ends: int) -> tuple[bool, Any]:
    """Return whether the file has more bytes than `whole`, of which the `ends` are hashed, and its hash."""
    size, hashed = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        if size <= whole:
            while block := file.read(1 << 20):
                hashed.update(block)
            return False, hashed
        hashed.update(str(size).encode())
        hashed.update(file.read(ends))
        file.seek(-ends, 2)
        hashed.update(file.read(ends))
    return True, hashed
