"""The vocabulary of what-if: interventions, predictions, trials (plain data, no torch).

A cause must risk something: it predicts what an intervention will do to the fault. `replay` runs the bad step again
under that intervention, and the outcome is a trial. The rules of grades are in `docs/how-it-works.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Expectation", "Intervention", "Outcome", "Prediction", "Trial", "library"]

Outcome = Literal["cured", "persists", "failed"]
Expectation = Literal["cured", "persists"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervention:
    """One change to the bad step; no field set means the identical step."""

    name: str
    #: dtype of the whole step: "fp32", "bf16", "fp16" or "fp64"; None leaves the recipe alone
    precision: str | None = None
    #: indices into the batch's first dimension that are left out
    drop_samples: tuple[int, ...] = ()
    #: use the batch of this step in place of the bad step's own
    batch_of_step: int | None = None
    #: loss scale held fixed for the step; None leaves the scaler alone
    loss_scale: float | None = None
    #: factor on every parameter group's learning rate
    lr_factor: float | None = None
    #: raise Adam's second moment to the present squared gradient before the update
    floor_second_moment: bool = False
    #: the name of the trial that this one is the placebo of
    placebo_of: str | None = None
    #: what it asks, for `nanhunt trials`
    question: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are set, as JSON values."""
        return {k: v for k, v in asdict(self).items() if v not in (None, (), False, "") and k != "question"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a cause says, beforehand, that an intervention will do to the fault."""

    trial: str
    expect: Expectation


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of the bad step under one intervention.

    `cured`: the fault of the onset did not appear. `persists`: it did. `failed`: the intervention could not be
    applied, and `detail` says why. `readback` is what was read back after the change, as a sentence.
    """

    name: str
    outcome: Outcome
    detail: str
    readback: str = ""
    intervention: dict[str, Any] = field(default_factory=dict)
    loss: float | None = None
    grad_norm: float | None = None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the trial as JSON values; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Trial:
        """Rebuild a trial that `to_json` wrote; unknown keys of later versions are left out."""
        return cls(**{k: v for k, v in body.items() if k in cls.__dataclass_fields__})


def library(
    samples: Sequence[int] = (), placebo: Sequence[int] = (), other_step: int | None = None
) -> tuple[Intervention, ...]:
    """Return the interventions that can be tried, in the order in which they are.

    `samples` are the suspect samples, `placebo` as many others; `other_step` is a healthy step whose batch is at hand.
    Trials that need what is not given are left out.
    """
    always = (
        Intervention(name="exact", question="does the very same step fail again?"),
        Intervention(name="fp32", precision="fp32", question="does the fault live in the number format?"),
        Intervention(name="bf16", precision="bf16", question="is it the format's range, or its rounding?"),
        Intervention(name="fp64", precision="fp64", question="is the operation undefined at any precision?"),
        Intervention(
            name="loss-scale", loss_scale=65536.0, question="do gradients survive with a loss scale of 65536?"
        ),
        Intervention(name="scale-1", loss_scale=1.0, question="is it the loss scale that overflows?"),
        Intervention(
            name="v-floor", floor_second_moment=True, question="is the second moment too small for this gradient?"
        ),
        Intervention(name="lr-0.1", lr_factor=0.1, question="does a tenth of the learning rate hold?"),
        Intervention(name="lr-0", lr_factor=0.0, question="is it this update at all?"),
    )
    more = []
    if samples:
        more.append(Intervention(name="drop-samples", drop_samples=tuple(samples), question="is it these samples?"))
    if placebo:
        more.append(
            Intervention(
                name="drop-placebo",
                drop_samples=tuple(placebo),
                placebo_of="drop-samples",
                question="does leaving out as many other samples help too?",
            )
        )
    if other_step is not None:
        more.append(
            Intervention(name="swap-batch", batch_of_step=other_step, question="is it the batch, or the state?")
        )
    return (*always, *more)
