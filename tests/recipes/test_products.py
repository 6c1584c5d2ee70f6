"""Products with weights, and no others, are those of quantized operands, however the user's code calls them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanhunt.recipes.catalogue import RECIPES
from nanhunt.recipes.recipe import Operand, Recipe
from nanhunt.recipes.scaling import quantize
from tests.recipes.emulated import PRODUCTS, assert_near, by_hand, emulator_of, seeded, under

M, K, N = 37, 48, 40
HYBRID = PRODUCTS["fp8-hybrid"]


def leaf(*shape: int, seed: int) -> Tensor:
    return seeded(*shape, seed=seed).requires_grad_()


def flat(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1, tensor.shape[-1])


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(M, K), (3, 5, K), (2, 2, 3, K), (1, K), (0, K)])
def test_a_linear_module_multiplies_quantized_operands_forward_and_backward(
    name: str, bias: bool, shape: tuple[int, ...]
) -> None:
    products, layer, x = PRODUCTS[name], nn.Linear(K, N, bias=bias), leaf(*shape, seed=1)
    dy = seeded(*shape[:-1], N, seed=2)
    out, emulator = under(products, dict(layer.named_parameters()), lambda: layer(x), dy)
    product, dx, dw = by_hand(products, flat(x), layer.weight.detach(), flat(dy))
    assert_near(flat(out), product + (layer.bias.detach().double() if bias else 0))
    assert_near(flat(x.grad), dx)  # type: ignore[arg-type]
    assert_near(layer.weight.grad, dw)
    if bias:
        assert torch.equal(layer.bias.grad, flat(dy).sum(0))  # type: ignore[arg-type]
    assert list(emulator.quantized) == ["weight"]


CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda x, w: x @ w,
    "mm": lambda x, w: torch.mm(x, w),
    "conv1d-of-gpt2": lambda x, w: torch.addmm(torch.zeros(N), x, w),
    "addmm-alpha-beta": lambda x, w: torch.addmm(torch.full((N,), torch.nan), x, w, beta=0),
    "einsum": lambda x, w: torch.einsum("mk,kn->mn", x, w),
    "einsum-turned": lambda x, w: torch.einsum("kn,mk->mn", w, x),
    "weight-first": lambda x, w: (w.t() @ x.t()).t(),
    "linear": lambda x, w: F.linear(x, w.t()),
    "tensordot": lambda x, w: torch.tensordot(x, w, dims=1),
    "folded": lambda x, w: (x.view(1, M, K) @ w).view(M, N),
    "strided": lambda x, w: x.t().contiguous().t() @ w,
}


@pytest.mark.parametrize("name", ["fp8-hybrid", "fp8-block", "nvfp4"])
@pytest.mark.parametrize("call", CALLS)
def test_every_way_to_call_a_product_gives_the_same_three_products(name: str, call: str) -> None:
    products, x, w, dy = PRODUCTS[name], leaf(M, K, seed=3), leaf(K, N, seed=4), seeded(M, N, seed=5)
    out, _ = under(products, {"a.w": w}, lambda: CALLS[call](x, w), dy)
    product, dx, dw = by_hand(products, x.detach(), w.detach().t(), dy)
    assert_near(out, product)
    assert_near(x.grad, dx)
    assert_near(w.grad, dw.t())


def test_alpha_and_beta_scale_product_and_addend() -> None:
    x, w, addend = leaf(M, K, seed=3), leaf(K, N, seed=4), seeded(M, N, seed=6)
    out, _ = under(HYBRID, {"w": w}, lambda: torch.addmm(addend, x, w, beta=0.5, alpha=-3.0), torch.zeros(M, N))
    assert_near(out, 0.5 * addend.double() - 3.0 * by_hand(HYBRID, x.detach(), w.detach().t(), addend)[0])


@pytest.mark.parametrize("name", PRODUCTS)
def test_experts_in_one_weight_are_products_of_each(name: str) -> None:
    products, x, w, dy = PRODUCTS[name], leaf(4, 6, K, seed=7), leaf(4, K, N, seed=8), seeded(4, 6, N, seed=9)
    out, _ = under(products, {"experts.w": w}, lambda: torch.bmm(x, w), dy)
    product, dx, dw = by_hand(products, x.detach(), w.detach().transpose(1, 2), dy)
    for got, expected in ((out, product), (x.grad, dx), (w.grad, dw.transpose(1, 2))):
        assert_near(got, expected)


def test_a_tied_head_is_a_product_and_the_embedding_none() -> None:
    embed, ids = nn.Embedding(N, K), torch.arange(M) % N
    x, dy = leaf(M, K, seed=10), seeded(M, N, seed=11)
    weights = {"embed.weight": embed.weight}
    looked_up, _ = under(HYBRID, weights, lambda: embed(ids))
    assert torch.equal(looked_up, embed.weight.detach()[ids])
    out, _ = under(HYBRID, weights, lambda: x @ embed.weight.t(), dy)
    product, dx, dw = by_hand(HYBRID, x.detach(), embed.weight.detach(), dy)
    for got, expected in ((out, product), (x.grad, dx), (embed.weight.grad, dw)):
        assert_near(got, expected)


@pytest.mark.parametrize("name", ["fp8-hybrid", "fp8-block", "nvfp4"])
@pytest.mark.parametrize("backward_inside", [False, True])
def test_under_autocast_what_is_quantized_is_the_narrow_cast(name: str, backward_inside: bool) -> None:
    products, layer, x = PRODUCTS[name], nn.Linear(K, N), leaf(M, K, seed=12)
    dy = seeded(M, N, seed=13).bfloat16()
    emulator = emulator_of(products)
    with emulator.active(dict(layer.named_parameters()), ()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = layer(x)
            if backward_inside:
                out.backward(dy)
        if not backward_inside:
            out.backward(dy)
    assert out.dtype is torch.bfloat16
    narrow = [t.detach().bfloat16().float() for t in (x, layer.weight, dy)]
    product, dx, dw = by_hand(products, *narrow)
    # a sum in another order may fall on the other side of a bf16 tie
    assert_near(out, (product + layer.bias.detach().bfloat16().double()).bfloat16().double(), rtol=3e-4)
    assert_near(x.grad, dx.bfloat16().double(), rtol=3e-4)
    assert_near(layer.weight.grad, dw.bfloat16().double(), rtol=3e-4)


@pytest.mark.parametrize("name", ["fp8-hybrid", "fp8-block", "nvfp4"])
def test_sums_are_in_fp32_whatever_the_script_allows_products_of_fp32_to_be(name: str) -> None:
    products, layer, dy = PRODUCTS[name], nn.Linear(256, 256, bias=False), seeded(64, 256, seed=13)
    found = []
    for allowed in ("highest", "high", "medium"):
        x, layer.weight.grad = leaf(64, 256, seed=12), None
        torch.set_float32_matmul_precision(allowed)
        try:
            out, _ = under(products, dict(layer.named_parameters()), lambda x=x: layer(x), dy)  # type: ignore[misc]
            assert torch.get_float32_matmul_precision() == allowed
        finally:
            torch.set_float32_matmul_precision("highest")
        found.append((out, x.grad, layer.weight.grad))
    for other in found[1:]:
        for got, expected in zip(other, found[0], strict=True):
            assert_near(got, expected.double(), rtol=1e-6)  # type: ignore[union-attr]


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.gate, self.down = nn.Linear(K, 64), nn.Linear(K, 64, bias=False), nn.Linear(64, K)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.down(F.gelu(self.up(x)) * self.gate(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.products], ids=lambda r: r.name)
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_changes_no_gradient(recipe: object, reentrant: bool) -> None:
    found = []
    for checkpointed in (False, True):
        model, x = Mlp(), leaf(3, 7, K, seed=14)
        emulator = emulator_of(recipe.products)  # type: ignore[attr-defined]
        torch.manual_seed(1)
        with emulator.active(dict(model.named_parameters()), ()):
            h = x * 1.0
            for _ in range(2):
                h = checkpoint(model, h, use_reentrant=reentrant) if checkpointed else model(h)
            h.square().sum().backward()
        found.append([x.grad, *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.products], ids=lambda r: r.name)
def test_a_block_that_ends_in_a_product_has_its_own_gradients_under_a_checkpoint(recipe: Recipe) -> None:
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(3)
        up, down = nn.Linear(K, 2 * K), nn.Linear(2 * K, K)
        block = nn.ModuleDict({"up": up, "down": down})
        forward = lambda x: down(F.relu(up(x))) + x  # noqa: B023, E731 - nothing is saved behind the last product
        x = leaf(3, 7, K, seed=14)
        assert recipe.products is not None
        with emulator_of(recipe.products).active(dict(block.named_parameters()), ()):
            h = x * 1.0
            for _ in range(2):
                h = checkpoint(forward, h, use_reentrant=False) if checkpointed else forward(h)
            h.square().sum().backward()
        found.append([x.grad, *(p.grad for p in block.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_products_with_a_weight_that_is_computed_are_counted() -> None:
    layer, x = nn.Linear(K, N), leaf(M, K, seed=3)
    _, emulator = under(
        HYBRID, dict(layer.named_parameters()), lambda: F.linear(x, layer.weight / 2) + layer(x), seeded(M, N, seed=2)
    )
    assert emulator.others == 1
    assert list(emulator.quantized) == ["weight"]


def test_attention_and_every_other_product_without_a_weight_are_untouched_to_the_bit() -> None:
    layer = nn.Linear(K, K)

    def forward(x: Tensor) -> Tensor:
        scores = torch.softmax(x @ x.transpose(-2, -1), -1) @ x  # x is a layer's input as well
        fused = F.scaled_dot_product_attention(x, x.flip(0), x)
        return scores + fused + torch.einsum("bik,bjk->bij", x, x).sum(-1, keepdim=True)

    found = []
    for quantized in (False, True):
        x = leaf(2, 9, K, seed=15)
        emulator = emulator_of(HYBRID)
        weights = dict(layer.named_parameters()) if quantized else {}
        with emulator.active(weights, ()):
            h = x * 2.0
            kept = layer(h)
            out = forward(h)
            out.backward(torch.ones_like(out))
        found.append((out.detach(), x.grad, kept))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][2], found[1][2])


def test_fp64_is_untouched() -> None:
    layer, x = nn.Linear(K, N).double(), seeded(M, K).double()
    out, emulator = under(HYBRID, dict(layer.named_parameters()), lambda: layer(x), torch.ones(M, N).double())
    assert torch.equal(out, layer(x))
    assert not emulator.quantized


def test_inputs_without_a_gradient_quantize_the_weights_gradient_too() -> None:
    layer, x, dy = nn.Linear(K, N, bias=False), seeded(M, K, seed=16), seeded(M, N, seed=17)
    under(HYBRID, dict(layer.named_parameters()), lambda: layer(x), dy)
    assert_near(layer.weight.grad, by_hand(HYBRID, x, layer.weight.detach(), dy)[2])


class Attention(nn.Module):
    """Three weights of one shape with one input, as q, k and v are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.q, self.k, self.v = (nn.Linear(K, K, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.q(x) * self.k(x) + self.v(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("skip", ["layers.0.k", "k", "layers.*.k", "?"])
def test_a_module_that_is_skipped_is_plain_forward_and_backward_and_its_neighbours_are_not(skip: str) -> None:
    def trained(products_skip: tuple[str, ...]) -> tuple[dict[str, Tensor], list[str], list[str]]:
        model, x = nn.ModuleDict({"layers": nn.ModuleList([Attention()])}), seeded(M, K, seed=18)
        emulator = emulator_of(HYBRID, skip=products_skip)
        with emulator.active(dict(model.named_parameters()), ()):
            model["layers"][0](x).backward(seeded(M, K, seed=19))  # type: ignore[index]
        return (
            {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
            list(emulator.quantized),
            list(emulator.skipped),
        )

    (plain, none, every), (quantized, _, _) = trained(("*",)), trained(())
    assert none == []
    assert every == [f"layers.0.{n}.weight" for n in "qkv"]
    got, left, skipped = trained((skip,))
    if skip == "?":
        assert {n: g.tolist() for n, g in got.items()} == {n: g.tolist() for n, g in plain.items()}
        return
    assert left == ["layers.0.q.weight", "layers.0.v.weight"]
    assert skipped == ["layers.0.k.weight"]
    assert torch.equal(got["layers.0.v.weight"], quantized["layers.0.v.weight"])
    assert not torch.equal(got["layers.0.v.weight"], plain["layers.0.v.weight"])
    model, x = Attention(), seeded(M, K, seed=18)
    dk = seeded(M, K, seed=19) * by_hand(HYBRID, x, model.q.weight.detach(), x)[0].float()
    assert_near(got["layers.0.k.weight"], dk.double().t() @ x.double())


def test_a_head_that_is_skipped_by_its_own_name_is_skipped_though_it_is_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(N, K), nn.Linear(K, N, bias=False)
            self.head.weight = self.embed.weight

    model, x = Tied(), seeded(M, K)
    emulator = emulator_of(HYBRID, skip=("head",))
    with emulator.active(dict(model.named_parameters()), (), {"embed.weight": ["head.weight"]}):
        out = model.head(x)
    assert torch.equal(out, model.head(x))
    assert list(emulator.skipped) == ["embed.weight"]


def test_a_module_called_twice_and_a_weight_of_two_modules_add_their_gradients() -> None:
    first, second = nn.Linear(K, K, bias=False), nn.Linear(K, K, bias=False)
    second.weight = first.weight
    dy = seeded(M, K, seed=21)
    for other in (first, second):
        x, first.weight.grad = leaf(M, K, seed=20), None
        out, _ = under(HYBRID, {"first.weight": first.weight}, lambda x=x, other=other: other(first(x)), dy)  # type: ignore[misc]
        h = by_hand(HYBRID, x.detach(), first.weight.detach(), dy)[0].float()
        product, dh, dw_second = by_hand(HYBRID, h, first.weight.detach(), dy)
        _, dx, dw_first = by_hand(HYBRID, x.detach(), first.weight.detach(), dh.float())
        # h itself is summed in another order, and may fall on the other side of a tie
        for got, expected in ((out, product), (x.grad, dx), (first.weight.grad, dw_first + dw_second)):
            assert_near(got, expected, rtol=2e-3)


def test_weights_that_live_in_one_flat_buffer_are_told_apart() -> None:
    buffer = seeded(2 * K * N, seed=22)
    weights = {f"layers.{i}.w": nn.Parameter(buffer[i * K * N : (i + 1) * K * N].view(N, K)) for i in range(2)}
    x, dy = leaf(M, K, seed=23), seeded(M, N, seed=24)
    products = replace(HYBRID, skip=("layers.1",))
    out, emulator = under(products, weights, lambda: F.linear(x, weights["layers.0.w"]), dy)
    assert_near(out, by_hand(HYBRID, x.detach(), weights["layers.0.w"].detach(), dy)[0])
    assert_near(weights["layers.0.w"].grad, by_hand(HYBRID, x.detach(), weights["layers.0.w"].detach(), dy)[2])
    assert list(emulator.quantized) == ["layers.0.w"]
    out, emulator = under(products, weights, lambda: F.linear(x, weights["layers.1.w"]), dy)
    assert torch.equal(out, F.linear(x, weights["layers.1.w"]).detach())
    assert list(emulator.skipped) == ["layers.1.w"]


class MatrixSign(torch.optim.Optimizer):
    """An optimizer with products of its own, of gradients and of weights, as Muon has."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                with torch.no_grad():
                    p -= 0.1 * (p.grad @ p.grad.T @ p.grad + p @ p.T @ p)


def test_products_inside_of_an_optimizer_are_its_own() -> None:
    layer, x = nn.Linear(K, K, bias=False), seeded(M, K, seed=25)
    optimizer = MatrixSign(layer.parameters(), {})
    weights = dict(layer.named_parameters())
    with emulator_of(HYBRID).active(weights, [optimizer]):
        layer(x).backward(seeded(M, K, seed=26))
        w, grad = layer.weight.detach().clone(), layer.weight.grad
        assert grad is not None
        optimizer.step()
        after = layer(x)
    assert torch.equal(layer.weight.detach(), w - 0.1 * (grad @ grad.T @ grad + w @ w.T @ w))
    assert_near(after, by_hand(HYBRID, x, layer.weight.detach(), x)[0])  # and what comes behind it is the recipe's


class Sharpness(torch.optim.SGD):
    """Takes its gradient in a closure that step calls, as SAM and LBFGS do."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> None:  # type: ignore[override]
        with torch.enable_grad():
            closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=-0.1)


def test_a_closure_inside_of_an_optimizer_is_a_pass_like_any_other() -> None:
    layer, x, dy = nn.Linear(K, N, bias=False), leaf(M, K, seed=25), seeded(M, N, seed=26)
    optimizer = Sharpness(layer.parameters(), lr=0.1)
    w, made = layer.weight.detach().clone(), []

    def closure() -> Tensor:
        made.append(layer(x))
        made[0].backward(dy)
        return made[0].sum()  # type: ignore[no-any-return]

    with emulator_of(HYBRID).active(dict(layer.named_parameters()), [optimizer]):
        optimizer.step(closure)
    product, dx, dw = by_hand(HYBRID, x.detach(), w, dy)
    for got, expected in ((made[0], product), (x.grad, dx), (layer.weight.grad, dw)):
        assert_near(got, expected)


def test_gradients_rounded_by_lot_are_unbiased() -> None:
    products = replace(PRODUCTS["mxfp4"], gradient=Operand(format="e2m1fn", block=(1, 32), scale="up", stochastic=True))
    w, dy, draws = leaf(64, 32, seed=27), seeded(5, 64, seed=28), 400
    emulator, total = emulator_of(products), torch.zeros(5, 32, dtype=torch.float64)
    for _ in range(draws):
        x = torch.zeros(5, 32, requires_grad=True)
        with emulator.active({"w": w}, ()):
            F.linear(x, w).backward(dy)
        total += x.grad.double()  # type: ignore[union-attr]
    expected = dy.double() @ quantize(w.detach().t(), products.weight).values.double().t()
    spread = (
        0.5 * 2.0 * torch.linalg.vector_norm(w.detach()) / draws**0.5
    )  # half an ulp at most, which is 2 near dy's end
    assert float((total / draws - expected).abs().max()) < float(spread)
    assert float((x.grad.double() - expected).abs().max()) > 1e-3  # type: ignore[union-attr]
