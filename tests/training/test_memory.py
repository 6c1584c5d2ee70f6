"""Loading holds the model and its optimizer's state once: measured in a process of its own, not computed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc"),
    pytest.mark.filterwarnings("ignore"),
]

#: 24 matrices: with two moments 149 MB, and 1.5 GB with NANHUNT_MEMORY_TEST_WIDTH=2304
WIDTH = int(os.environ.get("NANHUNT_MEMORY_TEST_WIDTH", "720"))
LAYERS = 24
#: of model and optimizer state, once
BOUND = 1.3

PROJECT = f"""
from torch import nn
def build():
    return nn.Sequential(*(nn.Linear({WIDTH}, {WIDTH}, bias=False) for _ in range({LAYERS})))
def batches():
    return []
"""

#: loads the checkpoint as `nanhunt replay` does, and prints by how many bytes anonymous memory grew at its peak
MEASURE = """
import json, sys, threading, time
from pathlib import Path
import torch
import torch.distributed.checkpoint.state_dict_loader  # what is imported is not what is loaded
from nanhunt.training.assemble import assemble
from nanhunt.training.checkpoint import load_checkpoint
from nanhunt.training.config import load_config

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.0005)

root = Path(sys.argv[1])
config = load_config(root / "nanhunt.yaml")
torch.ones(1 << 20).square().sum()  # the threads' own stacks
before, peak, done = anonymous(), [0], threading.Event()
thread = threading.Thread(target=watch)
thread.start()
checkpoint = load_checkpoint(Path(sys.argv[2]), keys=None, trust_pickle=True)
run = assemble(config, checkpoint, root=root, device=torch.device("cpu"))
done.set()
thread.join()
state = [t for s in run.optimizer.state.values() for t in s.values()]
once = sum(t.numel() * t.element_size() for t in (*run.model.parameters(), *state))
print(json.dumps({"peak": peak[0] - before, "after": anonymous() - before, "once": once}))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project, and one checkpoint in each container."""
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import save_file
    from torch.distributed.checkpoint.state_dict import get_state_dict

    folder = tmp_path_factory.mktemp("memory")
    (folder / "own.py").write_text(PROJECT)
    (folder / "nanhunt.yaml").write_text(
        "model: own:build\ndata: own:batches\noptimizer: {call: torch.optim:AdamW, kwargs: {lr: 0.001}}\n"
    )
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 5}
    torch.save(content, folder / "ckpt.pt")
    torch.save(content, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    names, named = get_state_dict(model, optimizer)
    dcp.save({"model": names, "optimizer": named}, checkpoint_id=folder / "step-5")
    (folder / "checkpoint-5").mkdir()
    save_file(model.state_dict(), folder / "checkpoint-5" / "model.safetensors")
    torch.save(optimizer.state_dict(), folder / "checkpoint-5" / "optimizer.pt")
    (folder / "checkpoint-5" / "trainer_state.json").write_text('{"global_step": 5}')
    return folder


def measured(project: Path, name: str) -> dict[str, int]:
    command = [sys.executable, "-c", MEASURE, str(project), str(project / name)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    print(name, {k: f"{v / found['once']:.2f}" for k, v in found.items()}, f"{found['once'] / 1e6:.0f} MB")
    return found


@pytest.mark.parametrize("name", ["ckpt.pt", "step-5", "checkpoint-5"])
def test_loading_peaks_near_one_copy_of_model_and_optimizer(project: Path, name: str) -> None:
    found = measured(project, name)
    assert 0.9 * found["once"] < found["peak"] < BOUND * found["once"]
    assert found["after"] < BOUND * found["once"]


def test_the_layout_before_zip_files_cannot_be_mapped_and_takes_two(project: Path) -> None:
    found = measured(project, "legacy.pt")
    assert 1.3 * found["once"] < found["peak"] < 2.2 * found["once"]
