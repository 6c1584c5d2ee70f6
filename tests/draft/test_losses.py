"""A loss is found by what the code does with it, whatever it is called; nothing is imported."""

from __future__ import annotations

import textwrap

import pytest
import torch

from nanhunt.draft.ask import asked
from nanhunt.draft.code import code_entries
from nanhunt.draft.guess import guesses_of
from nanhunt.draft.losses import losses_in
from nanhunt.draft.sections import draft_of
from nanhunt.draft.shown import Shown, shown_by
from nanhunt.draft.source import definitions_in, source_files
from nanhunt.training.checkpoint import Checkpoint


@pytest.fixture
def guessed(tmp_path):
    """A function that writes one file and returns the guesses from it."""

    def guess(text, shown=None):
        (tmp_path / "train.py").write_text(textwrap.dedent(text))
        files = source_files([tmp_path])
        definitions = [d for file in files for d in definitions_in(file, tmp_path)]
        return guesses_of(definitions, shown or Shown(), [p for file in files for p in losses_in(file, tmp_path)])

    return guess


@pytest.mark.parametrize(
    "body",
    [
        "return F.cross_entropy(net(batch['x']), batch['y'])",
        "logits = net(batch[0])\n    total = criterion(logits, batch[1])\n    return total / 2",
        "return net(**batch).loss",
        "out = net(batch)\n    return -out.log_prob(batch).mean()",
        "loss = info_nce(net(batch), batch)\n    loss += 0.1 * net(batch).norm()\n    return loss",
        "a, loss = net(batch)\n    return loss",
        "return nn.MSELoss()(net(batch), batch)",
    ],
)
def test_a_function_that_calls_its_first_argument_and_returns_a_loss_is_the_loss(body, guessed):
    found = guessed(f"criterion = nn.CrossEntropyLoss()\ndef objective(net, batch):\n    {body}\n")
    assert found.of["loss"].spec == "train:objective"
    assert "calls its first argument" in found.of["loss"].reason


@pytest.mark.parametrize(
    "text",
    [
        "def loss_fn(logits, labels): return F.cross_entropy(logits.view(-1, 9), labels)",
        "def cross_entropy_with_z(logits, labels): return F.cross_entropy(logits, labels) + z(logits)",
        "def criterion(pred, y): return (pred - y).pow(2).mean()",
        "class Contrastive(nn.Module):\n    def forward(self, a, b): return F.cross_entropy(a @ b.t(), y)",
        "class InfoNCELoss(nn.Module):\n    def forward(self, a, b): return (a - b).mean()",
    ],
)
def test_a_criterion_is_no_function_of_the_batch_and_is_told_as_what_comes_near(text, guessed):
    found = guessed(text)
    assert "loss" not in found.of
    assert "takes what the model returned" in found.near["loss"]
    assert "(train.py:1)" in found.near["loss"]


def test_a_loss_inside_of_the_loop_is_told_with_its_line(guessed):
    found = guessed(
        """
        def main():
            for x, y in loader:
                logits = model(x)
                loss = F.cross_entropy(logits, y)
                loss.backward()
        """
    )
    assert "train.py:5 computes it inside of the loop, `loss = F.cross_entropy(logits, y)`" in found.near["loss"]


def test_a_model_that_returns_its_loss_needs_none(guessed):
    found = guessed(
        """
        class GPT(nn.Module):
            def forward(self, x, y=None):
                loss = F.cross_entropy(self.head(x), y)
                return self.head(x), loss
        """
    )
    assert "train:GPT (train.py:2) returns its loss from its forward" in found.near["loss"]


def test_what_computes_no_loss_is_none(guessed):
    found = guessed(
        """
        def forward_pass(model, batch): return model(batch)
        def accuracy(model, batch): return model(batch).argmax(-1) == batch
        def evaluate_loss(model, batch): return F.cross_entropy(model(batch), batch)
        """
    )
    assert "loss" not in found.of


def test_further_candidates_are_offered_in_the_file(guessed):
    found = guessed(
        """
        def clip_objective(model, batch): return F.cross_entropy(model(batch), batch)
        def distill(model, batch): return F.kl_div(model(batch), batch)
        """
    )
    (loss,) = [made.entry for made in code_entries(Shown(), found, "my_run") if made.entry.key == "loss"]
    assert loss.value == "train:clip_objective"
    assert any("train:distill (train.py:3)" in note for note in loss.notes)


def test_settings_below_other_dicts_are_read_and_fill_what_a_class_asks_for(guessed):
    extra = {"meta": {"args": {"width": 32, "grad_clip": 0.5, "unrelated": 1}, "epoch": 4}}
    shown = shown_by(Checkpoint(path=None, container="torch", step=None, model={"w": torch.zeros(1)}, extra=extra))
    assert (shown.settings_in, shown.epoch) == ("meta.args", ("meta.epoch", 4))
    assert shown.setting("grad_clip") == 0.5
    found = guessed("class Net(nn.Module):\n    def __init__(self, width, depth=2, **kw): ...\n", shown)
    assert found.of["model"].value == {"call": "train:Net", "kwargs": {"width": 32}}


def test_a_file_that_cannot_be_parsed_has_no_losses(tmp_path):
    (tmp_path / "broken.py").write_bytes(b"def (:\n\x00\xff")
    assert losses_in(tmp_path / "broken.py", tmp_path) == []


def test_candidates_are_said_before_the_question(guessed, tmp_path):
    found = guessed(
        """
        def clip_objective(model, batch): return F.cross_entropy(model(batch), batch)
        def distill(model, batch): return F.kl_div(model(batch), batch)
        """
    )
    said: list[str] = []
    draft = draft_of(Shown(), found, root=tmp_path, command="nanhunt replay CKPT")

    def leave(prompt):
        if prompt.startswith("loss"):
            raise EOFError
        return ""

    asked(draft, root=tmp_path, ask=leave, say=said.append)
    assert "train:distill (train.py:3)" in said[-2]
    assert "loss: train:distill (train.py:3) may be it as well" in draft.unknown
