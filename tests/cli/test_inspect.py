"""`nanhunt inspect` at the command line: exit codes, formats, refusals, and what it does without the user's code."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch


@pytest.fixture
def poisoned(project):
    content = project.checkpoint()
    content["model"]["hidden.weight"][2, 3] = math.nan
    torch.save(content, project.root / "bad.pt")
    return project.root / "bad.pt"


def test_a_healthy_checkpoint_is_told_healthy_without_its_code(project, nanhunt):
    (project.root / "train.py").unlink()
    (project.root / "nanhunt.yaml").unlink()
    done = nanhunt("inspect", "ckpt.pt", "--exit-code")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("✓ healthy · ")


def test_a_fault_exits_with_1_only_where_that_is_asked_for(poisoned, nanhunt):
    assert nanhunt("inspect", poisoned).code == 0
    done = nanhunt("inspect", poisoned, "--exit-code")
    assert done.code == 1
    assert done.out.startswith("✗ fault · 1 of 5 weights holds NaN or Inf: not the optimizer")
    assert "hidden.weight [8, 8]: 1 NaN of 64, first at [2, 3]" in done.out


def test_a_notice_alone_does_not_fail(project, nanhunt):
    content = project.checkpoint()
    content["optimizer"]["state"][0]["step"] = torch.tensor(1.0)
    torch.save(content, project.root / "odd.pt")
    done = nanhunt("inspect", "odd.pt", "--exit-code")
    assert done.code == 0
    assert "notice" in done.out


def test_json_is_one_strict_document(poisoned, nanhunt):
    done = nanhunt("inspect", poisoned, "-f", "json", "--exit-code")

    def refuse(word):
        raise AssertionError(word)

    body = json.loads(done.out, parse_constant=refuse)
    assert (body["schema"], body["outcome"], done.code) == (1, "fault", 1)
    assert {"severity", "kind", "cause", "tensor", "claim", "value", "threshold", "fix", "next"} <= set(
        body["findings"][0]
    )
    assert body["findings"][0]["cause"] == "poisoned-state"
    assert {t["name"]: t["nan"] for t in body["tensors"] if t["role"] == "weight"}["hidden.weight"] == 1
    assert body["optimizers"][0]["groups"][0]["settings"]["betas"] == [0.9, 0.999]
    assert body["census"][0]["dtype"] == "float32"


@pytest.mark.parametrize(("name", "begins"), [("page.md", "# fault"), ("page.json", "{"), ("page.txt", "✗ fault")])
def test_a_suffix_chooses_the_format(name, begins, poisoned, project, nanhunt):
    done = nanhunt("inspect", poisoned, "-o", name)
    assert (done.code, done.out) == (0, "")
    assert (project.root / name).read_text().startswith(begins)


def test_a_reference_is_compared(project, nanhunt):
    content = project.checkpoint()
    content["model"]["head.weight"] *= 1.5
    torch.save(content, project.root / "later.pt")
    done = nanhunt("inspect", "later.pt", "--reference", "ckpt.pt")
    assert "1 of 5 tensors; 4 are the same to the bit" in done.out


@pytest.mark.parametrize("arguments", [["ckpt.pt", "-f", "html"], ["ckpt.pt", "-o", "page.pdf"], ["absent.pt"],
                                       ["nanhunt.yaml"], ["ckpt.pt", "--reference", "absent.pt"]])  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(arguments, project, nanhunt):
    assert nanhunt("inspect", *arguments).is_clean_refusal


class Evil:
    def __reduce__(self):
        return os.system, ("touch was_run",)


def test_a_pickle_that_runs_code_is_not_run(project, nanhunt):
    torch.save({"model": {"w": torch.randn(3)}, "args": Evil()}, project.root / "evil.pt")
    done = nanhunt("inspect", "evil.pt")
    assert done.is_clean_refusal
    assert "may be an attack" in done.err
    assert not (project.root / "was_run").exists()


def test_names_from_the_file_drive_neither_terminal_nor_markup(project, nanhunt):
    hostile = "h.\x1b[31m<script>alert(1)</script>|`x`‮.weight"
    torch.save({hostile: torch.full((4, 4), math.nan)}, project.root / "hostile.pt")
    assert "\x1b" not in nanhunt("inspect", "hostile.pt").out
    page = nanhunt("inspect", "hostile.pt", "-f", "markdown").out
    assert "\x1b" not in page
    assert "<script>" not in page
    assert json.loads(nanhunt("inspect", "hostile.pt", "-f", "json").out)["tensors"][0]["name"] == hostile


def test_no_line_is_wider_than_the_terminal(poisoned, nanhunt, monkeypatch):
    for width in (40, 80, 100):
        monkeypatch.setenv("COLUMNS", str(width))
        assert max(map(len, nanhunt("inspect", poisoned, "-v").out.splitlines())) <= width


def test_verbose_shows_the_moments(project, nanhunt, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert "exp_avg_sq of head.weight" not in nanhunt("inspect", "ckpt.pt").out
    assert "exp_avg_sq of head.weight" in nanhunt("inspect", "ckpt.pt", "-v").out
