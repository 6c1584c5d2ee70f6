"""A Lightning run under the callback: undisturbed, and its bundle replays bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

pytest.importorskip("lightning.pytorch")
import lightning.pytorch as pl
from lightning.pytorch.plugins.precision import MixedPrecision

from nanhunt.integrations.lightning import NanhuntCallback
from tests.integrations.lightning_run import Alternating, Classifier, LeavesOut, alternate, loader, trainer
from tests.recorder.test_bundle import replayed

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore::FutureWarning")


def fit(out: Path, module: Any, data: Any, callback: Any = None, **options: Any) -> dict[str, bytes]:
    """Fit, and return the weights."""
    torch.manual_seed(1)
    trainer(out, [] if callback is None else [callback], **options).fit(module, data)
    return {name: t.clone().view(torch.uint8).numpy().tobytes() for name, t in module.state_dict().items() if t.ndim}


def made(**arguments: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(**arguments)


OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "clipped by a norm": lambda: {"gradient_clip_val": 0.5},
    "clipped by a value": lambda: {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"},
    "accumulated": lambda: {"accumulate_grad_batches": 4, "gradient_clip_val": 0.5},
    "bf16-mixed": lambda: {"precision": "bf16-mixed"},
    "bf16-true": lambda: {"precision": "bf16-true"},
    "16-mixed": lambda: {
        "plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))]
    },
}
BAD = 9


def check(bundle: Path, out: Path, step: int) -> None:
    """A bundle's replay finds the fault in this step, and the run's losses up to it, bit for bit."""
    onset, original = replayed(bundle, out)
    assert onset is not None
    assert onset.step == step
    assert (original.bitwise, original.last_step, original.alone) == (True, step, ())


@pytest.mark.parametrize("name", OPTIONS)
def test_no_bit_differs_and_a_bundle_replays(name: str, tmp_path: Path) -> None:
    micros = OPTIONS[name]().get("accumulate_grad_batches", 1)
    plain = fit(tmp_path, made(width=12), loader(12 * micros, BAD * micros), **OPTIONS[name]())
    callback = NanhuntCallback(out=tmp_path / "bundles", every=4)
    recorded = fit(tmp_path, made(width=12), loader(12 * micros, BAD * micros), callback, **OPTIONS[name]())
    assert recorded == plain
    assert [path.name for path in callback.bundles] == [f"step-{BAD}"]
    check(callback.bundles[0], tmp_path / "trace.parquet", BAD)


def test_the_norm_is_that_before_the_clip(tmp_path: Path) -> None:
    norms: list[float] = []

    class Norms(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            grads = [p.grad for p in pl_module.parameters()]
            norms.append(float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in grads]))))

    callback = NanhuntCallback(out=tmp_path / "bundles")
    trainer(tmp_path, [callback, Norms()], gradient_clip_val=1e-3).fit(made(), loader(6, 5))
    frame = pd.read_parquet(callback.bundles[0] / "trace.parquet")
    assert frame[frame.name == "grad_norm"].value.tolist()[:5] == pytest.approx(norms[:5], rel=1e-5)


def test_several_groups_are_those_of_configure_optimizers(tmp_path: Path) -> None:
    callback = NanhuntCallback(out=tmp_path / "bundles", every=4)
    fit(tmp_path, made(groups=3), loader(8, 7), callback, gradient_clip_val=0.5)
    assert "lightning:build_optimizer" in (callback.bundles[0] / "nanhunt.yaml").read_text()
    check(callback.bundles[0], tmp_path / "trace.parquet", 7)


def test_a_run_that_is_resumed_counts_on(tmp_path: Path) -> None:
    before = trainer(tmp_path, [], max_steps=5)
    before.fit(module := made(), loader(10))
    before.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
    assert module.global_step == 5
    callback = NanhuntCallback(out=tmp_path / "bundles")
    trainer(tmp_path, [callback], max_epochs=2).fit(made(), loader(10, 3), ckpt_path=tmp_path / "half.ckpt")
    assert [path.name for path in callback.bundles] == ["step-8"]
    check(callback.bundles[0], tmp_path / "trace.parquet", 8)


def test_a_batch_that_training_step_leaves_out_is_no_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = loader(14, 13)
    left_out = [i for i, (x, _) in enumerate(data) if x[0, 0] > 1.0]
    assert left_out
    callback = NanhuntCallback(out=tmp_path / "bundles", every=4)
    fit(tmp_path, LeavesOut(), data, callback)
    check(callback.bundles[0], tmp_path / "trace.parquet", 13 - len(left_out))


def test_what_leaves_fit_is_a_fault_and_comes_out_as_it_was(tmp_path: Path) -> None:
    data = loader(8)
    data.dataset.tensors[1][5 * 6 + 1] = 99  # type: ignore[attr-defined]
    callback = NanhuntCallback(out=tmp_path / "bundles")
    with pytest.raises(IndexError, match="out of bounds"):
        fit(tmp_path, made(), data, callback)
    onset, original = replayed(callback.bundles[0], tmp_path / "trace.parquet")
    assert onset is not None
    assert (onset.step, onset.kind) == (5, "exception")
    assert (original.bitwise, original.compared) == (True, 5)


def test_optimizers_by_hand_replay_through_their_train_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    callback = NanhuntCallback(out=tmp_path / "bundles", every=4, build=Alternating, train_step=alternate)
    fit(tmp_path, Alternating(), loader(9, 7), callback)
    check(callback.bundles[0], tmp_path / "trace.parquet", 7)


def test_optimizers_by_hand_without_a_train_step_are_told(tmp_path: Path) -> None:
    callback = NanhuntCallback(out=tmp_path / "bundles", build=Alternating)
    fit(tmp_path, Alternating(), loader(4, 3), callback)
    run = json.loads((callback.bundles[0] / "run.json").read_text())
    assert run["fault"]["step"] == 3
    assert any("name a train_step" in remark for remark in run["remarks"])


OTHER_NAME = """
import pytorch_lightning, sys
assert "lightning.pytorch" not in sys.modules
from nanhunt.integrations.lightning import NanhuntCallback
assert issubclass(NanhuntCallback, pytorch_lightning.Callback)
assert "lightning.pytorch" not in sys.modules
"""


def test_the_package_of_the_other_name_will_do() -> None:
    pytest.importorskip("pytorch_lightning")
    subprocess.run([sys.executable, "-c", OTHER_NAME], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
