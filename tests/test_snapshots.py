"""A hunt comes out the same wherever its snapshots are kept and however far apart they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.errors import RoomError
from nanhunt.hunt import HuntSettings, hunt
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Manifest, NoteKind, Onset
from nanhunt.trace.writer import TraceWriter
from nanhunt.training import ring, slots, state
from nanhunt.training.rng import seed_everything
from nanhunt.training.run import TrainingRun
from tests.conftest import tiny_run

STEPS, BAD = 30, 26


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.dropout(self.norm(self.first(x)).relu(), 0.2))


def run_of(*, bad: int | None = BAD) -> TrainingRun:
    seed_everything(3)
    data = [torch.randn(8, 6) for _ in range(STEPS + 20)]
    if bad is not None:
        data[bad][2, 3] = float("nan")
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return tiny_run(model, lambda m, x: F.mse_loss(m(x), x), data, optimizer=optimizer)


def hunted(run: TrainingRun, path: Path) -> tuple[Onset | None, pd.DataFrame, list[Any]]:
    """Hunt, and return the onset, the rows, and the notes without what a clock wrote into them.

    What `empty` hands out is whatever the memory held: its row is left out.
    """
    with TraceWriter(path, Manifest()) as writer:
        onset = hunt(run, writer, HuntSettings(steps=STEPS, trial_names=("fp64", "lr-0"), trials_budget=0.0))
    trace = Trace.open(path)
    notes = [(kind, timeless(body)) for kind in NoteKind for body in trace.notes_of(kind)]
    rows = pd.read_parquet(path)
    return onset, rows[~rows["op"].fillna("").str.startswith("aten.empty")], notes


def timeless(body: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in body.items() if "seconds" not in k}


def far_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "SMALL", 0)
    monkeypatch.setattr(ring, "SHARE", -1.0)


def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each snapshot were too large for the memory."""
    for module in (ring, state):
        monkeypatch.setattr(module, "SMALL", 0)
    for module in (ring, slots):
        monkeypatch.setattr(module, "available_memory", lambda: 100)


@pytest.mark.parametrize("bad", [BAD, None], ids=["faulty", "healthy"])
def test_what_a_hunt_finds_does_not_depend_on_how_far_snapshots_are_apart(
    bad: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = hunted(run_of(bad=bad), tmp_path / "near.parquet")
    with monkeypatch.context() as patched:
        far_apart(patched)
        run = run_of(bad=bad)
        far = hunted(run, tmp_path / "far.parquet")
    assert (near[0].step if near[0] else None) == bad
    assert far[0] == near[0]
    pd.testing.assert_frame_equal(far[1], near[1])
    assert far[2] == near[2]


@pytest.mark.parametrize("bad", [BAD, None], ids=["faulty", "healthy"])
def test_a_model_of_which_two_snapshots_do_not_fit_into_memory_is_hunted_from_disk(
    bad: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = hunted(run_of(bad=bad), tmp_path / "near.parquet")
    made: list[Path] = []
    file = slots._file
    monkeypatch.setattr(slots, "_file", lambda size, folder: (made.append(folder), file(size, folder))[1])
    on_disk(monkeypatch)
    (tmp_path / "disk").mkdir()
    onset, rows, notes = hunted(run_of(bad=bad), tmp_path / "disk" / "trace.parquet")
    assert onset == near[0]
    pd.testing.assert_frame_equal(rows, near[1])
    told = [body["text"] for kind, body in notes if kind is NoteKind.ASSUMPTION]
    assert any("2 are kept in a file" in text for text in told)
    assert 2 <= len(made) <= 5  # the ring's two, one that is held, and where a trial leaves from
    assert set(made) == {tmp_path / "disk"}
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["trace.parquet"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_file_is_left_when_a_hunt_ends_in_the_middle(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk(monkeypatch)
    run = run_of(bad=None)
    offer = ring.SnapshotRing.offer

    def breaks(self: ring.SnapshotRing, run: TrainingRun, step: int) -> None:
        offer(self, run, step)
        if step == 25:
            raise error

    monkeypatch.setattr(ring.SnapshotRing, "offer", breaks)
    with pytest.raises(error):
        hunted(run, tmp_path / "trace.parquet")
    assert all(path.name.startswith("trace.parquet") for path in tmp_path.iterdir())


def test_a_hunt_without_room_for_a_snapshot_says_so_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk(monkeypatch)
    monkeypatch.setattr(slots, "disk_room", lambda folder: 0)
    with pytest.raises(RoomError, match=str(tmp_path)):
        hunted(run_of(), tmp_path / "trace.parquet")
