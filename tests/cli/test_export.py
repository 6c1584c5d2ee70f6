"""What an export holds is what the trace holds, read back by the tools that it is for."""

from __future__ import annotations

import json
import math
import sqlite3
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanhunt.export.steps import magnitudes
from nanhunt.formats.headroom import ExponentHistogram
from nanhunt.stats.tensor_stats import TensorStats
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import ArrowSchema, Manifest, Observation
from nanhunt.trace.writer import TraceWriter

VALUES = [2.5, math.nan, math.inf, -math.inf, 1e300, None]


def measured(values: list[float]) -> TensorStats:
    """Statistics of a tensor, by numpy."""
    x = np.abs(np.array(values))
    nonzero = x[x > 0]
    exponents = np.floor(np.log2(nonzero)).astype(int)
    low = int(exponents.min()) if nonzero.size else 0
    return TensorStats(
        numel=x.size, zero=int((x == 0).sum()), amax=float(x.max()), amin=float(nonzero.min()) if nonzero.size else 0.0,
        sum=float(np.sum(values)), sum_of_squares=float(np.square(x).sum()),
        exponents=ExponentHistogram(low, tuple(np.bincount(exponents - low).tolist())),
    )  # fmt: skip


@pytest.fixture
def trace(tmp_path) -> Path:
    """Six steps with every kind of number as the loss, a weight, an activation in two micro-batches, a zoom."""
    path = tmp_path / "trace.parquet"
    tensor = measured([0.0, 0.75, -1.0, 3.0])
    with TraceWriter(path, Manifest(started="2026-01-02T03:04:05+00:00", checkpoint="ckpt.pt")) as writer:
        for step, value in enumerate(VALUES):
            writer.write(
                [
                    Observation(step=step, phase="load", role="weight", module="mlp", name="weight", stats=tensor),
                    Observation(step=step, phase="update", role="scalar", name="loss", value=value),
                    Observation(step=step, phase="update", role="scalar", module="mlp", name="weight.rms_t", value=0.5),
                    Observation(step=step, phase="forward", role="output", module='a,"b"\n=1+1', stats=tensor),
                    Observation(step=step, phase="forward", role="output", module='a,"b"\n=1+1', stats=tensor, micro=1),
                    Observation(step=step, phase="forward", role="op", pass_="zoom", stats=TensorStats(numel=1, nan=1)),
                ]
            )
            writer.note("assumption", {"text": "a note", "value": math.nan})
            writer.flush()
    return path


def test_csv_has_the_traces_columns_rows_and_values(trace, fault_trace, nanhunt):
    for path in (trace, fault_trace):
        out = path.with_suffix(".csv")
        out.unlink(missing_ok=True)
        done = nanhunt("export", path, "--to", "csv")
        assert (done.code, done.out) == (0, "")
        assert done.err.startswith(f"wrote {out}: ")
        got = pd.read_csv(out, keep_default_na=False, na_values=[""])
        want = pd.read_parquet(path)
        assert list(got.columns) == ArrowSchema.names
        assert len(got) == len(want)
        for name in ("amax", "l2", "value", "numel", "nan"):
            np.testing.assert_array_equal(got[name].to_numpy(float), want[name].to_numpy(float))
        assert got["module"].fillna("").tolist() == want["module"].tolist()
        lists = [None if x is None else x.tolist() for x in want["exp_hist"]]
        assert [None if isinstance(x, float) else json.loads(x) for x in got["exp_hist"]] == lists


def test_csv_tells_not_measured_from_nan(trace, nanhunt):
    lines = nanhunt("export", trace, "--to", "csv", "-o", "-").out.splitlines()
    losses = [line.rpartition(",")[2] for line in lines if ',"loss",' in line]
    assert losses == ["2.5", "nan", "inf", "-inf", "1e+300", ""]


def test_json_is_one_strict_document(trace, nanhunt):
    done = nanhunt("export", trace, "--to", "json", "-o", "-")
    assert done.err == ""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    document = json.loads(done.out, parse_constant=refuse)
    assert document["schema"] == 1
    assert document["complete"] is True
    assert document["manifest"]["checkpoint"] == "ckpt.pt"
    assert document["notes"][0] == {"kind": "assumption", "body": {"text": "a note", "value": "NaN"}}
    losses = [row.get("value") for row in document["rows"] if row.get("name") == "loss"]
    assert losses == [2.5, "NaN", "Infinity", "-Infinity", 1e300, None]
    want = pd.read_parquet(trace)
    assert len(document["rows"]) == len(want)
    got = pd.DataFrame(document["rows"])
    assert got["numel"].fillna(-1).tolist() == want["numel"].fillna(-1).tolist()
    assert document["rows"][3]["exp_hist"] == [1, 1, 1]
    assert list(document["columns"]) == ArrowSchema.names


def test_json_of_a_trace_without_rows(tmp_path, nanhunt):
    TraceWriter(tmp_path / "t.parquet", Manifest()).close()
    assert json.loads(nanhunt("export", tmp_path / "t.parquet", "--to", "json", "-o", "-").out)["rows"] == []


def accumulated(folder: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0, "compressedHistograms": 1}
    )
    return events.Reload()


def test_tensorboard_reads_the_scalars_nan_and_all(trace, nanhunt):
    done = nanhunt("export", trace, "--to", "tensorboard")
    assert done.code == 0
    folder = trace.with_name("trace.tensorboard")
    assert f"tensorboard --logdir {folder}" in done.err
    events = accumulated(folder)
    losses = [(e.step, e.value) for e in events.Scalars("loss")]
    # a finite float64 beyond float32 stays finite; what was not measured is no event
    largest = float(np.finfo(np.float32).max)
    assert repr(losses) == repr([(0, 2.5), (1, math.nan), (2, math.inf), (3, -math.inf), (4, largest)])
    site = 'nanhunt/a,"b"\n=1+1/output'
    assert [e.value for e in events.Scalars(f"{site}/amax")] == [3.0] * 6
    assert events.Scalars(f"{site}/rms")[0].value == pytest.approx(np.sqrt(np.mean([0, 0.5625, 1, 9])))
    assert [e.value for e in events.Scalars(f"{site}.2/zero")] == [0.25] * 6
    assert [e.value for e in events.Scalars("nanhunt/mlp/weight.rms_t")] == [0.5] * 6
    assert events.Scalars("loss")[0].wall_time == 1767323045.0
    # neither what was loaded before the first step nor the zoom is a step
    assert not [tag for tag in events.Tags()["scalars"] if "/op/" in tag or "/weight/" in tag]


def test_tensorboard_reads_histograms_of_magnitudes(trace, nanhunt):
    nanhunt("export", trace, "--to", "tensorboard")
    events = accumulated(trace.with_name("trace.tensorboard"))
    found = events.Histograms('nanhunt/a,"b"\n=1+1/output/magnitude')
    assert [e.step for e in found] == list(range(6))
    histogram = found[0].histogram_value
    # one zero, then 0.75, 1.0 and 3.0 in a binade each
    assert histogram.bucket_limit == [0.5, 1.0, 2.0, 4.0]
    assert histogram.bucket == [1.0, 1.0, 1.0, 1.0]
    assert (histogram.min, histogram.max, histogram.num) == (0.0, 3.0, 4.0)
    assert histogram.sum_squares == pytest.approx(0.5625 + 1 + 9)
    assert histogram.sum == pytest.approx(0.75 + 1 + 3, rel=0.2)


def test_tensorboard_of_a_real_replay_has_its_losses(fault_trace, tmp_path, nanhunt):
    assert nanhunt("export", fault_trace, "--to", "tensorboard", "-o", tmp_path / "run").code == 0
    events = accumulated(tmp_path / "run")
    want = Trace.open(fault_trace).scalars("loss")
    got = {e.step: e.value for e in events.Scalars("loss")}
    assert got.keys() == want.keys()
    np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-6)
    for tag in events.Tags()["histograms"]:
        for event in events.Histograms(tag):
            histogram = event.histogram_value
            assert histogram.num == sum(histogram.bucket)
            assert histogram.bucket_limit == sorted(set(histogram.bucket_limit))


finite = st.floats(-1e150, 1e150).filter(lambda x: x == 0 or abs(x) > 1e-150)


@given(st.lists(finite, min_size=1, max_size=50))
@settings(deadline=None)
def test_a_histograms_numbers_agree_with_its_elements(values):
    stats = measured(values)
    row = {
        "exp_hist": list(stats.exponents.counts), "exp_lo": stats.exponents.lowest, "zero": stats.zero,
        "amax": stats.amax, "amin": stats.amin or None, "l2": math.sqrt(stats.sum_of_squares),
    }  # fmt: skip
    found = magnitudes(row)
    x = np.abs(np.array(values))
    assert found is not None
    assert found.num == x.size
    assert (found.low, found.high) == (x.min(), x.max())
    edges = np.array([-1.0, *found.limits])
    assert [((x >= a) & (x < b)).sum() for a, b in pairwise(edges)] == list(found.counts)
    assert list(edges) == sorted(set(edges))
    assert found.sum_squares == pytest.approx(np.square(x).sum())
    assert x.sum() / 2 <= found.sum * (1 + 1e-9)
    assert found.sum <= x.sum() * 2 * (1 + 1e-9)
    # what any numbers of that count and norm obey
    assert found.sum**2 <= found.num * found.sum_squares * (1 + 1e-9)


def test_the_ends_of_float64_have_a_histogram():
    stats = {
        "exp_lo": -1074,
        "exp_hist": [1] + [0] * 2096 + [2],
        "zero": 0,
        "amax": 1.7e308,
        "amin": 5e-324,
        "l2": 1e308,
    }
    found = magnitudes(stats)
    assert found is not None
    assert all(math.isfinite(x) for x in (*found.limits, found.sum, found.sum_squares))
    assert magnitudes({**stats, "exp_hist": None}) is None
    assert magnitudes({**stats, "exp_hist": [], "amax": None, "amin": None}) is None


@pytest.mark.parametrize("kind", ["csv", "json", "tensorboard"])
def test_an_existing_output_is_not_overwritten_without_force(kind, trace, nanhunt):
    out = trace.parent / "out"
    assert nanhunt("export", trace, "--to", kind, "-o", out).code == 0
    before = sorted((p, p.stat().st_mtime_ns) for p in out.parent.rglob("*"))
    refused = nanhunt("export", trace, "--to", kind, "-o", out)
    assert refused.is_clean_refusal
    assert "--force" in refused.err
    assert sorted((p, p.stat().st_mtime_ns) for p in out.parent.rglob("*")) == before
    assert nanhunt("export", trace, "--to", kind, "-o", out, "--force").code == 0
    assert len(list(out.parent.rglob("*"))) == len(before)


def test_force_leaves_other_programs_event_files_alone(trace, tmp_path, nanhunt):
    (tmp_path / "runs").mkdir()
    theirs = tmp_path / "runs" / "events.out.tfevents.123.host"
    theirs.write_bytes(b"their run")
    refused = nanhunt("export", trace, "--to", "tensorboard", "-o", tmp_path / "runs", "--force")
    assert refused.is_clean_refusal
    assert "name another folder" in refused.err
    assert theirs.read_bytes() == b"their run"


def test_an_export_that_fails_leaves_nothing(trace, tmp_path, nanhunt, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nanhunt.export.json._rows", broken)
    monkeypatch.setattr("nanhunt.export.tensorboard._values", broken)
    for kind in ("json", "tensorboard"):
        refused = nanhunt("export", trace, "--to", kind, "-o", tmp_path / "left" / ".." / f"{kind}-out")
        assert refused.code == 2
    assert not (tmp_path / "json-out").exists()
    assert not list(tmp_path.rglob("*.part"))
    assert not list(tmp_path.rglob("*tfevents*"))


def test_what_cannot_be_exported_is_refused(trace, tmp_path, nanhunt):
    misspelt = nanhunt("export", trace, "--to", "tensorbord")
    assert misspelt.is_clean_refusal
    assert "did you mean 'tensorboard'?" in misspelt.err
    assert nanhunt("export", tmp_path / "none.parquet", "--to", "csv").is_clean_refusal
    assert nanhunt("export", trace, "--to", "csv", "-o", tmp_path).is_clean_refusal
    assert nanhunt("export", trace, "--to", "csv", "-o", tmp_path / "no" / "folder.csv").is_clean_refusal
    assert nanhunt("export", trace, "--to", "tensorboard", "-o", "-").is_clean_refusal


@pytest.mark.parametrize("library", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_library_that_is_missing_is_named_with_its_extra(library, trace, nanhunt, monkeypatch):
    for name in [m for m in sys.modules if m.split(".")[0] == library] + [library]:
        monkeypatch.setitem(sys.modules, name, None)
    refused = nanhunt("export", trace, "--to", library)
    assert refused.is_clean_refusal
    assert f"pip install 'nanhunt[{library}]'" in refused.err


def test_an_incomplete_trace_is_exported_and_said_to_be(tmp_path, nanhunt):
    writer = TraceWriter(tmp_path / "t.parquet", Manifest())
    writer.write([Observation(step=3, phase="update", role="scalar", name="loss", value=1.0)])
    writer.flush()
    done = nanhunt("export", tmp_path / "t.parquet", "--to", "csv")
    assert done.code == 0
    assert "incomplete" in done.err
    assert (tmp_path / "t.csv").exists()
    writer.close()


def test_exports_need_no_torch(trace, tmp_path, environment):
    pytest.importorskip("tensorboard")
    program = (
        "import sys\nfrom pathlib import Path\nfrom nanhunt.commands.export import export\n"
        "for kind in ('csv', 'json', 'tensorboard'):\n"
        "    export(Path('trace.parquet'), kind, None, force=False, quiet=True)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_wandb_takes_the_run_offline(trace, tmp_path, nanhunt, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert nanhunt("export", trace, "--to", "wandb", "-o", tmp_path / "w").code == 0
    (log,) = (tmp_path / "w").rglob("run-*.wandb")
    assert b"nanhunt/mlp/weight.rms_t" in log.read_bytes()


def test_mlflow_takes_the_run_nan_and_all(trace, tmp_path, nanhunt, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "m").as_uri())
    mlflow.set_tracking_uri((tmp_path / "m").as_uri())
    assert nanhunt("export", trace, "--to", "mlflow").code == 0
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("nanhunt")
    (run,) = client.search_runs([experiment.experiment_id])
    losses = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")]
    assert repr(losses) == repr(list(enumerate(VALUES[:-1])))
    assert run.info.status == "FINISHED"
    assert run.data.params["checkpoint"] == "ckpt.pt"


def test_trackio_takes_the_run(trace, tmp_path, nanhunt, environment):
    pytest.importorskip("trackio")
    program = "import sys; from nanhunt.cli import main; main()"
    done = subprocess.run(  # trackio chooses its folder when it is imported
        [sys.executable, "-c", program, "export", trace, "--to", "trackio"],
        env={**environment, "TRACKIO_DIR": str(tmp_path / "t"), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(tmp_path / "t" / "nanhunt.db") as database:
        rows = database.execute("select step, metrics from metrics order by step").fetchall()
    assert [step for step, _ in rows] == list(range(6))
    assert json.loads(rows[0][1])["loss"] == 2.5
