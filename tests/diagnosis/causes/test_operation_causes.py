"""Range, precision and undefined operations: each loss breaks for one reason, which ranks first, and no other is named."""

from __future__ import annotations

import pytest

from nanhunt.diagnosis.cause import Grade, NotApplicable, Suspect
from nanhunt.diagnosis.causes import (
    activation_overflow,
    bad_target,
    domain_error,
    empty_reduction,
    epsilon_underflow,
    fp8_saturation,
    fully_masked_softmax,
    gradient_overflow,
    gradient_underflow,
    lost_update,
    low_precision_accumulation,
    mask_fill_overflow,
    naive_exp_log,
    singular_gradient,
    where_trap,
    zero_denominator,
)
from nanhunt.diagnosis.evidence import Evidence
from tests.diagnosis.conftest import HOT, Hunted
from tests.diagnosis.mini_losses import CASES, Case

pytestmark = pytest.mark.filterwarnings("ignore:std")

CAUSES = [
    module.CAUSE
    for module in (
        activation_overflow, gradient_overflow, gradient_underflow, fp8_saturation, mask_fill_overflow,
        epsilon_underflow, lost_update, low_precision_accumulation, empty_reduction, fully_masked_softmax,
        zero_denominator, singular_gradient, where_trap, domain_error, naive_exp_log,
    )
]  # fmt: skip
ZOOMED = [c for c in CASES if c.name not in ("square_hidden_as_zero", "loss_times_1e_7", "tiny_rate")]


def suspects(evidence: Evidence) -> dict[str, Suspect]:
    answers = [cause.examine(evidence) for cause in CAUSES]
    return {a.cause: a for a in answers if isinstance(a, Suspect)}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_fault_is_named_by_its_own_cause_and_by_no_look_alike(case: Case, hunted: Hunted) -> None:
    evidence = hunted(case)
    found = suspects(evidence)
    assert evidence.onset is not None
    assert set(found) == {case.cause, *case.beside}
    named = found[case.cause]
    assert named.grade in (Grade.PROVED, Grade.SUPPORTED)
    assert named.location.step == evidence.onset.step
    assert named.exhibits
    assert named.fixes
    assert all(named.depth > found[other].depth for other in case.beside)


def test_a_count_of_zero_that_the_batch_brings_is_no_bad_target(hunted: Hunted) -> None:
    case = next(c for c in CASES if c.name == "total_over_the_batchs_count")
    assert bad_target.examine(hunted(case)) is None


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name not in ("tiny_rate", "adam_epsilon")], ids=lambda c: c.name
)
def test_the_twin_without_the_fault_has_no_onset(case: Case, hunted: Hunted) -> None:
    assert hunted(case, hot=False).onset is None


@pytest.mark.parametrize("case", [c for c in ZOOMED if c.name != "adam_epsilon"], ids=lambda c: c.name)
def test_the_fault_is_placed_at_the_hot_step(case: Case, hunted: Hunted) -> None:
    onset = hunted(case).onset
    assert onset is not None
    assert onset.step == HOT


def test_without_a_zoom_op_causes_cannot_tell_and_say_so(hunted: Hunted) -> None:
    case = next(c for c in CASES if c.name == "log_of_negative")
    evidence = hunted(case, zoom=False)
    told = {c.slug: c.examine(evidence) for c in CAUSES}
    assert isinstance(told["domain-error"], NotApplicable)
    assert isinstance(told["activation-overflow"], NotApplicable)
    assert not [a for a in told.values() if isinstance(a, Suspect)]


@pytest.mark.parametrize(
    ("name", "samples"), [("masked_attention", (2,)), ("constant_image", (4,)), ("unit_norm_of_zero", (4,))]
)
def test_a_samples_fault_names_the_sample(name: str, samples: tuple[int, ...], hunted: Hunted) -> None:
    case = next(c for c in CASES if c.name == name)
    assert suspects(hunted(case))[case.cause].location.samples == samples


def test_the_certificates_number_is_in_the_exhibits(hunted: Hunted) -> None:
    case = next(c for c in CASES if c.name == "gain_beyond_fp16")
    exhibit = suspects(hunted(case))[case.cause].exhibits[0]
    assert exhibit.threshold == 65504.0
    assert exhibit.value is not None
    assert 65520.0 <= exhibit.value <= 1e6
