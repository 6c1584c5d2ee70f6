"""Series over steps are what pandas makes of the same rows by grouping them."""

from __future__ import annotations

import math

import pandas as pd
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from nanhunt.diagnosis.series import by_place, largest_by_place, rows_whose

rows = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["", "h.0", "h.1"]),
        st.sampled_from(["", "weight"]),
        st.none() | st.floats(-10, 10) | st.just(math.nan),
    ),
    max_size=25,
)


def table_of(cells: list[tuple[int, str, str, float | None]]) -> pa.Table:
    kinds = {"step": pa.int64(), "module": pa.string(), "name": pa.string(), "value": pa.float64()}
    columns = list(zip(*cells, strict=True)) or [[]] * 4
    table = pa.table([pa.array(c, k) for c, k in zip(columns, kinds.values(), strict=True)], names=list(kinds))
    half = table.num_rows // 2  # each part has a dictionary of its own
    parts = [table.slice(0, half), table.slice(half)]
    encoded = [p.set_column(i, n, p.column(n).dictionary_encode()) for p in parts for i, n in [(1, "module")]]
    encoded = [p.set_column(2, "name", p.column("name").dictionary_encode()) for p in encoded]
    return pa.concat_tables(encoded)


@settings(deadline=None)
@given(rows)
def test_the_largest_of_each_step_is_pandas_own(cells):
    frame = pd.DataFrame(cells, columns=["step", "module", "name", "value"]).astype({"value": float})
    want = {}
    for (module, name, step), value in frame.groupby(["module", "name", "step"])["value"].max().items():
        want.setdefault((module, name), {})[step] = value
    found = largest_by_place(table_of(cells), "value")
    assert repr(found) == repr(want)


@settings(deadline=None)
@given(rows)
def test_the_last_of_each_step_stands_in_the_order_of_the_rows(cells):
    want: dict[tuple[str, str], dict[int, float]] = {}
    for step, module, name, value in cells:
        want.setdefault((module, name), {})[step] = math.nan if value is None else value
    assert repr(by_place(table_of(cells))) == repr(want)


def test_rows_are_chosen_by_their_text():
    table = table_of([(0, "a", "weight", 1.0), (1, "a", "", 2.0), (2, "b", "weight", None)])
    assert rows_whose(table, "name", lambda name: name.endswith("ight")).column("step").to_pylist() == [0, 2]
