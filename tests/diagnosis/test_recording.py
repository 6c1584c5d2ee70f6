"""Histories of tensors, against pandas over the same rows; how steps become columns; what a batch keeps of a sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.recording import ROLES, Recording, fold
from nanhunt.facts import _field_facts
from nanhunt.trace.reader import Trace
from tests.browser.kept import trace_of


@pytest.fixture(scope="module", params=["bad-sample", "lr-spike"])
def trace(request: pytest.FixtureRequest) -> Trace:
    return Trace.open(trace_of(request.param))


def test_histories_are_the_rows_grouped_by_tensor_and_step(trace: Trace) -> None:
    told = Recording(Evidence(trace)).histories
    rows = trace.frame(roles=ROLES, passes=["replay"])
    assert [column[0] for column in told.columns] == list(trace.steps)
    rows = rows[rows["step"].isin(trace.steps)]
    keys = rows[["module", "role", "name"]].drop_duplicates().itertuples(index=False, name=None)
    assert [(t.module, t.role, t.name) for t in told.tensors] == list(keys)
    groups = dict(iter(rows.groupby(["module", "role", "name"], sort=False)))
    for tensor in told.tensors[::7]:
        by_step = groups[tensor.module, tensor.role, tensor.name].groupby("step")
        steps = list(trace.steps)
        for mine, theirs in (
            (tensor.amax, by_step["amax"].max()),
            (tensor.bad, by_step[["nan", "posinf", "neginf"]].sum().sum(axis=1)),
            (tensor.infinite, by_step[["posinf", "neginf"]].sum().sum(axis=1)),
        ):
            np.testing.assert_allclose(
                mine, theirs.reindex(steps, fill_value=0 if mine.dtype.kind == "i" else math.nan)
            )
        finite = by_step["numel"].sum() - by_step[["nan", "posinf", "neginf"]].sum().sum(axis=1)
        squares = by_step["l2"].agg(lambda column: (column**2).sum())
        expected = np.sqrt(squares / finite.clip(lower=1)).where(finite > 0).reindex(steps)
        np.testing.assert_allclose(tensor.rms, expected)


def test_exponents_are_counted_before_the_onset_and_in_its_step(trace: Trace) -> None:
    evidence = Evidence(trace)
    onset = evidence.onset
    assert onset is not None
    for tensor in Recording(evidence).histories.tensors[::20]:
        rows = trace.frame(roles=[tensor.role], passes=["replay"], modules=[tensor.module])
        rows = rows[(rows["name"] == tensor.name) & rows["exp_hist"].notna()]
        for mine, theirs in (
            (tensor.before, rows[rows["step"] < onset.step]),
            (tensor.at, rows[rows["step"] == onset.step]),
        ):
            counted: dict[int, int] = {}
            for low, counts in zip(theirs["exp_lo"], theirs["exp_hist"], strict=True):
                for exponent, count in enumerate(counts, start=int(low)):
                    counted[exponent] = counted.get(exponent, 0) + int(count)
            told = dict(enumerate(mine.counts, start=mine.lowest))
            assert {e: c for e, c in told.items() if c} == {e: c for e, c in counted.items() if c}


@pytest.mark.parametrize("onset", [None, 0, 3, 5000, 9999])
@pytest.mark.parametrize("count", [0, 1, 240, 241, 10_000])
def test_long_runs_fold_to_some_240_columns_that_hold_every_step_once(count: int, onset: int | None) -> None:
    steps = tuple(range(count))
    columns = fold(steps, onset)
    assert len(columns) <= 243
    assert [step for first, last in columns for step in range(first, last + 1)] == list(steps)
    if onset in steps:
        assert (onset, onset) in columns


def test_a_named_sample_keeps_its_tokens_and_another_does_not() -> None:
    tokens = torch.arange(3 * 600).reshape(3, 600)
    facts = _field_facts(tokens, 3, [2, 7])
    assert facts["excerpts"] == [{"sample": 2, "of": 600, "values": list(range(1200, 1712))}]
    assert "excerpts" not in _field_facts(tokens, 3, [])
    assert _field_facts(torch.tensor([4, 5, 6]), 3, [1])["excerpts"] == [{"sample": 1, "of": 1, "values": [5]}]
    # features of a sample are no words: its extremes say what there is to say
    assert "excerpts" not in _field_facts(torch.ones(3, 4), 3, [1])
