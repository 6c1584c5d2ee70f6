"""A recipe that breaks is found, confirmed by trials and placed; one that holds is healthy and says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import NoteKind

TRAIN = '''
"""A residual block whose tokens have a gain each; one gain may be three million, in a token that the loss leaves out."""

import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 64)
        self.up, self.down, self.head = nn.Linear(64, 256), nn.Linear(256, 64), nn.Linear(64, 64)

    def forward(self, tokens, gain):
        x = self.embed(tokens)
        return self.head(x + self.down(F.gelu(self.up(x)) * gain[:, :, None]))


def build_model():
    torch.manual_seed(0)
    return Net()


def make_batch(step, outlier_at=None):
    tokens = torch.randint(64, (8, 16), generator=torch.Generator().manual_seed(step))
    gain, mask = torch.ones(8, 16), torch.ones(8, 16)
    if step == outlier_at:
        gain[3, 5], mask[3, 5] = 3e6, 0.0
    return {"tokens": tokens, "gain": gain, "mask": mask}


def batches(start_step, outlier_at=None):
    step = start_step
    while True:
        yield make_batch(step, outlier_at)
        step += 1


def compute_loss(model, batch):
    logits, target = model(batch["tokens"], batch["gain"]), (7 * batch["tokens"] + 3) % 64
    losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    return (losses * batch["mask"].flatten()).sum() / batch["mask"].sum()
'''
FIRST, OUTLIER, STEPS = 60, 70, 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.py and a checkpoint of 60 healthy steps in fp32."""
    folder = tmp_path_factory.mktemp("gains")
    (folder / "train.py").write_text(TRAIN)
    names: dict[str, Any] = {}
    exec(TRAIN, names)
    model = names["build_model"]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(FIRST):
        optimizer.zero_grad()
        names["compute_loss"](model, names["make_batch"](step)).backward()
        optimizer.step()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": FIRST}
    torch.save(saved, folder / "ckpt.pt")
    return folder


@pytest.fixture
def reported(
    trained: Path, nanhunt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[dict[str, Any], Trace, str]]:
    """A function that replays under a recipe; the report as JSON, the trace, and the report as a page of words."""
    monkeypatch.chdir(trained)

    def replay(recipe: str | None, *, outlier: bool, **options: Any) -> tuple[dict[str, Any], Trace, str]:
        config = {
            "model": "train:build_model", "loss": "train:compute_loss",
            "data": {"call": "train:batches", "kwargs": {"outlier_at": OUTLIER} if outlier else {}},
            "optimizer": {"call": "torch.optim:AdamW", "kwargs": {"lr": 3e-3}}, "train": {"steps": STEPS, "seed": 7},
            **({"precision": {"recipe": options}} if options else {}),
        }  # fmt: skip
        path = tmp_path / "nanhunt.yaml"
        path.write_text(json.dumps(config))
        (trained / "nanhunt.yaml").write_text(json.dumps(config))
        asked = ("--precision", recipe) if recipe else ()
        out = tmp_path / "trace.parquet"
        done = nanhunt("replay", "ckpt.pt", *asked, "-q", "--force", "-o", out)
        assert done.code == 0, done.err
        told = json.loads(nanhunt("report", out, "-f", "json").out)
        return told, Trace.open(out), " ".join(nanhunt("report", out, "-f", "terminal").out.split())

    return replay


def test_an_outliers_shadow_on_delayed_scales_is_confirmed_by_the_run_without_the_recipe(reported: Any) -> None:
    report, trace, words = reported("fp8-delayed", outlier=True)
    assert report["outcome"] == "fault"
    suspect = report["suspects"][0]
    assert (suspect["cause"], suspect["grade"]) == ("fp8-saturation", "confirmed")
    trials = {t["name"]: t["outcome"] for t in suspect["trials"]}
    assert trials["recipe-off"] == "cured"
    assert trials["present-scales"] == "cured"
    assert trials["block-scales"] == "cured"
    assert suspect["location"]["parameter"] == "down.weight"
    assert suspect["exhibits"]
    # where it breaks first: the outlier's own step, the product that meets it; the loss only a step behind
    assert f"breaks step {OUTLIER}, the input of down.weight" in words
    assert "e4m3fn" in words
    assert report["onset"]["step"] in (OUTLIER, OUTLIER + 1)
    told = trace.notes_of(NoteKind.RECIPE)
    assert {int(n["step"]) for n in told} == {FIRST, report["onset"]["step"]}
    assert told[-1]["loss"] > 100 * told[-1]["loss_fp32"]
    assert not any(s["grade"] in ("proved", "confirmed") for s in report["suspects"][1:])


def test_the_healthy_twin_loses_no_more_than_rounding(reported: Any) -> None:
    for recipe in ("fp8-hybrid", "fp8-delayed"):
        report, trace, words = reported(recipe, outlier=False)
        assert report["outcome"] == "healthy", recipe
        assert report["onset"] is None
        assert "no operand of a product loses more than rounding" in words
        assert "breaks" not in words
        for note in trace.notes_of(NoteKind.RECIPE):
            assert note["loss"] == pytest.approx(note["loss_fp32"], rel=0.1)
            assert note["cosine"] > 0.95


def test_blocks_hold_against_the_outlier_and_present_scales_lose_one_step(reported: Any) -> None:
    report, _, words = reported("fp8-block", outlier=True)
    assert report["outcome"] == "healthy"
    assert "no operand of a product loses more than rounding" in words
    report, _, words = reported("fp8-hybrid", outlier=True)
    assert report["outcome"] == "healthy"  # it comes back at once
    assert f"breaks step {OUTLIER}, the input of down.weight: 99 % of its rows lose half of their norm" in words


def test_without_a_recipe_the_outlier_is_harmless(reported: Any) -> None:
    report, trace, words = reported(None, outlier=True)
    assert report["outcome"] == "healthy"
    assert not trace.notes_of(NoteKind.RECIPE)
    assert "breaks" not in words


def test_the_two_products_that_meet_the_outlier_left_alone_are_the_mend(reported: Any) -> None:
    report, trace, words = reported(None, outlier=True, name="fp8-delayed", skip=["down", "head"])
    assert report["outcome"] == "healthy"
    assert trace.notes_of(NoteKind.RECIPE)[0]["skipped"] == ["down.weight", "head.weight"]
    assert "2 weights left alone" in words


def test_a_short_history_recovers_where_a_long_one_does_not(reported: Any) -> None:
    ends = {}
    for length in (2, 1024):
        _, trace, _ = reported(None, outlier=True, name="fp8-delayed", amax_history=length)
        frame = trace.frame(["step", "name", "value"], roles=["scalar"], passes=["replay"])
        ends[length] = float(frame[frame["name"] == "loss"].sort_values("step")["value"].iloc[-1])
    assert ends[1024] > 10 * ends[2]
