"""Source is parsed and never run; what is proposed can be called the way nanhunt calls it."""

from __future__ import annotations

import textwrap

import pytest
import torch

from nanhunt.draft.guess import guesses_of
from nanhunt.draft.shown import Shown, shown_by
from nanhunt.draft.source import definitions_in, source_files
from nanhunt.training.checkpoint import Checkpoint


@pytest.fixture
def guessed(tmp_path):
    """A function that writes files and returns the guesses from them."""

    def guess(shown=None, **files):
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(text))
        found = [d for file in source_files([tmp_path]) for d in definitions_in(file, tmp_path)]
        return guesses_of(found, shown or Shown())

    return guess


def specs(guesses):
    return {key: guess.spec for key, guess in guesses.of.items()}


def with_arguments(container="torch", **extra):
    return shown_by(Checkpoint(path=None, container=container, step=1, model={"w": torch.zeros(1)}, extra=extra))


def test_parsing_runs_nothing(guessed, tmp_path):
    mark = tmp_path / "ran"
    guessed(train=f"open({str(mark)!r}, 'w')\ndef build_model(): ...")
    assert not mark.exists()


def test_usual_names_are_found(guessed):
    found = guessed(
        train="""
        def build_model(width=8): ...
        def batches(start_step, rank=0): yield 1
        def compute_loss(model, batch): ...
        def configure_optimizer(model): ...
        def make_scheduler(optimizer): ...
        """
    )
    assert specs(found) == {
        "model": "train:build_model", "data": "train:batches", "loss": "train:compute_loss",
        "optimizer": "train:configure_optimizer", "scheduler": "train:make_scheduler",
    }  # fmt: skip


def test_a_class_that_is_no_part_of_another_is_the_model(guessed):
    found = guessed(
        net="""
        from torch import nn
        class Base(nn.Module): ...
        class Block(Base): ...
        class Network(Base):
            def __init__(self):
                self.blocks = [Block() for _ in range(3)]
        """
    )
    assert specs(found)["model"] == "net:Network"


def test_what_makes_a_loader_is_data_and_what_validates_is_not(guessed):
    found = guessed(
        data="""
        from torch.utils.data import DataLoader
        def val_dataloader(): return DataLoader([])
        def make_valid(): return DataLoader([])
        def input_pipeline():
            loader = DataLoader([1])
            return loader
        """
    )
    assert specs(found)["data"] == "data:input_pipeline"
    assert specs(guessed(data="from torch.utils.data import DataLoader\nfeed = DataLoader([1])"))["data"] == "data:feed"


def test_a_file_that_trains_when_it_is_imported_is_not_proposed(guessed):
    for body in ("while True: pass", "loss.backward()", "args = parser.parse_args()", "main()"):
        found = guessed(train=f"def main(): ...\ndef build_model(): ...\n{body}\n")
        assert "model" not in found.of
        assert "line 3" in found.near["model"]
    found = guessed(train="def main(): ...\ndef build_model(): ...\nif __name__ == '__main__':\n    main()\n")
    assert specs(found)["model"] == "train:build_model"


def test_a_call_that_lacks_an_argument_is_a_near_miss_that_says_so(guessed):
    found = guessed(model="from torch import nn\nclass GPT(nn.Module):\n    def __init__(self, config): ...")
    assert "model" not in found.of
    assert "model:GPT (model.py:2) asks for config" in found.near["model"]
    found = guessed(train="def get_batch(split): ...\ndef compute_loss(model): ...")
    assert "one batch" in found.near["data"]
    assert "takes 1 arguments" in found.near["loss"]


def test_the_checkpoints_arguments_are_given_where_they_are_taken(guessed):
    shown = with_arguments(
        model_args={"width": 32, "depth": 2}, config={"beta1": 0.9, "beta2": 0.99, "learning_rate": 0.1, "wd": 1}
    )
    found = guessed(
        shown,
        model="""
        from torch import nn
        class Net(nn.Module):
            def __init__(self, width): ...
            def configure_optimizers(self, learning_rate, betas): ...
        """,
    )
    assert found.of["model"].value == {"call": "model:Net", "kwargs": {"width": 32}}
    assert found.of["optimizer"].value == {
        "call": "model:Net.configure_optimizers", "kwargs": {"learning_rate": 0.1, "betas": [0.9, 0.99]},
    }  # fmt: skip


def test_a_lightning_modules_own_step_is_its_loss(guessed):
    shown = with_arguments("lightning", hyper_parameters={"width": 4})
    found = guessed(
        shown,
        lit="""
        import lightning as L
        class Part(L.LightningModule): ...
        class Lit(L.LightningModule):
            def __init__(self, width=1): self.part = Part()
            def training_step(self, batch, batch_idx): ...
            def configure_optimizers(self): ...
        """,
    )
    assert found.of["model"].value == {"call": "lit:Lit", "kwargs": {"width": 4}}
    assert found.of["loss"].value == {"call": "lit:Lit.training_step", "kwargs": {"batch_idx": 0}}
    assert found.of["optimizer"].spec == "lit:Lit.configure_optimizers"


def test_a_package_below_is_named_with_its_dots_and_an_odd_folder_by_its_path(guessed):
    assert specs(guessed(proj__net="def build_model(): ..."))["model"] == "proj.net:build_model"


def test_an_odd_folder_is_named_by_its_path(tmp_path):
    (tmp_path / "my-code").mkdir()
    (tmp_path / "my-code" / "net.py").write_text("def build_model(): ...")
    (file,) = source_files([tmp_path])
    assert [d.spec for d in definitions_in(file, tmp_path)] == ["my-code/net.py:build_model"]


def test_what_is_no_python_is_passed_over(guessed, tmp_path):
    (tmp_path / "broken.py").write_bytes(b"def (:\n\x00")
    (tmp_path / "deep.py").write_text("x = " + "(" * 3000 + ")" * 3000)
    (tmp_path / "huge.py").write_text("#" * (2 << 20))
    assert guessed(train="def build_model(): ...").of["model"].spec == "train:build_model"
