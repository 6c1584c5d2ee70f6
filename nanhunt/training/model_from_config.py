"""Build the model that a checkpoint's config.json describes, through transformers.

The file is data: it names a class of transformers and its sizes. Nothing is downloaded, and code that the checkpoint
itself brings (`auto_map`) is not run.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.errors import CheckpointError, ConfigError
from nanhunt.training.json_file import read_json

__all__ = ["build_from_config", "config_beside"]

_BY_HAND = "name a callable that builds the model under model:"


def config_beside(checkpoint: Path) -> Path | None:
    """Return the config.json in a checkpoint's folder, or beside its file if it names a model; None without one."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    path = folder / "config.json"
    if not path.is_file():
        return None
    is_models = checkpoint.is_dir() or "architectures" in read_json(path)
    return path if is_models else None


def build_from_config(path: Path, weights: Mapping[str, Tensor], assumptions: list[str]) -> nn.Module:
    """Return the model of the first class under `architectures`, freshly initialised, in the dtype of the weights.

    Raises CheckpointError where the file names code of its own, no class of transformers, or sizes that it refuses;
    ConfigError where transformers is not installed.
    """
    content = read_json(path)
    if content.get("auto_map"):
        names = sorted({str(v) for v in content["auto_map"].values()} if isinstance(content["auto_map"], dict) else [])
        raise CheckpointError(
            f"{path}: names code of its own (auto_map: {', '.join(names[:3]) or 'a list'}), which is not run",
            hint=_BY_HAND,
        )
    architectures = content.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if not isinstance(name, str):
        raise CheckpointError(f"{path}: names no architecture to build the model from", hint=_BY_HAND)
    transformers = _transformers(path)
    kind = _class_named(name, transformers)
    if kind is None:
        raise CheckpointError(
            f"{path}: names {name!r}, which is no model of transformers {transformers.__version__}", hint=_BY_HAND
        )
    dtype = _dtype_of(weights)
    try:
        with _offline(), _default_dtype(dtype), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = transformers.AutoConfig.from_pretrained(
                path.parent, local_files_only=True, trust_remote_code=False
            )
            model: nn.Module = kind(config)
    except Exception as error:
        # a class of transformers meets sizes that are not its own: whatever it raises is about this file
        told = (str(error) or type(error).__name__).strip().splitlines()[0][:200]
        raise CheckpointError(f"{path}: {name} cannot be built from it: {told}", hint=_BY_HAND) from error
    attention = getattr(model.config, "_attn_implementation", None)
    details = ", ".join(["in " + str(dtype).removeprefix("torch."), *([f"attention {attention}"] if attention else [])])
    assumptions.append(
        f"model: not in the config; {name} of transformers {transformers.__version__} built from {path} ({details})"
    )
    return model


def _class_named(name: str, transformers: Any) -> Any:
    """Return transformers' model class of this name; None where there is none, or it lacks something to be imported."""
    try:
        kind = getattr(transformers, name, None)
    except Exception:
        # names are imported when they are first asked for, and raise whatever that module raises
        return None
    return kind if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel) else None


def _transformers(path: Path) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"model: is missing, and building it from {path} needs transformers, which cannot be imported: {error}",
            hint="`pip install 'nanhunt[hf]'`, or name a callable that builds the model under model:",
        ) from error
    return transformers


def _dtype_of(weights: Mapping[str, Tensor]) -> torch.dtype:
    """Return the floating dtype that most of the weights' elements have: what the run trained, whatever config.json says."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in weights.values():
        if tensor.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Build parameters in `dtype`, as from_pretrained does: a cast afterwards would take the rotary buffers along."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the hub out: some vision models fetch the weights of their backbone when they are built."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
