"""A recorder's bundle: a folder that holds all of a replay but the code, and says where that is.

    run.json         versions, the fault, the folders that the code is imported from, digests of its files
    nanhunt.yaml     the config that replays it
    checkpoint.pt    the state before the first of its steps
    batches.pt       the batches of its steps, with the random state behind each
    losses.csv       the losses that the run had in them
    trace.parquet    what was recorded of the steps before

A recorder's own folder holds bundles, `step-1237` each; it stands for the newest. Of a run of several ranks each has left
its own, `step-1237-rank1`: where several ranks replay, each takes that of its number.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nanhunt.errors import CheckpointError
from nanhunt.training.definitions import load_definitions
from nanhunt.training.json_file import read_json
from nanhunt.training.launch import is_launched, rank_and_size
from nanhunt.training.recorded_error import RecordedError, recorded_error
from nanhunt.training.replicated import Replication, is_replication
from nanhunt.training.user_code import call_user

__all__ = [
    "BATCHES",
    "CHECKPOINT",
    "CONFIG",
    "FORMAT",
    "LOSSES",
    "RUN",
    "TRACE",
    "Bundle",
    "Script",
    "alone",
    "bundle_at",
]

FORMAT = "nanhunt.bundle"
RUN, CONFIG, CHECKPOINT, BATCHES, LOSSES, TRACE = (
    "run.json", "nanhunt.yaml", "checkpoint.pt", "batches.pt", "losses.csv", "trace.parquet",
)  # fmt: skip
_NAME = re.compile(r"step-(\d+)(-rank\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A script whose definitions are taken, and nothing that it does."""

    file: Path
    #: globals of the recorded run, as `spelled` has them
    values: dict[str, Any]
    #: names that its classes use, and whose values could not be kept
    unkept: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A complete bundle."""

    folder: Path
    #: folders that its code is imported from
    paths: tuple[str, ...] = ()
    #: digests of the sources, by file
    sources: dict[str, str] = field(default_factory=dict)
    #: what a replay cannot repeat, in sentences
    remarks: tuple[str, ...] = ()
    #: how many ranks the run had, and how DistributedDataParallel was around its model; None where none was seen
    world_size: int = 1
    #: what ended the run in its last step; None where nothing was raised
    raised: RecordedError | None = None
    #: what it was recorded on; "" where that was not kept
    device: str = ""
    replication: Replication | None = None
    #: scripts that must not be run again, by their module's name
    scripts: dict[str, Script] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        """The state before the first step."""
        return self.folder / CHECKPOINT

    @property
    def config(self) -> Path:
        """The config that replays it."""
        return self.folder / CONFIG

    def enter(self) -> None:
        """Let its code be imported: from where the run found it, behind the config's own folder.

        Raises ConfigError or UserCodeError where the definitions of a script cannot be made.
        """
        for path in self.paths:
            if Path(path).is_dir() and path not in sys.path:
                sys.path.insert(0, path)
        for name, script in self.scripts.items():
            with call_user("model"):
                load_definitions(name, script.file, script.values)

    def refuse_ranks(self, path: Path) -> None:
        """Raise CheckpointError where several ranks would replay it, and how they shared gradients was not seen.

        Without that their weights part at the first update, which is this replay's fault and not the run's.
        """
        if is_launched() and self.replication is None:
            raise CheckpointError(
                f"{path}: a replay by several ranks needs to know how they shared gradients, which the recorder did not see",
                hint="replay each rank's bundle in one process: nanhunt replay BUNDLE, without torchrun",
            )

    def assumptions(self) -> Iterator[str]:
        """Yield what was taken for granted: what the recorder could not keep, and sources that are others by now."""
        yield from (f"bundle: {remark}" for remark in self.remarks)
        kind, _, number = self.device.partition(":")
        if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
            yield f"bundle: it was recorded on {self.device}, which is not here: dropout and the like are drawn otherwise"
        if self.replication is not None and self.world_size > 1 and not is_launched():
            yield f"bundle: {alone(self.world_size)}"
        for script in self.scripts.values():
            kept = f", and the values that {len(script.values)} of its names had" if script.values else ""
            yield f"bundle: {script.file.name} does more than define when it is imported: only its definitions are taken{kept}"
            if script.unkept:
                yield f"bundle: its classes use {', '.join(script.unkept)}, which the bundle does not hold"
        for name, digest in self.sources.items():
            path = Path(name)
            if not path.is_file():
                yield f"bundle: {name} of the recorded run is not there any more"
            elif f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" != digest:
                yield f"bundle: {name} has changed since the run was recorded"


def bundle_at(path: Path) -> Bundle | None:
    """Return the bundle that a folder is, or the newest that it holds; None where it is none.

    One of several ranks gets its own of the same step. Raises CheckpointError where run.json is damaged, or this rank
    left none.
    """
    if not path.is_dir():
        return None
    if not (path / RUN).is_file():
        inside = [p for p in path.iterdir() if _NAME.fullmatch(p.name) and (p / RUN).is_file()]
        return bundle_at(max(inside, key=lambda p: ((p / RUN).stat().st_mtime, p.name))) if inside else None
    body = read_json(path / RUN)
    if body.get("format") != FORMAT:
        return None
    if is_launched() and (own := _of_this_rank(path)) != path:
        path, body = own, read_json(own / RUN)
    paths: Any = body.get("paths")
    remarks: Any = body.get("remarks")
    sources: Any = body.get("sources")
    if not _texts(paths) or not _texts(remarks) or not isinstance(sources, dict) or not _texts([*sources.values()]):
        raise CheckpointError(f"{path / RUN}: is damaged", hint="use another bundle of the run")
    scripts = _scripts(body.get("scripts", {}), path / RUN)
    fault: Any = body.get("fault") if isinstance(body.get("fault"), dict) else {}
    world_size, replication = body.get("world_size", 1), body.get("replication")
    if not isinstance(world_size, int) or not (replication is None or is_replication(replication)):
        raise CheckpointError(f"{path / RUN}: is damaged", hint="use another bundle of the run")
    return Bundle(
        folder=path, paths=tuple(paths), sources=sources, remarks=tuple(remarks), scripts=scripts,
        world_size=world_size, replication=replication, device=str(body.get("device", "")),
        raised=recorded_error(fault),
    )  # fmt: skip


def alone(world_size: int) -> str:
    """Return what a replay of one rank alone takes for granted."""
    return f"this is one rank of {world_size}: gradients that were averaged over ranks are its own here"


def _of_this_rank(path: Path) -> Path:
    """Return the bundle that this rank left of the same step."""
    named, rank = _NAME.fullmatch(path.resolve().name), rank_and_size()[0]
    if named is None:
        return path
    own = path.resolve().with_name(f"step-{named[1]}" + (f"-rank{rank}" if rank else ""))
    if not (own / RUN).is_file():
        raise CheckpointError(
            f"{path}: rank {rank} left no bundle of step {named[1]} beside it",
            hint="replay this one in one process, without torchrun",
        )
    return own


def _scripts(value: Any, where: Path) -> dict[str, Script]:
    found = {}
    for name, body in value.items() if isinstance(value, dict) else [("", None)]:
        own: dict[str, Any] = body if isinstance(body, dict) else {}
        file, values, unkept = own.get("file"), own.get("globals"), own.get("unkept", [])
        if not isinstance(file, str) or not isinstance(values, dict) or not _texts(unkept):
            raise CheckpointError(f"{where}: scripts: is damaged", hint="use another bundle of the run")
        found[name] = Script(file=Path(file), values=values, unkept=tuple(unkept))
    return found


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
