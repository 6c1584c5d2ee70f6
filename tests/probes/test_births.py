"""A gallery of faults, one to a tiny model: the root is the op, the module, the phase and the line that an expert names.

The line at which a fault is born ends in `# born: NAME` in this file; the onset must point at it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanhunt.probes.probe import RowBuffer
from nanhunt.replay import replay_step
from nanhunt.trace.schema import Birth, Hop, NoteKind, Onset
from nanhunt.training.ring import SnapshotRing
from nanhunt.training.run import TrainingRun
from nanhunt.verdicts import Known, fault_of
from nanhunt.zoom import zoom_in
from tests.conftest import tiny_run

HERE = Path(__file__)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the zoom says of a faulty step."""

    onset: Onset
    births: list[Birth]
    hops: list[Hop]
    samples: dict[str, Any] | None

    @property
    def root(self) -> Birth:
        return self.births[0]


def zoomed(run: TrainingRun, step: int = 0) -> Found | None:
    """Replay up to `step` and zoom into it; None where the step is healthy."""
    run.root = HERE.parent
    known, ring, rows = Known.of(run), SnapshotRing(run), RowBuffer()
    for earlier in range(run.start_step, step + 1):
        ring.offer(run, earlier)
        seen = replay_step(run, earlier, rows, recorded=True)
        rows.take()
    fault = fault_of(seen, known)
    if fault is None:
        return None
    found = zoom_in(run, ring, rows, seen, fault, known)
    notes: dict[str, list[dict[str, Any]]] = {}
    for kind, body in found.notes:
        notes.setdefault(kind, []).append(body)
    lineage = notes.get(NoteKind.LINEAGE, [{"hops": []}])[0]
    return Found(
        onset=found.onset,
        births=[Birth.from_json(b) for b in notes.get(NoteKind.BIRTH, [])],
        hops=[Hop.from_json(h) for h in lineage["hops"]],
        samples=notes.get(NoteKind.SAMPLES, [None])[0],
    )


def found_in(run: TrainingRun, step: int = 0) -> Found:
    found = zoomed(run, step)
    assert found is not None, "the step is healthy"
    return found


def born_at(name: str) -> str:
    """Return `test_births.py:LINE` of the line that ends in `# born: NAME`."""
    lines = [i for i, text in enumerate(HERE.read_text().splitlines(), 1) if text.endswith(f"# born: {name}")]
    assert len(lines) == 1, name
    return f"{HERE.name}:{lines[0]}"


def code_at(name: str) -> str:
    """Return the text of that line, without its indent and its comment."""
    line = int(born_at(name).rpartition(":")[2])
    return HERE.read_text().splitlines()[line - 1].partition("  # ")[0].strip()


class Net(nn.Module):
    """A linear layer, then a block with the fault in it."""

    def __init__(self, block: nn.Module, width: int = 4, *, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.first.weight)
        self.first.weight.data *= scale
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.first(x))


class Of(nn.Module):
    """A module around a function of one tensor."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def mean_loss(model: nn.Module, batch: Any) -> Tensor:
    return model(batch).float().mean()


def ordinary(samples: int = 4, width: int = 4) -> Tensor:
    return torch.linspace(0.1, 0.9, samples * width).reshape(samples, width)


def with_sample(index: int, value: float | list[float], batch: Tensor | None = None) -> Tensor:
    batch = ordinary() if batch is None else batch
    batch[index] = torch.as_tensor(value)
    return batch


def of_function(function: Callable[[Tensor], Tensor], batch: Tensor, **settings: Any) -> TrainingRun:
    return tiny_run(Net(Of(function), batch.shape[-1]), mean_loss, [batch] * 3, **settings)


# --- the gallery: one op that is undefined, or beyond its range -------------------------------------------------------


def exp_overflow(x: Tensor) -> Tensor:
    y = x * 1.0
    return y.exp()  # born: exp-overflow


def log_of_zero(x: Tensor) -> Tensor:
    return torch.log(x)  # born: log-zero


def negative_power(x: Tensor) -> Tensor:
    return x.pow(0.5)  # born: negative-power


def root_of_zero(x: Tensor) -> Tensor:
    return x.sqrt()  # born: sqrt-backward


def norm_at_zero(x: Tensor) -> Tensor:
    return x.pow(2).sum(dim=-1).sqrt()  # born: norm-backward


def acos_at_one(x: Tensor) -> Tensor:
    return x.acos()  # born: acos-backward


def guarded_root(x: Tensor) -> Tensor:
    y = x.sqrt()  # born: where-sqrt
    return torch.where(x > 0, y, 0.0)


def guarded_exp(x: Tensor) -> Tensor:
    y = x.exp()  # born: where-exp
    return torch.where(x < 10, y, x)


def std_of_one(x: Tensor) -> Tensor:
    return x[:, :1].std(dim=1)  # born: std-of-one


def zero_by_zero(x: Tensor) -> Tensor:
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    return (x - low) / (high - low)  # born: zero-by-zero


def half_normalize(x: Tensor) -> Tensor:
    return F.normalize(x.half(), dim=-1)  # born: normalize-half


def in_place_log(x: Tensor) -> Tensor:
    y = x.clone()
    y.log_()  # born: in-place
    return y


def times_infinity(x: Tensor) -> Tensor:
    return x * math.inf  # born: times-infinity


def complex_divide(x: Tensor) -> Tensor:
    z = torch.complex(x, x)
    return (z / z.abs().square()).real  # born: complex


def half_square(x: Tensor) -> Tensor:
    y = x.half()
    return y.square().mean(-1)  # born: half-square


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    function: Callable[[Tensor], Tensor]
    batch: Tensor
    op: str
    kind: str
    fp64: str
    phase: str = "forward"
    samples: tuple[int, ...] = (2,)
    settings: dict[str, Any] = field(default_factory=dict)


GALLERY = [
    Case(name="exp-overflow", function=exp_overflow, batch=with_sample(2, 89.0), op="aten.exp",
         kind="inf-from-finite", fp64="beyond-range"),
    Case(name="log-zero", function=log_of_zero, batch=with_sample(2, 0.0), op="aten.log",
         kind="inf-from-finite", fp64="non-finite"),
    Case(name="negative-power", function=negative_power, batch=with_sample(2, -0.5), op="aten.pow.Tensor_Scalar",
         kind="nan-from-finite", fp64="non-finite"),
    Case(name="sqrt-backward", function=root_of_zero, batch=with_sample(2, 0.0), op="aten.div.Tensor",
         kind="inf-from-finite", fp64="non-finite", phase="backward"),
    Case(name="norm-backward", function=norm_at_zero, batch=with_sample(2, 0.0), op="aten.div.Tensor",
         kind="inf-from-finite", fp64="non-finite", phase="backward"),
    Case(name="acos-backward", function=acos_at_one, batch=with_sample(2, 1.0), op="aten.rsqrt",
         kind="inf-from-finite", fp64="non-finite", phase="backward"),
    Case(name="where-sqrt", function=guarded_root, batch=with_sample(2, 0.0), op="aten.div.Tensor",
         kind="nan-from-finite", fp64="non-finite", phase="backward"),
    Case(name="where-exp", function=guarded_exp, batch=with_sample(2, 100.0), op="aten.exp",
         kind="inf-from-finite", fp64="beyond-range"),
    Case(name="std-of-one", function=std_of_one, batch=ordinary(), op="aten.std.correction",
         kind="nan-from-finite", fp64="non-finite", samples=()),
    Case(name="zero-by-zero", function=zero_by_zero, batch=with_sample(2, 0.5), op="aten.div.Tensor",
         kind="nan-from-finite", fp64="non-finite"),
    Case(name="normalize-half", function=half_normalize, batch=with_sample(2, 0.0), op="aten.div.Tensor",
         kind="nan-from-finite", fp64="non-finite"),
    Case(name="in-place", function=in_place_log, batch=with_sample(2, 0.0), op="aten.log_",
         kind="inf-from-finite", fp64="non-finite"),
    Case(name="times-infinity", function=times_infinity, batch=with_sample(2, 0.0), op="aten.mul.Tensor",
         kind="nan-from-finite", fp64="non-finite", samples=()),
    Case(name="complex", function=complex_divide, batch=with_sample(2, 0.0), op="aten.div.Tensor",
         kind="nan-from-finite", fp64="non-finite"),
    Case(name="half-square", function=half_square, batch=with_sample(2, 300.0), op="aten.pow.Tensor_Scalar",
         kind="inf-from-finite", fp64="beyond-range"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize("case", GALLERY, ids=lambda c: c.name)
def test_the_root_is_the_op_the_module_the_line_and_the_samples_of_the_fault(case: Case) -> None:
    found = found_in(of_function(case.function, case.batch.clone(), **case.settings))
    assert (found.onset.op, found.onset.module, found.onset.phase) == (case.op, "block", case.phase)
    assert found.onset.source == found.root.source == born_at(case.name)
    assert (found.root.kind, found.root.fp64) == (case.kind, case.fp64)
    assert tuple(found.onset.samples) == case.samples
    assert found.root.code == code_at(case.name)
    assert found.hops[0].op == case.op
    assert found.hops[0].does == "birth"


# --- formats ----------------------------------------------------------------------------------------------------------


def test_a_matrix_product_beyond_fp16_is_a_matter_of_range() -> None:
    model = Net(nn.Linear(4, 4, bias=False))
    nn.init.constant_(model.block.weight, 100.0)
    batch = with_sample(1, 200.0)
    found = found_in(tiny_run(model, mean_loss, [batch], autocast="fp16"))
    assert (found.onset.op, found.onset.module, found.root.fp64) == ("aten.mm", "block", "beyond-range")
    assert found.root.fp64_amax == pytest.approx(80_000)
    assert found.onset.samples == [1]
    assert {o.dtype for o in found.root.outputs} == {"float16"}


def test_the_same_product_in_bf16_is_healthy() -> None:
    model = Net(nn.Linear(4, 4, bias=False))
    nn.init.constant_(model.block.weight, 100.0)
    assert zoomed(tiny_run(model, mean_loss, [with_sample(1, 200.0)], autocast="bf16")) is None


def test_an_overflow_inside_a_finite_mean_is_told_though_layer_norm_hides_the_inf() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            wide = x.half() * 60_000  # born: before-norm
            return self.norm(wide.float())

    found = found_in(tiny_run(Net(Block()), mean_loss, [with_sample(0, 1.5)]))
    assert (found.onset.op, found.onset.module, found.root.fp64) == ("aten.mul.Tensor", "block", "beyond-range")
    assert found.onset.source == born_at("before-norm")
    assert [h.op for h in found.hops][:3] == ["aten.mul.Tensor", "aten._to_copy", "aten.native_layer_norm"]


def test_layer_norm_without_epsilon_divides_by_the_zero_spread_of_a_constant_row() -> None:
    found = found_in(tiny_run(Net(nn.LayerNorm(4, eps=0.0)), mean_loss, [with_sample(3, 0.5)]))
    assert (found.onset.op, found.onset.module, found.root.fp64) == ("aten.native_layer_norm", "block", "non-finite")
    assert found.onset.samples == [3]


# --- masks ------------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Hand-written attention over a sequence of scalars: (B, T) → (B, T)."""

    def __init__(self, mask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        scores = self.mask(x[:, :, None] * x[:, None, :])  # (B, T, T)
        weights = scores.softmax(-1)  # born: softmax
        return (weights @ x[:, :, None]).squeeze(-1)


def causal(scores: Tensor) -> Tensor:
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -math.inf)


def empty_document(scores: Tensor) -> Tensor:
    return scores.masked_fill(scores > 3, -math.inf)


def additive(scores: Tensor) -> Tensor:
    return scores + torch.where(scores > 3, torch.tensor(-math.inf), torch.tensor(0.0))


def half_constant(scores: Tensor) -> Tensor:
    return scores + ((scores > 3) * -1e15).half()  # born: mask-constant


def padding_document() -> Tensor:
    return with_sample(2, 2.0)


@pytest.mark.parametrize("mask", [empty_document, additive])
def test_a_fully_masked_row_is_the_softmaxs_doing_and_not_the_masks(mask: Callable[[Tensor], Tensor]) -> None:
    found = found_in(tiny_run(Net(Attention(mask)), mean_loss, [padding_document()]))
    assert (found.onset.op, found.root.kind, found.onset.module) == ("aten._softmax", "nan-from-inf", "block")
    assert found.onset.source == born_at("softmax")
    assert found.root.facts["fully_masked_rows"] == 4
    assert found.onset.samples == [2]


def test_a_causal_mask_of_minus_infinities_is_healthy() -> None:
    assert zoomed(tiny_run(Net(Attention(causal)), mean_loss, [ordinary()])) is None


def test_a_mask_constant_that_a_cast_to_fp16_turns_into_minus_infinity_is_born_at_the_cast() -> None:
    found = found_in(tiny_run(Net(Attention(half_constant)), mean_loss, [padding_document()]))
    assert (found.onset.op, found.root.kind, found.root.fp64) == ("aten._to_copy", "inf-from-finite", "beyond-range")
    assert found.onset.source == born_at("mask-constant")


class Heads(nn.Module):
    """`nn.MultiheadAttention` over (B, T, D), one sample's padding mask set in full."""

    def __init__(self, padded: int | None) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.padded = padded

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.zeros(x.shape[:2], dtype=torch.bool)
        if self.padded is not None:
            hidden[self.padded] = True
        out, _ = self.attention(x, x, x, key_padding_mask=hidden, need_weights=True)
        return out[:3] if self.padded == 3 else out


def sequences() -> Tensor:
    return torch.linspace(-1, 1, 48).reshape(4, 3, 4)


def test_a_fully_padded_sample_poisons_multihead_attention_though_its_output_is_cut_off() -> None:
    found = found_in(tiny_run(Net(Heads(padded=3)), mean_loss, [sequences()]))
    assert (found.onset.op, found.onset.module) == ("aten._softmax", "block.attention")
    assert found.root.facts["fully_masked_rows"] > 0
    assert found.onset.phase == "forward"


def test_multihead_attention_without_padding_is_healthy() -> None:
    assert zoomed(tiny_run(Net(Heads(padded=None)), mean_loss, [sequences()])) is None


def fused_attention(x: Tensor) -> Tensor:
    x = x[:, None] * 1e20
    return F.scaled_dot_product_attention(x, x, x)  # born: fused


def test_scores_that_overflow_inside_fused_attention_are_told_by_their_size_in_fp64() -> None:
    found = found_in(tiny_run(Net(Of(fused_attention)), mean_loss, [sequences()]))
    assert "scaled_dot_product" in str(found.onset.op)
    assert (found.root.kind, found.root.fp64) == ("nan-from-finite", "in-range")
    assert found.root.facts["score_amax"] > torch.finfo(torch.float32).max
    assert found.onset.source == born_at("fused")


def test_fused_attention_over_a_fully_masked_row_is_healthy() -> None:
    def attend(x: Tensor) -> Tensor:
        x = x[:, None]
        return F.scaled_dot_product_attention(x, x, x, attn_mask=torch.zeros(3, 3, dtype=torch.bool))

    assert zoomed(tiny_run(Net(Of(attend)), mean_loss, [sequences()])) is None


# --- losses -----------------------------------------------------------------------------------------------------------


def classify(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)  # born: cross-entropy


def test_a_mean_over_ignored_labels_is_born_in_the_loss_and_reaches_no_gradient() -> None:
    found = found_in(tiny_run(Net(nn.Identity()), classify, [(ordinary(), torch.full((4,), -100))]))
    assert (found.onset.op, found.onset.module) == ("aten.nll_loss_forward", "")
    assert found.onset.source == born_at("cross-entropy")
    assert found.root.fp64 == "non-finite"
    assert found.onset.samples == []


def forbid(x: Tensor) -> Tensor:
    return x.masked_fill(torch.tensor([True, False, False, False]), -math.inf)


def test_a_forbidden_target_class_gets_out_of_its_mask_where_the_loss_picks_it() -> None:
    found = found_in(tiny_run(Net(Of(forbid)), classify, [(ordinary(), torch.tensor([1, 2, 0, 3]))]))
    assert (found.onset.op, found.onset.kind) == ("aten.nll_loss_forward", "inf")
    assert found.onset.source == born_at("cross-entropy")
    assert found.onset.samples == [2]
    assert (found.root.kind, found.root.facts["masked_targets"]) == ("mask-escaped", 1)
    assert found.root.facts["mask_op"] == "aten.masked_fill.Scalar"


def smoothed(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    log_p = model(x).log_softmax(-1)
    spread = log_p.mean(-1)  # born: smoothing
    return -(0.9 * log_p.gather(1, y[:, None]).squeeze(1) + 0.1 * spread).mean()


def test_a_mask_that_label_smoothing_spreads_over_gets_out_in_the_mean() -> None:
    found = found_in(tiny_run(Net(Of(forbid)), smoothed, [(ordinary(), torch.tensor([1, 2, 1, 3]))]))
    assert (found.onset.op, found.onset.source) == ("aten.mean.dim", born_at("smoothing"))
    assert found.root.kind == "mask-escaped"


def pooled(x: Tensor) -> Tensor:
    """The mean over what is left of a row, by its maximum: one row is left with nothing."""
    keep = torch.ones(4, 4, dtype=torch.bool)
    keep[2] = False
    return F.layer_norm(x.masked_fill(~keep, -math.inf).amax(-1, keepdim=True).expand(4, 4), (4,))  # born: pooled


def test_a_maximum_over_nothing_is_born_in_the_maximum_and_not_in_the_norm_behind_it() -> None:
    found = found_in(of_function(pooled, ordinary()))
    assert (found.onset.op, found.onset.source) == ("aten.amax", born_at("pooled"))
    assert (found.root.kind, found.root.facts["fully_masked_rows"]) == ("mask-escaped", 1)


def guarded(x: Tensor) -> Tensor:
    y = torch.log(x - 0.5)  # born: guarded
    if not bool(torch.isfinite(y).all()):
        raise ValueError("loss is not finite")
    return y


def test_a_guard_that_raises_on_a_bad_number_is_followed_to_its_birth() -> None:
    found = found_in(of_function(guarded, with_sample(0, 5.0, torch.ones(4, 4).index_fill(0, torch.tensor([1]), 0.25))))
    assert (found.onset.kind, found.onset.op, found.onset.module) == ("exception", "aten.log", "block")
    assert found.onset.source == born_at("guarded")
    assert found.onset.samples == [1]


def test_torchs_own_check_of_a_distribution_is_followed_to_the_birth_of_its_nan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # a test that compiles anything switches the check off for the whole process: torch._dynamo's TorchPatcher does
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)

    def sampled(x: Tensor) -> Tensor:
        probabilities = x / x.sum(-1, keepdim=True)  # born: categorical
        return torch.distributions.Categorical(probabilities).entropy()

    found = found_in(of_function(sampled, with_sample(3, 0.0)))
    assert (found.onset.kind, found.onset.op) == ("exception", "aten.div.Tensor")
    assert found.onset.source == born_at("categorical")
    assert found.onset.samples == [3]


def test_an_exception_about_something_else_is_not_blamed_on_a_mask() -> None:
    def attend(x: Tensor) -> Tensor:
        scores = x.masked_fill(torch.eye(4, dtype=torch.bool), -math.inf).softmax(-1)
        if x.shape[0] == 4:
            raise IndexError("token 9 is out of range")
        return scores

    found = found_in(of_function(attend, ordinary()))
    assert (found.onset.kind, found.onset.op, found.births) == ("exception", None, [])


def test_a_nan_that_only_a_metric_sees_is_no_fault() -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        out = model(batch)
        metric = (out.detach() * 0 / 0).mean()
        assert metric.isnan()
        return out.mean()

    assert zoomed(tiny_run(Net(nn.Identity()), loss, [ordinary()])) is None


def test_a_metric_of_nan_before_the_fault_is_not_its_root() -> None:
    def noisy(x: Tensor) -> Tensor:
        (x.detach() / 0).sum().item()
        return torch.log(x - x)  # born: after-metric

    found = found_in(of_function(noisy, ordinary()))
    assert (found.onset.op, found.onset.source) == ("aten.log", born_at("after-metric"))


def test_gradient_penalty_of_a_flat_critic_fails_in_the_double_backward() -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        x = batch.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return (slope.square().sum(1).sqrt() - 1).square().mean()  # born: penalty

    model = Net(nn.Identity())
    nn.init.zeros_(model.first.weight)
    found = found_in(tiny_run(model, loss, [ordinary()]))
    assert (found.onset.op, found.onset.phase) == ("aten.div.Tensor", "backward")
    assert (found.root.node, found.root.forward_op) == ("SqrtBackward0", "aten.sqrt")
    assert found.onset.source == born_at("penalty")


def test_a_fault_in_a_differentiated_backward_belongs_to_the_module_of_its_forward() -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        x = batch.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return slope.mean()

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt()  # born: inner-backward

    found = found_in(tiny_run(Net(Root()), loss, [with_sample(2, 0.0)]))
    assert (found.onset.module, found.onset.source) == ("block", born_at("inner-backward"))
    assert found.onset.samples == [2]


# --- autograd ---------------------------------------------------------------------------------------------------------


class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grads[0] * (x - x).log()  # born: custom-backward


def test_a_fault_in_a_users_backward_is_placed_in_their_backward() -> None:
    found = found_in(of_function(lambda x: Wrong.apply(x), ordinary()))
    assert (found.onset.op, found.onset.phase, found.onset.module) == ("aten.log", "backward", "block")
    assert found.onset.source == born_at("custom-backward")
    assert found.root.node == "WrongBackward"


class Checkpointed(nn.Module):
    def __init__(self, block: nn.Module, *, reentrant: bool) -> None:
        super().__init__()
        self.inner = block
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["where-exp", "sqrt-backward"])
def test_a_recomputed_fault_is_told_at_its_first_run(name: str, reentrant: bool) -> None:
    case = next(c for c in GALLERY if c.name == name)
    model = Net(Checkpointed(Of(case.function), reentrant=reentrant))
    found = found_in(tiny_run(model, mean_loss, [case.batch.clone()]))
    assert (found.onset.op, found.onset.module, found.onset.phase) == (case.op, "block.inner", case.phase)
    assert found.onset.source == born_at(name)
    assert found.root.forward_op == ("aten.sqrt" if name == "sqrt-backward" else None)
    assert found.onset.samples == [2]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_function_that_is_no_module_keeps_the_module_around_it(reentrant: bool) -> None:
    class Around(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(guarded_exp, x, use_reentrant=reentrant)

    found = found_in(tiny_run(Net(Around()), mean_loss, [with_sample(2, 100.0)]))
    assert (found.onset.op, found.onset.module, found.onset.phase) == ("aten.exp", "block", "forward")
    assert found.onset.source == born_at("where-exp")


def test_a_backward_through_a_recomputed_region_is_mapped_to_the_regions_own_ops() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Of(lambda x: x * 2), Of(root_of_zero)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    found = found_in(tiny_run(Net(Checkpointed(Two(), reentrant=True)), mean_loss, [with_sample(2, 0.0)]))
    assert (found.onset.module, found.root.forward_op) == ("block.inner.b", "aten.sqrt")


# --- the update -------------------------------------------------------------------------------------------------------


class Halves(nn.Module):
    """Two fp16 layers of which only the second gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used = nn.Linear(4, 4).half()
        self.still = nn.Linear(4, 4).half()

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x.half()) + self.still(x.half() * 0.0) * 0.0


@pytest.mark.parametrize("foreach", [True, False])
def test_an_epsilon_that_is_zero_in_fp16_is_born_in_the_update_of_a_named_parameter(foreach: bool) -> None:
    model = Halves()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-8, foreach=foreach)
    found = found_in(tiny_run(model, lambda m, x: (m(x) * 10).float().mean(), [ordinary()], optimizer=optimizer))
    assert found.onset.phase == "update"
    assert (found.onset.module, found.onset.name) == ("still", "weight")
    assert found.onset.op == ("aten._foreach_addcdiv_.ScalarList" if foreach else "aten.addcdiv_")
    assert found.root.parameter == "still.weight"
    assert [o.shape for o in found.root.outputs] == [[4, 4]]
    assert all(e.inputs[1:] == [0.0, 0.0] for e in found.root.elements)


@pytest.mark.parametrize("foreach", [True, False])
def test_a_second_moment_that_overflows_is_named_though_the_weights_stay_finite(foreach: bool) -> None:
    model = Net(nn.Identity())
    optimizer = torch.optim.Adam(model.parameters(), foreach=foreach)
    found = found_in(tiny_run(model, lambda m, x: m(x).mean() * 1e25, [ordinary()], optimizer=optimizer))
    assert (found.onset.phase, found.onset.module, found.onset.name) == ("update", "first", "weight")
    assert found.root.fp64 == "beyond-range"
    assert "addcmul" in (found.onset.op or "")


def test_a_nan_weight_hides_no_birth_of_its_neighbours_in_a_foreach_op() -> None:
    class Neighbours(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.poisoned = nn.Parameter(torch.full((2,), math.nan, dtype=torch.float16))
            self.still = nn.Parameter(torch.ones(3, dtype=torch.float16))

        def forward(self, x: Tensor) -> Tensor:
            return x.sum() + self.poisoned.nan_to_num(1.0).sum() + (self.still * 0.0).sum()

    model = Neighbours()
    optimizer = torch.optim.AdamW(model.parameters(), eps=1e-8, foreach=True)
    found = found_in(tiny_run(model, mean_loss, [ordinary()], optimizer=optimizer))
    assert (found.onset.name, found.root.parameter, found.root.kind) == ("still", "still", "nan-from-finite")
    assert [o.shape for o in found.root.inputs] == [[3]] * 3


def test_an_infinite_gradient_that_the_clip_turns_into_nan_goes_back_to_backward() -> None:
    model = Net(Of(root_of_zero))
    found = found_in(tiny_run(model, mean_loss, [with_sample(2, 0.0)], clip_grad_norm=1.0))
    assert (found.onset.phase, found.onset.op, found.root.node) == ("backward", "aten.div.Tensor", "SqrtBackward0")


def test_gradients_that_overflow_while_they_are_added_up_are_born_in_the_accumulation_of_a_named_parameter() -> None:
    model = Halves()
    run = tiny_run(model, lambda m, x: m(x).sum() * 8000, [ordinary()] * 4, accumulate=4)
    model.used.weight.register_hook(lambda g: torch.full_like(g, 30_000.0))
    found = found_in(run)
    assert (found.onset.phase, found.root.parameter) == ("backward", "used.weight")
    assert (found.onset.op, found.onset.micro, found.root.fp64) == ("aten.add_.Tensor", 2, "beyond-range")


def test_a_users_own_step_is_seen_phase_by_phase() -> None:
    def step(model: nn.Module, batch: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        optimizer.zero_grad()
        loss = model(batch).mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    model = Net(nn.Identity())
    optimizer = torch.optim.SGD(model.parameters(), lr=3e38)
    found = found_in(tiny_run(model, mean_loss, [ordinary() * 100], optimizer=optimizer, train_step=step))
    assert (found.onset.phase, found.onset.module, found.onset.name) == ("update", "first", "weight")


def test_the_gradient_scalers_own_overflow_is_told_as_unscaling() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-128)
    found = found_in(tiny_run(Net(nn.Identity()), mean_loss, [ordinary()], scaler=scaler))
    assert (found.onset.phase, found.onset.op, found.root.fp64) == ("unscale", "aten._to_copy", "beyond-range")
    assert found.hops[-1].op == "aten._amp_foreach_non_finite_check_and_unscale_"


# --- what the step was given ------------------------------------------------------------------------------------------


def test_a_nan_in_a_weight_is_inherited_from_it() -> None:
    model = Net(nn.Linear(4, 4))
    model.block.weight.data[1, 2] = math.nan
    found = found_in(tiny_run(model, mean_loss, [ordinary()]))
    assert (found.onset.phase, found.onset.module, found.onset.name) == ("load", "block", "weight")
    assert (found.root.kind, found.root.facts["inherited"]) == ("carried", "parameter block.weight")


def test_a_nan_in_a_buffer_is_inherited_from_it() -> None:
    model = Net(nn.BatchNorm1d(4))
    model.block.running_mean[0] = math.nan
    model.block.eval()
    found = found_in(tiny_run(model, mean_loss, [ordinary()]))
    assert (found.onset.phase, found.onset.module, found.onset.name) == ("load", "block", "running_mean")


def test_a_nan_in_a_moment_is_inherited_from_it() -> None:
    model = Net(nn.Identity())
    run = tiny_run(model, mean_loss, [ordinary()] * 2, optimizer=torch.optim.AdamW(model.parameters()))
    replay_step(run, 0, RowBuffer(), recorded=False)
    run.optimizer.state[model.first.weight]["exp_avg"][0, 0] = math.nan
    run.start_step = 1
    found = found_in(run, 1)
    assert (found.onset.phase, found.onset.module, found.onset.name) == ("load", "first", "weight.exp_avg")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_value_in_the_batch_is_inherited_from_its_field_and_sample(value: float) -> None:
    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.mse_loss(model(batch["x"]), batch["y"])

    x = ordinary()
    x[1, 3] = value
    found = found_in(tiny_run(Net(nn.Tanh()), loss, [{"x": x, "y": ordinary()}]))
    assert (found.onset.phase, found.onset.name, found.onset.samples) == ("batch", "x", [1])


def test_minus_infinities_of_a_mask_in_the_batch_are_no_bad_data() -> None:
    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return (model(batch["x"]) + batch["mask"]).softmax(-1).square().mean()  # born: given-mask

    mask = torch.zeros(4, 4)
    mask[3] = -math.inf
    found = found_in(tiny_run(Net(nn.Identity()), loss, [{"x": ordinary(), "mask": mask}]))
    assert (found.onset.op, found.onset.source) == ("aten._softmax", born_at("given-mask"))


def test_memory_that_nobody_wrote_is_the_root_of_what_is_read_from_it() -> None:
    def uninitialised(x: Tensor) -> Tensor:
        noise = torch.empty_like(x)  # born: uninitialised
        return x + noise

    torch.use_deterministic_algorithms(True)  # fills `empty` with NaN
    try:
        found = found_in(of_function(uninitialised, ordinary()))
    finally:
        torch.use_deterministic_algorithms(False)
    assert (found.onset.op, found.onset.source) == ("aten.empty_like", born_at("uninitialised"))


# --- shapes of programs -----------------------------------------------------------------------------------------------


def test_a_sparse_embedding_gradient_is_followed_to_its_birth() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 4, sparse=True)

        def forward(self, ids: Tensor) -> Tensor:
            rows = self.embed(ids)
            return (rows - rows).sqrt()  # born: sparse

    model = Tokens()
    run = tiny_run(model, mean_loss, [torch.tensor([1, 3, 3, 0])])
    found = found_in(run)
    assert (found.onset.phase, found.root.node) == ("backward", "SqrtBackward0")
    assert found.onset.source == born_at("sparse")


@dataclass
class Output:
    hidden: Tensor
    extra: list[Tensor]


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@pytest.mark.parametrize("make", [
    lambda x, y: {"a": x, "b": y},
    lambda x, y: (x, [y]),
    lambda x, y: Output(x, [y]),
    lambda x, y: Pair(x, y),
])  # fmt: skip
def test_a_module_may_return_any_nesting_of_tensors(make: Callable[[Tensor, Tensor], Any]) -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return make(x, x.log())  # born: nested-output

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        output = model(batch)
        if isinstance(output, dict):
            return output["b"].mean()
        if isinstance(output, Output):
            return output.extra[0].mean()
        return output[1].mean() if isinstance(output, Pair) else output[1][0].mean()

    found = found_in(tiny_run(Net(Block()), loss, [with_sample(2, 0.0)]))
    assert (found.onset.op, found.onset.module) == ("aten.log", "block")
    assert found.onset.source == born_at("nested-output")


def test_a_module_called_twice_is_told_with_the_line_of_its_own_op() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log = Of(log_of_zero)

        def forward(self, x: Tensor) -> Tensor:
            return self.log(self.log(x + 1) * 0)

    found = found_in(tiny_run(Net(Twice()), mean_loss, [ordinary()]))
    assert (found.onset.op, found.onset.module, found.onset.source) == ("aten.log", "block.log", born_at("log-zero"))


def test_the_micro_step_of_the_fault_is_told() -> None:
    batches = [ordinary(), ordinary(), with_sample(2, 0.0), ordinary()]
    model = Net(Of(log_of_zero))
    found = found_in(tiny_run(model, mean_loss, batches, accumulate=4))
    assert (found.onset.micro, found.onset.samples, found.root.micro) == (2, [2], 2)


def test_the_embedding_of_padding_is_healthy() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 4, padding_idx=0)

        def forward(self, ids: Tensor) -> Tensor:
            return self.embed(ids).norm(dim=-1)

    assert zoomed(tiny_run(Padded(), mean_loss, [torch.tensor([[1, 0], [0, 0]])])) is None


def test_a_part_of_a_tensor_that_is_written_later_does_not_hide_the_part_that_is_bad() -> None:
    def by_columns(x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for column in range(x.shape[1]):
            out[:, column] = x[:, column].log()  # born: columns
        return out

    batch = ordinary()
    batch[2, 0] = 0.0
    found = found_in(of_function(by_columns, batch))
    assert (found.onset.op, found.onset.source, found.onset.samples) == ("aten.log", born_at("columns"), [2])


def test_a_birth_in_the_sound_part_of_a_tensor_is_told_though_its_other_part_is_bad() -> None:
    def halves(x: Tensor) -> Tensor:
        both = torch.cat([x, (x - x).log()], dim=-1)  # the second half is -inf, and nobody reads it
        return (both[:, :4] - 10).sqrt()  # born: sound-half

    found = found_in(of_function(halves, ordinary()))
    assert (found.root.op, found.root.kind) == ("aten.sqrt", "nan-from-finite")
    assert found.onset.source == born_at("sound-half")


def test_an_overflow_in_the_backward_of_a_view_is_told_at_the_view() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.full((4,), 0.5, dtype=torch.float16))

        def forward(self, x: Tensor) -> Tensor:
            rows = self.token.expand(x.shape[0], 4)  # born: expand-backward
            return x * torch.ones(1) + rows.float()

    found = found_in(tiny_run(nn.Sequential(Token()), lambda m, b: (m(b) * 2e4).sum(), [torch.ones(8, 4)]))
    assert (found.onset.phase, found.onset.module) == ("backward", "0")
    assert found.onset.source == born_at("expand-backward")
    assert found.root.op.startswith("aten.sum")


def test_running_statistics_that_overflow_are_born_in_the_norm_though_its_schema_hides_the_write() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4))
    found = found_in(tiny_run(model, lambda m, b: m(b * 1e25).mean(), [torch.randn(8, 4)]))
    assert (found.onset.op, found.onset.module) == ("aten.native_batch_norm", "0")
    assert (found.root.kind, found.hops[0].does) == ("inf-from-finite", "birth")


def test_what_was_written_past_torch_is_no_birth_of_the_op_that_reads_it() -> None:
    def poked(x: Tensor) -> Tensor:
        y = x.detach().clone()
        y.numpy()[0, 0] = math.nan
        return x * y.exp()

    found = found_in(of_function(poked, ordinary()))
    assert found.root.kind == "carried"
    assert "something other than torch" in found.root.facts["inherited"]


def test_the_operands_of_an_op_that_overwrites_its_own_operand_are_told_as_they_were() -> None:
    def divided(x: Tensor) -> Tensor:
        y = x * 0
        return x + y.div_(y)  # born: own-operand

    found = found_in(of_function(divided, ordinary()))
    assert (found.root.op, found.root.kind) == ("aten.div_.Tensor", "nan-from-finite")
    assert [o.nan for o in found.root.inputs] == [0, 0]


def test_what_a_copy_on_lists_overwrites_is_no_operand_of_it() -> None:
    def copied_over(x: Tensor) -> Tensor:
        old = torch.full((4, 4), math.nan, dtype=torch.float16)
        torch._foreach_copy_([old], [x.detach() * 1e5])  # born: over-old
        return x + old.float()

    found = found_in(of_function(copied_over, ordinary()))
    assert (found.root.op, found.root.kind) == ("aten._foreach_copy_", "inf-from-finite")
    assert found.onset.source == born_at("over-old")


def test_per_sample_gradients_are_not_disturbed_by_looking() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        weights = dict(model.named_parameters())

        def of_one(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
            return torch.func.functional_call(model, weights, (sample,)).square().sum()

        slopes = torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 0))(weights, batch)
        return model(batch).mean() + 0 * sum(s.sum() for s in slopes.values())

    assert zoomed(tiny_run(model, loss, [ordinary()])) is None


def test_a_freed_tensor_lends_no_history_to_the_next_one_at_its_address() -> None:
    def churn(x: Tensor) -> Tensor:
        for _ in range(8):
            (x / 0).sum()  # non-finite, and gone at once
        rows = [x.log() if i == 5 else x + i for i in range(8)]  # born: churn
        return torch.stack(rows).sum(0)

    found = found_in(of_function(churn, with_sample(2, 0.0)))
    assert (found.onset.op, found.onset.source) == ("aten.log", born_at("churn"))


def test_a_loss_that_needs_the_whole_batch_is_attributed_to_no_sample() -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        out = model(batch)
        return (out - out.mean(0)).square().sum().log() * 0 + (out.sum() - out.sum()).log()  # born: whole-batch

    found = found_in(tiny_run(Net(nn.Identity()), loss, [ordinary()]))
    assert found.samples is not None
    assert "every sample fails by itself" in found.samples["reason"]
    assert found.onset.samples == []


def test_an_op_that_draws_random_numbers_has_no_certificate() -> None:
    def dropped(x: Tensor) -> Tensor:
        return torch.native_dropout(x * 0 + 3e38, 0.5, True)[0]  # born: dropout

    found = found_in(of_function(dropped, ordinary()))
    assert (found.onset.op, found.onset.source) == ("aten.native_dropout", born_at("dropout"))
    assert (found.root.fp64, found.root.fp64_amax) == ("unavailable", None)
    assert "random" in found.root.fp64_detail


def test_the_root_of_a_loss_that_is_infinite_by_a_weight_of_minus_infinity_is_the_weight() -> None:
    model = Net(nn.Linear(4, 4))
    model.block.bias.data[0] = -math.inf
    found = found_in(tiny_run(model, mean_loss, [ordinary()]))
    assert (found.onset.phase, found.onset.module, found.onset.name) == ("load", "block", "bias")


def test_a_later_step_is_zoomed_into_from_its_own_state() -> None:
    batches = [ordinary(), ordinary(), with_sample(1, 0.0)]
    found = found_in(tiny_run(Net(Of(log_of_zero)), mean_loss, batches), 2)
    assert (found.onset.step, found.onset.samples) == (2, [1])


# --- less ordinary tensors and transforms -----------------------------------------------------------------------------


def jagged(x: Tensor) -> Tensor:
    rows = torch.nested.nested_tensor_from_jagged(x, torch.tensor([0, 1, 3, 4]))
    return rows.log().values()  # born: jagged


def mapped(x: Tensor) -> Tensor:
    return torch.vmap(lambda row: row.log())(x)  # born: mapped


def inner_gradient(x: Tensor) -> Tensor:
    return torch.vmap(torch.func.grad(lambda row: row.sqrt().sum()))(x)  # born: inner-gradient


def forward_mode(x: Tensor) -> Tensor:
    return torch.func.jvp(torch.sqrt, (x,), (torch.ones_like(x),))[1]  # born: forward-mode


def sparse_product(x: Tensor) -> Tensor:
    return torch.sparse.mm(torch.eye(4).to_sparse(), x).log()  # born: sparse-product


def out_variant(x: Tensor) -> Tensor:
    return x + torch.log(x.detach(), out=torch.empty(4, 4))  # born: out-variant


def without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = x.log()  # born: without-grad
    return x * scale


def degenerate_svd(x: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(torch.eye(4) + x * 0)  # born: degenerate-svd
    return u + v


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "function",
    [jagged, mapped, inner_gradient, forward_mode, sparse_product, out_variant, without_grad, degenerate_svd],
    ids=lambda f: f.__name__,
)
def test_less_ordinary_tensors_and_transforms_are_followed_too(function: Callable[[Tensor], Tensor]) -> None:
    found = found_in(of_function(function, with_sample(2, 0.0)))
    assert found.onset.module == "block"
    assert found.onset.source == born_at(function.__name__.replace("_", "-"))
    assert found.root.kind in ("inf-from-finite", "nan-from-finite")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_module_is_followed_by_its_ops() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.jit.script(nn.LogSigmoid())

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x - x).sub(self.inner(x - x)).log()  # born: scripted

    found = found_in(tiny_run(Net(Outer()), mean_loss, [ordinary()]))
    assert (found.onset.op, found.onset.module, found.onset.source) == ("aten.log", "block", born_at("scripted"))


def test_a_finite_part_of_an_unsafe_split_does_not_hide_who_spoiled_the_rest() -> None:
    def in_parts(x: Tensor) -> Tensor:
        y = torch.stack([x, (x - x) / (x - x)])  # born: unsafe
        first = y[0].unsafe_split(2, 1)
        return first[0].sum() + y[1].unsafe_split(2, 1)[0].sum()

    found = found_in(of_function(in_parts, ordinary()))
    assert (found.root.op, found.root.kind) == ("aten.div.Tensor", "nan-from-finite")
    assert found.onset.source == born_at("unsafe")
