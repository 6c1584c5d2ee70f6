"""Every recipe of configs/ runs: the two commands at its head, typed as they stand, end healthy."""

from __future__ import annotations

import io
import json
import runpy
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nanhunt.cli import main

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
RECIPES = sorted(path.name for path in CONFIGS.glob("*.yaml"))
#: steps to a checkpoint, and of the replay: enough to see each part of a step, and no more
TRAINED, REPLAYED = "6", "3"


def commands(name: str) -> list[list[str]]:
    """The commands of a recipe's head, cut into words."""
    lines = (CONFIGS / name).read_text().splitlines()
    return [shlex.split(line.removeprefix("#")) for line in lines if line.startswith(("#   python ", "#   nanhunt "))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory in which `configs/` is ours, and none of its modules stay imported."""
    (tmp_path / "configs").symlink_to(CONFIGS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for module in [m for m in sys.modules if m.partition(".")[0] in ("llm", "nanogpt")]:
        del sys.modules[module]


def typed(words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Run a command line in this process; return its exit code and what it printed."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    program, *arguments = words
    monkeypatch.setattr(sys, "argv", words if program == "nanhunt" else arguments)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            if program == "nanhunt":
                main()
            else:
                runpy.run_path(arguments[0], run_name="__main__")
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_and_replays_as_its_head_says(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, replay = commands(name)
    assert train[-2] == "--steps"
    typed([*train[:-1], TRAINED], monkeypatch)
    assert (folder / "ckpt.pt").exists()
    code, _, err = typed([*replay, "--steps", REPLAYED, "--quiet", "--exit-code"], monkeypatch)
    assert code == 0, err
    code, out, err = typed(["nanhunt", "report", "trace.parquet", "--format", "json"], monkeypatch)
    assert code == 0, err
    document = json.loads(out)
    assert (document["outcome"], document["run"]["steps"]) == ("healthy", int(REPLAYED))
    recipe = keys(name).get("precision", {}).get("recipe")
    if recipe is not None:
        (told,) = [a for a in document["assumptions"] if a.startswith(f"precision recipe {recipe['name']}: ")]
        assert f"left as they are: {', '.join(recipe['skip'])}" in told


def keys(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
    return document


def test_the_recipes_are_what_their_names_say() -> None:
    adam = {"betas": [0.9, 0.95], "weight_decay": 0.1}
    for name in ("llama3.yaml", "deepseek-v3.yaml", "mistral.yaml", "qwen2.5-small.yaml"):
        assert adam.items() <= keys(name)["optimizer"]["kwargs"].items()
        assert keys(name)["train"]["clip_grad_norm"] == 1.0
        assert keys(name)["scheduler"]["kwargs"]["floor"] == 0.1
    assert keys("llama3.yaml")["precision"] == {"autocast": "bf16"}
    assert keys("deepseek-v3.yaml")["precision"]["recipe"] == {
        "name": "fp8-block+states-bf16",
        "skip": ["lm_head", "*.gate"],
    }
    assert keys("mistral.yaml")["precision"] == {
        "autocast": "bf16",
        "recipe": {"name": "fp8-hybrid", "skip": ["lm_head"]},
    }
    assert keys("qwen2.5-small.yaml")["precision"] == {
        "autocast": "fp16",
        "grad_scaler": {"init_scale": 65536, "growth_interval": 2000},
    }


def test_each_way_of_clipping_has_its_recipe() -> None:
    clips = {
        "clip-global-norm.yaml": "clip_grad_norm",
        "clip-by-value.yaml": "clip_grad_value",
        "clip-per-parameter.yaml": "clip_param_norm",
        "clip-agc.yaml": "agc",
    }
    for name, key in clips.items():
        assert [k for k in keys(name)["train"] if k in clips.values()] == [key]


@pytest.mark.parametrize("key", ["clip_grad_norm", "clip_grad_value", "clip_param_norm", "agc"])
def test_the_training_script_clips_as_the_replay_does(key: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nanhunt.training.clip import clip_gradients
    from tests.conftest import tiny_run

    monkeypatch.syspath_prepend(str(CONFIGS))
    script = runpy.run_path(str(CONFIGS / "llm" / "train.py"))
    torch.manual_seed(1)
    ours, theirs = torch.nn.Conv1d(2, 3, 2), torch.nn.Conv1d(2, 3, 2)
    theirs.load_state_dict(ours.state_dict())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        a.grad, b.grad = (grad := torch.randn_like(a)), grad.clone()
    clip_gradients(tiny_run(ours, lambda m, x: m(x).mean(), [], **{key: 0.3}))
    script["clip"](theirs, {key: 0.3})
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_page_and_the_readme_name_each_recipe_with_its_source() -> None:
    page, readme = (ROOT / "docs" / "configs.md").read_text(), (ROOT / "README.md").read_text()
    assert "docs/configs.md" in readme
    for name in RECIPES:
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert "\nSource: " in section
        assert "arxiv.org" in section or "https://" in section
