"""The small models of configs/llm are what they are named after."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from torch import Tensor, nn

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES = sorted(path.name for path in CONFIGS.glob("*.yaml") if "llm." in path.read_text())


@pytest.fixture(autouse=True)
def imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(CONFIGS))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    for module in [m for m in sys.modules if m.partition(".")[0] == "llm"]:
        del sys.modules[module]


def module(name: str) -> ModuleType:
    return importlib.import_module(f"llm.{name}")


def built(recipe: str) -> nn.Module:
    spec = yaml.safe_load((CONFIGS / recipe).read_text())["model"]
    where, _, function = spec["call"].partition(":")
    torch.manual_seed(0)
    model: nn.Module = getattr(importlib.import_module(where), function)(**spec["kwargs"])
    return model


def some_tokens() -> Tensor:
    return torch.randint(256, (2, 64), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_model_is_small_and_starts_at_the_loss_of_guessing(recipe: str) -> None:
    model = built(recipe)
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 3e6
    # a tied head begins by saying the token that it was given: the next one is another
    loss = nn.functional.cross_entropy(model(some_tokens()).flatten(0, 1), some_tokens().flip(1).flatten())
    assert loss.item() == pytest.approx(torch.tensor(256.0).log().item(), abs=0.3)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_position_sees_itself_and_those_before_it_only(recipe: str) -> None:
    model, tokens = built(recipe).eval(), some_tokens()
    other = tokens.clone()
    other[:, 40] = (other[:, 40] + 1) % 256
    same = torch.isclose(model(tokens), model(other), atol=1e-6).all(-1).all(0)
    assert same[:40].all()
    assert not same[40]


def test_mistral_looks_back_through_a_window_a_layer() -> None:
    layer = module("decoder").Attention(module("decoder").Config(window=8))
    assert layer.seen.sum(1).tolist() == [min(i + 1, 8) for i in range(64)]


def test_qwen_ties_its_head_and_has_a_bias_on_queries_keys_and_values_only() -> None:
    names = dict(built("qwen2.5-small.yaml").named_parameters())
    assert "lm_head.weight" not in names
    biased = {name.split(".")[-2] for name in names if name.endswith("bias")}
    assert biased == {"q_proj", "k_proj", "v_proj"}


def test_rotation_keeps_lengths_and_makes_scores_depend_on_the_distance() -> None:
    rotary = module("layers").Rotary(16, 64, 10_000.0)
    q, k = torch.randn(2, 1, 1, 64, 16, generator=torch.Generator().manual_seed(1))[:, :, :, :1].expand(
        -1, -1, -1, 64, -1
    )
    torch.testing.assert_close(rotary(q).norm(dim=-1), q.norm(dim=-1))
    scores = (rotary(q) @ rotary(k).transpose(-1, -2))[0, 0]
    torch.testing.assert_close(scores.diagonal(3), scores.diagonal(3)[:1].expand(61))


def test_an_expert_with_too_little_to_do_is_preferred_a_little_more_each_step() -> None:
    deepseek = module("deepseek")
    torch.manual_seed(0)
    experts = deepseek.Experts(deepseek.Config(dim=16, n_experts=4, expert_hidden=8))
    chosen, weights = experts._route(torch.randn(64, 16))
    torch.testing.assert_close(weights.sum(-1), torch.full((64,), 2.5))
    load = torch.bincount(chosen.flatten(), minlength=4).float()
    torch.testing.assert_close(experts.bias, 0.001 * (32 - load).sign())


def test_each_token_gets_its_own_experts_sum() -> None:
    deepseek = module("deepseek")
    torch.manual_seed(0)
    experts = deepseek.Experts(deepseek.Config(dim=16, n_experts=4, expert_hidden=8)).eval()
    x = torch.randn(2, 5, 16)
    chosen, weights = experts._route(x.flatten(0, 1))
    by_hand = [
        experts.shared_experts(token) + sum(w * experts.experts[int(e)](token) for e, w in zip(es, ws, strict=True))
        for token, es, ws in zip(x.flatten(0, 1), chosen, weights, strict=True)
    ]
    torch.testing.assert_close(experts(x).flatten(0, 1), torch.stack(by_hand))


def test_the_schedule_warms_up_holds_and_falls_to_its_floor() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = module("schedule").warmup_cosine(optimizer, warmup=4, hold=6, total=20, floor=0.1)
    rates = []
    for _ in range(30):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:11] == pytest.approx([0.5, 1.0, 1.5, 2.0, *[2.0] * 7])
    assert rates[15] == pytest.approx(1.1)
    assert rates[20:] == pytest.approx([0.2] * 10)


def test_a_steps_batch_depends_on_the_step_alone() -> None:
    batches = module("text").batches
    whole, later = batches(), batches(start_step=2)
    for _ in range(2):
        next(whole)
    (x, y), (again, _) = next(whole), next(later)
    assert torch.equal(x, again)
    assert torch.equal(x[:, 1:], y[:, :-1])
