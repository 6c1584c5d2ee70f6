"""What a fault spoiled, in words: which of the three patterns it is, and how far it went."""

from __future__ import annotations

from typing import Any

from nanhunt.diagnosis.evidence import Evidence
from nanhunt.trace.schema import NoteKind

__all__ = ["damage", "pattern"]


def pattern(evidence: Evidence) -> str:
    """Return which of loss and gradients are bad.

    "nan-loss-zero-gradients", "inf-loss-finite-gradients", "nan-loss-finite-gradients", "finite-loss-bad-gradients",
    "both", or '' where neither is.
    """
    body = evidence.note(NoteKind.DAMAGE)
    if body is None or body.get("raised"):
        return ""
    loss, gradients = body["loss"], body["gradients"]
    if loss == "finite":
        return "finite-loss-bad-gradients" if gradients["bad"] else ""
    if gradients["bad"]:
        return "both"
    if loss == "nan" and gradients["zero"] == gradients["of"] > 0:
        return "nan-loss-zero-gradients"
    return f"{loss}-loss-finite-gradients" if gradients["of"] else ""


def damage(evidence: Evidence) -> str:
    """Return what was spoiled as a clause; '' where the trace does not say."""
    body = evidence.note(NoteKind.DAMAGE)
    if body is None or body.get("raised"):
        return ""
    if body.get("ended") == "forward":
        whole = "finite" if body["loss"] == "finite" else {"nan": "NaN"}.get(body["loss"], "infinite")
        return f"the loss is {whole}; the run's own exception came before any gradient, and nothing else was spoiled"
    grads = body["gradients"]
    parts = {
        "nan-loss-zero-gradients": "the loss is NaN, every gradient exactly zero",
        "inf-loss-finite-gradients": "the loss is infinite, every gradient finite",
        "nan-loss-finite-gradients": "the loss is NaN, every gradient finite",
        "finite-loss-bad-gradients": f"the loss is finite, {grads['bad']} of {grads['of']} gradients are not",
        "both": f"the loss is not finite, nor are {grads['bad']} of {grads['of']} gradients",
    }
    said = parts.get(pattern(evidence), "loss and gradients are finite" if body["loss"] == "finite" else "")
    return "; ".join(part for part in (said, _left(body)) if part)


def _left(body: dict[str, Any]) -> str:
    """Say what is left behind for the next step."""
    weights, buffers, moments = body["weights"], body["buffers"], body["moments"]
    if body.get("ended"):
        return "the run's own exception came before the update: weights and moments are untouched"
    if body["skipped"] and not buffers["bad"]:
        return "the gradient scaler skipped the step, the weights are untouched"
    spoiled = [
        f"{weights['bad']} of {weights['of']} weights" if weights["bad"] else "",
        f"{buffers['bad']} of {buffers['of']} buffers" if buffers["bad"] else "",
        f"{moments['bad']} moment{'s' * (moments['bad'] != 1)}" if moments["bad"] else "",
    ]
    left = ", ".join(part for part in spoiled if part)
    return f"not finite after the step: {left}" if left else "weights, buffers and moments stay finite"
