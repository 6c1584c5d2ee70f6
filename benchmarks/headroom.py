"""What headroom costs: seconds and peak memory over a synthetic trace, by the number of its rows.

`make bench-headroom` runs it. Each size is read in a process of its own, so that its peak memory is its own; the trace's
tensors are as many as a model of 24 layers has, and its rows grow with the steps.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nanhunt import jsonsafe
from nanhunt.diagnosis.headroom import headroom_rows
from nanhunt.diagnosis.tensors import ROLES, merged_tensors
from nanhunt.trace.compact import ROW_GROUP_ROWS
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import METADATA_KEY, SCHEMA_VERSION, ArrowSchema, Manifest

MODULES = 300
BINS = 30


def main() -> None:
    """Print a line a size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[250_000, 500_000, 1_000_000, 2_000_000])
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.read:
        read(asked.read)
        return
    print(f"{'rows':>10}  {'tensors':>8}  {'seconds':>8}  {'peak MB':>8}  {'file MB':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for rows in asked.rows:
            path = Path(folder) / f"{rows}.parquet"
            write(path, rows)
            done = subprocess.run([sys.executable, "-m", "benchmarks.headroom", "--read", str(path)],
                                  capture_output=True, text=True, check=True)  # fmt: skip
            print(f"{rows:>10}  {done.stdout.strip()}  {path.stat().st_size / 1e6:>8.0f}")


def read(path: Path) -> None:
    """Compute the headroom of one trace; print tensors, seconds and the process's peak memory."""
    began = time.perf_counter()
    tensors = merged_tensors(Trace.open(path))
    headroom_rows(tensors)
    seconds = time.perf_counter() - began
    # kilobytes on Linux, bytes on macOS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    print(f"{len(tensors):>8}  {seconds:>8.1f}  {peak:>8.0f}")


def write(path: Path, rows: int) -> None:
    """Write a trace of this many tensor rows, as a replay would."""
    manifest = Manifest(checkpoint="synthetic").to_json()
    body = {"schema_version": SCHEMA_VERSION, "manifest": manifest, "notes": [], "complete": True, "reason": ""}
    rng = np.random.default_rng(1)
    strings = [f.name for f in ArrowSchema if pa.types.is_string(f.type)]
    with pq.ParquetWriter(path, ArrowSchema, compression="zstd", use_dictionary=strings) as parquet:
        for first in range(0, rows, ROW_GROUP_ROWS):
            parquet.write_table(_table(rng, first, min(ROW_GROUP_ROWS, rows - first)), row_group_size=ROW_GROUP_ROWS)
        parquet.add_key_value_metadata({METADATA_KEY: jsonsafe.dumps(body)})


def _table(rng: np.random.Generator, first: int, rows: int) -> pa.Table:
    """Return some rows: all roles of all modules, step after step."""
    index = np.arange(first, first + rows)
    role = index % len(ROLES)
    module = index // len(ROLES) % MODULES
    top = np.array([4, -12, -1, -10, -11, -20, -8])[role] + module % 5
    counts = rng.integers(1, 5000, rows * BINS)
    texts = {"phase": "forward", "pass": "replay", "name": "", "dtype": "float32"}
    columns = {
        "step": index // (len(ROLES) * MODULES),
        "role": pa.DictionaryArray.from_arrays(role, list(ROLES)).cast(pa.string()),
        "module": pa.DictionaryArray.from_arrays(module, [f"blocks.{m}.mlp" for m in range(MODULES)]).cast(pa.string()),
        "numel": np.full(rows, BINS * 2500),
        "amax": np.ldexp(rng.uniform(1, 2, rows), top),
        "amin": np.ldexp(1.0, top - BINS + 1),
        "l2": np.ldexp(math.sqrt(BINS * 2500), top - 2),
        "exp_lo": top - BINS + 1,
        "exp_hist": pa.ListArray.from_arrays(np.arange(0, rows * BINS + 1, BINS), counts),
    }
    columns |= {name: pa.array([text] * rows) for name, text in texts.items()}
    arrays = [pa.array(columns[f.name], f.type) if f.name in columns and not isinstance(columns[f.name], pa.Array)
              else columns[f.name].cast(f.type) if f.name in columns else pa.nulls(rows, f.type) for f in ArrowSchema]  # fmt: skip
    return pa.Table.from_arrays(arrays, schema=ArrowSchema)


if __name__ == "__main__":
    main()
