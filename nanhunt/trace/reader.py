"""Trace: a finished, a running or a killed run's rows and notes, read from disk.

A trace is one Parquet file, the Arrow stream that a run in progress writes, or a folder with one of either a rank. Only
the columns and rows that are asked for are read.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nanhunt.errors import TraceError
from nanhunt.trace.columns import codes
from nanhunt.trace.rank_file import MAKE_ONE, Condition, NoStepError, RankFile, read_rank_file
from nanhunt.trace.schema import COLUMNS, OF_AN_ONSET, ArrowSchema, Manifest, Note, NoteKind, Phase
from nanhunt.trace.whole import PartCount, as_written, is_whole, part_counts, read_as_whole
from nanhunt.trace.writer import partial_path

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Trace"]


def _standing(notes: Sequence[Note]) -> Iterator[Note]:
    """Yield the notes without those of onsets that were taken back."""
    meant = max((i for i, note in enumerate(notes) if note.kind == NoteKind.MEANT.value), default=-1)
    return (note for i, note in enumerate(notes) if i >= meant or note.kind not in OF_AN_ONSET)


#: Integers that every row has; the other ones are null where a row has no tensor.
_ALWAYS_THERE = ("step", "micro", "rank", "seq")


class Trace:
    """What a run recorded.

    `manifest` is the first rank's. `complete` is False where the run did not come to its own end, or a rank is missing;
    `reason` then says why, and up to which step the trace reaches.
    """

    def __init__(self, path: Path, files: Sequence[RankFile], *, in_parts: bool = False) -> None:
        """Put the files of all ranks together; `open` is the way to get one from a path.

        Tensors that ranks hold in parts are read whole, from one rank, unless `in_parts`.
        """
        self.path = path
        by_rank = tuple(sorted(files, key=lambda f: f.manifest.rank))
        self._files = by_rank if in_parts else read_as_whole(by_rank)
        self._frames: dict[tuple[Any, ...], pd.DataFrame] = {}
        self.manifest: Manifest = self._files[0].manifest
        self.notes: tuple[Note, ...] = tuple(note for file in self._files for note in _standing(file.notes))
        self.rank_count = len(self._files)
        self.reason = self._why_incomplete()
        self.complete = not self.reason

    @classmethod
    def open(cls, path: Path | str) -> Trace:
        """Open a `.parquet`, a `.partial`, or a folder of rank files; without the first, the second stands in.

        Rows that a running process appends later are not seen: open it again. Raises TraceError.
        """
        path = _find(Path(path))
        if not path.is_dir():
            return cls(path, [read_rank_file(path)])
        files = _read_ranks(_rank_paths(path))
        _refuse_mixed_runs(path, files)
        return cls(path, files)

    def of_rank_with(self, kind: NoteKind) -> Trace:
        """Return the part of the first rank that has a note of this kind; of the first rank where none has."""
        file = next((f for f in self._files if any(n.kind == kind for n in f.notes)), self._files[0])
        return Trace(file.path, [file])

    def in_parts(self) -> Trace:
        """Return the same trace with each rank's own rows, those of its parts of sharded tensors among them."""
        return Trace(self.path, as_written(self._files), in_parts=True)

    def notes_of(self, kind: NoteKind | str) -> list[dict[str, Any]]:
        """Return the bodies of all notes of a kind, in the order in which they were written."""
        return [note.body for note in self.notes if note.kind == str(kind)]

    def notes_by_rank(self, kind: NoteKind) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (rank, body) of the notes of a kind, rank by rank."""
        for file in self._files:
            yield from ((file.manifest.rank, note.body) for note in _standing(file.notes) if note.kind == str(kind))

    def note_of(self, kind: NoteKind | str) -> dict[str, Any] | None:
        """Return the body of the first note of a kind, or None."""
        return next(iter(self.notes_of(kind)), None)

    def frame(
        self,
        columns: Sequence[str] | None = None,
        *,
        roles: Sequence[str] | None = None,
        passes: Sequence[str] | None = None,
        phases: Sequence[str] | None = None,
        modules: Sequence[str] | None = None,
        steps: tuple[int, int] | None = None,
    ) -> pd.DataFrame:
        """Return rows in the order in which they were written; `steps` is (first, last), both included.

        Where no row of some ten thousand is asked for, only the columns that tell so are read of them.

        The same types in every pandas: strings are `object` with None, floats and all counts (numel … subnormal,
        exp_lo) float64 with NaN for null, `shape` and `exp_hist` arrays or None, step, micro, rank and seq int64.
        Raises TraceError for a column that there is not.
        """
        asked = (columns, roles, passes, phases, modules, steps)
        key = tuple(None if part is None else tuple(part) for part in asked)
        if key not in self._frames:
            wanted = [c.name for c in COLUMNS] if columns is None else list(columns)
            table = self.table(wanted, roles=roles, passes=passes, phases=phases, modules=modules, steps=steps)
            self._frames[key] = _to_frame(table)
        # A copy of the frame, not of its data: a column that one caller adds is not seen by the next.
        return self._frames[key].copy(deep=False)

    def table(
        self,
        columns: Sequence[str],
        *,
        roles: Sequence[str] | None = None,
        passes: Sequence[str] | None = None,
        phases: Sequence[str] | None = None,
        modules: Sequence[str] | None = None,
        dtypes: Sequence[str] | None = None,
        steps: tuple[int, int] | None = None,
    ) -> Any:
        """Return the rows of `frame` as an Arrow table, read anew; text comes as dictionaries."""
        unknown = [c for c in columns if c not in ArrowSchema.names]
        if unknown:
            raise TraceError(f"a trace has no column {unknown[0]!r}", hint=f"it has {', '.join(ArrowSchema.names)}")
        conditions = _conditions(roles, passes, phases, modules, dtypes, steps)
        return pa.concat_tables([file.read(list(columns), conditions) for file in self._files])

    def tables(
        self,
        columns: Sequence[str],
        *,
        roles: Sequence[str] | None = None,
        passes: Sequence[str] | None = None,
        ranks: int | None = None,
    ) -> Iterator[Any]:
        """Yield rows as Arrow tables, some ten thousand at a time, so that a trace larger than memory can be read.

        Text comes as dictionaries. `ranks` is how many ranks are read, None for all.
        """
        # what ranks hold in parts is read whole from the rank that looked into the fault
        files = sorted(self._files, key=lambda f: not is_whole(f)) if ranks is not None else self._files
        for file in files[:ranks]:
            yield from file.parts(list(columns), _conditions(roles, passes))

    def part_counts(self, step: int) -> dict[tuple[str, ...], tuple[PartCount, ...]]:
        """Return what each rank's part has of a step's sharded tensors, by phase, role, module and name; {} without any."""
        return part_counts(self._files, step)

    def scalars(self, name: str) -> dict[int, float]:
        """Return a scalar of the replay by step ("loss", "grad_norm", "lr"): first rank, last value of a step.

        NaN is kept; a step whose value was not measured is left out.
        """
        return dict(self._scalars.get(name, {}))

    def scalars_of_ranks(self, name: str) -> list[dict[int, float]]:
        """Return the same of each rank, in the order of ranks."""
        return [Trace(file.path, [file]).scalars(name) for file in self._files]

    @cached_property
    def _scalars(self) -> dict[str, dict[int, float]]:
        """All scalars of the replay that are of no module, by name and step: they are asked for one by one."""
        here = _conditions(["scalar"], ["replay"], modules=[""])
        table = self._files[0].read(["name", "step", "value"], here)
        found: dict[str, dict[int, float]] = {}
        for name, step, value in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if value is not None:
                found.setdefault(name, {})[step] = value
        return found

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """The steps of the replay that have rows, ascending; what was loaded before the first step is none."""
        here = _conditions(passes=["replay"], phases=[phase for phase in Phase if phase is not Phase.LOAD])
        found = {step for file in self._files for part in file.parts(["step"], here) for step in _distinct(part)}
        return tuple(sorted(found))

    @property
    def first_step(self) -> int | None:
        """The first of `steps`; None where there is none."""
        return self.steps[0] if self.steps else None

    @property
    def last_step(self) -> int | None:
        """The last of `steps`; None where there is none."""
        return self.steps[-1] if self.steps else None

    def _why_incomplete(self) -> str:
        """Return why the trace is not complete, or ''."""
        file = next((f for f in self._files if f.ended != "end"), None)
        if file is not None:
            who = f"rank {file.manifest.rank}: " if self.rank_count > 1 else ""
            reach = "no step is here" if self.last_step is None else f"steps up to {self.last_step} are here"
            return f"{who}{_ending(file.ended)}; {reach}"
        ranks = {f.manifest.rank for f in self._files}
        missing = next((r for r in range(self.manifest.world_size) if r not in ranks), None)
        return "" if missing is None else f"of {self.manifest.world_size} ranks, rank {missing} is missing"


def _find(path: Path) -> Path:
    """Return the file or folder that `path` stands for."""
    try:
        if path.exists():
            return path
        if partial_path(path).is_file():
            return partial_path(path)
        if path.suffix == ".partial" and path.with_suffix("").is_file():
            # The run came to its end since somebody noted the partial's name.
            return path.with_suffix("")
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}") from error
    raise TraceError(f"there is no trace {path}", hint=_nearby(path))


def _nearby(path: Path) -> str:
    """Return a hint that names traces next to a path where none is."""
    try:
        names = sorted(p.name for p in path.parent.iterdir() if _is_trace_name(p))
    except OSError:
        return MAKE_ONE
    if not names:
        return f"no file in {path.parent} ends in .parquet; {MAKE_ONE}"
    close = difflib.get_close_matches(path.name, names, n=1)
    if close:
        return f"did you mean {path.parent / close[0]}?"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"in {path.parent} there is {', '.join(names[:5])}{more}"


def _is_trace_name(path: Path) -> bool:
    """Tell whether a name is that of a trace, finished or not."""
    return path.name.endswith((".parquet", ".parquet.partial")) and not path.name.startswith(".")


def _rank_paths(folder: Path) -> list[Path]:
    """Return a folder's rank files; a partial only where its Parquet file is missing."""
    try:
        found = sorted(p for p in folder.iterdir() if _is_trace_name(p) and p.is_file())
    except OSError as error:
        raise TraceError(f"cannot read {folder}: {error.strerror}") from error
    paths = [p for p in found if p.suffix != ".partial" or p.with_suffix("") not in found]
    if not paths:
        raise TraceError(f"{folder} holds no trace: no file in it ends in .parquet", hint=MAKE_ONE)
    return paths


def _read_ranks(paths: Sequence[Path]) -> list[RankFile]:
    """Read the ranks that have something to read; a rank that was killed at once must not hide the others."""
    files: list[RankFile] = []
    for path in paths:
        try:
            files.append(read_rank_file(path))
        except NoStepError:
            if not files and path == paths[-1]:
                raise
    return files


def _refuse_mixed_runs(folder: Path, files: Sequence[RankFile]) -> None:
    """Raise TraceError unless the files are different ranks of one run."""
    first = files[0]
    for other in files[1:]:
        for what in ("checkpoint_digest", "config", "world_size"):
            if getattr(other.manifest, what) != getattr(first.manifest, what):
                raise _mixed(folder, f"{first.path.name} and {other.path.name} differ in {what.replace('_', ' ')}")
    by_rank: dict[int, RankFile] = {}
    for file in files:
        twin = by_rank.setdefault(file.manifest.rank, file)
        if twin is not file:
            both = f"{twin.path.name} and {file.path.name}"
            raise _mixed(folder, f"{both} are both rank {file.manifest.rank}")


def _mixed(folder: Path, detail: str) -> TraceError:
    """Return the error for a folder that holds traces of several runs."""
    return TraceError(f"{folder} mixes different runs: {detail}", hint="name one of the files, or keep a folder a run")


def _ending(ended: str | None) -> str:
    """Return a clause for why a run has no end of its own."""
    if ended is None:
        return "the run was killed, or is still running"
    if ended.startswith("error: "):
        return f"the run stopped with {ended.removeprefix('error: ')}"
    return f"the run was {ended}" if ended == "interrupted" else f"the run ended early: {ended}"


def _conditions(
    roles: Sequence[str] | None = None,
    passes: Sequence[str] | None = None,
    phases: Sequence[str] | None = None,
    modules: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    steps: tuple[int, int] | None = None,
) -> list[Condition]:
    """Return what `Trace.frame` was asked for as conditions on columns."""
    texts = {"role": roles, "pass": passes, "phase": phases, "module": modules, "dtype": dtypes}
    conditions: list[Condition] = [(name, "in", wanted) for name, wanted in texts.items() if wanted is not None]
    if steps is not None:
        conditions += [("step", ">=", steps[0]), ("step", "<=", steps[1])]
    return conditions


def _distinct(table: Any) -> list[int]:
    """Return the steps of some rows."""
    steps: list[int] = table.column("step").unique().drop_null().to_pylist()
    return steps


def _to_frame(table: Any) -> pd.DataFrame:
    """Return the table in pandas, with types that depend neither on the data nor on pandas' version."""
    import pandas as pd

    columns = {name: _to_series(name, table.column(name)) for name in table.column_names}
    return pd.DataFrame(columns, index=pd.RangeIndex(table.num_rows))


def _to_series(name: str, column: Any) -> pd.Series:
    """Return one column; see `Trace.frame` for its type."""
    import numpy as np
    import pandas as pd

    if pa.types.is_dictionary(column.type):
        # a hundred thousand equal names are one Python string
        words, places = codes(column)
        texts = np.array([*words[:-1], None], dtype=object)
        return pd.Series(texts[places], dtype=object)
    if pa.types.is_list(column.type):
        return pd.Series(column.to_pandas().to_numpy(dtype=object), dtype=object)
    if name in _ALWAYS_THERE and not column.null_count:
        return pd.Series(column.cast(pa.int64()).to_numpy())
    return pd.Series(column.cast(pa.float64(), safe=False).to_numpy())
