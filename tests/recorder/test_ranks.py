"""Two ranks and accelerate's wrappers: the recorder changes nothing, each rank leaves its own bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.original import original_run
from nanhunt.recorder.recorder import Recorder
from nanhunt.trace.reader import Trace
from nanhunt.training.bundle import bundle_at
from nanhunt.training.rng import seed_everything
from tests.recorder.loop import batches, bits, build_model, compute_loss, nan_at
from tests.recorder.test_bundle import replayed

ROOT = Path(__file__).parents[2]

RANK = """
import contextlib, sys, torch, torch.distributed as dist
from pathlib import Path
from nanhunt.recorder.recorder import Recorder
from tests.recorder.loop import batches, bits, build_model, compute_loss, nan_at

out = Path(sys.argv[1])
dist.init_process_group("gloo")
rank = dist.get_rank()
for name in ("plain", "recorded"):
    torch.manual_seed(3)
    model = torch.nn.parallel.DistributedDataParallel(build_model())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    made = Recorder(model, optimizer, build=build_model, loss=compute_loss, out=out / "bundles", every=5)
    with made if name == "recorded" else contextlib.nullcontext() as recorder:
        for number, batch in enumerate(batches(24, nan_at(21))):
            if number % 2 != rank:
                continue
            if recorder is not None:
                recorder.step(batch)
            optimizer.zero_grad()
            compute_loss(model, batch).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    (out / f"{name}-{rank}").write_bytes(b"".join(bits(t) for t in model.state_dict().values()))
dist.destroy_process_group()
"""


def test_each_rank_leaves_its_own_bundle_and_no_bit_differs(tmp_path: Path) -> None:
    # the batch of an odd number is rank 1 of step 10
    (tmp_path / "rank.py").write_text(RANK)
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000)}
    command = [sys.executable, str(tmp_path / "rank.py"), str(tmp_path)]
    ranks = [
        subprocess.Popen(command, env={**shared, "RANK": str(r)}, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for r in (0, 1)
    ]
    told = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told
    for rank in (0, 1):
        assert (tmp_path / f"plain-{rank}").read_bytes() == (tmp_path / f"recorded-{rank}").read_bytes()
    assert sorted(path.name for path in (tmp_path / "bundles").iterdir()) == ["step-10", "step-10-rank1"]
    for name, detail in (("step-10", "gradient norm is NaN"), ("step-10-rank1", "loss is NaN")):
        run = json.loads((tmp_path / "bundles" / name / "run.json").read_text())
        assert (run["fault"]["step"], run["fault"]["detail"]) == (10, detail)
        bundle = bundle_at(tmp_path / "bundles" / name)
        assert bundle is not None
        assert any("gradients that were averaged over ranks are its own here" in t for t in bundle.assumptions())
    command = [sys.executable, "-m", "nanhunt", "replay", "bundles/step-10", "--device", "cpu", "--no-trials"]
    ranks = [
        subprocess.Popen(command, env={**shared, "RANK": str(r)}, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        for r in (0, 1)
    ]
    told = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told
    trace = Trace.open(tmp_path / "trace.parquet")
    onset = Evidence(trace).onset
    assert onset is not None
    assert (onset.step, onset.rank) == (10, 1)
    for rank in (0, 1):
        own = original_run(Evidence(Trace.open(tmp_path / "trace.parquet" / f"rank-000{rank}.parquet")))
        assert own is not None
        assert own.bitwise, told


def accelerated(out: Path, *, recorded: bool) -> tuple[list[bytes], list[Path]]:
    """A loop of accelerate's, two micro-batches a step; return the weights, and the bundles."""
    from accelerate import Accelerator

    seed_everything(3)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = build_model()
    held = torch.optim.AdamW(model.parameters(), lr=1e-2)
    prepared: Any = accelerator.prepare(model, held, torch.optim.lr_scheduler.StepLR(held, 3))
    model, optimizer, scheduler = prepared
    recorder = Recorder(model, optimizer, scheduler=scheduler, build=build_model, loss=compute_loss, out=out, every=4)
    if recorded:
        recorder.__enter__()
    for batch in batches(20, nan_at(9, 2)):
        if recorded:
            recorder.step(batch)
        with accelerator.accumulate(model):
            accelerator.backward(compute_loss(model, batch))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    if recorded:
        recorder.__exit__(None, None, None)
    return [bits(t) for t in model.state_dict().values()], recorder.bundles


def test_a_loop_of_accelerates_is_undisturbed_and_replays(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    plain, _ = accelerated(tmp_path / "bundles", recorded=False)
    recorded, bundles = accelerated(tmp_path / "bundles", recorded=True)
    assert recorded == plain
    onset, original = replayed(bundles[0], tmp_path / "trace.parquet")
    assert onset is not None
    assert onset.step == 9
    assert (original.bitwise, original.last_step) == (True, 9)
