"""`replay --reference`: the other checkpoint is read like the first, tried where values broke, and refused by name."""

from __future__ import annotations

import torch

from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import NoteKind


def break_weight(project):
    """Keep the checkpoint as good.pt, and write a NaN into a weight of ckpt.pt."""
    content = project.checkpoint()
    torch.save(content, project.root / "good.pt")
    content["model"]["hidden.weight"][0, 0] = float("nan")
    torch.save(content, project.root / "ckpt.pt")


def test_weights_that_came_broken_are_cured_by_those_of_the_reference(project, nanhunt):
    break_weight(project)
    done = nanhunt("replay", "ckpt.pt", "--reference", "good.pt")
    assert done.code == 0, done.err
    trials = {t["name"]: t for t in Trace.open(project.root / "trace.parquet").notes_of(NoteKind.TRIAL)}
    assert (trials["exact"]["outcome"], trials["restore-weights"]["outcome"]) == ("persists", "cured")
    assert trials["restore-weights"]["readback"] == "1 tensor replaced by those of good.pt: hidden.weight"
    assert trials["restore-weights"]["intervention"]["checkpoint"] == "good.pt"


def test_a_reference_is_named_in_the_dry_run(project, nanhunt):
    break_weight(project)
    assert "good.pt" in nanhunt("replay", "ckpt.pt", "--reference", "good.pt", "--dry-run").out


def test_a_reference_that_cannot_be_used_is_refused_before_a_trace_is_begun(project, nanhunt):
    (project.root / "torn.pt").write_bytes(b"PK\x03\x04")
    torch.save({"encoder.weight": torch.ones(2, 2)}, project.root / "foreign.pt")
    for name, said in (
        ("missing.pt", "no such file"),
        ("torn.pt", "torn.pt"),
        ("foreign.pt", "does not fit the model"),
    ):
        outcome = nanhunt("replay", "ckpt.pt", "--reference", name)
        assert outcome.is_clean_refusal, outcome
        assert name in outcome.err
        assert said in outcome.err
    assert not list(project.root.glob("trace*"))
