"""Odd values and odd structures: what is well-formed, and not what anybody would write."""

from __future__ import annotations

import copy
import functools
import random
from collections import OrderedDict
from typing import Any

import torch

__all__ = [
    "batches",
    "changed",
    "odd_checkpoint",
    "odd_config",
    "odd_json",
    "odd_text",
    "well_formed_checkpoint",
    "well_formed_model",
]

TEXTS = (
    "", " ", "model", "weight", "module.h.0.weight", "0", "-1", "nan", "../../etc/passwd", "/dev/zero", "a" * 10_000, "\0", "\n",
    "\x1b]52;c;aGk=\x07", "\x1b[2J", "[red]x[/red]", "</script><script>alert(1)</script>", "](javascript:alert(1))", "|`|", "\u202egnp",
    "\ud800", "模型", "$float", "__class__", "{0.__class__}", "%s%n", "@CALL@", '"""', "\\", "aten.from_file.default",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 7, 255, 65504, 2**31, -(2**31), 2**53, 2**63 - 1, -(2**63), 2**63, 2**64, 10**30, 10**400, True, False, None,
    0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip


def odd_text(rng: random.Random) -> str:
    """Return a text that somebody may choose to do harm."""
    return rng.choice(TEXTS)


def odd_json(rng: random.Random, depth: int = 3) -> Any:
    """Return any JSON value, non-finite numbers included."""
    kind = rng.randrange(8)
    if kind < 3 or depth == 0:
        return rng.choice(NUMBERS)
    if kind < 5:
        return odd_text(rng)
    if kind == 5:
        return [odd_json(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 6:
        return {odd_text(rng): odd_json(rng, depth - 1) for _ in range(rng.randrange(4))}
    nested: Any = []
    for _ in range(rng.choice((10, 70, 400))):
        nested = [nested]
    return nested


def changed(value: Any, rng: random.Random) -> Any:
    """Return a copy of JSON values in which one to three places, at any depth, hold something else or are gone."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        holder, key = _somewhere(value, rng)
        if holder is None:
            return odd_json(rng)
        what = rng.randrange(6)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[odd_text(rng)] = holder.pop(key)
        elif what == 2 and isinstance(holder, list):
            holder.extend([copy.deepcopy(holder[key])] * rng.choice((1, 2, 100)))
        elif what == 3 and isinstance(holder[key], (int, float)) and not abs(holder[key]) > 2**60:
            holder[key] = rng.choice((-holder[key], holder[key] * 1e9, float(holder[key]), holder[key] + 1))
        else:
            holder[key] = odd_json(rng)
    return value


def _somewhere(value: Any, rng: random.Random) -> tuple[Any, Any]:
    """Return a dict or list inside, and a key or index of it; (None, None) where there is none."""
    holder, key = None, None
    while isinstance(value, (dict, list)) and value and (holder is None or rng.random() < 0.8):
        holder, key = value, rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        value = holder[key]
    return holder, key


def well_formed_model() -> torch.nn.Module:
    """Return the model whose checkpoint `well_formed_checkpoint` is."""
    return torch.nn.Sequential(OrderedDict(embed=torch.nn.Embedding(4, 4), head=torch.nn.Linear(4, 2)))


def batches() -> list[dict[str, torch.Tensor]]:
    """Return batches for the model; no step is taken with them."""
    return [{"x": torch.tensor([1, 2])}]


def loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a loss of the model."""
    return model(batch["x"]).sum()


def well_formed_checkpoint() -> dict[str, Any]:
    """Return what a training loop saves: model, AdamW, schedule, scaler, step, random states."""
    return _shallow(_whole())


def _shallow(value: Any) -> Any:
    """Return a copy with dicts of its own; what is in them is shared."""
    return {k: _shallow(v) for k, v in value.items()} if isinstance(value, dict) else value


@functools.cache
def _whole() -> dict[str, Any]:
    torch.manual_seed(0)
    model = well_formed_model()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)  # no backward: autograd's threads do not outlive a fork
    optimizer.step()
    return {
        "model": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "scheduler": {k: v for k, v in scheduler.state_dict().items() if k != "lr_lambdas"},
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 3},
        "iter_num": 7,
        "config": {"n_layer": 1, "lr": 1e-3},
        "rng_state": {"torch": torch.get_rng_state()},
        "best_val_loss": torch.tensor(3.5),
    }  # fmt: skip


class _Bytes:
    """What is pickled as a call that makes a gigabyte."""

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return bytearray, (1 << 30,)


def _without_end(rng: random.Random) -> Any:
    """Return lists that hold themselves, or come to a billion entries without taking the room."""
    inner: Any = [0]
    if rng.random() < 0.3:
        inner.append(inner)
    for _ in range(rng.choice((3, 40, 100))):
        inner = [inner, inner]
    return inner


def odd_checkpoint(rng: random.Random) -> Any:
    """Return a checkpoint in which some places hold what no loop saves there; all of it loads with `weights_only`."""
    content: Any = well_formed_checkpoint()
    for _ in range(rng.choice((1, 2, 5))):
        holder = content
        while True:
            below = [k for k, v in holder.items() if isinstance(v, dict)]
            if not below or rng.random() < 0.4:
                break
            holder = holder[rng.choice(below)]
        key = rng.choice([*holder, *_KEYS]) if rng.random() < 0.8 else _odd_key(rng)
        if rng.random() < 0.15:
            holder.pop(key, None)
        elif rng.random() < 0.05:
            holder[key] = _Bytes() if rng.random() < 0.3 else _without_end(rng)
        else:
            holder[key] = odd_object(rng)
    return content if rng.random() < 0.95 else odd_object(rng)


_KEYS = (
    "model", "state_dict", "module", "optimizer", "optimizers", "optimizer_states", "lr_schedulers", "step", "global_step", "epoch",
    "param_groups", "state", "rng", "cuda_rng_state", "numpy_rng_state", "random_state", "train_state", "pytorch-lightning_version",
    "_growth_tracker", "scaler", "params", "lr", "betas", "exp_avg",
)  # fmt: skip


def _odd_key(rng: random.Random) -> Any:
    return rng.choice((odd_text(rng), 0, -1, 2**70, 1.5, float("nan"), True, None, (), ("a", 1), b"bytes"))


def odd_object(rng: random.Random, depth: int = 3) -> Any:
    """Return any value that torch.save writes of tensors and plain data."""
    kind = rng.randrange(10)
    if kind < 3 or depth == 0:
        return _odd_tensor(rng)
    if kind < 5:
        return rng.choice((*NUMBERS, *TEXTS, b"", b"\0" * 9, (), [], {}, 3 + 4j))
    if kind == 5:
        return [odd_object(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 6:
        return tuple(odd_object(rng, depth - 1) for _ in range(rng.randrange(4)))
    if kind == 7:
        group = {"params": rng.choice(([0, 1], [], ["a"], None, [0] * 500)), "lr": rng.choice(NUMBERS)}
        return {
            "state": odd_object(rng, depth - 1),
            "param_groups": rng.choice(([group], [], None, [group, group], {"a": group}, [1])),
        }
    return {_odd_key(rng): odd_object(rng, depth - 1) for _ in range(rng.randrange(4))}


_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.int64, torch.uint8, torch.int8,
    torch.bool,
)  # fmt: skip


def _odd_tensor(rng: random.Random) -> Any:
    shape = rng.choice(((), (0,), (1,), (4, 4), (2, 4), (3, 0, 2), (1,) * 20, (5000,)))
    tensor = torch.zeros(shape, dtype=rng.choice(_DTYPES))
    kind = rng.randrange(10)
    if kind == 0 and tensor.dtype is torch.float32 and tensor.dim() == 2:
        return tensor.to_sparse()
    if kind == 1:
        return torch.zeros(1).expand(10**6, 10**6)  # a terabyte's shape in four bytes
    if kind == 2:
        return torch.nn.Parameter(torch.full((4,), float("nan")))
    if kind == 3:
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    if kind == 4:
        return torch.arange(10.0).as_strided((3, 3), (0, 1))
    return torch.empty(4, 4, device="meta") if kind == 5 else tensor


_SECTIONS: dict[str, tuple[str, ...]] = {
    "": ("model", "data", "loss", "optimizer", "scheduler", "train_step", "precision", "train", "checkpoint"),
    "train": ("steps", "accumulate", "clip_grad_norm", "agc", "seed"),
    "precision": ("autocast", "grad_scaler", "params", "recipe"),
    "checkpoint": ("model", "optimizer", "step"),
}


def odd_config(rng: random.Random) -> Any:
    """Return a config in which some keys hold what no key takes."""
    config: dict[Any, Any] = {
        "model": "train:build_model",
        "data": {"call": "train:batches", "kwargs": {"a": 1}},
        "precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 4.0}},
        "train": {"steps": 3},
    }
    for _ in range(rng.choice((1, 2, 4))):
        section = rng.choice(list(_SECTIONS))
        holder = config if section == "" else config.setdefault(section, {})
        key = rng.choice(_SECTIONS[section]) if rng.random() < 0.8 else odd_text(rng)
        if isinstance(holder, dict):
            holder[key] = (
                rng.choice(("fp16", "fp8-hybrid", "a:b", True, 1, {"call": "a:b"}))
                if rng.random() < 0.2
                else odd_json(rng)
            )
    return config
