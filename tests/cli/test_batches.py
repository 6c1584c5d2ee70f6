"""`data:` and `losses:` as a user writes them: files, skipping under a bar, and a report that knows the original run."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from nanhunt.training.batch_file import write_batches

LOADER = """
from torch.utils.data import DataLoader


class Batches(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, step):
        return make_batch(step)


def loader():
    return DataLoader(Batches(), batch_size=None)


def forever():
    return batches(0)
"""


def trained(project, steps):
    """Train on from the checkpoint as the user's script does; return each step's batch and loss."""
    names = {}
    exec((project.root / "train.py").read_text(), names)
    content = project.checkpoint()
    model = names["build_model"]()
    model.load_state_dict(content["model"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    optimizer.load_state_dict(content["optimizer"])
    found = []
    for step in range(content["step"], content["step"] + steps):
        batch = names["make_batch"](step)
        optimizer.zero_grad()
        loss = names["compute_loss"](model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append((step, batch, loss.item()))
    return found


def log(project, rows, name="log.csv"):
    with (project.root / name).open("w", newline="") as file:
        csv.writer(file).writerows([("step", "train/loss"), *rows])


def report(nanhunt):
    told = nanhunt("report", "trace.parquet", "--format", "json")
    assert told.code == 0, told.err
    return json.loads(told.out)


@pytest.mark.parametrize("name", ["batches.pt", "batches.safetensors"])
def test_a_replay_from_a_file_of_batches_is_the_run_itself(project, nanhunt, name):
    run = trained(project, 8)
    write_batches(project.root / name, [batch for _, batch, _ in run], first_step=10)
    log(project, [(step, loss) for step, _, loss in run])
    project.configure(data=name, losses="log.csv", train={"steps": 8, "clip_grad_norm": 1.0})
    done = nanhunt("replay", "ckpt.pt", "--exit-code")
    assert done.code == 0, done.err
    original = report(nanhunt)["original_run"]
    assert (original["verdict"], original["through"], original["compared"]) == ("digits", 17, 8)
    assert "follows the original run bit for bit through step 17" in nanhunt("report", "trace.parquet").out


def test_a_fault_in_a_file_of_batches_is_found_by_its_sample(project, nanhunt):
    batches = [batch for _, batch, _ in trained(project, 6)]
    batches[3]["x"][2, 5] = float("nan")
    write_batches(project.root / "batches.pt", batches, first_step=10)
    project.configure(data={"file": "batches.pt"}, train={"steps": 6})
    assert nanhunt("replay", "ckpt.pt", "--exit-code").code == 1
    onset = report(nanhunt)["onset"]
    assert (onset["step"], onset["samples"]) == (13, [2])


def test_the_step_where_the_replay_leaves_the_run_is_told(project, nanhunt):
    run = trained(project, 6)
    log(project, [(step, f"{loss + 0.1 * (step >= 13):.4f}") for step, _, loss in run])
    project.configure(losses={"file": "log.csv", "tag": "train/loss"}, train={"steps": 6, "clip_grad_norm": 1.0})
    assert nanhunt("replay", "ckpt.pt").code == 0
    original = report(nanhunt)["original_run"]
    assert (original["verdict"], original["through"], original["leaves"]) == ("leaves", 12, 13)


def test_a_replay_of_other_batches_is_warned_of(project, nanhunt):
    log(project, [(step, f"{loss:.4f}") for step, _, loss in trained(project, 6)])
    project.configure(data={"call": "train:batches", "kwargs": {"start_step": 40}}, losses="log.csv")
    assert nanhunt("replay", "ckpt.pt").code == 0
    page = " ".join(nanhunt("report", "trace.parquet").out.split())
    assert page.startswith("? inconclusive · The replay does not follow the original run from step 10 on: loss")
    assert "healthy" not in page
    assert "check What may differ: the order of the data" in page


def test_a_nan_that_both_have_is_followed(project, nanhunt):
    run = trained(project, 4)
    log(project, [(step, loss if step < 13 else "nan") for step, _, loss in run])
    project.configure(
        data={"call": "train:batches", "kwargs": {"nan_at": 13}},
        losses="log.csv",
        train={"steps": 6, "clip_grad_norm": 1.0},
    )
    assert nanhunt("replay", "ckpt.pt", "--exit-code").code == 1
    original = report(nanhunt)["original_run"]
    assert (original["verdict"], original["through"], original["both_nonfinite"]) == ("digits", 13, 13)


def test_skipping_is_shown_on_a_terminal_only_and_told_in_the_report(project, nanhunt):
    project.add_code(LOADER)
    project.configure(data={"call": "train:forever", "skip": True})
    log(project, [(step, loss) for step, _, loss in trained(project, 4)])
    project.configure(data={"call": "train:forever", "skip": True}, losses="log.csv")
    looked_at = nanhunt("replay", "ckpt.pt", terminal=True)
    assert looked_at.code == 0, looked_at.err
    assert "skipping batches" in looked_at.err
    assert report(nanhunt)["original_run"]["verdict"] == "digits"
    assert "data: the first 10 batches of train:forever were skipped, 1 a step before step 10" in " ".join(
        report(nanhunt)["assumptions"]
    )
    assert "skipping" not in nanhunt("replay", "ckpt.pt", "--force", "--quiet", terminal=True).err
    assert "skipping" not in nanhunt("replay", "ckpt.pt", "--force").err


def test_an_epoch_that_ends_in_the_replay_is_told(project, nanhunt):
    project.add_code(LOADER)
    project.configure(data={"call": "train:loader", "skip": True}, train={"steps": 4})
    assert nanhunt("replay", "ckpt.pt").code == 0
    told = " ".join(report(nanhunt)["assumptions"])
    assert "the next one is number 5 of its epoch 2" in told
    assert "train:loader ended and was begun anew in step 12" in told


def test_a_dry_run_skips_nothing(project, nanhunt):
    project.add_code(LOADER)
    project.configure(data={"call": "train:forever", "skip": 10**9})
    done = nanhunt("replay", "ckpt.pt", "--dry-run")
    assert done.code == 0, done.err
    assert "the first 1000000000 batches of train:forever" in done.out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": "missing.pt"}, "data: no file"),
        ({"data": "ckpt.pt"}, "holds a dict, not a list of batches"),
        ({"data": {"file": "b.pt", "skip": 3}}, "data: skip: a file of batches is read from the checkpoint's step on"),
        ({"data": {"file": "b.pt", "call": "train:batches"}}, "call and file exclude each other"),
        ({"data": {"kwargs": {}}}, "expected `call: train:batches` or `file: batches.pt`"),
        ({"data": {"call": "train:batches", "skip": "12"}}, "data.skip: expected true, false or a number of batches"),
        ({"data": {"call": "train:batches", "skip": -1}}, "data.skip: expected true, false or a number of batches"),
        ({"data": {"call": "train:batches", "skip": 3}}, "at its place already: it takes start_step"),
        ({"losses": "missing.csv"}, "losses: no such file or folder"),
        ({"losses": "train.py"}, "is no log that nanhunt reads"),
        ({"losses": {"path": "log.csv"}}, "losses.path: unknown key"),
    ],
)
def test_what_is_wrong_is_refused_by_its_key_before_a_trace_is_begun(project, nanhunt, changes, said):
    project.configure(**changes)
    done = nanhunt("replay", "ckpt.pt")
    assert done.is_clean_refusal, done
    assert said in done.err
    assert not list(project.root.glob("trace*"))
