"""`replay --dry-run`: its numbers against counts made here, nothing written, and what ends it."""

from __future__ import annotations

import re

import pytest
import torch
from rich.cells import cell_len

from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import NoteKind

UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


def fields(page):
    """Return the page's fields by heading and label, their lines joined."""
    found, heading, label = {}, "", ""
    for line in page.splitlines():
        if line and not line.startswith(" "):
            heading, label = line.split("  ")[0], ""
        elif match := re.match(r"  (\S.{12}) (\S.*)$", line):
            label = match.group(1).strip()
            found[heading, label] = match.group(2)
        elif label and line.startswith(" " * 16):
            found[heading, label] += " " + line.strip()
    return found


def size(text):
    number, unit = re.match(r"(?:about )?([\d.]+) (\w+)", text).groups()
    return float(number) * UNITS[unit]


def bytes_of(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def near(value):
    """A size is printed with three digits."""
    return pytest.approx(value, rel=0.05, abs=0.5)


@pytest.fixture
def plan(project, nanhunt):
    """A function that runs a dry run and returns its fields; nothing may be written by it."""

    def run(*options):
        before = {p: p.stat().st_mtime_ns for p in project.root.rglob("*") if "__pycache__" not in p.parts}
        done = nanhunt("replay", "ckpt.pt", "--dry-run", *options)
        assert done.code == 0, done.err
        assert {p: p.stat().st_mtime_ns for p in project.root.rglob("*") if "__pycache__" not in p.parts} == before
        return fields(done.out)

    return run


def test_what_is_loaded_and_matched_is_what_the_file_holds(plan, project):
    found = plan()
    assert found["loaded", "step"].startswith("10")
    assert found["loaded", "parts"] == "model, optimizer"
    assert found["loaded", "not in it"] == "scheduler, scaler, random state"
    assert found["matched", "model"] == "Net, 236 parameters"
    assert found["matched", "weights"] == "5 of 5 tensors"
    assert "AdamW, 1 group, lr 0.001, state for 5 of 5 parameters" in found["matched", "optimizer"]


def test_missing_and_unexpected_and_cast_tensors_are_named(plan, project):
    saved = project.checkpoint()
    state = {k: v.bfloat16() if k == "embed.weight" else v for k, v in saved["model"].items() if "head" not in k}
    torch.save({"model": state, "step": 10}, project.root / "ckpt.pt")
    found = plan()
    assert found["matched", "weights"] == "3 of 5 tensors"
    assert "head.weight, head.bias" in found["matched", "missing"]
    assert found["matched", "cast"] == "1 from bfloat16 to float32"
    assert "state for 0 of 5 parameters" in found["matched", "optimizer"]
    assert "assumed" in found["memory", "optimizer"]
    torch.save({"model": {**saved["model"], "old.bias": torch.ones(2)}, "step": 10}, project.root / "ckpt.pt")
    assert "old.bias" in plan()["matched", "unexpected"]


def test_memory_is_the_sum_of_the_tensors_bytes(plan, project):
    found, saved = plan(), project.checkpoint()
    weights = bytes_of(saved["model"].values())
    moments = bytes_of(t for state in saved["optimizer"]["state"].values() for t in state.values())
    assert size(found["memory", "weights"]) == near(weights)
    assert size(found["memory", "gradients"]) == near(weights)
    assert size(found["memory", "optimizer"]) == near(moments)
    count, each = re.search(r"at most: (\d+) of ([\d.]+ \w+)", found["memory", "snapshots"]).groups()
    assert int(count) == 4  # as many as there are steps
    assert size(each) == near(weights + 2 * weights)  # Adam's step counts are left out
    assert size(found["memory", "snapshots"]) == near(4 * 3 * weights)


def test_a_frozen_parameter_has_no_gradient_and_a_tied_one_counts_once(plan, project):
    project.add_code(
        """
        def frozen_and_tied():
            model = Net(8)
            model.embed.weight.requires_grad_(False)
            model.more = model.head
            return model
        """
    )
    project.configure(model="train:frozen_and_tied")
    torch.save({"model": project.checkpoint()["model"], "step": 10}, project.root / "ckpt.pt")
    found = plan()
    assert size(found["memory", "weights"]) == near(236 * 4)
    assert size(found["memory", "gradients"]) == near((236 - 16 * 8) * 4)


def test_the_first_batch_is_told_by_its_fields(plan):
    assert plan()["replayed", "first batch"] == "x float32 [4, 8], tokens int64 [4], labels int64 [4]"


def test_the_options_stand_in_the_plan(plan, project):
    found = plan("--steps", "7", "--every", "3", "--no-zoom", "--no-trials", "-o", "other.parquet")
    assert found["replayed", "steps"] == "10 to 16, 7 in all, recorded every 3"
    assert found["replayed", "a fault"] == "no zoom, no trials"
    assert found["replayed", "trace"] == "other.parquet"
    assert ("cost", "of a fault") not in found
    project.configure(train={"steps": 4, "clip_grad_value": 0.5, "accumulate": 3})
    found = plan("--precision", "bf16")
    assert found["replayed", "clip"] == "each element at 0.5"
    assert found["replayed", "each of"].startswith("3 micro-batches")
    assert "recipe bf16" in found["replayed", "precision"]


def test_every_assumption_of_the_replay_is_in_the_plan(project, nanhunt, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    planned = nanhunt("replay", "ckpt.pt", "--dry-run").out
    assert nanhunt("replay", "ckpt.pt").code == 0
    made = [body["text"] for body in Trace.open(project.root / "trace.parquet").notes_of(NoteKind.ASSUMPTION)]
    told = [line.removeprefix("  • ") for line in planned.partition("assumed\n")[2].partition("\n\n")[0].splitlines()]
    assert told == made[: len(told)]
    assert all("first 5 steps" in text for text in made[len(told) :])  # what the hunt adds once it has steps


def test_the_traces_size_is_that_of_the_trace_that_is_written(plan, project, nanhunt):
    rows = int(re.search(r"([\d,]+) rows a recorded step", plan()["cost", "trace"]).group(1).replace(",", ""))
    assert nanhunt("replay", "ckpt.pt").code == 0
    written = Trace.open(project.root / "trace.parquet")
    steps = 4
    assert rows == pytest.approx(len(written.frame()) / steps, rel=0.2)


def test_the_time_is_that_of_a_step_times_the_steps(plan, project):
    project.plant(pause=0.2)
    found = plan("--steps", "200")
    assert re.search(r"about .*: 200 steps", found["cost", "replay"])


def test_a_dry_run_reads_the_first_batch_alone(project, nanhunt, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "read.log"
    project.plant(log=str(log))
    assert nanhunt("replay", "ckpt.pt", "--dry-run").code == 0
    assert log.read_text() == "10\n"


def test_a_step_that_raises_is_told_with_its_line_and_ends_well(plan, project):
    project.plant(index_at=10)
    found = plan()
    assert "raised IndexError" in found["cost", "the step"]
    assert re.search(r"at train\.py:\d+", found["cost", "the step"])
    assert ("cost", "replay") not in found


def test_a_step_whose_loss_is_nan_can_still_be_planned(plan, project):
    project.plant(nan_at=10)
    assert "about" in plan()["cost", "replay"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [({"end_at": 10}, 2, "yielded no batch at all"), ({"raise_at": 10}, 3, "shard 10 is not readable")],
)
def test_data_that_fails_before_the_step_ends_as_a_replay_ends(arguments, code, says, project, nanhunt):
    project.plant(**arguments)
    planned, replayed = nanhunt("replay", "ckpt.pt", "--dry-run"), nanhunt("replay", "ckpt.pt")
    assert (planned.code, replayed.code) == (code, code)
    assert says in planned.err
    assert says in replayed.err


def test_a_loss_that_is_none_ends_as_a_replay_ends(project, nanhunt):
    project.add_code("def half_a_loss(model, batch):\n    return model(batch['x'], batch['tokens'])")
    project.configure(loss="train:half_a_loss")
    planned = nanhunt("replay", "ckpt.pt", "--dry-run")
    assert planned.code == 2
    assert "expected a scalar" in planned.err


@pytest.mark.parametrize("width", [40, 60, 100, 180])
def test_no_line_is_wider_than_the_terminal(width, project, nanhunt, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    page = nanhunt("replay", "ckpt.pt", "--dry-run").out
    assert max(map(cell_len, page.splitlines())) <= width


def test_progress_goes_to_stderr_and_quiet_silences_it(project, nanhunt):
    assert "running one step" in nanhunt("replay", "ckpt.pt", "--dry-run").err
    assert nanhunt("replay", "ckpt.pt", "--dry-run", "-q").err == ""


def test_an_existing_trace_does_not_hinder_a_dry_run(project, nanhunt):
    (project.root / "trace.parquet").write_bytes(b"older")
    assert nanhunt("replay", "ckpt.pt", "--dry-run").code == 0
    assert (project.root / "trace.parquet").read_bytes() == b"older"
