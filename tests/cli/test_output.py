"""What a command prints, where it prints it, and with which exit code it ends."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

import nanhunt as package
from nanhunt.commands.terminal import color_wanted
from nanhunt.diagnosis.causes import CAUSES

ESCAPE = "\x1b"
#: The keys that section 4 of the contract promises.
REPORT_KEYS = {
    "schema", "outcome", "summary", "onset", "suspects", "cleared", "untold", "headroom", "assumptions", "run",
}  # fmt: skip
ONSET_KEYS = {"kind", "step", "micro", "rank", "phase", "module", "op", "source", "samples", "lead_step"}
SUSPECT_KEYS = {"cause", "rank", "grade", "location", "exhibits", "trials", "fixes"}
HEADROOM_KEYS = {
    "module", "role", "format", "overflow_margin", "underflow_margin", "overflow_fraction", "subnormal_fraction",
    "flushed_fraction", "best_scale",
}  # fmt: skip


def refuse(constant: str) -> float:
    """Refuse NaN and Infinity, which Python's parser takes and JSON does not have."""
    raise ValueError(constant)


def document_of(text: str) -> dict:
    """Return the one JSON document that a text is."""
    return json.loads(text, parse_constant=refuse)


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_a_faults_report_is_one_json_document_with_the_promised_keys(fault_trace, nanhunt):
    done = nanhunt("report", fault_trace, "-f", "json")
    assert done.code == 0
    assert done.err == ""
    document = document_of(done.out)
    assert document.keys() >= REPORT_KEYS
    assert document["schema"] == 1
    assert document["outcome"] == "fault"
    assert document["onset"].keys() >= ONSET_KEYS
    assert (document["onset"]["kind"], document["onset"]["step"]) == ("nan", 12)
    assert document["onset"]["samples"] == [2]
    assert document["run"].keys() >= {"steps", "device", "checkpoint", "complete"}
    assert document["run"]["complete"] is True
    assert document["headroom"]
    assert all(row.keys() >= HEADROOM_KEYS for row in document["headroom"])
    for number, suspect in enumerate(document["suspects"], start=1):
        assert suspect.keys() >= SUSPECT_KEYS
        assert suspect["rank"] == number
        assert suspect["grade"] in ("proved", "confirmed", "supported", "consistent", "refuted")


def test_a_healthy_report_has_the_same_keys_and_no_onset(healthy_trace, nanhunt):
    document = document_of(nanhunt("report", healthy_trace, "-f", "json").out)
    assert document.keys() >= REPORT_KEYS
    assert document["outcome"] == "healthy"
    assert document["onset"] is None
    assert [s for s in document["suspects"] if s["grade"] != "refuted"] == []
    assert any("seeded with 7" in text for text in document["assumptions"])


def test_a_report_is_the_same_every_time(fault_trace, nanhunt):
    first, second = (nanhunt("report", fault_trace, "-f", "json").out for _ in range(2))
    assert first == second


def test_out_writes_what_stdout_would_get_and_its_suffix_chooses_the_format(fault_trace, nanhunt, tmp_path):
    done = nanhunt("report", fault_trace, "-o", tmp_path / "r.json")
    assert done.code == 0
    assert done.out == ""
    assert (tmp_path / "r.json").read_text() == nanhunt("report", fault_trace, "-f", "json").out
    nanhunt("report", fault_trace, "-o", tmp_path / "r.md")
    assert (tmp_path / "r.md").read_text() == nanhunt("report", fault_trace, "-f", "markdown").out


def test_a_demo_in_json_prints_the_document_alone(project, nanhunt, monkeypatch):
    project.plant(nan_at=12)
    planted = SimpleNamespace(checkpoint=project.root / "ckpt.pt", config=project.root / "nanhunt.yaml")
    monkeypatch.setattr("nanhunt.commands.demo.prepare", lambda fault, place: planted)
    done = nanhunt("demo", "bad-sample", "-o", project.root / "demo", "-f", "json")
    assert done.code == 0
    assert document_of(done.out)["onset"]["step"] == 12
    assert "$ nanhunt replay" in done.err
    assert nanhunt("demo", "bad-sample", "-o", project.root / "demo", "-f", "json", "-q").err == ""


def test_formats_in_json_tell_a_values_fate(nanhunt):
    done = nanhunt("formats", "--dtype", "bf16", "--dtype", "fp16", "--value", "70000", "-f", "json")
    assert done.code == 0
    assert "70144" in json.dumps(document_of(done.out))  # the bf16 nearest to 70000, as torch rounds it


# --- replay ----------------------------------------------------------------------------------------------------------


def test_a_replays_last_line_on_stdout_is_the_command_to_type(project, nanhunt):
    project.plant(nan_at=12)
    replayed = nanhunt("replay", "ckpt.pt", "-o", "a.parquet")
    assert replayed.out.splitlines()[-1] == "nanhunt report a.parquet"
    assert "step 12: loss is NaN" in replayed.err
    assert "wrote a.parquet" in replayed.err
    assert nanhunt(*replayed.out.split()[1:]).code == 0


def test_a_healthy_replay_says_which_steps_it_saw(project, nanhunt):
    replayed = nanhunt("replay", "ckpt.pt", "--steps", "2")
    assert replayed.err == "no fault found in steps 10 to 11\nwrote trace.parquet\n"


def test_quiet_leaves_stderr_empty(project, nanhunt):
    project.plant(nan_at=12)
    replayed = nanhunt("replay", "ckpt.pt", "--quiet", terminal=True)
    assert replayed.err == ""
    assert replayed.out == "nanhunt report trace.parquet\n"


def test_a_dry_run_prints_the_plan_and_writes_nothing(project, nanhunt):
    (project.root / "trace.parquet").write_bytes(b"older")
    before = sorted(project.root.iterdir())
    planned = nanhunt("replay", "ckpt.pt", "--dry-run", "--steps", "7", "--force")
    assert planned.code == 0
    for text in ("nanhunt.yaml", "5 of 5 tensors", "Net, 236 parameters", "AdamW", "10 to 16", "trace.parquet"):
        assert text in planned.out
    assert sorted(project.root.iterdir()) == before
    assert (project.root / "trace.parquet").read_bytes() == b"older"


# --- exit codes ------------------------------------------------------------------------------------------------------


def test_a_fault_ends_with_1_only_where_it_is_asked_for(project, nanhunt, fault_trace, healthy_trace):
    project.plant(nan_at=12)
    assert nanhunt("replay", "ckpt.pt").code == 0
    assert nanhunt("replay", "ckpt.pt", "--force", "--exit-code").code == 1
    project.configure()
    assert nanhunt("replay", "ckpt.pt", "--force", "--exit-code").code == 0
    assert nanhunt("report", fault_trace).code == 0
    assert nanhunt("report", fault_trace, "--exit-code").code == 1
    assert nanhunt("report", healthy_trace, "--exit-code").code == 0


def test_a_report_to_a_reader_that_leaves_early_is_no_failure(fault_trace, environment):
    process = subprocess.Popen(
        [sys.executable, "-m", "nanhunt", "report", str(fault_trace), "-f", "json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 0


# --- colour ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["report"], ["formats"], ["explain"]])
def test_colour_is_for_terminals_that_want_it(command, fault_trace, nanhunt, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    pages = {"report": [fault_trace], "explain": [CAUSES[0].slug] if CAUSES else []}
    arguments = [*command, *pages.get(command[0], [])]
    plain = nanhunt(*arguments).out
    assert ESCAPE not in plain
    assert ESCAPE in nanhunt(*arguments, terminal=True).out
    monkeypatch.setenv("NO_COLOR", "1")
    assert nanhunt(*arguments, terminal=True).out == plain
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert nanhunt(*arguments, terminal=True).out == plain


@pytest.mark.parametrize("forced", [None, "", "1", "0"])
@pytest.mark.parametrize("banned", [None, "", "1"])
@pytest.mark.parametrize("term", ["xterm-256color", "dumb", None])
@pytest.mark.parametrize("terminal", [False, True])
def test_colour_is_forced_and_forbidden_as_rich_does(forced, banned, term, terminal, monkeypatch):
    for name, value in {"FORCE_COLOR": forced, "NO_COLOR": banned, "TERM": term}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    stream = io.StringIO()
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", stream)
    theirs = Console(file=stream)
    assert color_wanted() == (theirs.color_system is not None and not theirs.no_color)


def test_no_file_gets_colour_and_no_document_does(fault_trace, nanhunt, tmp_path, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    nanhunt("report", fault_trace, "-o", tmp_path / "r.txt", "-f", "terminal", terminal=True)
    assert ESCAPE not in (tmp_path / "r.txt").read_text()
    for name in ("json", "markdown"):
        assert ESCAPE not in nanhunt("report", fault_trace, "-f", name, terminal=True).out


def test_a_piped_replay_prints_no_escape_and_no_bar(project, shell):
    project.plant(nan_at=12)
    replayed = shell("replay", "ckpt.pt", cwd=project.root)
    assert replayed.code == 0
    assert ESCAPE not in replayed.out + replayed.err
    assert len(replayed.err.splitlines()) == 2
    assert replayed.out == "nanhunt report trace.parquet\n"


# --- explain and version ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", [cause.slug for cause in CAUSES])
def test_every_cause_has_a_page(slug, nanhunt):
    page = nanhunt("explain", slug)
    assert page.code == 0
    assert page.err == ""
    assert page.out.startswith(f"{slug}\n")
    assert len(page.out.splitlines()) > 10
    assert nanhunt("explain", slug.replace("-", "_").upper()).out == page.out
    assert nanhunt("explain", slug, "-f", "markdown").out.startswith(f"# `{slug}`\n")
    assert [entry["cause"] for entry in document_of(nanhunt("explain", slug, "-f", "json").out)] == [slug]


def test_the_list_of_causes_names_each(nanhunt):
    listed = nanhunt("explain").out
    assert [cause.slug for cause in CAUSES if not re.search(rf"^{cause.slug} ", listed, re.MULTILINE)] == []


def test_a_typo_of_a_cause_names_the_nearest(nanhunt):
    slug = CAUSES[0].slug
    outcome = nanhunt("explain", slug[:3] + slug[4:])
    assert outcome.is_clean_refusal
    assert slug in outcome.err


def test_a_word_that_is_no_cause_is_answered_with_the_causes_whose_pages_use_it(nanhunt):
    outcome = nanhunt("explain", "sqrt")
    assert outcome.code == 2
    assert "singular-gradient" in outcome.err


def test_trials_lists_what_there_is_and_what_was_done(fault_trace, healthy_trace, nanhunt):
    assert "drop-samples" in nanhunt("trials").out
    done = nanhunt("trials", fault_trace).out
    assert "drop-samples: cured" in done
    assert "exact: persists" in done
    assert "no trial was run" in nanhunt("trials", healthy_trace).out


def test_the_version_is_the_packages(shell, nanhunt, tmp_path):
    assert shell("--version", cwd=tmp_path).out == f"nanhunt {package.__version__}\n"
    assert nanhunt("--version").out == f"nanhunt {package.__version__}\n"
