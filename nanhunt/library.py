"""Every intervention that can be tried, each with its question; what it needs is given by what the hunt knows so far.

An intervention whose need is not met is in the list all the same, with the reason: a trial that was asked for by name
and could not be run is told so, and never left out in silence.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanhunt.interventions import (
    BackwardByAutograd,
    Clip,
    EarlierStep,
    Emulation,
    FreshScaler,
    HalvedScale,
    Intervention,
    LinePrecision,
    LossScale,
    MatchedNorm,
    ModulePrecision,
    Moments,
    NormEpsilon,
    OptimizerSetting,
    OtherBatch,
    OtherRecipe,
    Precision,
    Rate,
    Redrawn,
    ReferenceKernels,
    RestoredWeights,
    SafeArgument,
    Scores,
    SecondMomentFloor,
    WithoutSamples,
    ZeroedGradients,
)

__all__ = ["Given", "library"]

#: A score of this size leaves one key all of the attention's weight: exp(-50) is 2e-22.
_SCORE = 50.0
#: Limit of adaptive clipping, a unit's gradient norm over its weights' norm (Brock et al. 2021).
_ADAPTIVE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the hunt knows of the fault; nothing of it is known for `nanhunt trials`."""

    samples: tuple[int, ...] = ()
    #: as many samples that are not suspect
    placebo: tuple[int, ...] = ()
    #: the first of as many healthy steps as the window has, whose batches are kept
    other_step: int | None = None
    #: a healthy step right before the window
    earlier_step: int | None = None
    module: str = ""
    #: the suspect module, or the list of blocks that it is one of
    drawn: str = ""
    #: a module of the same kind that is not suspect
    other_module: str = ""
    source: str = ""
    #: lines of the ops that feed that one
    above: tuple[str, ...] = ()
    #: suspect parameters, and as many elements of others
    parameters: tuple[str, ...] = ()
    other_parameters: tuple[str, ...] = ()
    #: of the healthy steps: gradient norm, and largest gradient element
    grad_norm: float | None = None
    grad_amax: float | None = None
    #: the rate before it jumped, over the rate behind; None where it did not
    rate: float | None = None
    #: the format of the step, where it is a narrow one
    format: str = ""
    #: the run has a precision recipe that quantizes products
    recipe: bool = False
    #: path of the checkpoint to restore from
    reference: str = ""
    #: a custom autograd function
    function: str = ""


def library(given: Given | None = None) -> tuple[Intervention, ...]:
    """Return the interventions, in the order in which they are listed; those of equal worth are tried in it."""
    known = given or Given()
    return (
        Intervention(name="exact", question="does the very same step fail again?"),
        Intervention(
            name="exact-before",
            change=EarlierStep(known.earlier_step or 0),
            missing=_unless(known.earlier_step is not None, "no earlier step is kept"),
            placebo_of="exact",
            question="does a healthy step before it come out as it was seen?",
        ),
        *_formats(known),
        *_data(known),
        *_scaler(),
        *_optimizer(known),
        *_gradients(known),
        *_model(known),
    )


def _formats(known: Given) -> tuple[Intervention, ...]:
    format_ = known.format or "fp16"
    plain = "" if known.format else "the step runs in fp32 throughout"
    return (
        Intervention(name="fp32", change=Precision("fp32"), question="does the fault live in the number format?"),
        Intervention(name="bf16", change=Precision("bf16"), question="is it the format's range, or its rounding?"),
        Intervention(
            name="fp64", change=Precision("fp64"), question="is the operation undefined at any precision?", cost=2.0
        ),
        Intervention(
            name="range-only",
            change=Emulation(format_, "range"),
            missing=plain,
            question="does the format's range alone, at fp32's rounding, make the fault?",
            cost=4.0,
        ),
        Intervention(
            name="rounding-only",
            change=Emulation(format_, "rounding"),
            missing=plain,
            question="does the format's rounding alone, at fp32's range, make the fault?",
            cost=4.0,
        ),
        Intervention(
            name="module-fp32",
            change=ModulePrecision(known.module),
            missing=_unless(known.module, "no module is suspect"),
            question="does this module in fp32 hold?",
        ),
        Intervention(
            name="module-placebo",
            change=ModulePrecision(known.other_module),
            missing=_unless(known.other_module, "the model has no other module of this kind"),
            placebo_of="module-fp32",
            question="does another module in fp32 help too?",
        ),
        Intervention(
            name="op-fp64",
            change=LinePrecision(known.source),
            missing=_unless(known.source, "no source line is suspect"),
            question="does this line in fp64 hold?",
            cost=1.5,
        ),
        Intervention(
            name="safe-argument",
            change=SafeArgument(known.source, known.above),
            missing=_unless(known.source, "no source line is suspect"),
            question="does a double where around this line hold, and does nothing use what it gives there?",
            cost=1.5,
        ),
        *_recipes(known),
    )


def _recipes(known: Given) -> tuple[Intervention, ...]:
    plain = _unless(known.recipe, "no precision recipe quantizes products")
    return (
        Intervention(
            name="recipe-off",
            change=OtherRecipe("none"),
            missing=plain,
            question="do products hold in their own precision, all else of the recipe as it is?",
        ),
        Intervention(
            name="present-scales",
            change=OtherRecipe("present"),
            missing=plain,
            question="do scales hold that follow the present amax, rather than that of earlier steps?",
        ),
        Intervention(
            name="block-scales",
            change=OtherRecipe("blocks"),
            missing=plain,
            question="does a scale for each block hold, where one served the tensor?",
        ),
    )


def _data(known: Given) -> tuple[Intervention, ...]:
    return (
        Intervention(
            name="drop-samples",
            change=WithoutSamples(known.samples),
            missing=_unless(known.samples, "no sample stands out"),
            question="is it these samples?",
        ),
        Intervention(
            name="drop-placebo",
            change=WithoutSamples(known.placebo),
            missing=_unless(known.placebo, "there are not as many other samples"),
            placebo_of="drop-samples",
            question="does leaving out as many other samples help too?",
        ),
        Intervention(
            name="swap-batch",
            change=OtherBatch(known.other_step or 0),
            missing=_unless(known.other_step is not None, "no healthy step's batches are kept"),
            question="is it the batch, or the state?",
        ),
    )


def _scaler() -> tuple[Intervention, ...]:
    return (
        Intervention(
            name="loss-scale", change=LossScale(65536.0), question="do gradients survive at a loss scale of 65536?"
        ),
        Intervention(name="scale-1", change=LossScale(1.0), question="is it the loss scale that overflows?"),
        Intervention(
            name="scale-halved",
            change=HalvedScale(),
            question="is there a loss scale at which the gradients are finite?",
            cost=4.0,
        ),
        Intervention(
            name="fresh-scaler", change=FreshScaler(), question="is it what the scaler carries from earlier steps?"
        ),
        Intervention(
            name="zero-grad",
            change=ZeroedGradients(),
            question="is it gradients that the step before left, after a skip for one?",
        ),
    )


def _optimizer(known: Given) -> tuple[Intervention, ...]:
    return (
        Intervention(
            name="v-floor",
            change=SecondMomentFloor(known.parameters),
            question="is the second moment too small for this gradient?",
        ),
        Intervention(
            name="v-placebo",
            change=SecondMomentFloor(known.other_parameters),
            missing=_unless(known.other_parameters, "no single parameter is suspect, or there is no other"),
            placebo_of="v-floor",
            question="does raising the second moment of other parameters help too?",
        ),
        Intervention(
            name="v-norm",
            change=MatchedNorm("v-floor"),
            placebo_of="v-floor",
            question="do updates hold that are shrunk as much, in their own direction?",
        ),
        Intervention(
            name="moments-reset",
            change=Moments(),
            question="is it the optimizer's state that came with the checkpoint?",
        ),
        Intervention(
            name="moments-norm",
            change=MatchedNorm("moments-reset"),
            placebo_of="moments-reset",
            question="do updates hold that are as short as those of a fresh state, in their own direction?",
        ),
        Intervention(
            name="adam-eps",
            change=OptimizerSetting("eps", factor=1e4),
            question="is the optimizer's epsilon too small to hold small moments up?",
        ),
        Intervention(
            name="beta2-0.95",
            change=OptimizerSetting("beta2", value=0.95),
            question="does the second moment follow too slowly?",
        ),
        Intervention(
            name="lr-before",
            change=Rate(known.rate or 1.0),
            missing=_unless(known.rate is not None, "the learning rate did not jump"),
            question="does the learning rate hold that the run had before its jump?",
        ),
        Intervention(name="lr-0.3", change=Rate(0.3), question="does a third of the learning rate hold?"),
        Intervention(name="lr-0.1", change=Rate(0.1), question="does a tenth of the learning rate hold?"),
        Intervention(name="lr-0", change=Rate(0.0), question="is it this update at all?"),
    )


def _gradients(known: Given) -> tuple[Intervention, ...]:
    nothing = "no healthy step's gradients are known"
    return (
        Intervention(
            name="clip-norm",
            change=Clip("norm", known.grad_norm or 1.0),
            missing=_unless(known.grad_norm, nothing),
            question="do gradients hold that are clipped at the norm of healthy steps?",
        ),
        Intervention(
            name="clip-value",
            change=Clip("value", known.grad_amax or 1.0),
            missing=_unless(known.grad_amax, nothing),
            question="do gradients hold whose elements are clipped at the largest of healthy steps?",
        ),
        Intervention(
            name="clip-adaptive",
            change=Clip("adaptive", _ADAPTIVE),
            question="do gradients hold that are clipped, unit by unit, to a hundredth of their weights?",
        ),
        Intervention(
            name="own-backward",
            change=BackwardByAutograd(known.function),
            missing=_unless(known.function, "no custom autograd function is suspect"),
            question="does autograd's own derivative hold, in the place of a custom backward?",
        ),
        Intervention(
            name="backward-norm",
            change=MatchedNorm("own-backward"),
            placebo_of="own-backward",
            question="do updates hold that are as short as those, in their own direction?",
        ),
    )


def _model(known: Given) -> tuple[Intervention, ...]:
    return (
        Intervention(
            name="scores-capped",
            change=Scores("capped", _SCORE),
            question=f"does attention hold whose scores are kept below {_SCORE:g}?",
        ),
        Intervention(
            name="scores-fp32", change=Scores("fp32"), question="does attention hold whose scores are computed in fp32?"
        ),
        Intervention(
            name="norm-eps", change=NormEpsilon(100.0), question="does a hundred times the norms' epsilon hold?"
        ),
        Intervention(
            name="reference-kernels",
            change=ReferenceKernels(),
            question="is it a fused kernel?",
            cost=2.0,
        ),
        Intervention(
            name="restore-weights",
            change=RestoredWeights(known.reference),
            missing=_unless(known.reference, "no other checkpoint was given (--reference)"),
            question="do the weights of another checkpoint hold?",
        ),
        Intervention(
            name="fresh-init",
            change=Redrawn(known.drawn),
            missing=_unless(known.drawn, "no module is suspect"),
            question="do weights hold that are drawn as torch draws them?",
        ),
        Intervention(
            name="init-placebo",
            change=Redrawn(known.drawn, outside=True),
            missing=_unless(known.drawn, "no module is suspect"),
            placebo_of="fresh-init",
            question="does drawing all other layers anew help too?",
        ),
    )


def _unless(there: object, reason: str) -> str:
    return "" if there else reason
