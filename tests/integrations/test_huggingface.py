"""A Trainer's run under the callback: undisturbed, and its bundle replays bit for bit."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
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
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
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


def spoilt_tokens(trainer: Any, step: int) -> None:
    """In this step a token stands that the vocabulary does not have."""
    samples_of = trainer.get_batch_samples

    def out_of_range(*args: Any) -> Any:
        samples, items = samples_of(*args)
        if trainer.state.global_step == step:
            samples[0]["input_ids"][1, 2] = 300
        return samples, items

    trainer.get_batch_samples = out_of_range


def left_by_exception(callback: NanhuntCallback) -> list[Path]:
    """Return the bundles; nothing tells a callback that `train()` has raised, so it listens until the process ends."""
    callback._close()
    return callback.bundles


def broken(step: int, out: Path, bundle: Path) -> None:
    """The bundle replays to the exception, with the losses of the run up to it."""
    onset = replay(ReplayOptions(checkpoint=bundle, out=out, trials=False, quiet=True, announce=False))
    assert onset is not None
    assert (onset.step, onset.kind) == (step, "exception")
    original = original_run(Evidence(Trace.open(out)))
    assert original is not None
    assert (original.bitwise, original.compared) == (True, step)


def test_an_exception_of_the_forward_pass_leaves_a_bundle_and_comes_out_as_it_was(project: Any, tmp_path: Path) -> None:
    callback = NanhuntCallback(out=tmp_path / "bundles", every=4)
    trainer = project.build_trainer(tmp_path / "run", steps=10)
    trainer.args.save_strategy = "no"
    spoilt_tokens(trainer, BAD)
    trainer.add_callback(callback)
    with pytest.raises(IndexError, match="index out of range in self"):
        trainer.train()
    (bundle,) = left_by_exception(callback)
    assert bundle.name == f"step-{BAD}"
    broken(BAD, tmp_path / "trace.parquet", bundle)


class Fails(torch.autograd.Function):
    """Fails in backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        raise ValueError("planted in backward")


def test_an_exception_of_the_backward_pass_leaves_a_bundle(project: Any, tmp_path: Path) -> None:
    callback = NanhuntCallback(out=tmp_path / "bundles", every=4)
    trainer = project.build_trainer(tmp_path / "run", steps=10)
    trainer.args.save_strategy = "no"
    computed = trainer.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        loss = computed(*args, **kwargs)
        return Fails.apply(loss) if trainer.state.global_step == BAD else loss  # type: ignore[no-untyped-call]

    trainer.compute_loss = compute_loss
    trainer.add_callback(callback)
    with pytest.raises(ValueError, match="planted in backward"):
        trainer.train()
    (bundle,) = left_by_exception(callback)
    run = json.loads((bundle / "run.json").read_text())
    assert (run["fault"]["step"], run["fault"]["detail"]) == (BAD, "ValueError: planted in backward")


RAISES = """
import sys
sys.path.insert(0, sys.argv[1])
import train
from nanhunt.integrations.huggingface import NanhuntCallback
from pathlib import Path

trainer = train.build_trainer(Path("run"), steps=10)
trainer.args.save_strategy = "no"
computed = trainer.compute_loss

def compute_loss(*args, **kwargs):
    if trainer.state.global_step == 3:
        raise ValueError("planted in loss")
    return computed(*args, **kwargs)

trainer.compute_loss = compute_loss
trainer.add_callback(NanhuntCallback(out="bundles"))
sys.excepthook = lambda kind, error, trace: print("the script's own hook:", error)
trainer.train()
"""


def test_what_no_hook_sees_leaves_a_bundle_when_it_leaves_the_script(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(RAISES)
    command = [sys.executable, "script.py", str(SCRIPT.parent)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 1
    assert "the script's own hook: planted in loss" in done.stdout
    run = json.loads((tmp_path / "bundles" / "step-2" / "run.json").read_text())
    assert run["fault"]["detail"].startswith("ValueError: planted in loss")
