"""A nanoGPT-style training script that nanhunt can replay: the checkpoint's keys, the parameter groups, the crops.

    python configs/nanogpt/train.py --out ckpt.pt --steps 30
    nanhunt replay ckpt.pt -c configs/nanogpt.yaml

It trains a small GPT on the text that Python itself carries, a token a byte, on the CPU. What makes it replayable is
that importing it trains nothing, and that a step's batch depends on the seed and the step alone. `--compile eager`
saves the keys with the `_orig_mod.` that torch.compile puts before them.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

batch_size = 12
learning_rate = 1e-3
min_lr = 1e-4
warmup_iters = 10
lr_decay_iters = 2000
weight_decay = 0.1
beta1, beta2 = 0.9, 0.99
grad_clip = 1.0
seed = 1337

IGNORED = -1  # targets that don't count


@dataclass
class GPTConfig:
    """What `model_args` of the checkpoint holds."""

    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    block_size: int = 64
    vocab_size: int = 256
    dropout: float = 0.0
    bias: bool = False


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head = config.n_head
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(2, (self.n_head, -1)).transpose(1, 2)  # (B, n_head, T, n_embd / n_head)
            for part in self.c_attn(x).chunk(3, dim=2)
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        out: Tensor = self.c_proj(y.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.c_proj(F.gelu(self.c_fc(x))))
        return out


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class GPT(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.transformer = nn.ModuleDict(
            {
                "wte": wte,
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "drop": nn.Dropout(config.dropout),
                "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
                "ln_f": nn.LayerNorm(config.n_embd, bias=config.bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = wte.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                # what is added to the residual stream 2 * n_layer times starts smaller by the root of that
                depth = 2 * config.n_layer if name.endswith("c_proj.weight") else 1
                nn.init.normal_(parameter, std=0.02 / math.sqrt(depth))

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, vocab_size), and the mean cross-entropy over the targets that count."""
        position = torch.arange(idx.size(1), device=idx.device)
        x = self.transformer["drop"](self.transformer["wte"](idx) + self.transformer["wpe"](position))
        for block in self.transformer["h"].children():
            x = block(x)
        logits: Tensor = self.lm_head(self.transformer["ln_f"](x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)

    def configure_optimizers(self) -> torch.optim.AdamW:
        """AdamW with two groups: matrices and embeddings decay, norms and biases don't."""
        parameters = list(self.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(beta1, beta2))


def split(name: str) -> Tensor:
    """The bytes of Python's help text as int64: nine tenths are "train", the rest is "val"."""
    text = "\n".join(topics[key] for key in sorted(topics)).encode()
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    border = len(tokens) * 9 // 10
    return tokens[:border] if name == "train" else tokens[border:]


def get_batch(data: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Random crops (batch_size, block_size) and the same crops one byte later, a function of seed and step alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    block_size = GPTConfig.block_size
    starts = torch.randint(len(data) - block_size, (batch_size,), generator=generator).tolist()
    x = torch.stack([data[i : i + block_size] for i in starts])
    y = torch.stack([data[i + 1 : i + 1 + block_size] for i in starts])
    return x, y


# What nanogpt.yaml names.


def build_model(**model_args: int | float | bool) -> GPT:
    """The model, freshly initialised; the arguments are those of GPTConfig."""
    return GPT(GPTConfig(**model_args))  # type: ignore[arg-type]


def batches(
    start_step: int = 0, bad_step: int | None = None, bad_kind: str = "ignored"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, from `start_step` on.

    `bad_step` plants a fault in that step's batch: "ignored" leaves no target that counts, "garbage" replaces the
    crops by random bytes.
    """
    if bad_kind not in ("ignored", "garbage"):
        raise ValueError(f"bad_kind is 'ignored' or 'garbage', not {bad_kind!r}")
    data = split("train")
    step = start_step
    while True:
        x, y = get_batch(data, step)
        if step == bad_step and bad_kind == "ignored":
            y = torch.full_like(y, IGNORED)
        elif step == bad_step:
            generator = torch.Generator().manual_seed(step)
            x, y = torch.randint(GPTConfig.vocab_size, (2, *x.shape), generator=generator)
        yield x, y
        step += 1


def compute_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss that the model's own forward returns beside the logits."""
    loss: Tensor
    _, loss = model(*batch)
    return loss


def configure_optimizer(model: GPT) -> torch.optim.AdamW:
    """The optimizer, with its parameter groups in the order of the checkpoint's."""
    return model.configure_optimizers()


# The training run.


def get_lr(step: int) -> float:
    """Linear warm-up, then a cosine down to min_lr."""
    if step < warmup_iters:
        return learning_rate * (step + 1) / (warmup_iters + 1)
    progress = min(1.0, (step - warmup_iters) / (lr_decay_iters - warmup_iters))
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * progress)) * (learning_rate - min_lr)


@torch.no_grad()
def estimate_loss(model: nn.Module, eval_iters: int = 4) -> float:
    """Mean loss over some crops of the validation split."""
    model.eval()
    data = split("val")
    losses = [compute_loss(model, get_batch(data, step)).item() for step in range(eval_iters)]
    model.train()
    return sum(losses) / len(losses)


def recording(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path | None) -> Any:
    """nanhunt's recorder, which leaves a bundle in `folder` when a step breaks; nothing without a folder."""
    if folder is None:
        return contextlib.nullcontext()
    import nanhunt

    return nanhunt.Recorder(
        model, optimizer, build=build_model, loss=compute_loss, build_optimizer=configure_optimizer, out=folder
    )


def train(out: Path, steps: int, backend: str | None, record: Path | None = None, bad_step: int | None = None) -> None:
    """Train `steps` steps from scratch and save the checkpoint."""
    torch.manual_seed(seed)
    raw_model = build_model()
    optimizer = configure_optimizer(raw_model)
    model: nn.Module = raw_model
    if backend is not None:
        model = cast(nn.Module, torch.compile(raw_model, backend=backend))
    stream = batches(bad_step=bad_step)
    with recording(model, optimizer, record) as recorder:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = get_lr(step)
            batch = next(stream)
            if recorder is not None:
                recorder.step(batch)
            loss = compute_loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step % 10 == 0 or step == steps - 1:
                print(f"iter {step}: loss {loss.item():.4f}")
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "model_args": asdict(raw_model.config),
        "iter_num": steps,
        "best_val_loss": estimate_loss(model),
        "config": {"batch_size": batch_size, "learning_rate": learning_rate, "grad_clip": grad_clip, "seed": seed},
    }
    torch.save(checkpoint, out)
    print(f"saved {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small GPT on Python's own help text.")
    parser.add_argument("--out", type=Path, default=Path("ckpt.pt"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--compile", metavar="BACKEND", help="wrap the model with torch.compile, e.g. eager, inductor")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="let nanhunt record the run, bundles into FOLDER")
    parser.add_argument("--bad-step", type=int, help="leave no target that counts in this step")
    arguments = parser.parse_args()
    train(arguments.out, arguments.steps, arguments.compile, arguments.record, arguments.bad_step)


if __name__ == "__main__":
    main()
