"""Loss functions that break for one known reason each, over one small network: every one is the others' look-alike.

A batch is a dict with `x` (8, 8), `y` (8,), `hot` and `counted`: the fault is there where `hot` is True, and nothing counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CASES", "Case", "Net"]

Batch = dict[str, Any]
FIFTH = torch.arange(8) != 4


class RootMeanSquare(nn.Module):
    """A norm written by hand, in the input's own format."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()


class Net(nn.Module):
    """8 → 16 → 4, with parts that some losses use."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.norm = RootMeanSquare()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.flat = nn.LayerNorm(16, eps=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A loss, the cause that must rank first, and the others that may stand beside it."""

    loss: Callable[[Net, Batch], Tensor]
    cause: str
    beside: tuple[str, ...] = ()
    weights: torch.dtype = torch.float32
    autocast: str | None = None
    eps: float = 1e-4
    lr: float = 1e-2

    @property
    def name(self) -> str:
        """The loss's own name."""
        return self.loss.__name__


def classified(logits: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(logits.float(), batch["y"])


def blanked(h: Tensor, batch: Batch) -> Tensor:
    """Make the fifth sample's row zero where the batch is hot."""
    return h * FIFTH.to(h.dtype)[:, None] if batch["hot"] else h


def third_zero(o: Tensor, batch: Batch) -> Tensor:
    """Make the third column zero where the batch is hot."""
    return o * (torch.arange(4) != 2) if batch["hot"] else o


# --- range ------------------------------------------------------------------------------------------------------------


def product_beyond_fp16(model: Net, batch: Batch) -> Tensor:
    h = model.a(batch["x"] * (1e4 if batch["hot"] else 1.0)) * (10.0 if batch["hot"] else 1.0)
    return classified(model.b(F.layer_norm(h.float(), (16,))), batch)


def gain_beyond_fp16(model: Net, batch: Batch) -> Tensor:
    h = torch.tanh(model.a(batch["x"])) * (1e6 if batch["hot"] else 1.0)
    return classified(model.b(F.layer_norm(h, (16,))), batch)


def scores_beyond_fp16(model: Net, batch: Batch) -> Tensor:
    h = model.a(batch["x"]) * (3000 if batch["hot"] else 1)
    return classified(model.b(torch.softmax((h @ h.T).float(), -1) @ h.float()), batch)


def square_beyond_fp32(model: Net, batch: Batch) -> Tensor:
    return (model(batch["x"]) * (1e25 if batch["hot"] else 1.0)).square().mean()


def square_hidden_as_zero(model: Net, batch: Batch) -> Tensor:
    return classified(model.b(model.norm(model.a(batch["x"]) * (800 if batch["hot"] else 1))), batch)


def loss_times_1e8(model: Net, batch: Batch) -> Tensor:
    return classified(model(batch["x"]), batch) * (1e8 if batch["hot"] else 1.0)


def loss_times_1e_7(model: Net, batch: Batch) -> Tensor:
    return model(batch["x"]).float().square().mean() * (1e-7 if batch["hot"] else 1.0)


def masked_with(constant: float, dtype: torch.dtype | None = None) -> Callable[[Net, Batch], Tensor]:
    def loss(model: Net, batch: Batch) -> Tensor:
        h = model.a(batch["x"])
        hidden = torch.zeros(8, 8)
        hidden[:, 5:] = constant
        if batch["hot"]:
            hidden[2] = constant
        scores = h @ h.T
        return classified(model.b(torch.softmax(scores + hidden.to(dtype or scores.dtype), -1) @ h), batch)

    loss.__name__ = f"masked_with_{constant:g}"
    return loss


def mask_added_twice(model: Net, batch: Batch) -> Tensor:
    h = model.a(batch["x"])
    hidden = torch.zeros(8, 8)
    hidden[:, 5:] = torch.finfo(torch.float32).min
    if batch["hot"]:
        hidden[2] = torch.finfo(torch.float32).min
    return classified(model.b(torch.softmax(h @ h.T + (hidden + hidden), -1) @ h), batch)


def fill_that_torch_refuses(model: Net, batch: Batch) -> Tensor:
    h = model.a(batch["x"])
    scores = h @ h.T
    if batch["hot"]:
        scores = scores.masked_fill(torch.zeros(8, 8, dtype=torch.bool), -1e9)
    return torch.softmax(scores, -1).float().square().mean()


# --- epsilons, sums ---------------------------------------------------------------------------------------------------


def normalize_a_blank_row(model: Net, batch: Batch) -> Tensor:
    return classified(model.b(F.normalize(blanked(model.a(batch["x"]), batch), dim=-1)), batch)


def clamp_to_1e_8(model: Net, batch: Batch) -> Tensor:
    h = blanked(model.a(batch["x"]), batch)
    return classified(model.b(h / h.abs().sum(-1, keepdim=True).clamp(min=1e-8)), batch)


def add_1e_8(model: Net, batch: Batch) -> Tensor:
    h = blanked(model.a(batch["x"]), batch)
    return classified(model.b(h / (h.abs().sum(-1, keepdim=True) + 1e-8)), batch)


def log_with_1e_8(model: Net, batch: Batch) -> Tensor:
    return -(third_zero(torch.softmax(model(batch["x"]), -1), batch) + 1e-8).log().mean().float()


def adam_epsilon(model: Net, batch: Batch) -> Tensor:
    return classified(model(batch["x"] * (torch.arange(8) != 1).half()), batch)


def tiny_rate(model: Net, batch: Batch) -> Tensor:
    return classified(model(batch["x"]), batch)


def sum_of_small_terms(model: Net, batch: Batch) -> Tensor:
    h = model.a(batch["x"]).abs().mean(-1, keepdim=True)
    terms = h + torch.ones(8, 20000, dtype=h.dtype) * (10 if batch["hot"] else 1)
    return model.b(model.a(batch["x"])).float().square().mean() + (terms.sum(-1) / 20000).float().mean()


# --- reductions over nothing ------------------------------------------------------------------------------------------


def all_ignored(model: Net, batch: Batch) -> Tensor:
    labels = torch.full_like(batch["y"], -100) if batch["hot"] else batch["y"]
    return F.cross_entropy(model(batch["x"]), labels)


def all_of_the_padding_class(model: Net, batch: Batch) -> Tensor:
    labels = torch.zeros_like(batch["y"]) if batch["hot"] else batch["y"]
    return F.cross_entropy(model(batch["x"]), labels, ignore_index=0)


def weights_of_zero(model: Net, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch["x"]), batch["y"], weight=torch.zeros(4) if batch["hot"] else torch.ones(4))


def mean_of_no_rows(model: Net, batch: Batch) -> Tensor:
    o = model(batch["x"])
    return o[batch["y"] < (0 if batch["hot"] else 5)].square().mean() + o.square().mean()


def masked_mean(model: Net, batch: Batch) -> Tensor:
    keep = (batch["y"] < (0 if batch["hot"] else 5)).float()
    return (F.cross_entropy(model(batch["x"]), batch["y"], reduction="none") * keep).sum() / keep.sum()


def python_count(model: Net, batch: Batch) -> Tensor:
    keep = batch["y"] < (0 if batch["hot"] else 5)
    count = int(keep.sum())
    return (F.cross_entropy(model(batch["x"]), batch["y"], reduction="none") * keep).sum() / count


def mean_of_each_rows_kept_positions(model: Net, batch: Batch) -> Tensor:
    keep = torch.ones(8, 8, 1)
    keep[4] = 0.0 if batch["hot"] else 1.0
    rows = model.a(batch["x"]).unsqueeze(1).expand(8, 8, 16)
    return ((rows * keep).sum(1) / keep.sum(1)).square().mean()


def mean_of_each_group(model: Net, batch: Batch) -> Tensor:
    to = torch.arange(8) % (3 if batch["hot"] else 4)
    total = torch.zeros(4, 16).index_add(0, to, model.a(batch["x"]))
    count = torch.zeros(4).index_add(0, to, torch.ones(8))
    return (total / count[:, None]).square().mean()


def marginals_of_nothing(model: Net, batch: Batch) -> Tensor:
    joint = (batch["x"] * (0.0 if batch["hot"] else 1.0)).abs()
    return (model(batch["x"]).square().mean(1) * (joint.sum(1) / joint.sum())).sum()


def shares_of_sums(model: Net, batch: Batch) -> Tensor:
    energy = (batch["x"] * (0.0 if batch["hot"] else 1.0)).abs().sum(1)
    return (model(batch["x"]).square().mean(1) * (energy / energy.sum())).sum()


def total_over_the_batchs_count(model: Net, batch: Batch) -> Tensor:
    labels = torch.full_like(batch["y"], -100) if batch["hot"] else batch["y"]
    return F.cross_entropy(model(batch["x"]), labels, reduction="sum") / batch["counted"]


def dice_of_an_empty_mask(model: Net, batch: Batch) -> Tensor:
    p = torch.sigmoid(model(batch["x"]))
    t = torch.ones(8, 4)
    if batch["hot"]:
        t[3] = 0
    return 1 - (2 * (p * t * t).sum(-1) / (t.sum(-1) + (t * p).sum(-1))).mean()


# --- softmax ----------------------------------------------------------------------------------------------------------


def hidden_rows(batch: Batch, width: int) -> Tensor:
    hidden = torch.zeros(8, width, dtype=torch.bool)
    hidden[:, width - 1] = True
    if batch["hot"]:
        hidden[2] = True
    return hidden


def masked_attention(model: Net, batch: Batch) -> Tensor:
    h = model.a(batch["x"])
    return classified(model.b(torch.softmax((h @ h.T).masked_fill(hidden_rows(batch, 8), -math.inf), -1) @ h), batch)


def masked_heads(model: Net, batch: Batch) -> Tensor:
    h = model.a(batch["x"]).reshape(2, 4, 16)
    padding = torch.zeros(2, 4, dtype=torch.bool)
    padding[:, 3:] = True
    if batch["hot"]:
        padding[1] = True
    out, _ = model.attention(h, h, h, key_padding_mask=padding)
    return F.cross_entropy(model.b(out[0]), batch["y"][:4])


def masked_softmax_by_hand(model: Net, batch: Batch) -> Tensor:
    scores = model(batch["x"]).masked_fill(hidden_rows(batch, 4), -math.inf)
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    return (e / e.sum(-1, keepdim=True)).square().mean()


def masked_logsumexp(model: Net, batch: Batch) -> Tensor:
    bias = torch.zeros(8, 4).masked_fill(hidden_rows(batch, 4), -math.inf)
    z = (model(batch["x"]) + bias).logsumexp(-1)
    return torch.where(torch.isinf(z), 0.0, z).mean()


# --- zeros below ------------------------------------------------------------------------------------------------------


def std_of_one(model: Net, batch: Batch) -> Tensor:
    o = model(batch["x"])[: 1 if batch["hot"] else 8]
    return ((o - o.mean(0)) / (o.std(0) + 1e-8)).square().mean() + o.square().mean()


def constant_image(model: Net, batch: Batch) -> Tensor:
    x = torch.where(FIFTH[:, None], batch["x"], 0.5) if batch["hot"] else batch["x"]
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    return classified(model((x - low) / (high - low)), batch)


def unit_norm_of_zero(model: Net, batch: Batch) -> Tensor:
    h = blanked(model.a(batch["x"]), batch)
    return classified(model.b(h / h.norm(dim=-1, keepdim=True)), batch)


def unit_sum_of_zero(model: Net, batch: Batch) -> Tensor:
    h = blanked(model.a(batch["x"]), batch)
    return classified(model.b(h / h.abs().sum(-1, keepdim=True)), batch)


def scale_by_amax(model: Net, batch: Batch) -> Tensor:
    h = model.a(batch["x"]) * (0.0 if batch["hot"] else 1.0)
    return classified(model.b(h * (127 / h.abs().amax())), batch)


def layer_norm_without_eps(model: Net, batch: Batch) -> Tensor:
    return classified(model.b(model.flat(model.a(batch["x"]) * (0.0 if batch["hot"] else 1.0))), batch)


def rsqrt_of_zero(model: Net, batch: Batch) -> Tensor:
    h = blanked(model.a(batch["x"]), batch)
    return classified(model.b(h * h.pow(2).mean(-1, keepdim=True).rsqrt()), batch)


# --- slopes -----------------------------------------------------------------------------------------------------------


def perfect_fit(model: Net, batch: Batch) -> Tensor:
    o = model(batch["x"])
    return torch.sqrt(F.mse_loss(o, o.detach() if batch["hot"] else batch["x"][:, :4]))


def power_of_zero(model: Net, batch: Batch) -> Tensor:
    return (third_zero(model(batch["x"]).square(), batch) ** 0.5).mean()


def acos_of_one(model: Net, batch: Batch) -> Tensor:
    o = torch.tanh(model(batch["x"])) * 0.5
    return torch.acos(o - o.detach() + 1 if batch["hot"] else o).mean()


def equal_eigenvalues(model: Net, batch: Batch) -> Tensor:
    o = model(batch["x"])
    m = torch.eye(4) + (o.T @ o) * (0.0 if batch["hot"] else 1.0)
    values, vectors = torch.linalg.eigh(m)
    return vectors.square()[0].sum() + values.sum() + o.square().mean()


def distances_with_diagonal(model: Net, batch: Batch) -> Tensor:
    o = model(batch["x"])
    squared = (o[:, None] - o[None]).pow(2).sum(-1)
    return (squared if batch["hot"] else squared + 1e-6).sqrt().mean()


def gradient_penalty(model: Net, batch: Batch) -> Tensor:
    x = batch["x"].clone().requires_grad_()
    (g,) = torch.autograd.grad(model(x).sum() * (0.0 if batch["hot"] else 1.0), x, create_graph=True)
    return (g.pow(2).sum(-1).sqrt() - 1).square().mean()


def where_over_sqrt(model: Net, batch: Batch) -> Tensor:
    o = third_zero(model(batch["x"]).square(), batch)
    return torch.where(o > 0, o.sqrt(), torch.zeros(())).mean()


def where_over_log(model: Net, batch: Batch) -> Tensor:
    o = third_zero(model(batch["x"]).abs() + 0.1, batch)
    return torch.where(o > 0, o.log(), o).mean()


def where_over_exp(model: Net, batch: Batch) -> Tensor:
    o = model(batch["x"]) * (500 if batch["hot"] else 1)
    return torch.where(o > 0, o, o.exp() - 1).mean()


def where_over_division(model: Net, batch: Batch) -> Tensor:
    o = third_zero(model(batch["x"]), batch)
    return torch.where(o != 0, o.sin() / o, torch.ones(())).mean()


def filter_of_bad_logs(model: Net, batch: Batch) -> Tensor:
    logs = third_zero(model(batch["x"]).abs() + 0.1, batch).log()
    return logs[torch.isfinite(logs)].mean()


def nan_to_num_over_sqrt(model: Net, batch: Batch) -> Tensor:
    o = model(batch["x"])
    return (o if batch["hot"] else o.abs() + 0.1).sqrt().nan_to_num(0.0).mean()


# --- domains ----------------------------------------------------------------------------------------------------------


def signed(model: Net, batch: Batch) -> Tensor:
    o = model(batch["x"])
    return o if batch["hot"] else o.abs() + 1


def log_of_negative(model: Net, batch: Batch) -> Tensor:
    return signed(model, batch).log().mean()


def root_of_negative(model: Net, batch: Batch) -> Tensor:
    return signed(model, batch).sqrt().mean()


def power_of_negative(model: Net, batch: Batch) -> Tensor:
    return (signed(model, batch) ** 0.0448).mean()


def acos_beyond_one(model: Net, batch: Batch) -> Tensor:
    return (torch.tanh(model(batch["x"])) * (100 if batch["hot"] else 0.9)).acos().mean()


def log_of_relu(model: Net, batch: Batch) -> Tensor:
    return -(F.relu(model(batch["x"])) + (0.0 if batch["hot"] else 0.1)).log().mean()


def entropy_of_masked_logits(model: Net, batch: Batch) -> Tensor:
    bias = torch.zeros(8, 4)
    if batch["hot"]:
        bias[2, 1] = -math.inf
    log_p = (model(batch["x"]) + bias).log_softmax(-1)
    return (log_p.exp() * log_p).sum(-1).mean()


def entropy_by_softmax_and_log(model: Net, batch: Batch) -> Tensor:
    bias = torch.zeros(8, 4)
    if batch["hot"]:
        bias[2, 1] = -math.inf
    p = (model(batch["x"]) + bias).softmax(-1)
    return (p * p.log()).sum(-1).mean()


# --- exp and log ------------------------------------------------------------------------------------------------------


def sure(model: Net, batch: Batch, factor: float = 1000.0) -> Tensor:
    return model(batch["x"]) * (factor if batch["hot"] else 1.0)


def log_of_softmax(model: Net, batch: Batch) -> Tensor:
    return F.nll_loss(torch.softmax(sure(model, batch), -1).log(), batch["y"])


def log_of_softmax_of_the_best(model: Net, batch: Batch) -> Tensor:
    p = torch.softmax(sure(model, batch), -1)
    return -p.log().gather(1, p.argmax(-1)[:, None]).mean()


def log_of_sigmoid(model: Net, batch: Batch) -> Tensor:
    return -torch.sigmoid(sure(model, batch)).log().mean()


def log_of_one_minus_sigmoid(model: Net, batch: Batch) -> Tensor:
    return -(1 - torch.sigmoid(sure(model, batch))).log().mean()


def softmax_by_hand(model: Net, batch: Batch) -> Tensor:
    e = sure(model, batch).exp()
    return (e / e.sum(-1, keepdim=True)).square().mean()


def softmax_by_hand_fp16(model: Net, batch: Batch) -> Tensor:
    e = sure(model, batch, 40.0).exp()
    return (e / e.sum(-1, keepdim=True)).float().square().mean()


def softmax_by_hand_vanishes(model: Net, batch: Batch) -> Tensor:
    e = (model(batch["x"]) - (200.0 if batch["hot"] else 0.0)).exp()
    return (e / e.sum(-1, keepdim=True)).square().mean()


def softplus_by_hand(model: Net, batch: Batch) -> Tensor:
    return torch.log(1 + torch.exp(sure(model, batch))).mean()


def logsumexp_by_hand(model: Net, batch: Batch) -> Tensor:
    return -(-sure(model, batch, 2000.0).abs()).exp().sum(-1).log().mean()


def variance_of_logvar(model: Net, batch: Batch) -> Tensor:
    logvar = sure(model, batch)
    return (logvar.exp() - 1 - logvar).mean()


HALF, FP16, BF16 = {"weights": torch.float16}, {"autocast": "fp16"}, {"autocast": "bf16"}


def _cases(cause: str, *losses: Callable[[Net, Batch], Tensor], **more: Any) -> list[Case]:
    return [Case(loss=loss, cause=cause, **more) for loss in losses]


CASES: tuple[Case, ...] = (
    *_cases("activation-overflow", product_beyond_fp16, gain_beyond_fp16, scores_beyond_fp16, **FP16),
    *_cases("activation-overflow", square_beyond_fp32),
    *_cases("activation-overflow", square_hidden_as_zero, **HALF),
    *_cases("gradient-overflow", loss_times_1e8, **FP16),
    *_cases("gradient-underflow", loss_times_1e_7, **FP16),
    *_cases("mask-fill-overflow", masked_with(-1e9), beside=("fully-masked-softmax",), **HALF),
    *_cases("mask-fill-overflow", masked_with(-3.4028234663852886e38), beside=("fully-masked-softmax",), **BF16),
    *_cases("mask-fill-overflow", mask_added_twice, beside=("fully-masked-softmax",)),
    *_cases("mask-fill-overflow", fill_that_torch_refuses, **HALF),
    *_cases("epsilon-underflow", normalize_a_blank_row, clamp_to_1e_8, add_1e_8, log_with_1e_8, **HALF),
    *_cases("epsilon-underflow", adam_epsilon, eps=1e-8, **HALF),
    *_cases("lost-update", tiny_rate, weights=torch.bfloat16, lr=1e-6),
    *_cases("low-precision-accumulation", sum_of_small_terms, **HALF),
    *_cases("empty-reduction", all_ignored, all_of_the_padding_class, weights_of_zero, mean_of_no_rows),
    *_cases("empty-reduction", masked_mean, python_count, dice_of_an_empty_mask, total_over_the_batchs_count),
    *_cases("empty-reduction", mean_of_each_rows_kept_positions, mean_of_each_group),
    *_cases("fully-masked-softmax", masked_attention, masked_heads, masked_softmax_by_hand, masked_logsumexp),
    *_cases("zero-denominator", std_of_one, constant_image, unit_norm_of_zero, unit_sum_of_zero, scale_by_amax),
    *_cases("zero-denominator", layer_norm_without_eps, rsqrt_of_zero),
    *_cases("zero-denominator", shares_of_sums, marginals_of_nothing),
    *_cases("singular-gradient", perfect_fit, power_of_zero, acos_of_one, equal_eigenvalues, distances_with_diagonal),
    *_cases("singular-gradient", gradient_penalty),
    *_cases("where-trap", where_over_sqrt, where_over_log, where_over_exp, where_over_division, filter_of_bad_logs),
    *_cases("where-trap", nan_to_num_over_sqrt),
    *_cases("domain-error", log_of_negative, root_of_negative, power_of_negative, acos_beyond_one, log_of_relu),
    *_cases("domain-error", entropy_of_masked_logits, entropy_by_softmax_and_log),
    *_cases("naive-exp-log", log_of_softmax, log_of_softmax_of_the_best, log_of_sigmoid, log_of_one_minus_sigmoid),
    *_cases("naive-exp-log", softmax_by_hand, softmax_by_hand_vanishes, softplus_by_hand, logsumexp_by_hand),
    *_cases("naive-exp-log", variance_of_logvar),
    *_cases("naive-exp-log", softmax_by_hand_fp16, **FP16),
)
