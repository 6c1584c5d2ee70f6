"""The script of a culprit op, run as a user runs it: with torch alone, and on operands that were mended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nanhunt.saved_call
from nanhunt.commands.report import ReportOptions, report
from nanhunt.errors import UsageError
from nanhunt.hunt import HuntSettings, hunt
from nanhunt.report.repro import find_repro
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Manifest, NoteKind
from nanhunt.trace.writer import TraceWriter, repro_path
from tests.conftest import tiny_run

#: A Python that imports torch and what torch needs, and no nanhunt: the project is not on its path.
LONE = "import sys, runpy; sys.modules['nanhunt'] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What the script said and how it ended."""

    code: int
    out: str

    @property
    def verdict(self) -> str:
        return self.out.strip().splitlines()[-1]


@dataclass(frozen=True, kw_only=True)
class Written:
    """A script, and the note that it was made of."""

    script: Path
    note: dict[str, Any]

    @property
    def operands(self) -> Path:
        return self.script.with_suffix(".pt")

    def run(self) -> Ran:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-P", "-c", LONE, str(self.script)],
            capture_output=True, text=True, cwd=self.script.parent, env=environment, check=False,
        )  # fmt: skip
        assert not done.stderr, done.stderr
        return Ran(code=done.returncode, out=done.stdout)

    def mend(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the operands on disk."""
        call = torch.load(self.operands, weights_only=True)
        change(call)
        torch.save(call, self.operands)


def traced(
    folder: Path,
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    *,
    steps: int = 1,
    zoom: bool = True,
    force: bool = False,
    **settings: Any,
) -> Path:
    run = tiny_run(model, loss, batches, **settings)
    path = folder / "trace.parquet"
    manifest = Manifest(settings={"steps": steps})
    with TraceWriter(path, manifest, force=force) as writer:
        hunt(run, writer, HuntSettings(steps=steps, trials=False, zoom=zoom))
    return path


def written(folder: Path, *args: Any, **settings: Any) -> Written:
    trace = Trace.open(traced(folder, *args, **settings))
    repro = find_repro(trace, folder / "repro.py")
    repro.write()
    note = trace.note_of(NoteKind.REPRO)
    assert note is not None
    return Written(script=folder / "repro.py", note=note)


# --- the kinds of culprits -------------------------------------------------------------------------------------------


def test_an_overflow_of_a_half_matmul_shows_again_and_its_scaled_twin_does_not(tmp_path):
    model = nn.Linear(8, 4, bias=False).half()
    nn.init.constant_(model.weight, 200.0)
    made = written(tmp_path, model, lambda m, x: m(x).float().mean(), [torch.full((3, 8), 60.0, dtype=torch.float16)])
    ran = made.run()
    assert (ran.code, made.note["call"]) == (0, "aten.mm.default")
    assert ran.verdict == "The fault shows again: 12 of 12 elements of output are non-finite."
    assert f"torch {torch.__version__}" in ran.out
    assert "float16 (3, 8), 60 to 60" in ran.out
    assert "[0, 0]: inf, in fp64 96000" in ran.out

    def smaller(call):
        call["args"][0] /= 2

    made.mend(smaller)
    ran = made.run()
    assert (ran.code, ran.verdict) == (1, "The fault does not show: no element of output is non-finite.")


def test_a_log_of_zero_shows_again_with_the_zero_beside_it(tmp_path):
    model = nn.Linear(3, 3)
    made = written(tmp_path, model, lambda m, x: (m(x) * 0 + x).log().mean(), [torch.tensor([[1.0, 0.0, 2.0]])])
    ran = made.run()
    assert (ran.code, made.note["call"]) == (0, "aten.log.default")
    assert "[0, 1]: self 0 -> -inf, in fp64 -inf" in ran.out
    made.mend(lambda call: call["args"][0].clamp_(min=1e-6))
    assert made.run().code == 1


def test_a_root_at_zero_shows_its_backward_kernel_and_the_gradient_of_the_root(tmp_path):
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    made = written(tmp_path, model, lambda m, x: m(x).sqrt().sum(), [torch.ones(2, 2)])
    ran = made.run()
    assert ran.code == 0
    assert made.note["phase"] == "backward"
    assert made.note["forward"] == "aten.sqrt.default"
    assert "it belongs to the gradient of aten.sqrt.default" in ran.out
    assert "4 not finite" in ran.out


def test_a_softmax_over_an_empty_row_is_nan_made_of_its_mask(tmp_path):
    mask = torch.tensor([[0.0, 0.0, 0.0], [-torch.inf, -torch.inf, -torch.inf]])
    made = written(tmp_path, nn.Linear(3, 3), lambda m, x: (m(x) + mask).softmax(-1).sum(), [torch.ones(2, 3)])
    ran = made.run()
    assert (ran.code, made.note["check"]) == (0, "nan")
    assert ran.verdict == "The fault shows again: 3 of 6 elements of output are NaN."

    def unmasked(call):
        call["args"][0][1, 0] = 0.0

    made.mend(unmasked)
    assert made.run().verdict == "The fault does not show: no element of output is NaN."


class Tokens(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4, dtype=dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return self.embed(ids)


def test_an_index_out_of_range_raises_again_and_one_within_it_does_not(tmp_path):
    made = written(tmp_path, Tokens(), lambda m, ids: m(ids).mean(), [torch.tensor([1, 9, 2])])
    ran = made.run()
    assert (ran.code, made.note["check"]) == (0, "exception")
    assert ran.verdict == "The fault shows again: the op raises IndexError."
    made.mend(lambda call: call["args"][1].clamp_(max=4))
    assert made.run().verdict == "The fault does not show: the op raises nothing."


def test_the_backward_of_an_embedding_runs_with_its_integers(tmp_path):
    model = Tokens(torch.float16)
    made = written(tmp_path, model, lambda m, ids: (m(ids).float() * 40000.0).sum(), [torch.tensor([1, 1, 1])])
    ran = made.run()
    assert (ran.code, made.note["call"]) == (0, "aten.embedding_dense_backward.default")
    assert "indices" in ran.out


def test_of_an_op_on_lists_the_lane_that_broke_is_run(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=3e38, foreach=True)
    made = written(tmp_path, model, lambda m, x: (m(x) * 100.0).sum(), [torch.ones(2, 2)], optimizer=optimizer)
    ran = made.run()
    assert "_foreach_" in made.note["call"]
    assert ran.code == 0, ran.out
    assert "self.0" in ran.out


def test_a_cast_that_pins_values_says_how_many_it_cut_off(tmp_path):
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return model(x.clamp(-448.0, 448.0)).mean()

    x = torch.full((4, 4), 5000.0)
    made = written(tmp_path, nn.Linear(4, 2), loss, [x] * 3, steps=3)
    ran = made.run()
    assert (ran.code, made.note["check"]) == (0, "pinned")
    assert ran.verdict == "The fault shows again: 16 values beyond 448.0 were cut off."
    made.mend(lambda call: call["args"][0].fill_(3.0))
    assert made.run().verdict == "The fault does not show: no values beyond 448.0 were cut off."


def erased(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x).half() * 4000.0
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).float().mean()


def collided(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) * torch.arange(4096).bfloat16().float().mean()).mean()


def gathered(model: nn.Module, x: Tensor) -> Tensor:
    degree = torch.zeros(2, dtype=torch.bfloat16)
    degree.index_add_(0, torch.zeros(2000, dtype=torch.long), torch.ones(2000, dtype=torch.bfloat16))
    return (model(x) / (degree.float().mean() + 1.0)).mean()


@pytest.mark.parametrize(
    ("loss", "check", "op"),
    [
        (erased, "non-finite", "aten.pow.Tensor_Scalar"),
        (collided, "collided", "aten._to_copy.default"),
        (gathered, "rounded", "aten.index_add_.default"),
    ],
)
def test_what_a_survey_finds_shows_again(tmp_path, loss, check, op):
    made = written(tmp_path, nn.Linear(4, 4), loss, [torch.ones(3, 4) * (1.0 + i / 10) for i in range(3)], steps=3)
    ran = made.run()
    assert (ran.code, made.note["check"], made.note["call"]) == (0, check, op), ran.out
    made.mend(lambda call: [t.zero_() for t in call["args"] if isinstance(t, Tensor)])
    assert made.run().code == 1


def test_an_average_that_moves_nothing_shows_again(tmp_path):
    model = nn.Linear(8, 8)
    target = torch.ones(8, 8, dtype=torch.bfloat16)
    model.register_buffer("target", target)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            model.target.lerp_(torch.full_like(model.target, 1.1), 0.005)
        return model(x).mean()

    made = written(tmp_path, model, loss, [torch.ones(3, 8)] * 3, steps=3)
    assert (made.run().code, made.note["check"]) == (0, "unmoved")


def test_a_loss_without_targets_is_nan_with_its_integers(tmp_path):
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return F.cross_entropy(model(x), torch.full((3,), -100))

    made = written(tmp_path, nn.Linear(4, 4), loss, [torch.ones(3, 4)])
    ran = made.run()
    assert (ran.code, made.note["call"]) == (0, "aten.nll_loss_forward.default"), ran.out
    made.mend(lambda call: call["args"][1].fill_(1))
    assert made.run().code == 1


def test_an_op_that_draws_is_tried_with_several_seeds(tmp_path):
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return torch.native_dropout(model(x).half() * 0 + 60000.0, 0.5, True)[0].float().mean()

    made = written(tmp_path, nn.Linear(4, 4), loss, [torch.ones(3, 4)])
    ran = made.run()
    assert (ran.code, made.note["draws"]) == (0, True), ran.out
    assert "10 seeds are tried" in made.script.read_text()
    made.mend(lambda call: call["args"][0].fill_(1.0))
    assert made.run().code == 1


def test_a_fused_update_shows_the_parameter_that_broke(tmp_path):
    model = nn.Linear(4, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e38, weight_decay=1e38, fused=True)
    made = written(
        tmp_path, model, lambda m, x: m(x).mean() * 1e20, [torch.ones(3, 4)] * 2, steps=2, optimizer=optimizer
    )
    ran = made.run()
    assert "_fused_adam" in made.note["call"]
    assert ran.code == 0, ran.out


# --- large calls -----------------------------------------------------------------------------------------------------


def test_a_large_matmul_keeps_the_rows_and_columns_that_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(nanhunt.saved_call, "MOST", 4096)
    model = nn.Linear(64, 64, bias=False).half()
    x = torch.ones(32, 64, dtype=torch.float16)
    x[7] = 60000.0
    nn.init.constant_(model.weight, 1.0)
    made = written(tmp_path, model, lambda m, x: m(x).float().mean(), [x])
    ran = made.run()
    assert ran.code == 0
    assert "1 rows and 16 columns that meet in elements that fail, of 32 × 64" in made.script.read_text()
    assert "float16 (1, 64)" in ran.out


def test_a_large_softmax_keeps_its_empty_row_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(nanhunt.saved_call, "MOST", 2048)
    mask = torch.zeros(16, 128)
    mask[5] = -torch.inf
    made = written(tmp_path, nn.Linear(4, 128), lambda m, x: (m(x) + mask).softmax(-1).sum(), [torch.ones(16, 4)])
    ran = made.run()
    assert ran.code == 0
    assert "float32 (1, 128)" in ran.out


def test_a_large_elementwise_op_keeps_the_elements_that_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(nanhunt.saved_call, "MOST", 1024)
    x = torch.ones(32, 32)
    x[3, 4] = 0.0
    made = written(tmp_path, nn.Linear(32, 32), lambda m, x: (m(x) * 0 + x).log().mean(), [x])
    assert made.run().verdict == "The fault shows again: 1 of 1 elements of output are non-finite."


# --- why there is none -----------------------------------------------------------------------------------------------


def log_of_zero(folder: Path, **settings: Any) -> Path:
    model = nn.Linear(3, 3)
    return traced(folder, model, lambda m, x: (m(x) * 0).log().mean(), [torch.ones(1, 3)], **settings)


def test_a_replay_without_the_zoom_says_so(tmp_path):
    trace = log_of_zero(tmp_path, zoom=False)
    with pytest.raises(UsageError, match="--no-zoom"):
        find_repro(Trace.open(trace), tmp_path / "repro.py")
    assert not repro_path(trace).exists()


def test_a_batch_that_was_nan_has_no_op_to_show(tmp_path):
    trace = traced(tmp_path, nn.Linear(2, 1), lambda m, x: m(x).mean(), [torch.full((2, 2), torch.nan)])
    with pytest.raises(UsageError, match="was there before the step"):
        find_repro(Trace.open(trace), tmp_path / "repro.py")


def test_a_healthy_replay_leaves_no_call_behind_not_even_an_earlier_ones(tmp_path):
    trace = log_of_zero(tmp_path)
    assert repro_path(trace).exists()
    traced(tmp_path, nn.Linear(2, 1), lambda m, x: m(x).mean(), [torch.ones(2, 2)], force=True)
    assert not repro_path(trace).exists()
    with pytest.raises(UsageError, match="no fault was found"):
        find_repro(Trace.open(trace), tmp_path / "repro.py")


def test_a_replay_that_is_refused_takes_nothing_away(tmp_path):
    trace = log_of_zero(tmp_path)
    with pytest.raises(Exception, match="exists already"):
        log_of_zero(tmp_path)
    assert repro_path(trace).exists()


def test_operands_that_are_gone_or_of_another_trace_are_refused(tmp_path):
    trace = log_of_zero(tmp_path)
    kept = repro_path(trace).read_bytes()
    repro_path(trace).write_bytes(kept + b" ")
    with pytest.raises(UsageError, match="is not the file"):
        find_repro(Trace.open(trace), tmp_path / "repro.py")
    repro_path(trace).unlink()
    with pytest.raises(UsageError, match="is gone"):
        find_repro(Trace.open(trace), tmp_path / "repro.py")


def test_a_trace_that_was_renamed_with_its_operands_finds_them(tmp_path):
    trace = log_of_zero(tmp_path)
    repro_path(trace).rename(tmp_path / "other.repro.pt")
    trace.rename(tmp_path / "other.parquet")
    find_repro(Trace.open(tmp_path / "other.parquet"), tmp_path / "repro.py").write()
    assert (tmp_path / "repro.pt").exists()


def test_the_trace_of_a_killed_replay_has_its_call_too(tmp_path):
    whole = log_of_zero(tmp_path)
    run = tiny_run(nn.Linear(3, 3), lambda m, x: (m(x) * 0).log().mean(), [torch.ones(1, 3)])
    writer = TraceWriter(whole, Manifest(settings={"steps": 1}), force=True)
    hunt(run, writer, HuntSettings(steps=1, trials=False))
    find_repro(Trace.open(writer.partial), tmp_path / "repro.py").write()
    assert (tmp_path / "repro.pt").exists()
    writer.close()


@pytest.mark.parametrize("name", ["repro.py", "repro.pt"])
def test_what_is_there_already_is_not_overwritten_and_no_report_is_printed(tmp_path, capsys, name):
    trace = log_of_zero(tmp_path)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        report(ReportOptions(trace=trace, repro=tmp_path / "repro.py"))
    assert (tmp_path / name).read_text() == "mine"
    assert capsys.readouterr().out == ""


# --- beside the report -----------------------------------------------------------------------------------------------


def test_the_report_is_printed_as_ever_and_names_the_option(tmp_path, capsys):
    trace = log_of_zero(tmp_path)
    report(ReportOptions(trace=trace, format="json", repro=tmp_path / "repro.py"))
    said = capsys.readouterr()
    assert json.loads(said.out)["outcome"] == "fault"
    assert f"wrote {tmp_path / 'repro.py'}" in said.err
    report(ReportOptions(trace=trace))
    assert "--repro repro.py" in " ".join(capsys.readouterr().out.split())


def test_a_script_without_its_operands_says_so(tmp_path):
    log = log_of_zero(tmp_path)
    find_repro(Trace.open(log), tmp_path / "repro.py").write()
    made = Written(script=tmp_path / "repro.py", note={})
    made.operands.unlink()
    assert made.run().code == 2


def test_what_a_trace_says_never_becomes_code(tmp_path):
    trace = Trace.open(log_of_zero(tmp_path))
    note = trace.note_of(NoteKind.REPRO)
    assert note is not None
    evil = '"""\nraise SystemExit(7)\n"""'
    note |= {"module": evil, "source": evil, "cut": evil, "torch": "{exit(7)}", "device": "{exit(7)}"}
    note["flags"] = {"default_dtype": "float32); exit(7", "x = 1; y": True, "float32_matmul_precision": "highest"}
    find_repro(trace, tmp_path / "repro.py").write()
    assert Written(script=tmp_path / "repro.py", note=note).run().code == 0
    for key in ("call", "forward", "check", "output", "error"):
        before, note[key] = note[key], "aten.log.default); exit(7"
        with pytest.raises(UsageError, match="can write down"):
            find_repro(trace, tmp_path / "other.py")
        note[key] = before
