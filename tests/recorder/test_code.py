"""Import strings: what is found again by one, and what has none."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanhunt.recorder.code import code_ref
from nanhunt.training.user_code import resolve
from tests.recorder.loop import Net, build_model

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("code", [build_model, Net, torch.nn.Linear, Net.forward])
def test_a_name_of_a_module_is_found_again(code: Callable[..., Any]) -> None:
    ref = code_ref(code)
    assert ref is not None
    assert resolve(ref.call, key="model", root=Path(ref.folder or ".")) is code


def test_the_folder_is_that_which_the_module_is_imported_from() -> None:
    ref = code_ref(build_model)
    assert ref is not None
    assert (ref.call, ref.folder) == ("tests.recorder.loop:build_model", str(ROOT))


def test_arguments_of_a_partial_go_along() -> None:
    ref = code_ref(functools.partial(build_model, width=3))
    assert ref is not None
    assert ref.spec == {"call": "tests.recorder.loop:build_model", "kwargs": {"width": 3}}


def test_what_has_no_import_string_has_none() -> None:
    def inner() -> None: ...

    for code in (lambda: None, inner, Net(3).forward, functools.partial(build_model, torch.ones(1))):
        assert code_ref(code) is None


def test_a_script_is_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "train_it.py").write_text(
        "from nanhunt.recorder.code import code_ref\ndef build(): ...\nref = code_ref(build)\nprint(ref.call, ref.folder)"
    )
    done = subprocess.run([sys.executable, "train_it.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["train_it:build", str(tmp_path.resolve())]
