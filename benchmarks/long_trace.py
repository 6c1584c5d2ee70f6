"""A trace as long as is asked for: what a replay of a few steps wrote, repeated before it with its numbers moved.

How it works. `nanhunt replay` runs the last steps of a run whose last batch, on demand, has no label to learn from. The
trace that it writes is real: rows, scalars, notes, the zoom and the trials. The steps before it are made of its own
healthy ones, under their own numbers of step and row.

What was chosen. Counts are those of tensors `SCALE` times as large, with the noise that counting has, and histograms
reach as far down as those do: both are what a file's size hangs on. Sums keep all the digits that a sum has, extremes
the ones of fp32. No two steps are alike, so nothing is compressed that would not be in a real trace.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from nanhunt import jsonsafe
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import ENDED_KEY, METADATA_KEY, NOTES_KEY, ArrowSchema

__all__ = ["REPLAYED", "batches", "loss", "model", "replay", "write_stream"]

#: Steps that are replayed, and how many times larger the tensors of the steps before them are taken to be.
REPLAYED = 6
SCALE = 64
#: Bins that a histogram of a tensor so much larger has below its first one: each holds half of what the next one does.
_DEEPER = 6

_CONFIG = """
model: {{call: benchmarks.long_trace:model, kwargs: {{layers: {layers}}}}}
data: {{call: benchmarks.long_trace:batches, kwargs: {{fault_at: {fault_at}}}}}
loss: benchmarks.long_trace:loss
optimizer: {{call: torch.optim:AdamW, kwargs: {{lr: 3.0e-4}}}}
train: {{steps: {steps}, clip_grad_norm: 1.0}}
"""


def model(layers: int) -> Any:
    """Return a GPT of some ten modules and 180 rows a layer and step."""
    import torch

    from benchmarks.gpt import GPT, Size

    torch.manual_seed(0)
    return GPT(Size(layers=layers, width=64, heads=4, vocabulary=512, context=64))


def batches(start_step: int, fault_at: int) -> Iterator[dict[str, Any]]:
    """Yield random tokens, a batch a step; at `fault_at` no label counts."""
    import torch

    for step in itertools.count(start_step):
        tokens = torch.randint(512, (4, 65), generator=torch.Generator().manual_seed(step))
        labels = torch.full((4, 64), -100) if step == fault_at else tokens[:, 1:]
        yield {"x": tokens[:, :-1], "labels": labels}


def loss(model: Any, batch: dict[str, Any]) -> Any:
    """Return the mean cross-entropy over the labels that count."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(model(batch["x"]).flatten(0, 1), batch["labels"].flatten())


def replay(folder: Path, *, layers: int, steps: int, fault: bool) -> Path:
    """Replay the last `REPLAYED` of `steps` steps; with a fault in the last one, or without one. Return the trace."""
    import torch

    built = model(layers)
    optimizer = torch.optim.AdamW(built.parameters(), lr=3e-4)
    for batch in itertools.islice(batches(0, fault_at=-1), 2):
        loss(built, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    first = steps - REPLAYED
    torch.save({"model": built.state_dict(), "optimizer": optimizer.state_dict(), "step": first}, folder / "ckpt.pt")
    config = _CONFIG.format(layers=layers, fault_at=steps - 1 if fault else -1, steps=REPLAYED)
    (folder / "nanhunt.yaml").write_text(config)
    path = folder / "short.parquet"
    line = [
        sys.executable,
        "-m",
        "nanhunt",
        "replay",
        str(folder / "ckpt.pt"),
        "--out",
        str(path),
        "--force",
        "--quiet",
    ]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    return path


def write_stream(short: Path, path: Path) -> int:
    """Write the stream of the long run that ends in the trace `short`, a batch a step; return its rows."""
    trace = Trace.open(short)
    table = pq.read_table(short).replace_schema_metadata(None).combine_chunks()
    step, phase, pass_ = (table.column(name).to_numpy(zero_copy_only=False) for name in ("step", "phase", "pass"))
    first, rng, rows = trace.steps[0], np.random.default_rng(1), 0
    healthy = [table.filter(pa.array((step == s) & (phase != "load") & (pass_ == "replay"))) for s in trace.steps[:-1]]
    schema = ArrowSchema.with_metadata({METADATA_KEY: jsonsafe.dumps(trace.manifest.to_json())})
    notes = [{"kind": note.kind, "body": note.body} for note in trace.notes]
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        loaded = _set(table.filter(pa.array(phase == "load")), "step", np.int64(0))
        stream.write_batch(loaded.to_batches()[0])
        rows, seq = loaded.num_rows, loaded.num_rows
        for at in range(first):
            moved = _moved(healthy[at % len(healthy)], rng)
            moved = _set(_set(moved, "step", np.int64(at)), "seq", np.arange(seq, seq + moved.num_rows))
            stream.write_batch(moved.combine_chunks().to_batches()[0])
            rows, seq = rows + moved.num_rows, seq + moved.num_rows
        last = table.filter(pa.array(phase != "load"))
        last = _set(last, "seq", last.column("seq").to_numpy() + seq).combine_chunks().to_batches()[0]
        stream.write_batch(last, custom_metadata={NOTES_KEY: jsonsafe.dumps(notes), ENDED_KEY: jsonsafe.dumps("end")})
    return rows + last.num_rows


def _set(table: pa.Table, name: str, values: Any) -> pa.Table:
    """Return the table with other numbers in one column; one number for all rows is enough."""
    at = table.schema.get_field_index(name)
    column = pa.array(np.broadcast_to(values, table.num_rows), table.schema.field(at).type)
    return table.set_column(at, table.schema.field(at), column)


def _moved(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Return a step's rows with numbers of another step, of tensors that are `SCALE` times as large."""
    for name in ("amax", "amin", "mean", "std", "l2", "value"):
        column = table.column(name)
        old = column.to_numpy()
        new = np.where(old == np.rint(old), old, old * (1.0 + 1e-3 * rng.standard_normal(old.size)))
        new = new.astype(np.float32).astype(np.float64) if name in ("amax", "amin") else new
        table = _set_where(table, name, new, column)
    for name in ("numel", "zero", "subnormal"):
        column = table.column(name)
        scaled = column.fill_null(0).to_numpy() * SCALE
        table = _set_where(table, name, scaled if name == "numel" else _counted(scaled, rng), column)
    return _deeper(_wider(table), rng)


def _set_where(table: pa.Table, name: str, values: npt.NDArray[Any], like: Any) -> pa.Table:
    """Set a column, null where it was null."""
    at = table.schema.get_field_index(name)
    mask = like.is_null().combine_chunks().to_numpy(zero_copy_only=False)
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type, mask=mask))


def _counted(expected: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return counts of what is expected so many times."""
    noise = np.sqrt(expected) * rng.standard_normal(expected.size)
    return np.maximum(np.rint(expected + noise), 0).astype(np.int64)


def _wider(table: pa.Table) -> pa.Table:
    """Return the table with shapes whose first dimension is `SCALE` times as large."""
    lists = table.column("shape").combine_chunks()
    lengths = lists.value_lengths().fill_null(0).to_numpy()
    sizes = lists.flatten().to_numpy().copy()
    sizes[(np.cumsum(lengths) - lengths)[lengths > 0]] *= SCALE
    return _set_lists(table, "shape", lengths, sizes, lists)


def _deeper(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Return the table with histograms of tensors so much larger, which reach further down."""
    lists = table.column("exp_hist").combine_chunks()
    lengths = lists.value_lengths().fill_null(0).to_numpy().astype(np.int64)
    counts = lists.flatten().to_numpy() * float(SCALE)
    start = (np.cumsum(lengths) - lengths)[lengths > 0]
    below = counts[start][:, None] / 2.0 ** np.arange(_DEEPER, 0, -1)
    deeper = np.insert(counts, np.repeat(start, _DEEPER), below.ravel())
    lows = table.column("exp_lo")
    table = _set_where(table, "exp_lo", lows.fill_null(0).to_numpy() - _DEEPER, lows)
    return _set_lists(table, "exp_hist", lengths + _DEEPER * (lengths > 0), _counted(deeper, rng), lists)


def _set_lists(table: pa.Table, name: str, lengths: Any, values: Any, like: Any) -> pa.Table:
    """Set a column of lists by their lengths and values, null where it was null."""
    at = table.schema.get_field_index(name)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.array(values, pa.int64()), mask=like.is_null())
    return table.set_column(at, table.schema.field(at), lists)
