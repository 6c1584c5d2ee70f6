"""Read the folders that Hugging Face's libraries write: a Trainer's `checkpoint-N`, accelerate's `save_state`, a model.

    hf-trainer   trainer_state.json, weights, optimizer.pt, scheduler.pt, scaler.pt, rng_state.pth or rng_state_{rank}.pth
    accelerate   weights, optimizer.bin, scheduler.bin, scaler.pt, random_states_{rank}.pkl, dl_state_dict.bin,
                 custom_checkpoint_{n}.pkl; of further models and optimizers model_1.safetensors, optimizer_1.bin
    hf-model     weights, as save_pretrained leaves them

The weights are model.safetensors or pytorch_model.bin, whole or in shards beside their index.

`training_args.bin` and `sampler.bin` are left alone: they pickle classes of the libraries and say nothing of the state.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor

from nanhunt.errors import CheckpointError
from nanhunt.training.checkpoint_layout import Parts, find_parts
from nanhunt.training.json_file import read_json
from nanhunt.training.launch import rank_and_size
from nanhunt.training.safetensors_file import indexed_files, read_tensors
from nanhunt.training.saved_rng import rng_states
from nanhunt.training.saved_value import as_step
from nanhunt.training.torch_file import read_torch_file
from nanhunt.training.trainer_state import hidden_nans, logged_steps, read_trainer_state

if TYPE_CHECKING:
    from nanhunt.training.config import CheckpointKeys

__all__ = [
    "has_weights",
    "is_accelerate",
    "is_adapter",
    "load_accelerate",
    "load_hugging_face",
    "newest_before_hidden_nan",
    "refuse_adapter",
]

#: in the order in which the libraries' own loading prefers them; `{}` is '' or `_1` of a further model
WEIGHTS = (
    "model{}.safetensors",
    "model{}.safetensors.index.json",
    "pytorch_model{}.bin",
    "pytorch_model{}.bin.index.json",
)

_Read = tuple[Parts, frozenset[str]]


def has_weights(path: Path) -> bool:
    """Whether the folder holds weights under the names of Hugging Face."""
    return path.is_dir() and _weights_file(path, "") is not None


def is_accelerate(path: Path) -> bool:
    """Whether accelerate's `save_state` wrote the folder: its random states or its optimizer beside the weights."""
    return has_weights(path) and (any(path.glob("random_states_*.pkl")) or (path / "optimizer.bin").is_file())


def is_adapter(path: Path) -> bool:
    """Whether the folder holds a PEFT adapter in place of a model."""
    names = ("adapter_model.safetensors", "adapter_model.bin")
    return path.is_dir() and not has_weights(path) and any((path / name).is_file() for name in names)


def refuse_adapter(path: Path, keys: CheckpointKeys | None, trust_pickle: bool) -> NoReturn:
    """Raise CheckpointError with the way from an adapter to a model's state."""
    raise CheckpointError(
        f"{path}: holds a PEFT adapter without the model that it adapts",
        hint="save the whole: torch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict(), "
        "'step': step}, path), and let model: build the adapted model",
    )


def load_hugging_face(path: Path, keys: CheckpointKeys | None, trust_pickle: bool) -> _Read:
    """Read a Trainer's `checkpoint-N`, or a saved model."""
    folder = _Folder(path=path, trust_pickle=trust_pickle)
    trainer = read_trainer_state(path / "trainer_state.json")
    config = read_json(path / "config.json")
    parts = Parts(
        container="hf-trainer" if trainer else "hf-model",
        model=folder.weights(),
        optimizer=folder.state("optimizer.pt"),
        scheduler=folder.state("scheduler.pt"),
        scaler=folder.state("scaler.pt"),
        step=as_step(trainer.get("global_step")),
        rng=folder.random_states("rng_state_{}.pth", "rng_state.pth"),
        extra={k: v for k, v in (("trainer_state", trainer), ("config", config)) if v},
        notes=(*folder.notes, *_unused(keys), *_hidden(path, trainer)),
    )
    return parts, frozenset(folder.tags)


def load_accelerate(path: Path, keys: CheckpointKeys | None, trust_pickle: bool) -> _Read:
    """Read a folder of accelerate's `save_state`: the first model, optimizer and scheduler, and what there is besides.

    The step is the optimizer's own count of its updates. accelerate's `step` counts batches since the epoch began, and
    only where the loop uses `accelerator.accumulate`; it is taken where no optimizer counts.
    """
    folder = _Folder(path=path, trust_pickle=trust_pickle)
    optimizers = [folder.state(name) or {} for name in _numbered(path, "optimizer", ".bin")]
    schedulers = [folder.state(name) for name in _numbered(path, "scheduler", ".bin")]
    if len(schedulers) > 1:
        folder.notes.append(f"it holds {len(schedulers)} schedulers: the first is taken")
    random = folder.of_a_rank("random_states_{}.pkl") or {}
    besides = folder.besides()
    parts = Parts(
        container="accelerate",
        model=folder.weights(),
        optimizer=(optimizers[0] or None) if optimizers else None,
        more_optimizers=tuple(o for o in optimizers[1:] if o),
        more_models={f"model{n}": folder.weights(n) for n in _further_models(path)},
        scheduler=schedulers[0] if schedulers else None,
        scaler=folder.state("scaler.pt"),
        step=_accelerate_step(optimizers, random, folder.notes),
        rng=rng_states(random),
        loader=besides.pop("dl_state_dict", None),
        extra=besides,
        notes=(*folder.notes, *_unused(keys)),
    )
    return parts, frozenset(folder.tags)


def newest_before_hidden_nan(path: Path) -> Path | None:
    """Return the newest checkpoint from before the first loss that this one's log hides; None where it hides none."""
    hidden = hidden_nans(logged_steps(read_trainer_state(path / "trainer_state.json")))
    return _earlier(path, hidden[0].step) if hidden else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Folder:
    """A folder whose files are read one by one; notes the devices that tensors came from, and what was chosen."""

    path: Path
    trust_pickle: bool
    tags: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def read(self, name: str) -> Any:
        """Return what a file of torch.save holds; None where there is no such file."""
        if not (self.path / name).is_file():
            return None
        content, found = read_torch_file(self.path / name, trust_pickle=self.trust_pickle)
        self.tags.update(found)
        return content

    def state(self, name: str) -> dict[str, Any] | None:
        """Return a dict that a file holds; None where it is empty or not there."""
        content = self.read(name)
        return content if isinstance(content, dict) and content else None

    def weights(self, suffix: str = "") -> dict[str, Tensor]:
        """Return the tensors of the model with this suffix, shard by shard."""
        source = _weights_file(self.path, suffix)
        if source is None:
            raise CheckpointError(f"{self.path}: holds no weights")
        files = indexed_files(source) if source.suffix == ".json" else [source]
        if files[0].suffix == ".safetensors":
            return read_tensors(files)[0]
        state: dict[str, Tensor] = {}
        for file in files:
            content, found = read_torch_file(file, trust_pickle=self.trust_pickle)
            state |= find_parts(content, path=file, keys=None).model
            self.tags.update(found)
        return state

    def of_a_rank(self, pattern: str) -> Any:
        """Return what this rank's file holds, else that of the lowest; note where that is another's. None without one."""
        ranks = sorted(int(m[1]) for p in self.path.iterdir() if (m := _rank(pattern, p.name)))
        if not ranks:
            return None
        own, size = rank_and_size()
        taken = own if own in ranks else ranks[0]
        if taken != own or len(ranks) != size:
            here = f", to rank {own} of {size}" if size > 1 else ""
            self.notes.append(f"random state: of rank {taken}, one of {len(ranks)} in the folder{here}")
        return self.read(pattern.format(taken))

    def random_states(self, pattern: str, single: str) -> dict[str, Any] | None:
        """Return the generators' states: of a run in one process, else `of_a_rank`."""
        alone = self.read(single)
        return rng_states(self.of_a_rank(pattern) if alone is None else alone)

    def besides(self) -> dict[str, Any]:
        """Return what a loop registered, and the position of its data loader; what needs pickle is noted and left out."""
        found: dict[str, Any] = {}
        names = _numbered(self.path, "dl_state_dict", ".bin")
        names += sorted(p.name for p in self.path.glob("custom_checkpoint_*.pkl"))
        for name in names:
            try:
                found[Path(name).stem] = self.read(name)
            except CheckpointError as error:
                self.notes.append(f"{name} is not read: {error.message.removeprefix(f'{self.path / name}: ')}")
        return found


def _weights_file(path: Path, suffix: str) -> Path | None:
    files = (path / name.format(suffix) for name in WEIGHTS)
    return next((file for file in files if file.is_file()), None)


def _numbered(path: Path, stem: str, ending: str) -> list[str]:
    """Return `stem.bin`, `stem_1.bin`, … as far as they are there, in their order."""
    found = [
        (int(m[1] or 0), p.name)
        for p in path.iterdir()
        if (m := re.fullmatch(rf"{stem}(?:_(\d+))?{re.escape(ending)}", p.name))
    ]
    return [name for _, name in sorted(found)]


def _further_models(path: Path) -> Iterable[str]:
    matches = (re.fullmatch(r"(?:pytorch_)?model(_\d+)\.(?:safetensors|bin)", p.name) for p in path.iterdir())
    return sorted({m[1] for m in matches if m}, key=lambda suffix: int(suffix[1:]))


def _rank(pattern: str, name: str) -> re.Match[str] | None:
    return re.fullmatch(re.escape(pattern).replace(r"\{\}", r"(\d+)"), name)


def _accelerate_step(optimizers: list[dict[str, Any]], random: Any, notes: list[str]) -> int | None:
    counted = as_step(random.get("step")) if isinstance(random, dict) else None
    states = optimizers[0].get("state") if optimizers else None
    counts = states.values() if isinstance(states, dict) else ()
    updates = {as_step(s.get("step")) for s in counts if isinstance(s, dict)}
    step = updates.pop() if len(updates) == 1 else None
    if step is None:
        # 0 is what accelerate saves of a loop that never calls accumulate
        return counted or None
    if counted and counted != step:
        notes.append(f"step {step} by the optimizer's count of updates; accelerate counts {counted} batches")
    return step


def _unused(keys: CheckpointKeys | None) -> list[str]:
    if keys is None or not any(dict(keys).values()):
        return []
    return ["checkpoint: in the config is not used: a Hugging Face folder names its parts itself"]


def _hidden(path: Path, trainer: dict[str, Any]) -> list[str]:
    """Return the note on losses that the Trainer logged as 0.0 because they were NaN."""
    hidden = hidden_nans(logged_steps(trainer))
    if not hidden:
        return []
    first, last = hidden[0].step, hidden[-1].step
    when = f"at step {first}" if first == last else f"at {len(hidden)} logged steps, {first} to {last}"
    earlier = _earlier(path, first)
    return [
        f"trainer_state.json hides NaN: {when}, the loss reads 0.0 beside a gradient norm that is not finite "
        f"(logging_nan_inf_filter leaves such losses out); the run broke at step {first} or before it"
        + (f": {earlier} is from before" if earlier else ", and this checkpoint is from after")
    ]


def _earlier(path: Path, step: int) -> Path | None:
    """Return the newest checkpoint beside this one that was saved before a step."""
    names = {int(m[1]): p for p in path.parent.iterdir() if (m := re.fullmatch(r"checkpoint-(\d+)", p.name))}
    before = [number for number in names if number < step]
    return names[max(before)] if before else None
