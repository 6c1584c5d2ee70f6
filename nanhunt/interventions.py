"""The vocabulary of what-if: changes, interventions, predictions, trials (plain data, no torch).

A cause must risk something: it predicts what an intervention will do to the fault. `replay` runs the bad step again
under that intervention, and the outcome is a trial. What can be tried is in `library`, how a change is made in
`changes`, the rules of grades in `docs/trials.md`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

__all__ = [
    "BackwardByAutograd",
    "Change",
    "Clip",
    "EarlierStep",
    "Emulation",
    "Expectation",
    "FreshScaler",
    "HalvedScale",
    "Intervention",
    "LinePrecision",
    "LossScale",
    "MatchedNorm",
    "ModulePrecision",
    "Moments",
    "NormEpsilon",
    "OptimizerSetting",
    "OtherBatch",
    "OtherRecipe",
    "Outcome",
    "Precision",
    "Prediction",
    "Rate",
    "Redrawn",
    "ReferenceKernels",
    "RestoredWeights",
    "SafeArgument",
    "Scores",
    "SecondMomentFloor",
    "Trial",
    "WithoutSamples",
    "ZeroedGradients",
]

Outcome = Literal["cured", "persists", "failed"]
Expectation = Literal["cured", "persists"]


# --- changes: one factor each ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """One factor that a trial changes; subclasses say which, and their fields how."""

    kind: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class EarlierStep(Change):
    """No change: an earlier, healthy step again, which persists where it comes out as it was seen, bit for bit."""

    kind: ClassVar[str] = "earlier-step"
    step: int


@dataclass(frozen=True, slots=True)
class Precision(Change):
    """The whole step in a format: "fp32", "bf16", "fp16" or "fp64"."""

    kind: ClassVar[str] = "precision"
    to: str


@dataclass(frozen=True, slots=True)
class ModulePrecision(Change):
    """One module in fp32: its weights, what goes in, and every op inside."""

    kind: ClassVar[str] = "module-precision"
    module: str


@dataclass(frozen=True, slots=True)
class LinePrecision(Change):
    """The ops that one source line ("model.py:88") calls, in fp64."""

    kind: ClassVar[str] = "line-precision"
    source: str


@dataclass(frozen=True, slots=True)
class SafeArgument(Change):
    """The double where: what `source` calls keeps its values, and has a finite slope where it makes NaN of a zero gradient.

    So do the lines `above` that feed it. It is no cure where one of these elements gets another gradient than zero: its
    value is used, and its slope was cut off.
    """

    kind: ClassVar[str] = "safe-argument"
    source: str
    above: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Emulation(Change):
    """The step in fp32, what each op puts out cut to the `part` of a format: its "range" alone, or its "rounding" alone."""

    kind: ClassVar[str] = "emulation"
    format: str
    part: Literal["range", "rounding"]


@dataclass(frozen=True, slots=True)
class OtherRecipe(Change):
    """The precision recipe without its quantized products ("none"), with scales of the "present" amax, or of "blocks"."""

    kind: ClassVar[str] = "other-recipe"
    to: Literal["none", "present", "blocks"]


@dataclass(frozen=True, slots=True)
class WithoutSamples(Change):
    """Samples of the bad micro-batch (indices into its first dimension) taken away."""

    kind: ClassVar[str] = "without-samples"
    samples: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OtherBatch(Change):
    """The batches of healthy steps, from `step` on, in the place of the window's own."""

    kind: ClassVar[str] = "other-batch"
    step: int


@dataclass(frozen=True, slots=True)
class LossScale(Change):
    """A loss scale that is held."""

    kind: ClassVar[str] = "loss-scale"
    value: float


@dataclass(frozen=True, slots=True)
class HalvedScale(Change):
    """A loss scale that is halved until the step's gradients are finite."""

    kind: ClassVar[str] = "halved-scale"


@dataclass(frozen=True, slots=True)
class FreshScaler(Change):
    """A gradient scaler as torch makes it, with nothing behind it."""

    kind: ClassVar[str] = "fresh-scaler"


@dataclass(frozen=True, slots=True)
class ZeroedGradients(Change):
    """Gradients made zero before the step, whatever the step before left."""

    kind: ClassVar[str] = "zeroed-gradients"


@dataclass(frozen=True, slots=True)
class SecondMomentFloor(Change):
    """Adam's second moment raised to the present squared gradient: of some parameters, or of all."""

    kind: ClassVar[str] = "second-moment-floor"
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Moments(Change):
    """An optimizer's state made anew, with the learning rate warmed up over the window."""

    kind: ClassVar[str] = "moments"


@dataclass(frozen=True, slots=True)
class OptimizerSetting(Change):
    """A setting of every parameter group: "eps", times `factor`; "beta2", set to `value`."""

    kind: ClassVar[str] = "optimizer-setting"
    setting: Literal["eps", "beta2"]
    factor: float | None = None
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Rate(Change):
    """Every learning rate times a factor."""

    kind: ClassVar[str] = "rate"
    factor: float


@dataclass(frozen=True, slots=True)
class MatchedNorm(Change):
    """Each update as it is, shrunk to the norm that it had in another trial: whether shrinking alone would do."""

    kind: ClassVar[str] = "matched-norm"
    trial: str


@dataclass(frozen=True, slots=True)
class Clip(Change):
    """Gradients clipped: all of them by their "norm", each element by its "value", each unit by its weights ("adaptive")."""

    kind: ClassVar[str] = "clip"
    how: Literal["norm", "value", "adaptive"]
    limit: float


@dataclass(frozen=True, slots=True)
class Scores(Change):
    """Attention scores "capped" at a limit by a factor on the queries, or computed in "fp32"; of one module, or of all."""

    kind: ClassVar[str] = "scores"
    how: Literal["capped", "fp32"]
    limit: float | None = None
    module: str = ""


@dataclass(frozen=True, slots=True)
class NormEpsilon(Change):
    """The epsilon of norm layers times a factor."""

    kind: ClassVar[str] = "norm-epsilon"
    factor: float


@dataclass(frozen=True, slots=True)
class ReferenceKernels(Change):
    """Fused kernels replaced by what they stand for: attention by its formula, optimizers a tensor at a time, cuDNN off."""

    kind: ClassVar[str] = "reference-kernels"


@dataclass(frozen=True, slots=True)
class RestoredWeights(Change):
    """Tensors of weights and buffers that are not finite, replaced by those of another checkpoint; all of them on request."""

    kind: ClassVar[str] = "restored-weights"
    checkpoint: str


@dataclass(frozen=True, slots=True)
class Redrawn(Change):
    """Layers drawn anew as torch draws them (`reset_parameters`): those under a module, or those that are not (`outside`)."""

    kind: ClassVar[str] = "redrawn"
    module: str = ""
    outside: bool = False


@dataclass(frozen=True, slots=True)
class BackwardByAutograd(Change):
    """A custom function's forward differentiated by autograd, in the place of the backward that its author wrote."""

    kind: ClassVar[str] = "backward-by-autograd"
    function: str


# --- interventions, predictions, trials ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervention:
    """A change with a name and a question; without a change, the identical step."""

    name: str
    #: what it asks, for `nanhunt trials`
    question: str
    change: Change | None = None
    #: why it cannot be applied here, known beforehand: "no sample stands out"
    missing: str = ""
    #: the name of the trial that this one is the placebo or the control of
    placebo_of: str | None = None
    #: seconds that it takes, over those of the plain step
    cost: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Return the change's kind and fields, as JSON values."""
        change = {"change": self.change.kind, **asdict(self.change)} if self.change is not None else {}
        placebo = {"placebo_of": self.placebo_of} if self.placebo_of else {}
        return {
            "name": self.name,
            **{k: v for k, v in change.items() if v is not None and v is not False and v not in ((), "")},
            **placebo,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a cause says, beforehand, that an intervention will do to the fault.

    `refutes`: the other outcome is against the cause; not so of a rate that may be too high at a tenth, too. `confirms`:
    the outcome tells for this cause and no other; not so of a smaller rate, which helps against much.
    """

    trial: str
    expect: Expectation
    refutes: bool = True
    confirms: bool = True


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
    #: mean loss over the trial's steps, and the first step's gradient norm; None where there is none
    loss: float | None = None
    grad_norm: float | None = None
    #: the same as the fault was seen
    loss_before: float | None = None
    grad_norm_before: float | None = None
    seconds: float | None = None
    #: the user named it
    asked: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the trial as JSON values; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Trial:
        """Rebuild a trial that `to_json` wrote; unknown keys of later versions are left out."""
        return cls(**{k: v for k, v in body.items() if k in cls.__dataclass_fields__})
