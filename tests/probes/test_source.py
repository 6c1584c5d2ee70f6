"""The line that is told is the user's: not torch's, not ours, not the one that called backward."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanhunt.probes.op import OpProbe
from nanhunt.probes.probe import RowBuffer
from nanhunt.probes.source import caller_line, excerpt, is_checkpointing, is_user_file, line_text, place
from nanhunt.trace.schema import Phase
from nanhunt.training.cuda_autocast import CudaAutocastLists
from tests.conftest import tiny_run


class Lines:
    """The text of the line of each op, by op and by whether autograd ran it, as the op probe sees it."""

    def __enter__(self) -> Lines:
        self.probe = OpProbe(tiny_run(nn.Linear(1, 1), lambda model, batch: batch, []), RowBuffer())
        self.probe.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.probe.__exit__(*error)
        self.probe.resolve()
        self.text: dict[tuple[str, bool], str | None] = {}
        self.again: set[str] = set()
        for event in self.probe.events:
            text = line_text(event.source) if event.source else None
            self.text[event.op, event.phase is Phase.BACKWARD] = text
            if event.is_again:
                self.again.add(event.op)


def test_an_op_inside_a_torch_module_belongs_to_the_line_that_calls_the_module() -> None:
    layer = nn.Sequential(nn.Linear(2, 2), nn.GELU())
    with Lines() as lines:
        layer(torch.zeros(1, 2))  # the call
    assert lines.text["aten.addmm", False] == "layer(torch.zeros(1, 2))  # the call"
    assert lines.text["aten.gelu", False] == "layer(torch.zeros(1, 2))  # the call"


def test_autograds_own_ops_have_the_line_of_their_forward_op_and_not_the_one_that_calls_backward() -> None:
    x = torch.ones(2, requires_grad=True)
    with Lines() as lines:
        loss = x.exp().sum()  # forward
        loss.backward()
    assert lines.text["aten.mul.Tensor", True] == "loss = x.exp().sum()  # forward"
    assert lines.text["aten.ones_like", False] == "loss.backward()"


def test_outside_of_any_mode_the_callers_own_line_is_told() -> None:
    line = caller_line()  # here
    assert line is not None
    assert line_text(line) == "line = caller_line()  # here"
    assert not is_checkpointing()


def test_a_users_backward_has_its_own_line() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return grads[0].neg()  # in backward

    with Lines() as lines:
        Doubled.apply(torch.ones(2, requires_grad=True)).sum().backward()
    assert lines.text["aten.neg", True] == "return grads[0].neg()  # in backward"
    assert lines.again == set()


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_op_has_its_own_line_and_is_known_as_one(reentrant: bool) -> None:
    def region(v: Tensor) -> Tensor:
        return v.exp().sin()  # again

    with Lines() as lines:
        checkpoint(region, torch.ones(2, requires_grad=True), use_reentrant=reentrant).sum().backward()
    assert lines.text["aten.exp", True] == "return v.exp().sin()  # again"
    assert "aten.exp" in lines.again
    assert "aten.cos" not in lines.again


def test_the_autocast_lists_that_stand_between_do_not_take_the_line() -> None:
    x = torch.ones(2, dtype=torch.float16)
    with Lines() as lines, torch.autocast("cpu", torch.float16), CudaAutocastLists():
        x.exp()  # promoted
    assert lines.text["aten.exp", False] == "x.exp()  # promoted"


def test_files_of_torch_and_ours_are_no_users() -> None:
    assert is_user_file(__file__)
    assert is_user_file(str(Path(sys.prefix) / "lib" / "site-packages" / "transformers" / "modeling.py"))
    assert not is_user_file(nn.__file__)
    assert not is_user_file(str(sys.modules["nanhunt.training.step"].__file__))
    assert not is_user_file("<string>")


def test_a_place_is_relative_to_the_project_then_to_site_packages_then_a_bare_name(tmp_path: Path) -> None:
    inside = tmp_path / "models" / "gpt.py"
    assert place((str(inside), 88), tmp_path) == "models/gpt.py:88"
    assert place(("/env/lib/python3.11/site-packages/timm/layers.py", 3), tmp_path) == "timm/layers.py:3"
    assert place(("/elsewhere/train.py", 5), tmp_path) == "train.py:5"


def test_an_excerpt_stops_at_the_ends_of_the_file_and_is_empty_without_one(tmp_path: Path) -> None:
    file = tmp_path / "short.py"
    file.write_text("a = 1\nb = 2\n")
    assert excerpt((str(file), 2)) == [(1, "a = 1"), (2, "b = 2")]
    assert excerpt((str(tmp_path / "gone.py"), 2)) == []
    assert line_text((str(tmp_path / "gone.py"), 2)) == ""
