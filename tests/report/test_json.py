"""The document for scripts: the keys that it promises, and numbers that JSON does not have."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any, NoReturn

import pytest

from nanhunt.report.json import JsonRenderer
from tests.report.samples import EMPTY, HEALTHY, HOSTILE_STRINGS, INCONCLUSIVE, OVERFLOW, SAMPLES, diagnosis, row

DOCUMENT = {
    "schema",
    "outcome",
    "summary",
    "onset",
    "suspects",
    "cleared",
    "untold",
    "headroom",
    "assumptions",
    "run",
}
ONSET = {"kind", "step", "micro", "rank", "phase", "module", "op", "source", "samples", "lead_step"}
SUSPECT = {"cause", "rank", "grade", "location", "exhibits", "trials", "fixes"}
LOCATION = {"step", "phase", "module", "parameter", "op", "source", "samples"}
HEADROOM = {
    "module",
    "role",
    "format",
    "overflow_margin",
    "underflow_margin",
    "overflow_fraction",
    "subnormal_fraction",
    "flushed_fraction",
    "best_scale",
}


def refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


def parse(sample: Any) -> Any:
    return json.loads(JsonRenderer().render(sample), parse_constant=refuse)


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_document_has_the_promised_keys(sample: str) -> None:
    body = parse(SAMPLES[sample])
    assert body.keys() >= DOCUMENT
    assert body["schema"] == 1
    assert body["onset"] is None or body["onset"].keys() >= ONSET
    assert body["run"].keys() >= {"steps", "device", "checkpoint", "complete"}
    for suspect in body["suspects"]:
        assert suspect.keys() >= SUSPECT
        assert suspect["location"].keys() >= LOCATION
        assert all(e.keys() >= {"claim", "value", "threshold"} for e in suspect["exhibits"])
        assert all(t.keys() >= {"name", "outcome", "predicted", "detail"} for t in suspect["trials"])
    assert all(r.keys() >= HEADROOM for r in body["headroom"])
    assert all(u.keys() >= {"cause", "reason"} for u in body["untold"])


def test_the_document_says_what_the_diagnosis_says() -> None:
    body = parse(OVERFLOW)
    assert body["outcome"] == "fault"
    assert body["onset"]["samples"] == [3]
    assert body["onset"]["lead_step"] == 1229
    first = body["suspects"][0]
    assert (first["cause"], first["rank"], first["grade"]) == ("activation-overflow", 1, "confirmed")
    assert first["location"]["samples"] == [3]
    assert first["location"]["parameter"] is None
    assert first["exhibits"][0] == {
        "claim": "fp64 gives a finite number that fp16 cannot hold",
        "value": 70144.0,
        "threshold": 65504.0,
    }
    assert first["trials"][0]["predicted"] == first["trials"][0]["outcome"] == "cured"
    assert [s["rank"] for s in body["suspects"]] == [1, 2, 3]
    assert body["cleared"] == list(OVERFLOW.cleared)
    assert body["untold"][0] == {"cause": "rank-divergence", "reason": "the trace holds one rank only"}
    assert body["headroom"][0]["best_scale"] == 0.5
    assert body["run"]["complete"] is True


def test_onset_is_null_where_there_is_none() -> None:
    assert parse(HEALTHY)["onset"] is None


def test_a_trial_that_nobody_predicted_has_no_prediction() -> None:
    assert parse(HOSTILE_STRINGS)["suspects"][0]["trials"][0]["predicted"] is None


def test_numbers_that_json_does_not_have_are_strings() -> None:
    exhibit = parse(INCONCLUSIVE)["suspects"][0]["exhibits"][0]
    assert (exhibit["value"], exhibit["threshold"]) == ("NaN", "-Infinity")
    series = parse(HOSTILE_STRINGS)["series"]["loss"]["values"]
    assert series == [1.0, "Infinity", "-Infinity"]
    # and Python reads each of them back as the number it stands for
    assert math.isnan(float("NaN"))
    assert float("Infinity") == math.inf


def test_a_margin_that_is_infinite_and_a_scale_that_is_none_survive() -> None:
    body = parse(diagnosis("healthy", "", headroom=(row("head", "fp16", math.inf, best_shift=None),)))
    assert body["headroom"][0]["overflow_margin"] == "Infinity"
    assert body["headroom"][0]["best_scale"] is None


def test_a_run_that_says_nothing_has_nulls() -> None:
    assert parse(EMPTY)["run"] == {"steps": None, "device": None, "checkpoint": None, "complete": None}


def test_the_run_keeps_what_else_the_trace_says_whatever_its_type(tmp_path: Any) -> None:
    run = {"steps": 2, "note": (math.nan, tmp_path), "nested": {"a": {1: True}}}
    body = parse(replace(EMPTY, run=run))
    assert body["run"]["note"] == ["NaN", str(tmp_path)]
    assert body["run"]["nested"] == {"a": {"1": True}}


def test_names_come_back_as_they_were_except_for_half_surrogates() -> None:
    module = parse(HOSTILE_STRINGS)["onset"]["module"]
    assert module == HOSTILE_STRINGS.onset.module.replace("\udcff", r"\udcff")  # type: ignore[union-attr]


def test_the_document_is_ascii_so_that_any_pipe_carries_it() -> None:
    assert JsonRenderer().render(HOSTILE_STRINGS).isascii()


def test_the_document_is_complete_whatever_the_limits() -> None:
    assert JsonRenderer(top=1, width=40).render(OVERFLOW) == JsonRenderer(top=100).render(OVERFLOW)
