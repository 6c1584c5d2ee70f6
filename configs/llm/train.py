"""Trains the model of a recipe from scratch for some steps and saves what a run would save.

    python configs/llm/train.py configs/llama3.yaml --out ckpt.pt --steps 30
    nanhunt replay ckpt.pt -c configs/llama3.yaml

A training loop in plain torch that reads the recipe's own file: autocast, gradient scaler, clip, schedule. What torch
cannot do by itself, `precision.recipe` (FP8, moments in bf16), is left to the replay: the checkpoint is that of the same
run without it. A replay answers what the recipe would do from there.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

FORMATS = {"fp16": torch.float16, "bf16": torch.bfloat16}


def made(spec: Any, *arguments: Any, **more: Any) -> Any:
    """Call what `module:attribute`, or `{call: …, kwargs: …}`, names."""
    spec = spec if isinstance(spec, dict) else {"call": spec}
    module, _, attribute = spec["call"].partition(":")
    function = getattr(importlib.import_module(module), attribute)
    return function(*arguments, **more, **spec.get("kwargs", {}))


def clip(model: nn.Module, settings: dict[str, Any]) -> None:
    """Clip the gradients as the recipe says."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    if "clip_grad_norm" in settings:
        nn.utils.clip_grad_norm_(parameters, settings["clip_grad_norm"])
    if "clip_grad_value" in settings:
        nn.utils.clip_grad_value_(parameters, settings["clip_grad_value"])
    for parameter in parameters:
        if "clip_param_norm" in settings:
            nn.utils.clip_grad_norm_(parameter, settings["clip_param_norm"])
        if "agc" in settings:
            clip_adaptively(parameter, settings["agc"])


@torch.no_grad()
def clip_adaptively(parameter: nn.Parameter, factor: float) -> None:
    """Hold the gradient of each output row, or of a vector as a whole, to `factor` times the row's own norm."""
    assert parameter.grad is not None
    rows = 1 if parameter.dim() < 2 else parameter.size(0)
    weights, grads = parameter.view(rows, -1), parameter.grad.view(rows, -1)
    limit = factor * weights.norm(dim=1, keepdim=True).clamp(min=1e-3)
    grads.mul_((limit / grads.norm(dim=1, keepdim=True).clamp(min=1e-6)).clamp(max=1.0))


def train(recipe: Path, out: Path, steps: int) -> None:
    """Train `steps` steps from scratch and save the checkpoint."""
    sys.path.insert(0, str(recipe.resolve().parent))
    config = yaml.safe_load(recipe.read_text())
    precision, settings = config.get("precision", {}), config["train"]
    torch.manual_seed(settings["seed"])
    model = made(config["model"])
    optimizer = made(config["optimizer"], model.parameters())
    scheduler = made(config["scheduler"], optimizer) if "scheduler" in config else None
    scaling = precision.get("grad_scaler")
    scaler = torch.amp.GradScaler("cpu", **(scaling if isinstance(scaling, dict) else {"enabled": bool(scaling)}))
    narrow = FORMATS.get(precision.get("autocast", "none"))
    stream = made(config["data"])
    for step in range(steps):
        with torch.autocast("cpu", dtype=narrow) if narrow else contextlib.nullcontext():
            loss = made(config["loss"], model, next(stream))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clip(model, settings)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if scheduler is not None:
            scheduler.step()
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.4f}")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": steps}
    if scheduler is not None:
        state["scheduler"] = scheduler.state_dict()
    if scaler.is_enabled():
        state["scaler"] = scaler.state_dict()
    torch.save(state, out)
    print(f"saved {out}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a recipe's small model on Python's own help text.")
    parser.add_argument("recipe", type=Path, help="a file of configs/")
    parser.add_argument("--out", type=Path, default=Path("ckpt.pt"))
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    train(arguments.recipe, arguments.out, arguments.steps)


if __name__ == "__main__":
    main()
