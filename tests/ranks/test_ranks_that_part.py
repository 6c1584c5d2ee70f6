"""Ranks that hold different values where they must agree: which tensor, when, on which rank, and why."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ranks.conftest import Launched, Ranks

APART = "tests.ranks.programs.apart"


def launch(step: str, *, wrap: str = "ddp", model: str = "", size: int = 2, **arguments: Any) -> dict[str, Any]:
    """Return a launch of a loop of `apart`; `model` takes the place of the wrapped net."""
    more = f"train: {{steps: 6}}\ntrain_step: {APART}:{step}\n{model}"
    return {"data": f"{APART}:batches", "wrap": "" if model else wrap, "more": more, "size": size, **arguments}


def with_buffer(broadcast: str) -> str:
    return f"model: {{call: {APART}:with_buffer, kwargs: {{broadcast: {broadcast}}}}}\n"


DROPPING = f"model: {APART}:with_dropout\n"
#: by name: a launch, the tensor that leaves first, the rank, and what is said of why
PARTED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no_sync": (launch("no_sync"), "module.blocks.0.up.weight", "differs already, by rank 1: it was not reduced"),
    "own_skip": (launch("own_skip", size=3), "module.blocks.0.up.weight", "rank 1 made no update, the others did"),
    "own_noise": (launch("own_noise"), "module.blocks.0.up.weight", "gradients are equal, and the update of rank 1"),
    "own_state": (launch("own_state"), "module.blocks.0.up.weight", "gradients are equal, and the update of rank 1"),
    "seeds": (launch("own_dropout", model=DROPPING, shared=True), "head.weight", "different random numbers on the same batch"),
    "shard_clip": (launch("shard_clip", wrap="tp", shared=True), "head.weight", "clips by the norm of its own shard"),
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "buffer": launch("plain", model=with_buffer("false")),
    "fsdp_clip": launch("shard_clip", wrap="fsdp"),
}
HEALTHY: dict[str, dict[str, Any]] = {
    "plain": launch("plain"),
    "buffer": launch("plain", model=with_buffer("true")),
    "counter": launch("plain", model=f"model: {APART}:with_counter\n"),
    "seeds": launch("plain", model=DROPPING, shared=True),
    "tp_clip": launch("whole_clip", wrap="tp", shared=True),
    "fsdp_clip": launch("usual_clip", wrap="fsdp"),
}


@pytest.fixture(scope="module")
def parted(ranks: Ranks) -> dict[str, Launched]:
    asked = {**{name: one for name, (one, _, _) in PARTED.items()}, **OTHERS}
    return dict(zip(asked, ranks.replay_all(*asked.values()), strict=True))


@pytest.fixture(scope="module")
def healthy(ranks: Ranks) -> dict[str, Launched]:
    return dict(zip(HEALTHY, ranks.replay_all(*HEALTHY.values()), strict=True))


@pytest.mark.parametrize("name", PARTED)
def test_what_left_first_is_named_with_its_reason(parted: dict[str, Launched], name: str) -> None:
    _, tensor, why = PARTED[name]
    found = parted[name].diagnosis
    assert found.onset is not None
    assert (found.onset.kind, found.onset.step) == ("mismatch", 13 if name != "shard_clip" else 10)
    assert name == "shard_clip" or found.onset.rank == 1
    suspect = found.suspects[0]
    assert (suspect.cause, suspect.location.parameter) == ("rank-divergence", tensor)
    assert why in suspect.summary


def test_a_buffer_that_nobody_broadcasts_is_named(parted: dict[str, Launched]) -> None:
    found = parted["buffer"].diagnosis
    assert found.onset is not None
    assert (found.onset.kind, found.onset.step) == ("mismatch", 10)
    assert "module.centre" in found.suspects[0].summary


def test_a_clip_by_each_shards_norm_is_named_where_no_weight_is_held_twice(parted: dict[str, Launched]) -> None:
    found = parted["fsdp_clip"].diagnosis
    assert found.onset is not None
    assert (found.onset.kind, found.onset.step, found.onset.phase) == ("mismatch", 10, "clip")
    assert found.suspects[0].cause == "rank-divergence"
    assert "each rank clips by the norm of its own shard" in found.suspects[0].summary


@pytest.mark.parametrize("name", HEALTHY)
def test_the_same_loop_without_its_mistake_is_healthy(healthy: dict[str, Launched], name: str) -> None:
    assert healthy[name].diagnosis.outcome == "healthy"
