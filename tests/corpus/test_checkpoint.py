"""Shaking a checkpoint moves what another machine's rounding would move, by as little, and nothing else."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.corpus.checkpoint import shake
from tests.corpus.program import Program, programs
from tests.corpus.runner import Job, run_one


def test_each_fp32_weight_moves_by_about_a_millionth_and_a_seed_repeats() -> None:
    one, again, other = ({"w": torch.full((1000,), 3.0)} for _ in range(3))
    for weights, seed in ((one, 1), (again, 1), (other, 2)):
        shake(weights, seed)
    moved = (one["w"] / 3.0 - 1.0).abs()
    assert 3e-7 < moved.mean() < 3e-6
    assert torch.equal(one["w"], again["w"])
    assert not torch.equal(one["w"], other["w"])


def test_zeros_infinities_integers_and_16_bits_stay() -> None:
    weights = {
        "mask": torch.tensor([0.0, -torch.inf]),
        "calls": torch.tensor(7),
        "half": torch.full((64,), 1.5, dtype=torch.float16),
        "brain": torch.full((64,), 1.5, dtype=torch.bfloat16),
    }
    before = {name: tensor.clone() for name, tensor in weights.items()}
    shake(weights, 1)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights.items())


def test_tied_weights_stay_tied_and_move_once() -> None:
    tied = torch.full((8,), 2.0)
    alone = {"embed": tied.clone()}
    both = {"embed": tied, "head": tied}
    shake(alone, 1)
    shake(both, 1)
    assert both["head"] is both["embed"]
    assert torch.equal(both["embed"], alone["embed"])


def test_replicas_of_one_model_stay_bit_for_bit_the_same() -> None:
    ranks = {f"ranks.{i}.weight": torch.linspace(1.0, 2.0, 8) for i in range(2)} | {"head": torch.ones(8)}
    shake(ranks, 1)
    assert torch.equal(ranks["ranks.0.weight"], ranks["ranks.1.weight"])
    assert not torch.equal(ranks["ranks.0.weight"], torch.linspace(1.0, 2.0, 8))
    assert not torch.equal(ranks["head"] - 1.0, ranks["ranks.0.weight"] / torch.linspace(1.0, 2.0, 8) - 1.0)


def weights_of(program: Program, shaken: int | None, folder: Path) -> dict[str, torch.Tensor]:
    assert not run_one(Job(program, True, shaken), folder).error
    return dict(torch.load(folder / "ckpt.pt", weights_only=False)["model"])


def test_a_seed_reaches_the_checkpoint_that_a_program_is_replayed_from(tmp_path: Path) -> None:
    (program,) = programs("lorentz_self_link")
    plain, again, shaken = (
        weights_of(program, seed, tmp_path / name) for name, seed in (("plain", None), ("again", None), ("shaken", 1))
    )
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert not torch.equal(plain["points.weight"], shaken["points.weight"])
