"""The Lightning example: its replay repeats the Trainer's losses bit for bit, and finds a fault that was planted."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.integration.project import Project, copied, losses

pytest.importorskip("lightning.pytorch")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = copied("lightning", tmp_path_factory.mktemp("lightning"))
    project.train("--out", "out", "--steps", "30")
    return project


def test_the_replay_repeats_the_trainers_losses_bit_for_bit(project: Project) -> None:
    """Across the border of an epoch, with dropout."""
    document = project.replay("out/step-10.ckpt", steps=20)
    assert document["outcome"] == "healthy"
    logged = (
        pd.read_csv(project.folder / "out" / "metrics.csv", float_precision="round_trip")
        .set_index("step")["train_loss"]
        .dropna()
    )
    replayed = losses(project.trace)
    assert list(replayed) == list(range(10, 30))
    assert replayed == {step: logged[step] for step in replayed}


def test_a_planted_fault_is_found(project: Project) -> None:
    document = project.replay("out/step-20.ckpt", steps=10, data={"bad_step": 24})
    assert document["onset"]["step"] == 24
    assert document["suspects"][0]["cause"] == "empty-reduction"


def test_the_network_alone_takes_the_checkpoint_too(project: Project) -> None:
    """Without the LightningModule: the names' `net.` is dropped, and that is told."""
    own = "from train import ByteModel\ndef network():\n    return ByteModel().net\n"
    own += "def loss(net, batch):\n    from torch.nn.functional import cross_entropy\n"
    own += "    return cross_entropy(net(batch[0]), batch[1])\n"
    own += "def optimizer(net):\n    from torch.optim import AdamW\n    return AdamW(net.parameters(), lr=3e-3)\n"
    (project.folder / "own.py").write_text(own)
    document = project.replay(
        "out/step-20.ckpt", steps=3, changes={"model": "own:network", "loss": "own:loss", "optimizer": "own:optimizer"}
    )
    assert document["outcome"] == "healthy"
    assert any("matched 7 of 7 tensors; the leading 'net.' was dropped" in a for a in document["assumptions"])
    logged = pd.read_csv(Path(project.folder) / "out" / "metrics.csv", float_precision="round_trip").set_index("step")[
        "train_loss"
    ]
    assert losses(project.trace) == {step: logged[step] for step in (20, 21, 22)}
