"""A slice of `make fuzz` in each test run; what it found before; and the same generators under Hypothesis, which shrinks."""

from __future__ import annotations

import contextlib
import random
import re
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanhunt.errors import NanhuntError
from tests.fuzz import checkpoints, configs, traces
from tests.fuzz.__main__ import main
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS, find_target
from tests.fuzz.worker import Limits, run_blocks, run_one

LIMITS = Limits(seconds=20, mebibytes=512)
#: Inputs that were too much for an earlier nanhunt, `found/TARGET-what-it-did.suffix`; folders too.
FOUND = sorted((Path(__file__).parent / "found").iterdir())


def test_a_slice_of_every_target_ends_well_or_is_refused():
    blocks = [(target, range(max(target.share // 4, 3))) for target in TARGETS]
    failures = [
        f"{target.name}:{outcome.index}: {outcome.kind} {outcome.detail}\n{outcome.traceback}"
        for target, outcomes in run_blocks(blocks, seed=1, limits=LIMITS, workers=1, end=time.monotonic() + 600)
        for outcome in outcomes
        if outcome.is_failure
    ]
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("path", FOUND, ids=lambda p: p.name)
def test_what_was_found_is_refused_or_read(path):
    target = max((t for t in TARGETS if path.name.startswith(t.name)), key=lambda t: len(t.name))
    refusal = _refusal(target, path)
    assert refusal is None or (refusal.exit_code == 2 and refusal.message.strip())


def _refusal(target: Target, path: Path) -> NanhuntError | None:
    """Return how an input is refused, None where it is read; anything else that it raises is raised."""
    try:
        target.run(path)
    except NanhuntError as error:
        return error
    return None


def test_the_same_seed_makes_the_same_input(tmp_path):
    for target in TARGETS:
        made = []
        for name in ("a", "b"):
            folder = tmp_path / f"{target.name}-{name}"
            folder.mkdir()
            path = target.make(folder, random.Random(f"7:{target.name}:3"))
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            made.append((path.relative_to(folder), [(p.relative_to(folder), p.read_bytes()) for p in files]))
        assert made[0] == made[1], target.name


def test_shares_add_up_to_a_thousand_and_names_differ():
    assert sum(target.share for target in TARGETS) == 1000
    assert len({target.name for target in TARGETS}) == len(TARGETS)


# --- the watch itself --------------------------------------------------------------------------------------------------


def _of(run, name="planted"):
    return Target(name=name, make=lambda folder, rng: folder, run=run, share=1)


def _loop(path):
    while True:
        pass


def _raise(path):
    raise KeyError(path)


def _abort(path):
    import os

    os.abort()


def _fill(path):
    return len(bytearray(700 << 20))


@pytest.mark.parametrize(
    ("run", "kind"),
    [(_loop, "hang"), (_raise, "raised"), (_abort, "killed"), (_fill, "memory"), (lambda path: None, "ok")],
    ids=["hang", "raised", "killed", "memory", "ok"],
)
def test_each_kind_of_failure_is_seen_and_the_next_input_runs(run, kind):
    limits = Limits(seconds=0.5 if kind == "hang" else 20, mebibytes=512)
    told = list(run_blocks([(_of(run), range(2))], seed=0, limits=limits, workers=1, end=time.monotonic() + 60))
    assert [outcome.kind for _, outcomes in told for outcome in outcomes] == [kind, kind]


def test_a_failure_is_kept_with_the_command_that_repeats_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tests.fuzz.__main__.TARGETS", (TARGETS[0],))
    broken = Target(name=TARGETS[0].name, make=TARGETS[0].make, run=_raise, share=1)
    monkeypatch.setattr("tests.fuzz.__main__.find_target", lambda name: broken)
    assert main(["--inputs", "2", "--save", str(tmp_path), "-j", "1", TARGETS[0].name]) == 1
    said = capsys.readouterr().out
    assert re.search(r"2 x torch-zip: raised KeyError", said)
    assert "--repeat torch-zip:0" in said
    assert (tmp_path / "torch-zip-0" / "outcome.txt").exists()


# --- under Hypothesis ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "torch-odd",
        "torch-pickle",
        "safetensors",
        "trainer-folder",
        "yaml-odd",
        "trace-metadata",
        "trace-rows",
        "partial-notes",
    ],
)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
)
@given(rng=st.randoms(use_true_random=False))
def test_odd_structures_are_read_or_refused(name, rng):
    target = find_target(name)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(NanhuntError):
        target.run(target.make(Path(folder), rng))


def test_a_sound_input_of_each_kind_is_read(tmp_path):
    """The control: what is mutated is not refused before."""
    checkpoints.load(checkpoints.written(tmp_path / "a.pt", checkpoints.seeds(zipped=True)[0]))
    (tmp_path / "nanhunt.yaml").write_bytes(configs.seeds()[0])
    configs.load(tmp_path / "nanhunt.yaml")
    for suffix, contents in zip((".parquet", ".parquet.partial"), traces.seeds(), strict=True):
        for i, content in enumerate(contents):
            path = tmp_path / f"{i}{suffix}"
            path.write_bytes(content)
            traces.load(path)
            path.unlink()


def test_an_input_can_be_made_again_and_run_alone(tmp_path):
    assert run_one(find_target("yaml"), 0, 5, LIMITS, tmp_path).kind in ("ok", "refused")
