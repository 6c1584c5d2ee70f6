"""Losses are read from what the loggers themselves wrote, each step with the digits that it has."""

from __future__ import annotations

import csv
import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from nanhunt.errors import ConfigError
from nanhunt.training.batch_file import read_batches
from nanhunt.training.config_data import LossesSpec
from nanhunt.training.loss_log import LossLog, read_losses, sibling_losses

LOSSES = [2.345678, 2.3, 2.25004, math.nan, 1.75]


def read(folder: Path, name: str, tag: str | None = None) -> LossLog:
    return read_losses(LossesSpec(file=name, tag=tag), folder)


def write(path: Path, head: list[str], rows: list[list[Any]], delimiter: str = ",") -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([head, *rows] if head else rows)


# --- CSV -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "row"),
    [
        (["step", "loss"], ["7", "2.5"]),
        (["iter", "lr", "train/loss"], ["7", "1e-3", "2.5"]),
        (["global_step", "val_loss", "train_loss"], ["7.0", "9", "2.5"]),
        (["Iteration", "Loss/train"], ["7", "2.5"]),
        (["Step", "run-3 - val/loss", "run-3 - train/loss", "run-3 - train/loss__MIN"], ["7", "9", "2.5", "1"]),
        (["epoch", "step", "train_loss_step", "train_loss_epoch"], ["0", "7", "2.5", ""]),
        ([], ["7", "2.5"]),
    ],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_usual_columns_are_found(tmp_path: Path, head: list[str], row: list[str], delimiter: str) -> None:
    write(tmp_path / "log.csv", head, [row], delimiter)
    log = read(tmp_path, "log.csv")
    assert (log.steps, log.losses) == ((7,), (2.5,))


def test_a_column_can_be_named(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", ["step", "loss", "mlm"], [[1, 9, 2]])
    assert read(tmp_path, "log.csv", "mlm").losses == (2.0,)
    with pytest.raises(ConfigError, match=r"losses\.tag: .* has no column 'mln'.*did you mean 'mlm'"):
        read(tmp_path, "log.csv", "mln")


def test_rows_without_a_loss_are_passed_over_and_a_step_logged_again_counts_by_its_last(tmp_path: Path) -> None:
    rows = [[1, 2.5], [2, ""], ["", 9], ["end"], [3, "n/a"], [3, 2.25], [1, 2.75], [2.5, 9], ["inf", 9]]
    write(tmp_path / "log.csv", ["step", "loss"], rows)
    log = read(tmp_path, "log.csv")
    assert (log.steps, log.losses) == ((1, 3), (2.75, 2.25))


def test_what_is_not_finite_is_a_loss_too(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", ["step", "loss"], [[1, "nan"], [2, "inf"], [3, "-Infinity"], [4, "NaN"]])
    assert repr(read(tmp_path, "log.csv").losses) == "(nan, inf, -inf, nan)"


@pytest.mark.parametrize(
    ("form", "values", "expected"),
    [
        ("%.4f", [2.3, 2.34567, 10.25, 0.01], [1e-4] * 4),
        ("%.4g", [2.345, 10.25, 0.5012, 123.4], [1e-3, 1e-2, 1e-4, 1e-1]),
        ("%.2e", [2.345, 10.2, 0.0123], [1e-2, 1e-1, 1e-4]),
    ],
)
def test_a_number_has_the_digits_of_its_format(
    tmp_path: Path, form: str, values: list[float], expected: list[float]
) -> None:
    write(tmp_path / "log.csv", ["step", "loss"], [[i, form % v] for i, v in enumerate(values)])
    log = read(tmp_path, "log.csv")
    assert log.resolution == pytest.approx(expected, rel=1e-9)
    assert all(abs(a - b) <= r / 2 * 1.001 for a, b, r in zip(log.losses, values, log.resolution, strict=True))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "no column is named as a step"),
        (b"epoch,loss\n1,2\n", "no column is named as a step is; its columns: epoch, loss"),
        (b"step,accuracy\n1,2\n", "no column is named as a training loss is; its columns: step, accuracy"),
        (b"step,loss\n", "shows no loss"),
        (b"step,loss\n1,high\n", "shows no loss"),
        (b"\xff\xfe\x00step", "is not a CSV text"),
        (b'step,loss\n1,"' + b"9" * 200_000 + b'"\n', "is not a CSV text"),
        (b"step,loss\n1," + b"9" * 5000 + b"\n", None),
        (b"step,loss\n1,1e-999999999\n2,1e999999999\n", None),
    ],
)
def test_a_csv_of_something_else_is_refused(tmp_path: Path, content: bytes, match: str | None) -> None:
    (tmp_path / "log.csv").write_bytes(content)
    if match is None:
        assert all(math.isfinite(r) for r in read(tmp_path, "log.csv").resolution)
        return
    with pytest.raises(ConfigError, match=match):
        read(tmp_path, "log.csv")


# --- Trainer ---------------------------------------------------------------------------------------------------------


def state(path: Path, entries: list[dict[str, Any]], step: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"global_step": step or entries[-1]["step"], "log_history": entries}))
    return path


def entry(step: int, loss: float, norm: float = 1.0) -> dict[str, Any]:
    return {"step": step, "loss": loss, "grad_norm": norm}


def test_a_trainers_zero_beside_a_bad_norm_is_a_nan(tmp_path: Path) -> None:
    state(tmp_path / "trainer_state.json", [entry(1, 2.5), entry(2, 0.0, math.nan), entry(3, 0.0)])
    for name in ("trainer_state.json", "."):
        log = read(tmp_path, name)
        assert repr(log.losses) == "(2.5, nan, 0.0)"
        assert log.mean is True


def test_a_mean_over_several_steps_may_hide_a_nan(tmp_path: Path) -> None:
    state(tmp_path / "trainer_state.json", [entry(1, 2.5), entry(2, 2.5), entry(3, 2.5, math.nan), entry(8, 2.5)])
    assert read(tmp_path, "trainer_state.json").hides == (1, 3, 8)


def test_the_newest_later_checkpoint_of_the_same_run_is_found(tmp_path: Path) -> None:
    own = [entry(1, 2.5), entry(2, math.nan)]
    state(tmp_path / "checkpoint-2" / "trainer_state.json", own)
    assert sibling_losses(tmp_path / "checkpoint-2", 2) is None
    state(tmp_path / "checkpoint-4" / "trainer_state.json", [*own, entry(3, 2.0), entry(4, 1.9)])
    state(tmp_path / "checkpoint-6" / "trainer_state.json", [*own, entry(3, 2.0), entry(6, 1.7)])
    state(tmp_path / "checkpoint-9" / "trainer_state.json", [entry(1, 9.5), entry(9, 9.0)])  # of another run
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text("{")
    log = sibling_losses(tmp_path / "checkpoint-2", 2)
    assert log is not None
    assert (log.source, log.steps) == ("checkpoint-6/trainer_state.json", (1, 2, 3, 6))
    state(tmp_path / "trainer_state.json", [*own, entry(3, 2.0), entry(7, 1.6)])
    log = sibling_losses(tmp_path / "checkpoint-2", 2)
    assert log is not None
    assert log.source == "trainer_state.json"


def test_another_kind_of_checkpoint_has_no_siblings(tmp_path: Path) -> None:
    (tmp_path / "ckpt.pt").write_bytes(b"")
    assert sibling_losses(tmp_path / "ckpt.pt", 3) is None
    assert sibling_losses(tmp_path, None) is None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "is not valid JSON"),
        ("[]", "shows no loss"),
        ('{"log_history": [{"step": 1, "eval_loss": 2}]}', "shows no"),
    ],
)
def test_a_trainer_state_of_something_else_is_refused(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(ConfigError, match=f"losses: .*{match}"):
        read(tmp_path, "trainer_state.json")


# --- TensorBoard -----------------------------------------------------------------------------------------------------


def events(folder: Path, tag: str = "train/loss", losses: list[float] = LOSSES, *, tensors: bool = False) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for step, loss in enumerate(losses, start=10):
            writer.add_scalar(tag, loss, step, new_style=tensors)
            writer.add_scalar("val/loss", 9.0, step)


@pytest.mark.parametrize("tensors", [False, True], ids=["simple values", "tensors"])
def test_the_events_that_torch_writes_are_read_to_the_last_bit(tmp_path: Path, tensors: bool) -> None:
    events(tmp_path / "runs" / "one", tensors=tensors)
    file = next((tmp_path / "runs" / "one").iterdir())
    for name in ("runs", "runs/one", str(file.relative_to(tmp_path))):
        log = read(tmp_path, name)
        assert log.steps == (10, 11, 12, 13, 14)
        found = torch.tensor(log.losses, dtype=torch.float64).float()
        assert torch.equal(found.nan_to_num(-1), torch.tensor(LOSSES).nan_to_num(-1))
        assert all(r <= 1e-6 for r in log.resolution)


@pytest.mark.parametrize("tag", ["loss", "Loss/train", "train_loss", "training/loss"])
def test_the_usual_tags_are_found(tmp_path: Path, tag: str) -> None:
    events(tmp_path, tag)
    assert len(read(tmp_path, ".").steps) == 5


def test_a_tag_can_be_named_and_is_corrected(tmp_path: Path) -> None:
    events(tmp_path, "objective")
    assert read(tmp_path, ".", "objective").steps[0] == 10
    with pytest.raises(ConfigError, match="no tag is named as a training loss is; its tags: objective, val/loss"):
        read(tmp_path, ".")
    with pytest.raises(ConfigError, match=r"losses\.tag: .*did you mean 'objective'"):
        read(tmp_path, ".", "objectives")


def test_a_folder_of_several_runs_asks_for_one(tmp_path: Path) -> None:
    events(tmp_path / "runs" / "one")
    events(tmp_path / "runs" / "two")
    with pytest.raises(ConfigError, match="2 runs lie in it"):
        read(tmp_path, "runs")


def test_events_that_are_cut_short_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    events(tmp_path / "whole", losses=[1.0] * 200)
    file = next((tmp_path / "whole").iterdir())
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert 50 < len(read(tmp_path, "whole").steps) < 150


def test_damaged_events_are_refused_or_read_in_part(tmp_path: Path) -> None:
    file = tmp_path / "events.out.tfevents.1.damaged"
    file.write_bytes(struct.pack("<QI", 2**60, 0) + b"\xff" * 100)
    with pytest.raises(ConfigError, match="losses: "):
        read(tmp_path, file.name)


def test_without_tensorboard_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "events.out.tfevents.1.x").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "tensorboard.backend.event_processing.event_accumulator", None)
    with pytest.raises(ConfigError, match="is not installed") as refused:
        read(tmp_path, ".")
    assert "nanhunt[tensorboard]" in str(refused.value.hint)


# --- which file ------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", ["step", "loss"], [[1, 2]])
    with pytest.raises(ConfigError, match="no such file") as refused:
        read(tmp_path, "logs.csv")
    assert "log.csv" in str(refused.value.hint)


def test_a_file_of_another_kind_is_refused_with_the_kinds(tmp_path: Path) -> None:
    (tmp_path / "log.parquet").write_bytes(b"PAR1")
    shutil.copytree(tmp_path, tmp_path / "folder")
    for name in ("log.parquet", "folder"):
        with pytest.raises(ConfigError, match="is no log that nanhunt reads"):
            read(tmp_path, name)


def test_a_note_holds_what_the_replayed_steps_can_be_held_against() -> None:
    steps = tuple(range(0, 100, 5))
    log = LossLog(source="x", steps=steps, losses=(1.0,) * 20, resolution=(0.1,) * 20)
    body = log.note(31, 44)
    assert body["steps"] == [25, 30, 35, 40, 45]
    assert body["logged"] == [0, 95]
    assert log.note(200, 210)["steps"] == []


def test_a_name_that_no_file_system_takes_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"losses: .*characters.*: File name too long"):
        read(tmp_path, f"{'x' * 400}.csv")
    with pytest.raises(ConfigError, match=r"data: .*: File name too long"):
        read_batches(tmp_path / f"{'x' * 400}.pt")
