"""A fault on one rank: the step, the line, the sample and the rank are named, however the model is spread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nanhunt.report.html.page import HtmlRenderer
from nanhunt.report.terminal import TerminalRenderer
from tests.ranks.conftest import Launched, Ranks
from tests.ranks.programs import net

FP16 = "precision: {autocast: fp16}\n"
ALL_RUN = {"more": "train: {steps: 6}\n"}
#: by name: a launch, and whether its ranks read one batch
LAUNCHES: dict[str, dict[str, Any]] = {
    **{wrap: {"wrap": wrap, "fault": "zeros", "shared": wrap == "tp"} for wrap in ("ddp", "fsdp", "tp")},
    "ignored": {"wrap": "ddp", "fault": "ignored", "options": ("--no-trials",)},
    "loud": {"wrap": "ddp", "fault": "loud", "checkpoint": "large.pt", "more": f"train: {{steps: 6}}\n{FP16}"},
    "shard": {"wrap": "tp", "fault": "loud", "shared": True, "checkpoint": "large.pt", "more": f"train: {{steps: 6}}\n{FP16}"},
}  # fmt: skip
HEALTHY: dict[str, dict[str, Any]] = {
    "ddp": {"wrap": "ddp"},
    "fsdp": {"wrap": "fsdp", "size": 3},
    "tp": {"wrap": "tp", "shared": True},
    "shard": LAUNCHES["shard"] | {"fault": ""},
}


def line_of(comment: str) -> int:
    """Return the number of the net's line that ends with a comment."""
    lines = Path(net.__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.endswith(comment))


@pytest.fixture(scope="module")
def faulty(ranks: Ranks) -> dict[str, Launched]:
    return dict(zip(LAUNCHES, ranks.replay_all(*(ALL_RUN | one for one in LAUNCHES.values())), strict=True))


@pytest.fixture(scope="module")
def healthy(ranks: Ranks) -> dict[str, Launched]:
    return dict(zip(HEALTHY, ranks.replay_all(*(ALL_RUN | one for one in HEALTHY.values())), strict=True))


@pytest.mark.parametrize("wrap", ["ddp", "fsdp", "tp"])
def test_the_rank_that_saw_it_first_is_named(faulty: dict[str, Launched], wrap: str) -> None:
    seen, found = faulty[wrap], faulty[wrap].diagnosis
    assert seen.codes == [0, 0]
    assert found.onset is not None
    assert (found.onset.step, found.onset.op, found.onset.samples) == (13, "aten.div.Tensor", [2])
    assert found.onset.source == f"net.py:{line_of('0/0')}"
    assert found.onset.rank == (0 if wrap == "tp" else 1)
    assert found.suspects[0].cause == "zero-denominator"
    assert {t.name: t.outcome for t in found.trials}["drop-samples"] == "cured"


def test_all_labels_ignored_on_one_rank_are_told_with_that_rank(faulty: dict[str, Launched]) -> None:
    found = faulty["ignored"].diagnosis
    assert found.onset is not None
    assert (found.onset.step, found.onset.rank) == (13, 1)
    assert found.suspects[0].cause == "empty-reduction"


@pytest.mark.parametrize("spread", ["loud", "shard"])
def test_an_overflow_on_one_rank_is_told_with_that_rank(faulty: dict[str, Launched], spread: str) -> None:
    found = faulty[spread].diagnosis
    assert found.onset is not None
    assert (found.onset.step, found.onset.rank, found.onset.samples) == (13, 1, [2])
    assert found.onset.module.endswith("blocks.0.up")
    assert found.suspects[0].cause == "activation-overflow"


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_ranks_are_healthy(healthy: dict[str, Launched], name: str) -> None:
    seen = healthy[name]
    assert set(seen.codes) == {0}
    assert seen.diagnosis.outcome == "healthy"
    assert seen.trace.rank_count == len(seen.codes)


def test_a_report_shows_what_each_rank_saw(faulty: dict[str, Launched]) -> None:
    first, second = faulty["ddp"].diagnosis.ranks
    assert (first.rank, first.step, second.rank) == (0, 13, 1)
    assert (first.loss == first.loss, second.loss == second.loss) == (True, False)
    page = TerminalRenderer(width=100).render(faulty["ddp"].diagnosis)
    assert "not finite first: output of module.blocks.0.up, looked into" in page
    assert "of the batch of rank 1, counted from 0" in page
    assert "with each rank on its neighbour's batch the loss of rank 0 is not finite" in page
    assert "Step 13: loss is NaN on rank 1, first broken by aten.div.Tensor" in page


def test_a_loss_that_made_its_own_nan_comes_before_the_gradients_of_it(faulty: dict[str, Launched]) -> None:
    assert [view.bad for view in faulty["ignored"].diagnosis.ranks] == ["", "the loss"]


def test_a_page_shows_what_each_rank_saw(faulty: dict[str, Launched]) -> None:
    page = HtmlRenderer().render(faulty["ddp"].diagnosis)
    assert '<section id="ranks"><h2>Ranks</h2>' in page
    assert "not finite first: output of module.blocks.0.up, looked into" in page
