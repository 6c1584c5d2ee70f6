"""What a wrong nanhunt.yaml makes the first step raise is bad input, told by its key; what the run raised is a finding."""

from __future__ import annotations

import json

import pytest

WRONG = """
def other_key(model, batch):
    return nn.functional.cross_entropy(model(batch["x"], batch["tokens"]), batch["targets"])


def tuples(model, batch):
    x, tokens, labels, weights = batch
    return nn.functional.cross_entropy(model(x, tokens), labels)


def without_batch(model):
    return 0.0


def less_to_the_model(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["labels"])


def unreduced_shapes(model, batch):
    return nn.functional.mse_loss(model(batch["x"], batch["tokens"]).T @ batch["x"].T, batch["labels"].float())


def wide(start_step):
    for batch in batches(start_step):
        yield {**batch, "x": batch["x"].repeat(1, 2)}


def floats(start_step):
    for batch in batches(start_step):
        yield {**batch, "tokens": batch["tokens"].float()}


def halves(start_step):
    for batch in batches(start_step):
        yield {**batch, "x": batch["x"].half()}


def half_inside(model, batch):
    return nn.functional.cross_entropy(model.head(batch["x"].half()), batch["labels"])


def wide_once(start_step):
    for step, batch in enumerate(batches(start_step)):
        yield {**batch, "x": batch["x"].repeat(1, 2)} if step == 0 else batch


def guarded(model, batch):
    assert batch["x"].amax() < 0, "activations are out of range"


def no_minimum(model, batch):
    raise ValueError("loss diverged: size mismatch of 3e9")


def singular(model, batch):
    return torch.linalg.inv(torch.zeros(4, 4)).sum() * model.head.weight.sum()


class Anomalous(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("nan")


def anomalous(model, batch, optimizer):
    with torch.autograd.detect_anomaly(check_nan=True):
        loss = compute_loss(model, batch)
        (Anomalous.apply(model.head.weight).sum() + loss).backward()
    return loss


def step_of(model, batch, optimizer):
    loss = compute_loss(model, batch["inputs"])
    loss.backward()
    optimizer.step()
    return loss
"""


def refused(project, nanhunt, **config):
    project.add_code(WRONG)
    project.configure(**config)
    done = nanhunt("replay", "ckpt.pt")
    assert done.is_clean_refusal, done.err
    assert not (project.root / "trace.parquet").exists()
    assert not (project.root / "trace.parquet.partial").exists()
    return done.err


@pytest.mark.parametrize(
    ("config", "key", "said"),
    [
        ({"loss": "train:other_key"}, "loss", "KeyError: 'targets', at train.py:"),
        ({"loss": "train:tuples"}, "loss", "ValueError: not enough values to unpack (expected 4, got 3), at train.py:"),
        ({"loss": "train:without_batch"}, "loss", "without_batch() takes 1 positional argument but 2 were given"),
        ({"loss": "train:less_to_the_model"}, "loss", "missing 1 required positional argument: 'tokens', at train.py:"),
        ({"loss": "train:unreduced_shapes"}, "loss", "cannot be multiplied"),
        ({"data": "train:wide"}, "data", "The size of tensor a (16) must match the size of tensor b (8)"),
        ({"data": "train:floats"}, "data", "FloatTensor"),
        ({"loss": "train:half_inside"}, "precision", "Half"),
        ({"train_step": "train:step_of", "loss": None}, "train_step", "KeyError: 'inputs', at train.py:"),
    ],
)
def test_what_cannot_go_together_is_bad_input_that_names_its_key_the_line_and_the_batch(
    config, key, said, project, nanhunt
):
    err = refused(project, nanhunt, **config)
    assert err.startswith(
        f"error: {key}: the first replayed step, 10, does not run, and the next batch raises the same"
    )
    assert said in err
    assert "a batch is a dict with x (4, " in err
    assert f"{key}: " in err.split("hint: ")[1] or key == "precision"


def test_a_run_of_one_batch_is_told_by_the_kind_of_exception_alone(project, nanhunt):
    project.add_code(WRONG)
    project.configure(loss="train:other_key", data={"call": "train:batches", "kwargs": {"end_at": 11}})
    done = nanhunt("replay", "ckpt.pt")
    assert done.is_clean_refusal
    assert "does not run: KeyError: 'targets'" in done.err


def onset(project, nanhunt, **config):
    project.add_code(WRONG)
    project.configure(**config)
    done = nanhunt("replay", "ckpt.pt", "--exit-code", "--no-trials")
    assert done.code == 1, done.err
    report = json.loads(nanhunt("report", "trace.parquet", "--format", "json").out)
    assert report["onset"]["kind"] == "exception"
    return report


@pytest.mark.parametrize(
    "config",
    [
        {"data": {"call": "train:batches", "kwargs": {"index_at": 10}}},
        {"loss": "train:guarded"},
        {"loss": "train:no_minimum"},
        {"loss": "train:singular"},
        {"train_step": "train:anomalous", "loss": None},
    ],
    ids=["an index out of range", "an assertion", "a guard", "a singular matrix", "anomaly mode"],
)
def test_what_numbers_lead_to_is_a_finding_in_the_first_step_too(config, project, nanhunt):
    assert onset(project, nanhunt, **config)["onset"]["step"] == 10


def test_a_batch_that_does_not_fit_where_the_next_one_does_is_a_finding(project, nanhunt):
    report = onset(project, nanhunt, data="train:wide_once")
    assert report["onset"]["step"] == 10
    assert "the batch of step 11 does not raise it: it is that of step 10" in report["assumptions"]


def test_what_a_later_step_raises_is_a_finding(project, nanhunt):
    project.add_code(
        "def late(start_step):\n    for n, b in enumerate(batches(start_step)):\n        yield b if n < 2 else {}"
    )
    project.configure(data="train:late")
    assert nanhunt("replay", "ckpt.pt", "--exit-code", "--no-trials").code == 1


def test_verbose_shows_the_whole_traceback(project, nanhunt):
    project.add_code(WRONG)
    project.configure(loss="train:other_key")
    assert "Traceback" in nanhunt("replay", "ckpt.pt", "--verbose").err
