"""A Trainer's run under the callback: undisturbed, and its bundle replays bit for bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from nanhunt.commands.replay import ReplayOptions, replay
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.original import original_run
from nanhunt.trace.reader import Trace

pytest.importorskip("transformers")
from nanhunt.integrations.huggingface import NanhuntCallback

SCRIPT = Path(__file__).parents[2] / "configs" / "projects" / "hf-trainer" / "train.py"
BAD = 7


@pytest.fixture(scope="module")
def project() -> Any:
    spec = importlib.util.spec_from_file_location("hf_trainer_project", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(project: Any, out: Path, callback: NanhuntCallback | None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    trainer = project.build_trainer(out, steps=10)
    trainer.args.save_strategy = "no"
    if callback is not None:
        trainer.add_callback(callback)
    trainer.train()
    return {name: t.clone() for name, t in trainer.model.state_dict().items()}


def test_the_callback_changes_no_bit(project: Any, tmp_path: Path) -> None:
    plain = weights(project, tmp_path / "a", None)
    callback = NanhuntCallback(out=tmp_path / "bundles", every=4)
    recorded = weights(project, tmp_path / "b", callback)
    assert all(torch.equal(plain[name], recorded[name]) for name in plain)
    assert not callback.bundles


def test_a_bundle_of_a_trainer_replays_without_a_config(project: Any, tmp_path: Path) -> None:
    callback = NanhuntCallback(out=tmp_path / "bundles", every=4)
    trainer = project.build_trainer(tmp_path / "run", steps=10)
    trainer.args.save_strategy = "no"
    samples_of = trainer.get_batch_samples

    def without_labels(*args: Any) -> Any:
        samples, items = samples_of(*args)
        if trainer.state.global_step == BAD:
            samples[0]["labels"][:] = -100
            items = items * 0
        return samples, items

    trainer.get_batch_samples = without_labels
    trainer.add_callback(callback)
    trainer.train()
    assert [path.name for path in callback.bundles] == [f"step-{BAD}"]
    out = tmp_path / "trace.parquet"
    onset = replay(ReplayOptions(checkpoint=tmp_path / "bundles", out=out, trials=False, quiet=True, announce=False))
    assert onset is not None
    assert onset.step == BAD
    original = original_run(Evidence(Trace.open(out)))
    assert original is not None
    assert (original.bitwise, original.compared) == (True, BAD + 1)
