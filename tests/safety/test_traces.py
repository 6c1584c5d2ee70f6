"""A trace from a stranger runs nothing, fills no memory, and drives no terminal."""

from __future__ import annotations

import ast
import base64
import json
import pickle
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanhunt.cli import main
from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.errors import TraceError, UsageError
from nanhunt.report.repro import script_of
from nanhunt.report.terminal import TerminalRenderer
from nanhunt.trace.compact import parquet_writer
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import BACKEND_FLAGS, METADATA_KEY, ArrowSchema, NoteKind
from tests.fuzz import traces
from tests.fuzz.traces import NOTES
from tests.safety.attacks import PAYLOADS

HOSTILE = "\x1b]52;c;aGk=\x07\x1b[2J[red]x[/red][link=file:///etc/passwd]l[/link]\u202egnp.exe|`c`<script>alert(1)</script>](javascript:alert(1))\n# h"
CONTROLS = [chr(c) for c in (*range(32), *range(127, 160), 0x202E, 0x2066) if chr(c) != "\n"]


@pytest.fixture
def written(tmp_path):
    """A function that writes a sound trace with other notes, or other rows, and returns its path."""

    def write(notes=NOTES, change=lambda table: table, body=None):
        table, raw = traces.sound_table()
        path, table, metadata = tmp_path / "trace.parquet", change(table), json.loads(raw[METADATA_KEY])
        metadata["notes"] = [{"kind": kind, "body": content} for kind, content in notes]
        with path.open("wb") as target, parquet_writer(target, table.schema) as writer:
            writer.write_table(table, row_group_size=max(table.num_rows, 1))
            writer.add_key_value_metadata({METADATA_KEY: json.dumps(metadata | (body or {}))})
        return path

    return write


def run(*arguments, capsys, monkeypatch):
    """Run the command line; return exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["nanhunt", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    return code, *capsys.readouterr()


# --- what Arrow itself would run ---------------------------------------------------------------------------------------


def test_a_pickled_extension_type_is_not_unpickled(tmp_path):
    """The type that pyarrow unpickled before 14.0.1 (CVE-2023-47248), in the schema of a Parquet file and of a stream."""
    payload = pickle.dumps(PAYLOADS["os.system"](tmp_path / "it_ran"))
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": payload}
    schema = pa.schema([pa.field("step", pa.int64(), metadata=metadata)], {METADATA_KEY: b"{}"})
    table = pa.table({"step": [1]}, schema=schema)
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "b.parquet.partial"), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        stream.write_table(table)
    for name in ("a.parquet", "b.parquet.partial"):
        with pytest.raises(TraceError):
            Trace.open(tmp_path / name)
    assert not (tmp_path / "it_ran").exists()


def test_metadata_that_names_pandas_types_is_left_alone(written, tmp_path):
    evil = base64.b64encode(pickle.dumps(PAYLOADS["os.system"](tmp_path / "it_ran"))).decode()
    columns = [{"name": "step", "pandas_type": "object", "numpy_type": "object", "metadata": {"pickle": evil}}]
    table = written(
        change=lambda t: t.replace_schema_metadata({b"pandas": json.dumps({"columns": columns, "index_columns": []})})
    )
    Trace.open(table).frame()
    assert not (tmp_path / "it_ran").exists()


# --- memory ------------------------------------------------------------------------------------------------------------


def test_a_small_file_does_not_become_a_billion_rows(written):
    def many(table):
        row = table.slice(0, 1)
        return pa.concat_tables([row] * 1).take(pa.array([0] * 3_000_000))

    with pytest.raises(TraceError, match="claims 3,000,000 rows"):
        Trace.open(written(change=many))


def test_a_histogram_does_not_become_a_billion_bins(written):
    def long(table):
        bins = pa.array([[0] * 40_000_000] + [None] * (table.num_rows - 1), pa.list_(pa.int64()))
        return table.set_column(table.schema.get_field_index("exp_hist"), ArrowSchema.field("exp_hist"), bins)

    with pytest.raises(TraceError, match="values in a column"):
        Trace.open(written(change=long))


def test_a_compressed_stream_is_not_unpacked(tmp_path):
    schema = ArrowSchema.with_metadata({METADATA_KEY: b"{}"})
    path = tmp_path / "t.parquet.partial"
    batch = pa.record_batch([pa.nulls(100_000, f.type) for f in schema], schema=schema)
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_stream(file, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream,
    ):
        stream.write_batch(batch)
    with pytest.raises(TraceError, match="compressed"):
        Trace.open(path)


# --- the terminal, Markdown, JSON --------------------------------------------------------------------------------------


def _hostile(value):
    """Put the hostile text in the place of every text in a note, but for those that decide what the note is."""
    if isinstance(value, dict):
        return {
            k: v if k in ("kind", "phase", "check", "output", "recipe", "formats") else _hostile(v)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [_hostile(v) for v in value]
    return HOSTILE if isinstance(value, str) else value


@pytest.mark.parametrize("format", ["terminal", "markdown", "json", "html"])
def test_no_text_of_a_trace_reaches_the_reader_raw(format, written, capsys, monkeypatch):
    path = written(
        [(kind, _hostile(body)) for kind, body in NOTES if kind != "blocks"],
        body={"reason": HOSTILE, "complete": False},
    )
    code, out, err = run("report", path, "--format", format, "-v", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, err) == (0, "")
    assert "gnp.exe" in out
    assert not [c for c in CONTROLS if c in out]
    if format == "markdown":
        assert "<script" not in out.replace("`<script", "")
    if format == "html":
        assert "<script>alert" not in out
    if format == "terminal":
        assert "[red]" in out  # as it stands, and not as markup


def test_a_refusal_quotes_no_control_character(written, capsys, monkeypatch):
    path = written([("stall", {"reason": 1})], body={"schema_version": HOSTILE})
    code, out, err = run("report", path, capsys=capsys, monkeypatch=monkeypatch)
    assert (code, out) == (2, "")
    assert not [c for c in CONTROLS if c in err]


def test_names_of_a_checkpoint_reach_the_terminal_inert(tmp_path, capsys, monkeypatch):
    (tmp_path / "nanhunt.yaml").write_text("model: torch.nn:Identity\ndata: a:b\n")
    torch.save({HOSTILE: {HOSTILE: {HOSTILE: 1}}}, tmp_path / "a.pt")
    torch.save({"model": {HOSTILE: torch.zeros(2)}, "x": 1}, tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        argv = ("replay", tmp_path / name, "-c", tmp_path / "nanhunt.yaml", "--dry-run")
        code, out, err = run(*argv, capsys=capsys, monkeypatch=monkeypatch)
        assert code == 2
        assert not [c for c in CONTROLS if c in out + err]


@pytest.mark.parametrize("verdict", ["{format.__class__.__mro__}", "{0}", "{format:>999999999}", "{", "}"])
def test_text_of_a_trace_is_no_template(verdict, written):
    notes = [(k, b | {"fp64": "odd", "fp64_detail": verdict} if k == "birth" else b) for k, b in NOTES]
    path = written(notes)
    traces.report(path)
    assert verdict in TerminalRenderer(width=100, verbose=True).render(diagnose(Trace.open(path)))


# --- the script that `report --repro` writes -------------------------------------------------------------------------

REPRO = next(body for kind, body in NOTES if kind == NoteKind.REPRO and body.get("call"))


def _shape(source: str) -> list[str]:
    """Return the script's code without what its literals say."""
    nodes = ast.walk(ast.parse(source))
    return ["Constant" if isinstance(node, ast.Constant) else type(node).__name__ for node in nodes]


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["module", "phase", "source", "cut", "torch", "device", "error", "output"]),
        st.text()
        | st.sampled_from(
            ['"""\nimport os\nos.system("id")\n"""', "\\", '"', "'''", "@CALL@", "@HELPERS@", "\r", "\u2028", "\0"]
        ),
    )
)
def test_no_text_of_a_trace_becomes_code(texts):
    body = REPRO | texts
    try:
        script = script_of(body, data="repro.pt", trace='t"""\n.parquet')
    except UsageError:
        return
    assert _shape(script) == _shape(
        script_of(
            REPRO | {k: "x" for k in texts if texts[k]} | {k: "" for k in texts if not texts[k]}, data="d", trace="t"
        )
    )


@pytest.mark.parametrize(
    "call",
    [
        "aten.exp.default;import os",
        "os.system",
        "aten.exp.default\n",
        "aten.__class__.x",
        "aten.from_file.default",
        "aten.save.default",
        "aten.exp",
    ],
)
def test_only_ops_that_compute_are_written_down(call):
    if call == "aten.__class__.x":
        return  # no more than a name that torch has no op of
    with pytest.raises(UsageError, match="none that nanhunt"):
        script_of(REPRO | {"call": call}, data="repro.pt", trace="t")


def test_every_op_that_touches_files_is_among_those_refused():
    from nanhunt.report.repro import _TOUCH_FILES

    schemas = [s for s in torch._C._jit_get_all_schemas() if s.name.startswith("aten::")]
    files = {
        s.name.removeprefix("aten::")
        for s in schemas
        for a in s.arguments
        if re.search(r"file|(^|_)path(s|$)", a.name) and "str" in str(a.type)
    }
    assert files <= _TOUCH_FILES


@pytest.mark.parametrize(
    "flag", ["cudnn.torch.load", "__class__", "cudnn.os.environ", "x\nimport os", "mkldnn.enabled"]
)
def test_no_flag_but_torchs_own_is_set_by_a_script(flag):
    script = script_of(REPRO | {"flags": {flag: True, BACKEND_FLAGS[0]: True}}, data="repro.pt", trace="t")
    assert flag not in script
    assert f"torch.backends.{BACKEND_FLAGS[0]} = True" in script


def test_the_operands_of_a_script_are_not_unpickled(tmp_path):
    script = tmp_path / "repro.py"
    script.write_text(script_of(REPRO, data="repro.pt", trace="t"))
    torch.save({"args": [PAYLOADS["os.system"](tmp_path / "it_ran")], "kwargs": {}}, tmp_path / "repro.pt")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert "WeightsUnpickler" in done.stderr or "weights_only" in done.stderr
    assert not (tmp_path / "it_ran").exists()


def test_a_report_imports_nothing_that_a_trace_names(written, tmp_path):
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'it_ran')!r}, 'w').close()\n")
    notes = [
        (k, json.loads(json.dumps(b).replace("h.0.mlp", "evil_module").replace("train.py", "evil_module.py")))
        for k, b in NOTES
    ]
    path = written(
        notes,
        body={
            "manifest": {"config": {"model": {"call": "evil_module:x"}}, "config_path": str(tmp_path / "nanhunt.yaml")}
        },
    )
    done = subprocess.run(
        [sys.executable, "-m", "nanhunt", "report", str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "it_ran").exists()


def test_every_kind_of_note_has_a_shape_and_an_example() -> None:
    from nanhunt.trace.note_shapes import _SHAPES

    assert set(_SHAPES) == set(NoteKind)
    assert {kind for kind, _ in NOTES} == set(NoteKind) - {NoteKind.COMPLETE}
