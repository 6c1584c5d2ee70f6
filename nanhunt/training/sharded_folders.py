"""Checkpoints of DeepSpeed, Megatron and NeMo: recognised, and answered with the command that makes them whole.

Their weights are cut by rank into pieces that only their own code puts together again. Each is recognised whether the
user names the run's folder, the folder of one step, or one of the files in it. The commands follow the sources
of DeepSpeed 0.19 (`zero_to_fp32.py`), Megatron-LM 0.20 (`tools/checkpoint/convert.py`) and Megatron Bridge 0.7, and
NeMo 2's `llm.export_ckpt`; none of those can be installed for the tests, which hold the arguments, not the outcome.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from nanhunt.errors import CheckpointError

if TYPE_CHECKING:
    from nanhunt.training.config import CheckpointKeys

__all__ = [
    "is_deepspeed",
    "is_megatron",
    "is_nemo",
    "refuse_deepspeed",
    "refuse_megatron",
    "refuse_nemo",
]

# --- DeepSpeed -----------------------------------------------------------------------------------------------------

SCRIPT = "zero_to_fp32.py"
_STATES = ("*_model_states.pt", "*_optim_states.pt")


def is_deepspeed(path: Path) -> bool:
    """Whether DeepSpeed wrote the folder, a folder in it, or the file: its script or partitioned states are there."""
    if path.is_file():
        return any(path.match(name) for name in _STATES)
    names = (SCRIPT, *_STATES, *(f"*/{name}" for name in _STATES))
    return path.is_dir() and (_is_universal(path) or any(any(path.glob(name)) for name in names))


def refuse_deepspeed(path: Path, keys: CheckpointKeys | None, trust_pickle: bool) -> NoReturn:
    """Raise CheckpointError with the command that makes the partitions whole."""
    step, root = _deepspeed_folders(path)
    if step is not None and _is_universal(step):
        original = step.with_name(step.name.removesuffix("_universal"))
        of = original if original != step and original.is_dir() else None
        mend = (
            f"convert it with `{_zero_to_fp32(root, of)}`" if of else "convert that one with DeepSpeed's zero_to_fp32"
        )
        raise CheckpointError(
            f"{path}: is a universal checkpoint of DeepSpeed, a folder for each parameter",
            hint=f"name the ZeRO checkpoint that it was made from: {mend}, and name the result",
        )
    raise CheckpointError(
        f"{path}: is {_one_of(path)}a DeepSpeed checkpoint, whose weights and moments are cut into flat partitions",
        hint=f"convert it with `{_zero_to_fp32(root, step)}` and name the result; it holds the weights, not the optimizer",
    )


def _deepspeed_folders(path: Path) -> tuple[Path | None, Path]:
    """Return the folder of one step, where the user named one, and the folder above it, which holds `latest`."""
    folder = path.parent if path.is_file() else path
    if _is_universal(folder) or any(any(folder.glob(name)) for name in _STATES):
        return folder, folder.parent
    return None, folder


def _zero_to_fp32(root: Path, step: Path | None) -> str:
    """DeepSpeed lays its script beside the steps; it converts the step that `latest` names, or that of `--tag`."""
    script = shlex.quote(str(root / SCRIPT)) if (root / SCRIPT).is_file() else "-m deepspeed.utils.zero_to_fp32"
    tag = f" --tag {shlex.quote(step.resolve().name)}" if step is not None else ""
    return f"python {script} {shlex.quote(str(root))} {shlex.quote(_beside(root, 'fp32'))}{tag}"


def _is_universal(path: Path) -> bool:
    return (path / "zero").is_dir() and any(path.glob("zero/*/fp32.pt"))


# --- Megatron and NeMo ---------------------------------------------------------------------------------------------

POINTER = "latest_checkpointed_iteration.txt"
_RANK = re.compile(r"mp_rank_\d\d(_\d\d\d)*")


def is_megatron(path: Path) -> bool:
    """Whether Megatron wrote the folder, a folder in it, or the file: its pointer, or states by model-parallel rank.

    The file of the only rank holds the whole model, and is read as any other file of torch.save.
    """
    if path.is_file():
        return _RANK.fullmatch(path.parent.name) is not None and len(_ranks(path.parent.parent)) > 1
    if not path.is_dir():
        return False
    return (
        (path / POINTER).is_file() or _is_torch_dist(path) or _is_rank(path) or bool(_ranks(path) or _iterations(path))
    )


def refuse_megatron(path: Path, keys: CheckpointKeys | None, trust_pickle: bool) -> NoReturn:
    """Raise CheckpointError with the way from Megatron's shards to one file."""
    iteration, root = _megatron_folders(path)
    ranks = _ranks(iteration) if iteration is not None else []
    if path.is_dir() and len(ranks) == 1 and (ranks[0] / "model_optim_rng.pt").is_file():
        raise CheckpointError(
            f"{path}: is a Megatron checkpoint of one model-parallel rank",
            hint=f"name its file: {ranks[0] / 'model_optim_rng.pt'}",
        )
    if iteration is not None and (iteration / "run_config.yaml").is_file():
        raise CheckpointError(
            f"{path}: is {_one_of(path)}a checkpoint of Megatron Bridge, cut by rank",
            hint=f"export it with `{_bridge(iteration)}`, HF_MODEL being the Hugging Face model that it is an instance "
            "of, and name the result; it holds the weights, not the optimizer",
        )
    raise CheckpointError(
        f"{path}: is {_one_of(path)}a Megatron checkpoint, cut by tensor- and pipeline-parallel rank",
        hint=f"in Megatron-LM's folder, make it one rank's with `{_convert(root)}` and name the "
        "iter_*/mp_rank_00/model_optim_rng.pt that it writes, with --trust-pickle (Megatron pickles its arguments); it holds the weights, not the optimizer",
    )


def is_nemo(path: Path) -> bool:
    """Whether NeMo 2 wrote the folder: its `context` beside Megatron's `weights`."""
    folder = path.parent if path.name == "weights" else path
    return path.is_dir() and (folder / "context").is_dir() and (folder / "weights").is_dir()


def refuse_nemo(path: Path, keys: CheckpointKeys | None, trust_pickle: bool) -> NoReturn:
    """Raise CheckpointError with NeMo's own export to Hugging Face."""
    folder = path.parent if path.name == "weights" else path
    call = f"llm.export_ckpt(path={str(folder)!r}, target='hf', output_path={_beside(folder, 'hf')!r})"
    command = f"python -c {shlex.quote(f'from nemo.collections import llm; {call}')}"
    raise CheckpointError(
        f"{path}: is a checkpoint of NeMo, cut by rank",
        hint=f"export it with `{command}` and name the result; it holds the weights, not the optimizer",
    )


def _megatron_folders(path: Path) -> tuple[Path | None, Path]:
    """Return the folder of the iteration that is meant, the newest where none is named, and the one above it."""
    folder = path.parent if path.is_file() else path
    if _RANK.fullmatch(folder.name):
        folder = folder.parent
    if _is_torch_dist(folder) or _ranks(folder):
        return folder, folder.parent
    inside = _iterations(folder)
    return (inside[-1] if inside else None), folder


def _iterations(root: Path) -> list[Path]:
    """Return the folders of iterations, the newest last."""
    return sorted(p for p in root.glob("iter_*") if p.is_dir() and (_ranks(p) or (p / ".metadata").is_file()))


def _ranks(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("mp_rank_*") if _is_rank(path))


def _is_rank(path: Path) -> bool:
    return path.is_dir() and _RANK.fullmatch(path.name) is not None and any(path.glob("*.pt"))


def _is_torch_dist(path: Path) -> bool:
    """Whether it is one iteration in the format `torch_dist`: DCP's shards, and Megatron's own two files."""
    return (path / "common.pt").is_file() and (path / "metadata.json").is_file()


def _convert(root: Path) -> str:
    target = shlex.quote(_beside(root, "whole"))
    return (
        "python tools/checkpoint/convert.py --model-type GPT --loader core --saver core "
        f"--load-dir {shlex.quote(str(root))} --save-dir {target} "
        "--target-tensor-parallel-size 1 --target-pipeline-parallel-size 1"
    )


def _bridge(iteration: Path) -> str:
    call = f"export_ckpt({str(iteration)!r}, {_beside(iteration, 'hf')!r})"
    code = f"from megatron.bridge import AutoBridge; AutoBridge.from_hf_pretrained('HF_MODEL').{call}"
    return f"python -c {shlex.quote(code)}"


def _beside(folder: Path, suffix: str) -> str:
    """Return a path beside the folder, named after it."""
    return str(folder.parent / f"{folder.resolve().name}-{suffix}")


def _one_of(path: Path) -> str:
    return "one file of " if path.is_file() else ""
