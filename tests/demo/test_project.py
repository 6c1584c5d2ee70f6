"""A demo project reads like a user's: its own fault and no other's, what it needs beside it, the same every time."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch

from nanhunt.demo import FAULTS, Fault, Size, prepare
from nanhunt.demo.project import TEMPLATE, load_script, script
from nanhunt.training.config import load_config

SMALL = Size(layers=2, width=32, heads=2, context=16, batch=8)
each_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)


def planted(text: str) -> set[str]:
    """The faults that a script's conditions speak of."""
    return set(re.findall(r'FAULT [!=]= "([\w-]+)"', text))


@each_fault
def test_a_script_holds_its_own_fault_and_no_other_s(fault: Fault) -> None:
    text = script(fault, steps=30, size=fault.size)
    assert planted(text) == {fault.name} - {"none"}
    assert "# fault:" not in text
    assert "# end fault" not in text


def test_the_template_plants_the_faults_of_the_catalogue_and_every_marker_is_closed() -> None:
    text = TEMPLATE.read_text()
    names = {fault.name for fault in FAULTS} - {"none"}
    assert planted(text) == names
    marks = re.findall(r"# (fault|end fault)\b", text)
    assert marks == ["fault", "end fault"] * (len(marks) // 2)
    assert set(re.findall(r"# fault: (\S+)", text)) == names


@each_fault
def test_a_script_needs_no_nanhunt_and_names_no_linter(fault: Fault) -> None:
    text = script(fault, steps=30, size=fault.size)
    assert "import nanhunt" not in text
    assert "from nanhunt" not in text
    assert "noqa" not in text
    assert "type: ignore" not in text


@pytest.mark.skipif(shutil.which("ruff", path=str(Path(sys.executable).parent)) is None, reason="needs ruff")
@each_fault
def test_a_script_is_formatted_and_uses_all_that_it_imports(fault: Fault, tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(script(fault, steps=30, size=fault.size))
    ruff = [str(Path(sys.executable).parent / "ruff")]
    subprocess.run([*ruff, "format", "--isolated", "--line-length=120", "--check", str(path)], check=True)
    subprocess.run([*ruff, "check", "--isolated", "--select=F", str(path)], check=True)


@each_fault
def test_a_configuration_is_valid_and_its_import_strings_resolve(fault: Fault, tmp_path: Path) -> None:
    project = prepare(fault, tmp_path, steps=1, size=SMALL)
    config = load_config(project.config)
    train = load_script(tmp_path / "train.py")
    for key in ("model", "data", "loss", "optimizer", "scheduler"):
        module, _, attribute = getattr(config, key).call.partition(":")
        assert module == "train"
        assert callable(getattr(train, attribute))
    assert config.train.accumulate == train.ACCUMULATE
    assert config.train.clip_grad_norm == train.CLIP
    # the fault is due within the steps that are replayed
    assert fault.delay + 5 <= config.train.steps


def test_a_batch_depends_on_its_step_alone(tmp_path: Path) -> None:
    fault = next(f for f in FAULTS if f.name == "all-labels-ignored")
    prepare(fault, tmp_path, steps=1, size=SMALL)
    train = load_script(tmp_path / "train.py")
    stream = train.batches()
    from_zero = [next(stream) for _ in range(8)]
    later = train.batches(start_step=3)
    for expected in from_zero[6:]:  # two micro-batches a step
        batch = next(later)
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[key], expected[key]) for key in batch)


def test_the_same_fault_is_prepared_bit_by_bit_the_same(tmp_path: Path) -> None:
    fault = FAULTS[-1]
    first, second = (
        torch.load(prepare(fault, tmp_path / name, steps=3, size=SMALL).checkpoint, weights_only=True) for name in "ab"
    )
    assert all(torch.equal(first["model"][key], second["model"][key]) for key in first["model"])


def test_progress_is_told_for_every_step(tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []
    prepare(FAULTS[-1], tmp_path, steps=3, size=SMALL, on_step=lambda step, loss: seen.append((step, loss)))
    assert [step for step, _ in seen] == [0, 1, 2]
    assert all(4 < loss < 7 for _, loss in seen)  # ln 256 = 5.5


def test_the_text_is_python_s_own_help_in_sorted_order(tmp_path: Path) -> None:
    prepare(FAULTS[-1], tmp_path, steps=1, size=SMALL)
    tokens = load_script(tmp_path / "train.py").text_tokens()
    text = bytes(tokens.tolist()).decode()
    assert tokens.dtype == torch.uint8
    assert text.startswith(topics[min(topics)])
    assert text.endswith(topics[max(topics)])


def test_the_catalogue_can_be_read_without_torch() -> None:
    code = "import sys; import nanhunt.demo; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
