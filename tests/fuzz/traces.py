"""Inputs for the reading of traces: finished and unfinished ones, damaged in their bytes, their metadata or their rows."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas  # noqa: F401 - a second each time that a forked process would import it
import pyarrow as pa
import pyarrow.parquet as pq

from nanhunt import jsonsafe
from nanhunt.commands.trace_formats import trace_formats
from nanhunt.commands.trials import trials
from nanhunt.comparison.compare import compare
from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.formats.headroom import ExponentHistogram
from nanhunt.report.diff.renderer import DIFF_RENDERERS
from nanhunt.report.html.page import HtmlRenderer
from nanhunt.report.json import JsonRenderer
from nanhunt.report.markdown import MarkdownRenderer
from nanhunt.report.repro import script_of
from nanhunt.report.terminal import TerminalRenderer
from nanhunt.stats.tensor_stats import TensorStats
from nanhunt.trace.compact import parquet_writer
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import METADATA_KEY, NOTES_KEY, ArrowSchema, Manifest, NoteKind, Observation
from nanhunt.trace.writer import TraceWriter, partial_path
from tests.fuzz.mutation import mutated
from tests.fuzz.odd import NUMBERS, changed, odd_text

__all__ = [
    "diff",
    "NOTES",
    "load",
    "make_metadata",
    "make_parquet",
    "make_partial",
    "make_partial_notes",
    "make_rows",
    "report",
    "seeds",
    "sound_table",
]

#: A body or two of every kind of note, as replays of this repository's tests wrote them.
NOTES: list[tuple[str, dict[str, Any]]] = [
    (kind, body) for kind, body in jsonsafe.loads((Path(__file__).parent / "seeds" / "notes.json").read_text())
]


def load(path: Path) -> None:
    """Do with the trace what `report`, `formats --trace` and `trials` do, in every format."""
    trace = report(path)
    trace_formats(path, []).document()
    trials(path)
    body = trace.note_of(NoteKind.REPRO)
    if body is not None and not body.get("reason"):
        compile(script_of(body, data="repro.pt", trace=path.name), "repro.py", "exec")


def report(path: Path) -> Trace:
    """Do with the trace what `report` does, in every format."""
    trace = Trace.open(path)
    diagnosis = diagnose(trace)
    for renderer in (TerminalRenderer, JsonRenderer, MarkdownRenderer, HtmlRenderer):
        renderer(width=100, color=True, top=5, verbose=True).render(diagnosis)
    return trace


def diff(path: Path) -> None:
    """Compare the trace with itself and with a sound one, in every format."""
    sound = path.with_name("sound.parquet")
    sound.write_bytes(seeds()[0][0])
    for other in (path, sound):
        comparison = compare(Trace.open(path), Trace.open(other))
        for renderer in DIFF_RENDERERS:
            renderer(width=100, color=True, top=5, verbose=True).render(comparison)


def _rows(step: int) -> list[Observation]:
    """Return what a step of a small model leaves: every role, a scalar or two, a health row."""
    exponents = ExponentHistogram(-4, (1, 5, 9, 3))
    sound = TensorStats(numel=64, zero=46, amax=1.5, amin=0.07, sum=3.0, exponents=exponents)
    broken = TensorStats(numel=64, nan=1, posinf=2, neginf=3, zero=1, subnormal=1, amax=65504.0, amin=6e-8, sum=2.0)
    places = (("forward", "input"), ("forward", "output"), ("backward", "grad_input"), ("backward", "grad_output"))
    rows = [
        Observation(
            step=step,
            phase=phase,
            role=role,
            module=module,
            dtype="float16",
            shape=(8, 8),
            stats=broken if step == 4 else sound,
        )
        for phase, role in places
        for module in ("h.0.mlp", "")
    ]
    kept = (
        ("update", "weight"),
        ("backward", "grad"),
        ("update", "exp_avg"),
        ("update", "exp_avg_sq"),
        ("update", "update"),
    )
    rows += [
        Observation(
            step=step,
            phase=phase,
            role=role,
            module="h.0.mlp",
            name="weight",
            dtype="float32",
            shape=(8, 8),
            stats=sound,
        )
        for phase, role in kept
    ]
    scalars = {"loss": 2.5 + 9 * (step == 4), "grad_norm": 1.0, "lr": 1e-3, "loss_scale": 65536.0, "weight.rms_t": 0.5}
    scalars |= {"weight.input.flushed": 0.3, "weight.gradient.error": 0.9}
    rows += [
        Observation(step=step, phase="update", role="scalar", module="h.0.mlp" if "." in n else "", name=n, value=v)
        for n, v in scalars.items()
    ]
    if step == 4:
        rows.append(
            Observation(
                step=4,
                phase="forward",
                role="op",
                pass_="zoom",
                module="h.0.mlp",
                op="aten.exp",
                source="t.py:8",
                stats=broken,
            )
        )
    return rows


@functools.cache
def seeds() -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Return finished and unfinished traces: one with a note of each kind, one of a NaN, one of a spike, a healthy one."""
    root = Path(tempfile.mkdtemp(prefix="nanhunt-fuzz-seeds-"))
    of_a_nan = [
        n
        for n in NOTES
        if n[0] in ("onset", "birth", "lineage", "damage", "repeat", "trial", "source", "repro", "optimizer", "batch")
    ]
    of_a_spike = [
        n
        for n in NOTES
        if n[0] in ("factorial", "loss-twin", "sample-losses", "targets", "window", "recipe", "silent", "blocks")
    ]
    spike = ("onset", {"kind": "loss-spike", "step": 4, "phase": "forward", "detail": "loss rises", "lead_step": 3})
    finished, unfinished = [], []
    for i, notes in enumerate((NOTES, of_a_nan, [spike, *of_a_spike], [n for n in NOTES if n[0] == "benign"])):
        path = root / f"{i}.parquet"
        manifest = Manifest(
            checkpoint="ckpt.pt", device="cpu", settings={"steps": 6}, config={"train": {"accumulate": 1}}
        )
        with TraceWriter(path, manifest) as writer:
            for step in range(6):
                writer.write(_rows(step))
                for kind, body in notes[step::6]:
                    writer.note(kind, body)
                writer.flush()
            unfinished.append(partial_path(path).read_bytes())
        finished.append(path.read_bytes())
    shutil.rmtree(root)
    return tuple(finished), tuple(unfinished)


def make_parquet(folder: Path, rng: random.Random) -> Path:
    """Write a finished trace with bytes changed."""
    path = folder / "trace.parquet"
    path.write_bytes(mutated(rng.choice(seeds()[0]), seeds()[0], rng))
    return path


def make_partial(folder: Path, rng: random.Random) -> Path:
    """Write an unfinished trace with bytes changed."""
    path = folder / "trace.parquet.partial"
    path.write_bytes(mutated(rng.choice(seeds()[1]), seeds()[1], rng))
    return path


def make_metadata(folder: Path, rng: random.Random) -> Path:
    """Write a finished trace whose file is sound, and whose manifest or notes are damaged or odd."""
    table, metadata = _table(rng)
    text = metadata[METADATA_KEY]
    if rng.random() < 0.25:
        changed_text = mutated(text, [text], rng)
    else:
        body = json.loads(text)
        where = rng.choice(("notes", "notes", "notes", "manifest", ""))
        if where == "notes":
            at = rng.randrange(len(body["notes"]))
            body["notes"][at] = changed(body["notes"][at], rng)
            rng.shuffle(body["notes"])
        elif where:
            body[where] = changed(body[where], rng)
        else:
            body = changed(body, rng)
        changed_text = _json(body)
    return _written(folder / "trace.parquet", table, changed_text)


def make_rows(folder: Path, rng: random.Random) -> Path:
    """Write a finished trace whose rows hold odd values, each of its column's type."""
    table, metadata = _table(rng)
    rows = table.to_pylist()
    for _ in range(rng.choice((1, 3, 30))):
        row, field = rng.choice(rows), rng.choice(list(ArrowSchema))
        row[field.name] = _odd_cell(field.type, rng)
    if rng.random() < 0.1:
        rows = rows[: rng.randrange(3)]
    return _written(folder / "trace.parquet", pa.Table.from_pylist(rows, ArrowSchema), metadata[METADATA_KEY])


_SMALL = [n for n in NUMBERS if isinstance(n, int) and n is not True and n is not False and -(2**63) <= n < 2**63]


def _odd_cell(kind: Any, rng: random.Random) -> Any:
    if rng.random() < 0.15:
        return None
    if pa.types.is_list(kind):
        return [rng.choice(_SMALL) for _ in range(rng.choice((0, 1, 3, 3000)))]
    if pa.types.is_string(kind):
        names = (
            "scalar",
            "output",
            "replay",
            "zoom",
            "loss",
            "h.0.mlp",
            "float16",
            "e4m3",
            "weight.input.x",
            "a.weight.b.input.c",
        )
        return rng.choice((odd_text(rng), *names)).encode("utf-8", "replace").decode()
    if pa.types.is_floating(kind):
        return rng.choice([float(n) for n in NUMBERS if isinstance(n, float)])
    return rng.choice([n for n in _SMALL if pa.types.is_int64(kind) or -(2**31) <= n < 2**31])


def make_partial_notes(folder: Path, rng: random.Random) -> Path:
    """Write an unfinished trace whose stream is sound, and whose notes or manifest are damaged or odd."""
    stream = pa.ipc.open_stream(rng.choice(seeds()[1]))
    out = io.BytesIO()
    schema, batches = stream.schema, []
    with contextlib.suppress(StopIteration):
        while True:
            batches.append(stream.read_next_batch_with_custom_metadata())
    hit = rng.randrange(len(batches) + 1)
    if hit == len(batches):
        manifest = json.loads(schema.metadata[METADATA_KEY])
        schema = schema.with_metadata({METADATA_KEY: _json(changed(manifest, rng))})
    with pa.ipc.new_stream(out, schema) as writer:
        for i, found in enumerate(batches):
            metadata = dict(found.custom_metadata.items()) if found.custom_metadata is not None else {}
            if i == hit:
                notes = metadata.get(NOTES_KEY, b"[]")
                metadata[NOTES_KEY] = (
                    mutated(notes, [notes], rng) if rng.random() < 0.3 else _json(changed(json.loads(notes), rng))
                )
            writer.write_batch(found.batch, custom_metadata=metadata or None)
    path = folder / "trace.parquet.partial"
    path.write_bytes(out.getvalue()[: -rng.choice((1, 8, 100))])
    return path


def _json(value: Any) -> bytes:
    """Return JSON as the writer of traces spells it, or as a foreign hand might."""
    return json.dumps(value, separators=(",", ":")).encode()


def sound_table() -> tuple[Any, dict[bytes, bytes]]:
    """Return rows and metadata of a trace with a note of each kind."""
    with pq.ParquetFile(io.BytesIO(seeds()[0][0])) as file:
        return file.read().replace_schema_metadata(None), dict(file.metadata.metadata)


def _table(rng: random.Random) -> tuple[Any, dict[bytes, bytes]]:
    with pq.ParquetFile(io.BytesIO(rng.choice(seeds()[0]))) as file:
        return file.read().replace_schema_metadata(None), dict(file.metadata.metadata)


def _written(path: Path, table: Any, metadata: bytes) -> Path:
    with path.open("wb") as target, parquet_writer(target, ArrowSchema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({METADATA_KEY: metadata})
    return path
