"""What holds of every renderer and every diagnosis."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from nanhunt.report import RENDERERS
from nanhunt.report.renderer import Renderer
from tests.report.samples import ESCAPE, SAMPLES

FOR_PEOPLE = [r for r in RENDERERS if r.name != "json"]


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("width", [1, 60, 80, 120, 200])
@pytest.mark.parametrize("renderer", RENDERERS, ids=lambda r: r.name)
def test_every_diagnosis_renders_to_lines_that_end(renderer: type[Renderer], width: int, sample: str) -> None:
    for color in (False, True):
        text = renderer(width=width, color=color, verbose=color, top=3).render(SAMPLES[sample])
        assert text.endswith("\n")
        text.encode("utf-8")


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("renderer", FOR_PEOPLE, ids=lambda r: r.name)
def test_the_first_line_carries_the_verdict(renderer: type[Renderer], sample: str) -> None:
    first = renderer().render(SAMPLES[sample]).splitlines()[0]
    assert SAMPLES[sample].outcome in first
    assert {"fault": "✗", "healthy": "✓", "inconclusive": "?"}[SAMPLES[sample].outcome] in first


@pytest.mark.parametrize("renderer", FOR_PEOPLE, ids=lambda r: r.name)
def test_an_incomplete_trace_says_so_in_the_first_line_with_the_last_step(renderer: type[Renderer]) -> None:
    text = renderer().render(SAMPLES["incomplete"])
    assert "incomplete trace, up to step 1212" in text.splitlines()[0]
    assert "the replay was killed" in text


@pytest.mark.parametrize("renderer", RENDERERS, ids=lambda r: r.name)
@pytest.mark.parametrize("sample", SAMPLES)
def test_without_colour_there_is_no_control_character(renderer: type[Renderer], sample: str) -> None:
    text = renderer(color=False, verbose=True).render(SAMPLES[sample])
    # isprintable is false of escape, bell, C1 controls, bidirectional overrides and lone surrogates alike
    assert all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("renderer", FOR_PEOPLE, ids=lambda r: r.name)
def test_what_could_not_be_judged_is_said_with_its_reason(renderer: type[Renderer]) -> None:
    text = renderer(width=150).render(SAMPLES["overflow"])
    for slug, reason in SAMPLES["overflow"].untold:
        assert slug in text
        assert reason in text


@pytest.mark.parametrize("renderer", RENDERERS, ids=lambda r: r.name)
def test_every_assumption_is_printed(renderer: type[Renderer]) -> None:
    text = renderer(width=200).render(SAMPLES["overflow"])
    assert "CUDA's autocast list is applied on this CPU" in text
    assert "was stripped from 124 of 124 tensors" in text


@pytest.mark.parametrize("renderer", RENDERERS, ids=lambda r: r.name)
def test_a_report_is_a_function_of_the_diagnosis(renderer: type[Renderer], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = renderer(width=120).render(SAMPLES["overflow"])
    for name, value in {"COLUMNS": "40", "FORCE_COLOR": "1", "TERM": "dumb", "LANG": "C"}.items():
        monkeypatch.setenv(name, value)
    assert renderer(width=120).render(SAMPLES["overflow"]) == plain


def test_colour_is_not_up_to_the_environment_once_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert ESCAPE[:2] in RENDERERS[0](color=True).render(SAMPLES["overflow"])


def test_names_and_suffixes_of_renderers_are_their_own() -> None:
    assert len({r.name for r in RENDERERS}) == len({r.suffix for r in RENDERERS}) == len(RENDERERS)


def test_reports_need_neither_torch_nor_pandas() -> None:
    code = "import sys, nanhunt.report.renderer; print(sorted({'torch', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_samples_hold_what_they_are_there_for() -> None:
    losses = SAMPLES["overflow"].series["loss"][1]
    assert math.isnan(losses[-1])
    assert ESCAPE in SAMPLES["hostile"].summary
