"""The catalogue: every cause, in the order in which they are asked. A file each, named by its slug."""

from __future__ import annotations

from nanhunt.diagnosis.cause import Cause
from nanhunt.diagnosis.causes import (
    activation_overflow,
    adam_v_collapse,
    attention_logit_growth,
    bad_init,
    bad_sample,
    bad_target,
    domain_error,
    empty_reduction,
    epsilon_underflow,
    faulty_backward,
    fp8_saturation,
    fully_masked_softmax,
    gradient_explosion,
    gradient_overflow,
    gradient_underflow,
    hardware_fault,
    learning_rate_too_high,
    lost_update,
    low_precision_accumulation,
    mask_fill_overflow,
    naive_exp_log,
    nondeterminism,
    optimizer_state,
    output_logit_drift,
    poisoned_state,
    rank_divergence,
    singular_gradient,
    training_loop_bug,
    where_trap,
    zero_denominator,
)

__all__ = ["CAUSES"]

CAUSES: tuple[Cause, ...] = (
    # range and precision of number formats
    activation_overflow.CAUSE,
    gradient_overflow.CAUSE,
    gradient_underflow.CAUSE,
    fp8_saturation.CAUSE,
    mask_fill_overflow.CAUSE,
    epsilon_underflow.CAUSE,
    lost_update.CAUSE,
    low_precision_accumulation.CAUSE,
    # operations without a value, or without a slope
    empty_reduction.CAUSE,
    fully_masked_softmax.CAUSE,
    zero_denominator.CAUSE,
    singular_gradient.CAUSE,
    where_trap.CAUSE,
    domain_error.CAUSE,
    naive_exp_log.CAUSE,
    # data
    bad_sample.CAUSE,
    bad_target.CAUSE,
    # dynamics
    learning_rate_too_high.CAUSE,
    gradient_explosion.CAUSE,
    adam_v_collapse.CAUSE,
    optimizer_state.CAUSE,
    attention_logit_growth.CAUSE,
    output_logit_drift.CAUSE,
    bad_init.CAUSE,
    # state, code and machine
    poisoned_state.CAUSE,
    faulty_backward.CAUSE,
    training_loop_bug.CAUSE,
    rank_divergence.CAUSE,
    hardware_fault.CAUSE,
    nondeterminism.CAUSE,
)
