"""Shards that four ranks saved are read by two ranks, and by one process, each as far as it needs them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanhunt.stats.summarize import summarize
from nanhunt.trace.reader import Trace
from nanhunt.training.checkpoint import Checkpoint, load_checkpoint
from nanhunt.training.shards import Part
from tests.ranks.conftest import Launched, Ranks
from tests.ranks.programs.net import Net

GRID = "tests.ranks.programs.grid"


@dataclass(frozen=True)
class Replays:
    """A folder that four ranks saved; a replay by these on a mesh of 2 x 2, and one of the folder by two.

    Besides, of four ranks: shards that are replicated (HSDP), and DDP around tensor parallelism.
    """

    saved: Path
    mesh: Launched
    resharded: Launched
    hybrid: Launched
    ddp: Launched


def config(
    mesh: dict[str, int], fault: dict[str, object], steps: int, build: str = "build_model", **arguments: object
) -> str:
    sizes = f", mesh: {json.dumps(mesh)}" if mesh else ""
    return (
        f"model: {{call: {GRID}:{build}, kwargs: {json.dumps(arguments)}{sizes}}}\n"
        f"data: {{call: {GRID}:batches, kwargs: {json.dumps(fault)}}}\n"
        "loss: tests.ranks.programs.net:compute_loss\n"
        "optimizer: {call: torch.optim:AdamW, kwargs: {lr: 1.0e-3}}\n"
        f"train: {{steps: {steps}}}\n"
    )


@pytest.fixture(scope="module")
def replays(ranks: Ranks, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Replays:
    folder = tmp_path_factory.mktemp("grid")
    saved, first, second = folder / "saved", folder / "mesh", folder / "resharded"
    third, fourth = folder / "hybrid", folder / "ddp"
    for made in (first, second, third, fourth):
        made.mkdir()
    bad = {"fault": "zeros", "on": 1, "at": 12}
    (first / "nanhunt.yaml").write_text(config({"dp": 2, "tp": 2}, bad, 4, save=str(saved)))
    (second / "nanhunt.yaml").write_text(config({}, {}, 2))
    (third / "nanhunt.yaml").write_text(config({"replicate": 2, "shard": 2}, bad | {"on": 3}, 4))
    (fourth / "nanhunt.yaml").write_text(config({"dp": 2, "tp": 2}, {}, 2, "build_in_ddp"))
    by_four = {"argv": ["replay", str(checkpoint)], "size": 4, "within": 120.0, "term": None}
    mesh, hybrid, ddp = (ranks.launch({"folder": str(made), **by_four})[0] for made in (first, third, fourth))
    argv = ["replay", str(saved), "--trust-pickle", "--no-trials"]
    resharded = ranks.launch({"folder": str(second), "argv": argv, "size": 2, "within": 120.0, "term": None})
    return Replays(saved=saved, mesh=mesh, resharded=resharded[0], hybrid=hybrid, ddp=ddp)


def whole(saved: Path) -> Checkpoint:
    return load_checkpoint(saved, keys=None, trust_pickle=True)


def test_two_ranks_hold_together_what_four_saved(replays: Replays) -> None:
    assert replays.resharded.codes == [0, 0]
    trace, checkpoint = replays.resharded.trace, whole(replays.saved)
    assert (trace.manifest.checkpoint_step, trace.steps) == (10, (10, 11))
    optimizer = checkpoint.optimizer
    assert optimizer is not None
    rows = trace.frame(roles=["weight", "exp_avg", "exp_avg_sq"], phases=["load"])
    assert len(rows) == 3 * len(list(Net().parameters()))
    for _, row in rows.iterrows():
        name = f"{row['module']}.{row['name']}"
        tensor = checkpoint.model[name] if row["role"] == "weight" else optimizer["state"][name][row["role"]]
        stats = summarize(tensor, exact=True)
        found = (row["numel"], row["zero"], row["amax"], row["amin"], row["exp_hist"].tolist(), row["shape"].tolist())
        assert stats.exponents is not None
        assert found == (stats.numel, stats.zero, stats.amax, stats.amin, list(stats.exponents.counts), [*tensor.shape])


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_a_part_is_what_the_whole_has_in_its_place(replays: Replays, data: st.DataObject) -> None:
    from nanhunt.training.dcp_folder import _Shards

    shards = _Shards.open(replays.saved)
    name = data.draw(st.sampled_from(["blocks.0.up.weight", "blocks.1.down.weight", "head.weight"]))
    wanted = whole(replays.saved).model[name]
    begins = [data.draw(st.integers(0, size)) for size in wanted.shape]
    sizes = [data.draw(st.integers(0, size - at)) for size, at in zip(wanted.shape, begins, strict=True)]
    part = Part(offset=tuple(begins), shape=tuple(sizes))
    placeholder = torch.empty(wanted.shape, device="meta")
    shards.names[id(placeholder)] = name
    assert torch.equal(shards.read(placeholder, part), part.of(wanted))


def test_on_a_mesh_rank_line_and_sample_are_named(replays: Replays) -> None:
    assert replays.mesh.codes == [0] * 4
    diagnosis = replays.mesh.diagnosis
    onset = diagnosis.onset
    assert onset is not None
    assert (onset.kind, onset.step, onset.samples) == ("nan", 12, [2])
    assert onset.rank in (2, 3), "the two that share the second model"
    assert onset.source is not None
    assert "net.py" in onset.source
    assert diagnosis.suspects[0].cause == "zero-denominator"
    trial = next(t for t in diagnosis.trials if t.name == "drop-samples")
    assert trial.outcome == "cured", "its peer in the model runs without the sample as well"


def test_what_the_mesh_holds_in_parts_is_read_whole(replays: Replays) -> None:
    trace = replays.mesh.trace
    assert trace.rank_count == 4
    rows = trace.frame(roles=["weight"], phases=["load"]).set_index(["module", "name"])
    for name, parameter in Net().named_parameters():
        row = rows.loc[tuple(name.rsplit(".", 1))]
        assert row["numel"] == parameter.numel()
    assert len(
        Trace.open(replays.mesh.folder / "trace.parquet").in_parts().frame(roles=["weight"], phases=["load"])
    ) == 4 * len(rows)


def test_of_replicated_shards_the_rank_and_the_sample_are_named(replays: Replays) -> None:
    assert replays.hybrid.codes == [0] * 4
    diagnosis = replays.hybrid.diagnosis
    onset = diagnosis.onset
    assert onset is not None
    assert (onset.kind, onset.step, onset.samples, onset.rank) == ("nan", 12, [2], 3)
    assert diagnosis.suspects[0].cause == "zero-denominator"
    rows = replays.hybrid.trace.frame(roles=["weight"], phases=["load"])
    assert rows["numel"].sum() == sum(p.numel() for p in Net().parameters()), "replicas count once"


def test_ddp_around_tensor_parallelism_is_refused_with_what_to_do(replays: Replays) -> None:
    assert replays.ddp.codes == [2] * 4
    assert "DistributedDataParallel around layers that tensor parallelism cuts is not replayed" in replays.ddp.said(0)
    assert "fully_shard" in replays.ddp.said(0)
