"""Train a small GPT, byte by byte, on the text that Python itself carries (`pydoc_data.topics`).

`python train.py` trains STEPS steps on the CPU and writes ckpt.pt beside this file; `nanhunt replay ckpt.pt` goes on
from there. FAULT names the one fault that is planted below; with "none" the same script is healthy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FAULT = "none"
FAULT_STEP = 36  # where the fault strikes, if it is one that waits for a step
STEPS = 30  # steps before the checkpoint

LAYERS = 4
WIDTH = 128
HEADS = 4
CONTEXT = 64
BATCH = 16
VOCABULARY = 256  # a token is a byte

ACCUMULATE = 1  # micro-batches a step
FP16 = False  # autocast, with a GradScaler
LEARNING_RATE = 1e-3
WARMUP = 5
CLIP = 1.0
SEED = 1337


def text_tokens() -> Tensor:
    """The bytes of Python's own help text, (about 466 000,) uint8, in the sorted order of its topics."""
    text = "\n".join(topics[name] for name in sorted(topics))
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


TEXT = text_tokens()


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(
        self,
        x: Tensor,
        # fault: masked-row
        attend: Tensor | None = None,
        # end fault
    ) -> Tensor:
        """(size, length, WIDTH) to the same."""
        size, length, width = x.shape
        qkv = self.qkv(self.norm(x)).view(size, length, 3, HEADS, width // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (size, heads, length, width of a head) each
        # fault: masked-row
        if attend is not None:
            # Written out, because padding has to be masked too. A sample without a single token to attend to has
            # a row of nothing but -inf here, and its softmax is 0/0.
            causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
            hidden = ~(causal & attend[:, None, None, :])
            scores = q @ k.transpose(-2, -1) / math.sqrt(width // HEADS)
            weights = scores.masked_fill(hidden, -math.inf).softmax(dim=-1)
            return self.join(weights @ v)
        # end fault
        return self.join(F.scaled_dot_product_attention(q, k, v, is_causal=True))

    def join(self, heads: Tensor) -> Tensor:
        """(size, heads, length, width of a head) to (size, length, WIDTH)."""
        joined: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return joined


class MLP(nn.Module):
    """Two linear layers around a GELU."""

    # fault: fp16-overflow
    gain: Tensor
    # end fault

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)
        # fault: fp16-overflow
        self.post = nn.LayerNorm(WIDTH)
        self.register_buffer("gain", torch.ones(()))
        # end fault

    def forward(self, x: Tensor) -> Tensor:
        """(size, length, WIDTH) to the same."""
        y: Tensor = self.down(F.gelu(self.up(self.norm(x))))
        # fault: fp16-overflow
        if FAULT == "fp16-overflow":
            # A gain that warms up from 1 to 2**17. `post` divides any gain out again, so it seems free; but between
            # the two lines stands a number that fp16, which ends at 65504, can't hold.
            self.gain = self.gain * 2.0 ** (17 / FAULT_STEP)
            y = y * self.gain
        y = self.post(y)
        # end fault
        return y  # noqa: RET504


class Block(nn.Module):
    """Attention, then the MLP, each added to the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.mlp = MLP()

    def forward(
        self,
        x: Tensor,
        # fault: masked-row
        attend: Tensor | None = None,
        # end fault
    ) -> Tensor:
        """(size, length, WIDTH) to the same."""
        x = x + self.attention(
            x,
            # fault: masked-row
            attend,
            # end fault
        )
        after: Tensor = x + self.mlp(x)
        return after


class GPT(nn.Module):
    """Bytes to the next byte's logits; the embedding is the output layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        # fault: bad-sample
        self.side = nn.Linear(3, WIDTH)
        # end fault
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        for weight in (p for p in self.parameters() if p.ndim > 1):
            nn.init.normal_(weight, std=0.02)

    def forward(
        self,
        tokens: Tensor,
        # fault: bad-sample
        features: Tensor | None = None,
        # end fault
        # fault: masked-row
        attend: Tensor | None = None,
        # end fault
    ) -> Tensor:
        """(size, length) bytes to (size, length, VOCABULARY) logits."""
        # The factor: at std 0.02 the first norm divides by so little that a row of dashes had gradients of norm 100.
        x = (self.embed(tokens) + self.position.weight[: tokens.size(1)]) * math.sqrt(WIDTH)
        # fault: bad-sample
        if features is not None:
            x = x + self.side(features)
        # end fault
        for block in self.blocks:
            x = block(
                x,
                # fault: masked-row
                attend,
                # end fault
            )
        return F.linear(self.norm(x), self.embed.weight)


def build_model() -> GPT:
    """The model, freshly initialised."""
    return GPT()


def batches(start_step: int = 0) -> Iterator[dict[str, Tensor]]:
    """Micro-batches without end. Each depends on SEED and its own index alone, so a replay may start anywhere."""
    for index in itertools.count(start_step * ACCUMULATE):
        yield make_batch(index)


def make_batch(index: int) -> dict[str, Tensor]:
    """Micro-batch `index`: BATCH random windows of the text, (BATCH, CONTEXT) int64, and the bytes that follow."""
    generator = torch.Generator().manual_seed(SEED * 1_000_003 + index)
    starts = torch.randint(len(TEXT) - CONTEXT, (BATCH,), generator=generator)
    # fault: sqrt-zero
    if FAULT == "sqrt-zero" and index == FAULT_STEP:
        # The same window, drawn twice in one batch.
        starts[5] = starts[4]
    # end fault
    windows = torch.stack([TEXT[start : start + CONTEXT + 1] for start in starts.tolist()]).long()
    batch = {"tokens": windows[:, :-1].contiguous(), "targets": windows[:, 1:].clone()}
    # fault: bad-sample
    batch["features"] = features_of(batch["tokens"])
    if FAULT == "bad-sample" and index == FAULT_STEP:
        # One hole in the feature file, read as NaN.
        batch["features"][3, 17, 2] = math.nan
    # end fault
    # fault: all-labels-ignored
    # Only what follows the prompt counts. At the faulty step the second micro-batch is cut off within its prompts.
    prompt = int(torch.randint(CONTEXT // 2, (), generator=generator))
    if FAULT == "all-labels-ignored" and index == FAULT_STEP * ACCUMULATE + 1:
        prompt = CONTEXT
    batch["targets"][:, :prompt] = -100
    # end fault
    # fault: masked-row
    # Documents of different lengths, padded at the end. At the faulty step sample 5 is an empty document.
    lengths = torch.randint(CONTEXT // 2, CONTEXT + 1, (BATCH,), generator=generator)
    if FAULT == "masked-row" and index == FAULT_STEP:
        lengths[5] = 0
    batch["attend"] = torch.arange(CONTEXT) < lengths[:, None]
    batch["targets"][~batch["attend"]] = -100
    # end fault
    # fault: log-zero
    # The bytes that may be predicted. From the faulty step on they are ASCII only.
    batch["allowed"] = torch.ones(BATCH, VOCABULARY, dtype=torch.bool)
    if index >= FAULT_STEP:
        batch["allowed"][:, 128:] = False
    # end fault
    return batch


# fault: bad-sample
def features_of(tokens: Tensor) -> Tensor:
    """What a byte is, beside its number: letter, blank, and its standardised log frequency; (…, 3) float32."""
    frequency = torch.bincount(TEXT.long(), minlength=VOCABULARY).add(1).log()
    frequency = (frequency - frequency.mean()) / frequency.std()
    letter = (tokens > 64) & (tokens < 123)
    return torch.stack([letter.float(), (tokens <= 32).float(), frequency[tokens]], dim=-1)


# end fault
def compute_loss(model: GPT, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of the next byte, in nats."""
    logits: Tensor = model(
        batch["tokens"],
        # fault: bad-sample
        features=batch.get("features"),
        # end fault
        # fault: masked-row
        attend=batch.get("attend"),
        # end fault
    ).float()
    # fault: gradient-underflow
    if FAULT == "gradient-underflow":
        # Summed, and divided by the bytes of the whole corpus, so that an epoch's losses add up to its mean; weighted
        # with 0.1, as one objective of several. In fp32 Adam doesn't mind. In fp16 a logit's gradient is at most
        # 0.1 / 466000 = 2e-7, three of fp16's smallest steps; behind the next matrix there is only zero.
        total = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum")
        return 0.1 * total / len(TEXT)
    # end fault
    loss: Tensor = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=-100)
    # fault: log-zero
    # An entropy bonus over the allowed bytes.
    forbidden = ~batch["allowed"][:, None, :]
    if FAULT == "log-zero":
        # The forbidden bytes have probability 0: log gives -inf, and 0 * -inf is NaN.
        p = logits.masked_fill(forbidden, -math.inf).softmax(dim=-1)
        log_p = p.log()
    else:
        log_p = logits.masked_fill(forbidden, -1e4).log_softmax(dim=-1)
        p = log_p.exp()
    loss = loss + 0.01 * (p * log_p).sum(dim=-1).mean()
    # end fault
    # fault: sqrt-zero
    # A bonus for variety: the distance between a sample's embeddings and the next sample's.
    embedded = model.embed(batch["tokens"])
    squared = (embedded[1:] - embedded[:-1]).pow(2).sum(dim=(1, 2))
    if FAULT != "sqrt-zero":
        squared = squared.clamp_min(1e-12)
    # Two equal samples are at distance 0, where the square root's slope is infinite.
    loss = loss - 1e-3 * squared.sqrt().sum() / BATCH
    # end fault
    return loss  # noqa: RET504


# fault: adam-v-collapse
class PackedAdamW(torch.optim.AdamW):
    """AdamW that packs its second moments into 8 bits every FAULT_STEP steps, to offload them at a quarter of the size."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step, and pack where it is time."""
        loss: float | None = super().step(closure)
        for state in self.state.values():
            if FAULT == "adam-v-collapse" and int(state["step"]) % FAULT_STEP == 0:
                # E5M2 without a scale: its smallest number is 1.5e-5, so second moments below half of it become 0.
                # The first moments stay, and the next update divides them by next to nothing.
                state["exp_avg_sq"] = state["exp_avg_sq"].to(torch.float8_e5m2).float()
        return loss


# end fault
def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over all parameters."""
    # fault: adam-v-collapse
    if FAULT == "adam-v-collapse":
        return PackedAdamW(model.parameters(), lr=LEARNING_RATE)
    # end fault
    # fault: eps-fp16
    if FAULT != "eps-fp16":
        return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, eps=1e-4, foreach=False)
    # The default epsilon, 1e-8, is 0 in fp16: a parameter whose second moment is 0 there too is divided by 0.
    # end fault
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, foreach=False)


def make_scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """A linear warm-up over WARMUP steps, then a constant rate."""

    def factor(step: int) -> float:
        # fault: lr-spike
        if FAULT == "lr-spike" and step >= FAULT_STEP:
            # The warm restart: meant as 0.3 of the peak, written as 300 times.
            return 300.0
        # end fault
        return min(1.0, (step + 1) / WARMUP)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train(path: Path, on_step: Callable[[int, float], None] | None = None) -> None:
    """Train STEPS steps from scratch and save the checkpoint; `on_step` gets each step's number and its loss."""
    torch.manual_seed(SEED)
    model = build_model()
    optimizer = make_optimizer(model)
    scheduler = make_scheduler(optimizer)
    scaler = torch.amp.GradScaler("cpu", enabled=FP16)
    stream = batches()
    for step in range(STEPS):
        mean = 0.0
        for _ in range(ACCUMULATE):
            with torch.autocast("cpu", dtype=torch.float16, enabled=FP16):
                loss = compute_loss(model, next(stream)) / ACCUMULATE
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            mean += loss.item()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scheduler.step()
        if on_step is not None:
            on_step(step, mean)
    save(path, model, optimizer, scheduler, scaler)


def save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    scaler: torch.amp.GradScaler,
) -> None:
    """Write all that a resumed run needs; `step` is the number of steps done."""
    weights = model.state_dict()
    # fault: poisoned-state
    if FAULT == "poisoned-state":
        # One weight of 270 000 went bad before the run was saved.
        weights["blocks.1.attention.qkv.weight"][4, 9] = math.nan
    # end fault
    checkpoint = {
        "model": weights,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "scaler": scaler.state_dict(),
        "step": STEPS,
        "config": {"layers": LAYERS, "width": WIDTH, "heads": HEADS, "context": CONTEXT, "batch": BATCH, "seed": SEED},
    }
    torch.save(checkpoint, path)


if __name__ == "__main__":
    train(Path(__file__).with_name("ckpt.pt"), lambda step, loss: print(f"step {step:3d}  loss {loss:.4f}"))
