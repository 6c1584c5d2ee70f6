"""A loop that saves as torchtitan does: DCP folders, the model at the top level, the optimizer flat and by name.

    python configs/projects/torchtitan/train.py --out out --steps 30
    nanhunt replay out/checkpoint/step-20 -c configs/projects/torchtitan/nanhunt.yaml --trust-pickle

torchtitan itself trains on GPUs only; this is its checkpointing around a small plain loop: ModelWrapper,
OptimizersContainer (of which one part is here), LRSchedulersContainer and the `train_state` of its Trainer, by the same
keys. The text is the one that Python itself carries.
"""

from __future__ import annotations

import argparse
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

seed = 1337
local_batch_size, seq_len, dim, n_layers, n_heads, vocab_size = 8, 32, 64, 2, 4, 256
warmup_steps = 5
ignore_index = -100  # torchtitan's IGNORE_INDEX


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (w(x).unflatten(2, (n_heads, -1)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, n_heads, T, dim / n_heads)
        out: Tensor = self.wo(y.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(dim, 4 * dim, bias=False)
        self.w2 = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class TransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(), FeedForward()
        self.attention_norm, self.ffn_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


class Transformer(nn.Module):
    """Llama's shape and torchtitan's names, without rotary embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocab_size, dim)
        self.layers = nn.ModuleDict({str(index): TransformerBlock() for index in range(n_layers)})
        self.norm = nn.RMSNorm(dim)
        self.output = nn.Linear(dim, vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tok_embeddings(tokens)
        for layer in self.layers.values():
            h = layer(h)
        logits: Tensor = self.output(self.norm(h))  # (B, T, vocab_size)
        return logits


def get_batch(step: int) -> tuple[Tensor, Tensor]:
    """Crops (local_batch_size, seq_len) and the same crops one byte later, a function of seed and step alone."""
    text = "\n".join(topics[key] for key in sorted(topics)).encode()
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(len(tokens) - seq_len, (local_batch_size,), generator=generator)
    crops = tokens[starts[:, None] + torch.arange(seq_len + 1)]
    return crops[:, :-1], crops[:, 1:]


# What nanhunt.yaml names.


def build_model() -> Transformer:
    return Transformer()


def batches(start_step: int = 0, bad_step: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, from `start_step` on; in `bad_step` no label counts."""
    step = start_step
    while True:
        tokens, labels = get_batch(step)
        yield tokens, torch.full_like(labels, ignore_index) if step == bad_step else labels
        step += 1


def compute_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy over the labels that count."""
    tokens, labels = batch
    return F.cross_entropy(model(tokens).flatten(0, 1).float(), labels.flatten(), ignore_index=ignore_index)


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def build_lr_scheduler(optimizer: torch.optim.Optimizer, steps: int = 1000) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warm-up, then linear decay; `steps` is training.steps of the whole run."""

    def factor(steps: int, step: int) -> float:
        return (step + 1) / warmup_steps if step < warmup_steps else 1 - (step - warmup_steps) / steps

    return torch.optim.lr_scheduler.LambdaLR(optimizer, functools.partial(factor, steps))


# The checkpoint, as torchtitan/components/checkpointer writes it.


class ModelWrapper:
    """Gives the model's state at the top level of the checkpoint."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Any]:
        return get_model_state_dict(self.model)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_model_state_dict(self.model, state, options=StateDictOptions(strict=False))


class OptimizersContainer:
    """Gives the optimizer's state flat and by name: `state.layers.0.….exp_avg`, `param_groups.layers.0.….lr`."""

    options = StateDictOptions(flatten_optimizer_state_dict=True)

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer

    def state_dict(self) -> dict[str, Any]:
        return get_optimizer_state_dict(self.model, self.optimizer, options=self.options)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_optimizer_state_dict(self.model, self.optimizer, optim_state_dict=state, options=self.options)


class LRSchedulersContainer:
    """Gives `last_epoch` alone: the rest of a schedule follows from it and the config."""

    def __init__(self, scheduler: torch.optim.lr_scheduler.LRScheduler) -> None:
        self.scheduler = scheduler

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.scheduler.last_epoch}


def save(folder: Path, step: int, ntokens_seen: int, **states: Any) -> None:
    """Write `checkpoint/step-N`: the model's state at the top level, the others under their names."""
    whole = {name: state.state_dict() for name, state in states.items() if name != "model"}
    whole |= {"train_state": {"step": step, "ntokens_seen": ntokens_seen}, **states["model"].state_dict()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells that no process group is there
        dcp.save(whole, checkpoint_id=folder / "checkpoint" / f"step-{step}")


# The training run.


def train(out: Path, steps: int) -> None:
    """Train `steps` steps from scratch, and save every tenth."""
    torch.manual_seed(seed)
    model = build_model()
    optimizer = build_optimizer(model)
    lr_scheduler = build_lr_scheduler(optimizer)
    states = {
        "model": ModelWrapper(model),
        "optimizer": OptimizersContainer(model, optimizer),
        "lr_scheduler": LRSchedulersContainer(lr_scheduler),
    }
    out.mkdir(parents=True, exist_ok=True)
    stream = batches()
    with (out / "losses.csv").open("w") as log:
        print("step,loss", file=log)
        for step in range(steps):
            optimizer.zero_grad()
            loss = compute_loss(model, next(stream))
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            lr_scheduler.step()
            print(f"{step},{loss.item()}", file=log)
            if (step + 1) % 10 == 0:
                print(f"step {step + 1}: loss {loss.item():.4f}, saved")
                save(out, step + 1, (step + 1) * local_batch_size * seq_len, **states)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small Llama on Python's help text, saved as torchtitan does.")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    train(arguments.out, arguments.steps)


if __name__ == "__main__":
    main()
