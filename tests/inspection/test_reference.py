"""Beside an earlier checkpoint: what jumped, what stood still, and what changed by one bit alone."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch

from nanhunt.inspection.moved import moved
from nanhunt.inspection.terminal import InspectionTerminal
from tests.inspection.trained import GPT, inspected, kinds, saved, train, trained_gpt


@pytest.fixture(scope="module")
def pair():
    """A checkpoint and one six steps later."""
    model, optimizer = trained_gpt()
    before = copy.deepcopy(saved(model, optimizer))
    train(model, optimizer, 6)
    return before, saved(model, optimizer) | {"step": 18}


def changed(pair, folder, change):
    before, after = copy.deepcopy(pair)
    change(after)
    return inspected(after, folder, reference=before)


def test_steps_of_training_are_no_finding(pair, tmp_path):
    inspection = changed(pair, tmp_path, lambda after: None)
    assert inspection.findings == ()
    assert inspection.facts.reference.step == 12
    assert sum(c.role == "weight" and c.relative > 0 for c in inspection.facts.reference.changes) == 28


def test_a_tensor_that_was_replaced_stands_out(pair, tmp_path):
    def redraw(after):
        torch.nn.init.normal_(after["model"]["h.1.fc.weight"], std=0.08)

    inspection = changed(pair, tmp_path, redraw)
    assert [(f.kind, f.tensor) for f in inspection.faults] == [("jumped", "h.1.fc.weight")]
    assert inspection.facts.reference.changes[0].name == "h.1.fc.weight"


def test_a_tensor_that_began_at_zero_and_grew_is_no_fault(pair, tmp_path):
    before, after = copy.deepcopy(pair)
    direction = torch.randn(64, 64)
    for name, size in (("zero", 0.0), ("small", 1e-4)):
        before["model"][f"{name}_conv.weight"] = direction * size
        after["model"][f"{name}_conv.weight"] = direction * 0.02 + torch.randn(64, 64) * 0.002
    assert inspected(after, tmp_path, reference=before).outcome == "healthy"


@pytest.mark.parametrize("bit", [30, 27])
def test_a_bit_that_flipped_since_is_found_by_its_bit(bit, pair, tmp_path):
    before = copy.deepcopy(pair[0])
    weight = before["model"]["h.1.fc.weight"]
    weight[5, 7] = 0.0051  # bit 27 makes it 256 times larger, 17 times the rms: no outlier by itself
    after = copy.deepcopy(before) | {"step": 18}
    after["model"]["h.1.fc.weight"].view(torch.int32)[5, 7] ^= 1 << bit
    inspection = inspected(after, tmp_path, reference=before)
    flips = [f for f in inspection.faults if f.kind == "flipped-bit"]
    if bit == 30:
        assert "h.1.fc.weight[5, 7]" in flips[0].claim
        assert f"bit {bit}" in flips[0].claim
    else:
        assert flips == []  # within 100 rms a change by a power of two may be an update


def test_weights_that_updates_do_not_move_are_lost_updates(tmp_path):
    torch.manual_seed(0)
    model = GPT().to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-7, betas=(0.9, 0.95), weight_decay=0.0)
    train(model, optimizer, 2)
    before = copy.deepcopy(saved(model, optimizer))
    train(model, optimizer, 2)
    after = saved(model, optimizer) | {"step": 14}
    (finding,) = [f for f in inspected(after, tmp_path, reference=before).faults if f.kind == "unmoved"]
    assert finding.cause == "lost-update"


def test_frozen_layers_are_told_and_are_no_finding(tmp_path):
    torch.manual_seed(0)
    model = GPT()
    model.h[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], betas=(0.9, 0.95))
    train(model, optimizer, 2)
    before = copy.deepcopy(saved(model, optimizer))
    train(model, optimizer, 2)
    inspection = inspected(saved(model, optimizer) | {"step": 14}, tmp_path, reference=before)
    assert inspection.findings == ()
    assert sum(c.same == 1.0 and c.role == "weight" for c in inspection.facts.reference.changes) == 12


def test_what_appeared_vanished_or_was_cast_is_told(pair, tmp_path):
    def change(after):
        after["model"]["new.weight"] = torch.randn(4, 4)
        del after["model"]["h.0.proj.bias"]
        after["model"]["h.0.proj.weight"] = after["model"]["h.0.proj.weight"].half()

    inspection = changed(pair, tmp_path, change)
    reference = inspection.facts.reference
    assert reference.appeared == ("new.weight",)
    assert reference.vanished == ("h.0.proj.bias",)
    assert [name for name, _, _ in reference.retyped] == ["h.0.proj.weight"]
    assert "retyped" in kinds(inspection)
    assert inspection.outcome == "healthy"


def test_nan_on_both_sides_is_the_same(tmp_path):
    w = torch.randn(8, 8)
    w[1, 1] = math.nan
    reference = inspected({"w": w}, tmp_path, reference={"w": w.clone()}).facts.reference
    assert reference.changes[0].same == 1.0


def test_one_flipped_bit_is_one_fault_and_no_absurd_change(pair, tmp_path):
    def flip(after):
        after["model"]["h.1.fc.weight"].view(torch.int32)[5, 7] ^= 1 << 30

    sound = changed(pair, tmp_path, lambda after: None).facts.reference
    inspection = changed(pair, tmp_path, flip)
    (finding,) = inspection.findings
    assert finding.kind == "flipped-bit"
    assert "the reference has" in finding.evidence[-1]
    found, before = ({c.name: c for c in r.changes}["h.1.fc.weight"] for r in (inspection.facts.reference, sound))
    assert found.flips[0].index == (5, 7)
    assert found.relative == pytest.approx(before.relative, rel=1e-2)
    page = InspectionTerminal(width=80, color=False, top=10, verbose=False).render(inspection)
    assert "bit 30 flipped at [5, 7]" in page
    assert not re.search(r"\d{12}", page)


def test_a_bit_that_alone_differs_is_told_so(pair, tmp_path):
    before = copy.deepcopy(pair[0])
    after = copy.deepcopy(before) | {"step": 18}
    after["model"]["h.1.fc.weight"].view(torch.int32)[5, 7] ^= 1 << 30
    (finding,) = [f for f in inspected(after, tmp_path, reference=before).findings if f.kind == "flipped-bit"]
    assert finding.severity == "fault"
    assert "bit alone differs" in finding.evidence[-1]


def test_a_bit_that_had_flipped_before_is_no_change(pair, tmp_path):
    before, after = copy.deepcopy(pair)
    for content in (before, after):
        content["model"]["h.1.fc.weight"][5, 7] = 4e37
    inspection = inspected(after, tmp_path, reference=before)
    assert [f.kind for f in inspection.findings] == ["flipped-bit"]
    (change,) = [c for c in inspection.facts.reference.changes if c.name == "h.1.fc.weight"]
    assert change.flips == ()
    assert 1e-4 < change.relative < 1.0


def test_no_command_asks_for_a_reference_that_was_given(pair, tmp_path):
    def spoil(after):
        after["model"]["h.1.fc.weight"].view(torch.int32)[5, 7] ^= 1 << 30
        after["model"]["h.0.fc.weight"][2] = math.nan

    commands = [f.next for f in changed(pair, tmp_path, spoil).findings]
    assert len(commands) == 2
    for command in commands:
        assert "--reference" not in command
        assert f"nanhunt replay {tmp_path / 'old.pt'}" in command


def test_elements_that_became_nan_are_told_first(pair, tmp_path):
    def spoil(after):
        after["model"]["h.0.fc.weight"][2] = math.nan

    inspection = changed(pair, tmp_path, spoil)
    assert {c.name: c.spoiled for c in inspection.facts.reference.changes}["h.0.fc.weight"] == 64
    page = InspectionTerminal(width=200, color=False, top=10, verbose=False).render(inspection)
    told = page[page.index("\nsince") :].splitlines()
    assert told[1].endswith("old.pt, step 12, 6 steps before")
    assert "64 of 16384 elements became NaN or Inf" in told[3]


@pytest.mark.parametrize(("relative", "told"), [(0.0345, "3.5 % of its norm"), (1.97, "197 % of its norm"),
                                                (8.7e36, "8.7e36 times its norm"), (math.inf, "all that it is, from zero")])  # fmt: skip
def test_a_change_is_told_in_few_digits(relative, told):
    assert moved(relative) == told
