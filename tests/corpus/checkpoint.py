"""Makes a program's checkpoint by training its healthy twin, with a plain loop that knows nothing of nanhunt."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from tests.corpus.program import Program

__all__ = ["save_checkpoint", "shake"]

_FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}
#: Relative, eight spacings of fp32 around 1: what sums in another order leave after some steps, and far below any fault.
_SHAKE = 1e-6


def save_checkpoint(program: Program, folder: Path, shaken: int | None = None) -> None:
    """Write `ckpt.pt` beside the program's `train.py`, shaken by the noise of a seed where one is given.

    Weights are shaken where training begins and where it ends: what training makes of a difference is part of it.
    """
    sys.path.insert(0, str(folder))
    train = _module(folder / "train.py")
    if shaken is not None:
        train.build_model = _shaking(train.build_model, shaken)
    torch.manual_seed(0)
    state = train.make_checkpoint(train) if hasattr(train, "make_checkpoint") else _trained(program, train)
    if shaken is not None:
        shake(state["model"], shaken)
    torch.save(state, folder / "ckpt.pt")


def shake(weights: dict[str, Any], seed: int) -> None:
    """Multiply each fp32 and fp64 tensor by 1 + 1e-6 z in place, z ~ N(0, 1): a machine that rounds otherwise ends as near.

    Weights of 16 bits stay: their spacing is a thousand times the noise. Zeros and infinities stay what they are. What
    shares its memory (tied weights) is shaken once, and what is equal bit for bit (replicas of one model) stays so.
    """
    generator = torch.Generator().manual_seed(seed)
    done, noises = set(), dict[tuple[torch.Size, bytes], torch.Tensor]()
    for tensor in weights.values():
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in (torch.float32, torch.float64):
            continue
        if tensor.data_ptr() not in done:
            done.add(tensor.data_ptr())
            noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            noise = noises.setdefault((tensor.shape, tensor.detach().numpy().tobytes()), noise)
            with torch.no_grad():
                tensor.mul_(1.0 + _SHAKE * noise)


def _shaking(build_model: Callable[[], Any], seed: int) -> Callable[[], Any]:
    def built() -> Any:
        model = build_model()
        shake(model.state_dict(), seed)
        return model

    return built


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("train", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train"] = module
    spec.loader.exec_module(module)
    return module


def _trained(program: Program, train: ModuleType) -> dict[str, Any]:
    """Train `BEFORE` steps with FAULTY off, by the recipe of the twin's CONFIG."""
    faulty, train.FAULTY = getattr(train, "FAULTY", False), False
    mended = program.config | program.mended
    config, precision = mended.get("train", {}), mended.get("precision", {})
    model = train.build_model()
    if precision.get("params") in _FORMATS:
        model = model.to(_FORMATS[precision["params"]])
    optimizer = train.make_optimizer(model)
    scheduler = train.make_scheduler(optimizer) if hasattr(train, "make_scheduler") else None
    scales = precision.get("grad_scaler", precision.get("autocast") == "fp16")
    scaler = torch.amp.GradScaler("cpu", enabled=bool(scales), **(scales if isinstance(scales, dict) else {}))
    data = iter(train.batches())
    for _ in range(program.before):
        if hasattr(train, "train_step"):
            train.train_step(model, next(data), optimizer)
        else:
            _step(train, model, optimizer, scaler, data, precision.get("autocast"), config)
        if scheduler is not None:
            scheduler.step()
    train.FAULTY = faulty
    state = {"model": model.state_dict(), "step": program.before, "rng_state": torch.get_rng_state()}
    if program.before:
        state["optimizer"] = optimizer.state_dict()
    if scheduler is not None:
        state["scheduler"] = scheduler.state_dict()
    if scaler.is_enabled():
        state["scaler"] = scaler.state_dict()
    return state


def _step(
    train: ModuleType, model: Any, optimizer: Any, scaler: Any, data: Any, autocast: str | None, config: dict[str, Any]
) -> None:
    optimizer.zero_grad()
    micros = config.get("accumulate", 1)
    for _ in range(micros):
        half = torch.autocast("cpu", _FORMATS[autocast]) if autocast in _FORMATS else contextlib.nullcontext()
        with half:
            loss = train.compute_loss(model, next(data)) / micros
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    if config.get("clip_grad_norm"):
        torch.nn.utils.clip_grad_norm_(model.parameters(), config["clip_grad_norm"])
    scaler.step(optimizer)
    scaler.update()
