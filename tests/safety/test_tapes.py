"""The tape of a bundle that somebody else sent: it makes calls of torch, and runs no code of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nanhunt.errors import ConfigError
from nanhunt.training.tape_functions import function_named
from nanhunt.training.taped_loss import taped_loss


def tape(*calls: dict[str, Any]) -> dict[str, Any]:
    made = [{"args": [], "kwargs": {}, "line": ["train.py", 1], **call} for call in calls]
    return {"inputs": {"x": torch.ones(2)}, "tape": json.dumps({"calls": made, "results": [[len(made) - 1]]})}


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.exec", "torch.load", "torch.hub.load", "torch.save", "torch.Tensor.apply_", "torch.Tensor.map_", "torch.Tensor.__setstate__", "subprocess.run"]
)  # fmt: skip
def test_a_tape_names_no_function_but_those_that_compute(name: str) -> None:
    with pytest.raises(ConfigError, match="the tape names"):
        function_named(name)


@pytest.mark.parametrize(
    "path", [["__class__", "__init__"], ["__reduce_ex__"], ["backward", "__globals__"], ["tolist"], ["register_hook"]]
)
def test_a_tape_reaches_no_code_through_what_a_call_gave(path: list[str], tmp_path: Path) -> None:
    made = {"fn": "torch.Tensor.mul", "args": [{"$c": "x"}, 2.0]}
    used = {"fn": "torch.Tensor.add", "args": [{"$c": "x"}, {"$v": [0, *path]}]}
    with pytest.raises(ConfigError, match="no field of a result"):
        taped_loss(nn.Linear(2, 2), tape(made, used))
