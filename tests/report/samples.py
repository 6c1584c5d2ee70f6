"""Diagnoses as a report may meet them, built by hand: faults, health, doubt, nothing at all, and malice."""

from __future__ import annotations

import math

from nanhunt.diagnosis.advice import Advice, GradientLoss, Kept, KeptTensor
from nanhunt.diagnosis.cause import Diagnosis, Exhibit, Grade, HeadroomRow, Location, Suspect
from nanhunt.diagnosis.format_verdict import format_verdicts
from nanhunt.diagnosis.loss_scale import LossScales, ScaleEnd
from nanhunt.diagnosis.original import OriginalRun
from nanhunt.formats.headroom import Headroom
from nanhunt.formats.shared_scale import Lost
from nanhunt.interventions import Prediction, Trial
from nanhunt.trace.schema import Onset

ESCAPE = "\x1b[31m"
HOSTILE = f"[red]x[/red] {ESCAPE}\x07\x9b2J a|b `c` ``d`` <script>alert(1)</script> \u202egnp.exe 模型 \udcff\n# not a heading"


def row(
    module: str, format: str, margin: float, *, role: str = "output", name: str = "", **more: object
) -> HeadroomRow:
    numbers: dict[str, object] = {
        "underflow_margin": 9.0,
        "overflow_fraction": 0.0,
        "subnormal_fraction": 0.01,
        "flushed_fraction": 0.0,
        "best_shift": 8,
    }
    flushed = numbers | more
    headroom = Headroom(format=format, overflow_margin=margin, **flushed)  # type: ignore[arg-type]
    amax = 2.0 ** (16 - margin) if math.isfinite(margin) else 0.0
    lost = Lost(of=1000, flushed=round(1000 * float(flushed["flushed_fraction"] or 0.0)), energy=1.0)  # type: ignore[arg-type]
    return HeadroomRow(
        module=module, role=role, name=name, headroom=headroom, amax=amax, amin=amax * 2.0**-20,
        scaled=(("tensor", lost),) if format in ("e4m3fn", "e5m2") else (),
    )  # fmt: skip


def scale_end(shift: int, module: str, role: str = "grad_output") -> ScaleEnd:
    return ScaleEnd(shift=shift, module=module, role=role, name="", magnitude=2.0**-shift)


def advised(low: int, high: int, module: str = "blocks.5.mlp", **more: object) -> Advice:
    parts: dict[str, object] = {
        "loss_scale": LossScales(format="fp16", low=scale_end(low, module), high=scale_end(high, "head")),
        "used": (65536.0, 65536.0),
        "gradients": (),
        "kept": (),
        "missing": (),
    }
    return Advice(**(parts | more))  # type: ignore[arg-type]


def diagnosis(outcome: str, summary: str, **more: object) -> Diagnosis:
    run: dict[str, object] = {
        "steps": 50,
        "device": "cpu",
        "checkpoint": "ckpt.pt",
        "complete": True,
        "first_step": 1200,
        "last_step": 1237,
        "trace": "trace.parquet",
    }
    parts: dict[str, object] = {
        "onset": None,
        "suspects": (),
        "cleared": (),
        "untold": (),
        "headroom": (),
        "trials": (),
        "assumptions": (),
        "run": run,
        "series": {},
    }
    parts |= {"verdicts": format_verdicts((), more.get("headroom", ()))} | more  # type: ignore[arg-type]
    return Diagnosis(outcome=outcome, summary=summary, **parts)  # type: ignore[arg-type]


STEPS = tuple(range(1200, 1238))
CLEARED = (
    "bad-sample",
    "bad-target",
    "learning-rate-too-high",
    "gradient-explosion",
    "adam-v-collapse",
    "optimizer-state",
    "poisoned-state",
    "empty-reduction",
    "training-loop-bug",
)
UNTOLD = (
    ("rank-divergence", "the trace holds one rank only"),
    ("fp8-saturation", "no tensor of this run is in an FP8 format"),
    ("hardware-fault", "the step was not repeated: replay ran with --no-trials, so no repetition can be compared"),
)

_FP32 = Trial(
    name="fp32",
    outcome="cured",
    detail="loss 2.41, all gradients finite",
    readback="122 of 122 modules computed in fp32",
    intervention={"name": "fp32", "precision": "fp32"},
    loss=2.41,
)
_FP16 = Trial(
    name="fp16-again",
    outcome="persists",
    detail="loss is NaN again",
    readback="122 of 122 modules computed in fp16",
    intervention={"name": "fp16-again", "precision": "fp16", "placebo_of": "fp32"},
    loss=math.nan,
)
_DROP = Trial(name="drop-samples", outcome="persists", detail="loss is NaN without samples 3", loss=math.nan)

OVERFLOW = diagnosis(
    "fault",
    "the exp in blocks.5.mlp gives 70144, more than fp16 holds (65504), so that the loss is NaN from step 1237 on",
    onset=Onset(
        kind="nan",
        step=1237,
        phase="forward",
        module="blocks.5.mlp",
        op="aten.exp",
        source="model.py:88",
        samples=[3],
        lead_step=1229,
        detail="the output of blocks.5.mlp is inf in 14 of 786432 elements",
    ),
    suspects=(
        Suspect(
            cause="activation-overflow",
            grade=Grade.CONFIRMED,
            summary="exp of 11.16 in fp16 is beyond the format's largest number",
            location=Location(
                step=1237,
                phase="forward",
                module="blocks.5.mlp",
                op="aten.exp",
                source="model.py:88",
                samples=(3,),
            ),
            exhibits=(
                Exhibit(claim="fp64 gives a finite number that fp16 cannot hold", value=70144.0, threshold=65504.0),
                Exhibit(claim="the largest input of the exp has grown for eight steps in a row", value=11.16),
                Exhibit(claim="no input of the op is non-finite"),
            ),
            fixes=(
                "Compute the exp of blocks.5.mlp in fp32 (torch.autocast(enabled=False) around line 88), or train in bf16.",
                "Subtract the row's maximum before the exp.",
            ),
            predictions=(
                Prediction(trial="fp32", expect="cured"),
                Prediction(trial="drop-samples", expect="persists"),
            ),
            trials=(
                (_FP32, Prediction(trial="fp32", expect="cured")),
                (_DROP, Prediction(trial="drop-samples", expect="persists")),
            ),
        ),
        Suspect(
            cause="naive-exp-log",
            grade=Grade.SUPPORTED,
            summary="a softmax is written as exp and division, without subtracting the maximum",
            location=Location(step=1237, phase="forward", module="blocks.5", op="aten.exp", source="model.py:88"),
            exhibits=(Exhibit(claim="exp is followed by a division by its own sum", value=1.0),),
            fixes=("Call torch.softmax.",),
        ),
        Suspect(
            cause="learning-rate-too-high",
            grade=Grade.REFUTED,
            summary="the gradient norm rose before the onset",
            location=Location(step=1231, phase="update"),
            exhibits=(Exhibit(claim="gradient norm against its median", value=3.2, threshold=10.0),),
            trials=((_DROP, Prediction(trial="lr-tenth", expect="cured")),),
        ),
    ),
    cleared=CLEARED,
    untold=UNTOLD,
    headroom=(
        row("blocks.5.mlp", "fp16", -0.1, overflow_fraction=1.8e-5, best_shift=-1),
        row("blocks.4.mlp", "fp16", 0.7, best_shift=0),
        row("blocks.3.attention.projection_of_something_long", "fp16", 5.1, role="grad_output", flushed_fraction=0.31),
        row("blocks.0", "fp16", 9.3, name="blocks.0.weight", role="weight", best_shift=9),
        row("blocks.5.mlp", "bf16", 111.9, best_shift=111),
        row("blocks.4.mlp", "bf16", 112.7, best_shift=112),
        row("blocks.5.mlp", "e4m3fn", -7.3, overflow_fraction=0.2, best_shift=-8),
        row("blocks.4.mlp", "e4m3fn", -6.5, overflow_fraction=0.1, best_shift=-7),
        row("head", "e4m3fn", math.inf, best_shift=None, flushed_fraction=None, subnormal_fraction=None),
        row("blocks.5.mlp", "nvfp4", 0.0, flushed_fraction=0.08),
    ),
    advice=advised(
        11,
        17,
        gradients=(
            GradientLoss(
                format="e4m3fn",
                per="tensor",
                lost=Lost(of=1000, flushed=27, energy=1.0, flushed_energy=1e-9),
                rounding=2.0**-4,
                module="blocks.3.attention",
                name="",
                worst=0.31,
            ),
            GradientLoss(
                format="e5m2",
                per="tensor",
                lost=Lost(of=1000, energy=1.0),
                rounding=2.0**-3,
                module="x",
                name="",
                worst=0.0,
            ),
        ),
        kept=(
            Kept(
                why="update",
                format="bf16",
                count=5,
                of=44,
                tensors=(KeptTensor(module="blocks.0", role="update", name="weight", number=1.7e-4),),
            ),
            Kept(why="decay", format="bf16", count=44, of=44, tensors=(), number=0.001),
        ),
    ),
    trials=(_FP32, _FP16, _DROP),
    assumptions=(
        "CUDA's autocast list is applied on this CPU: softmax, norms, exp and pow run in fp32 unless the model says so.",
        "Prefix _orig_mod. was stripped from 124 of 124 tensors.",
    ),
    series={
        "loss": (STEPS, (*(3.1 - 0.02 * i for i in range(37)), math.nan)),
        "grad_norm": (STEPS, (*(0.8 * 1.2 ** max(i - 25, 0) for i in range(37)), math.inf)),
        "loss_scale": (STEPS, tuple(65536.0 for _ in range(38))),
        "lr": (STEPS, tuple(3e-4 for _ in range(38))),
    },
    lineage=(
        ("aten.exp", "blocks.5.mlp", "model.py:88", "birth"),
        ("aten.mul.Tensor", "blocks.5.mlp", "model.py:89", "carries"),
        ("aten.addmm", "blocks.5.mlp.down", "model.py:90", "carries"),
        ("aten.add.Tensor", "blocks.5", "model.py:60", "carries"),
        ("aten.native_layer_norm", "norm", "model.py:120", "carries"),
        ("aten.mm", "head", "model.py:121", "carries"),
        ("aten._log_softmax", "", "train.py:20", "carries"),
        ("aten.nll_loss_forward", "", "train.py:20", "reaches"),
    ),
    code=(
        (86, "    def forward(self, x):", False),
        (87, "        gate = self.up(x)", False),
        (88, "        weights = gate.exp()", True),
        (89, "        return self.down(weights * x)", False),
        (90, "", False),
    ),
    code_file="model.py",
)

SPIKE = diagnosis(
    "fault",
    "the loss jumps from 2.4 to 19.7 at step 1220, on 3 samples of the batch",
    onset=Onset(
        kind="loss-spike",
        step=1220,
        phase="forward",
        name="loss",
        samples=[3, 17, 40, *range(100, 120)],
        micro=2,
        rank=1,
        detail="loss is 19.7, 31 robust standard deviations above its baseline",
    ),
    suspects=(
        Suspect(
            cause="bad-sample",
            grade=Grade.PROVED,
            summary="three samples carry the spike",
            location=Location(step=1220, phase="batch", samples=(3, 17, 40), parameter="input_ids"),
            exhibits=(Exhibit(claim="loss without those samples", value=2.43, threshold=4.1),),
            fixes=("Look at samples 3, 17 and 40 of batch 1220.",),
        ),
    ),
    headroom=(row("head", "bf16", 108.2),),
    series={
        "loss": (STEPS, tuple(2.4 if s != 1220 else 19.7 for s in STEPS)),
        "grad_norm": (STEPS, tuple(1.0 if s != 1220 else 55.0 for s in STEPS)),
    },
)

STALL = diagnosis(
    "fault",
    "97 % of the weights of blocks.0 do not move: their updates are smaller than half an ulp of bf16",
    onset=Onset(
        kind="stall",
        step=0,
        phase="update",
        module="blocks.0",
        name="blocks.0.weight",
        detail="97 % of the updates change nothing",
        lead_step=0,
    ),
    suspects=(
        Suspect(
            cause="lost-update",
            grade=Grade.PROVED,
            summary="updates are rounded away",
            location=Location(step=0, phase="update", module="blocks.0", parameter="blocks.0.weight"),
            exhibits=(Exhibit(claim="share of updates that change nothing", value=0.97, threshold=0.5),),
            fixes=("Keep fp32 master weights.",),
        ),
    ),
    series={"loss": ((0, 1, 2), (5.5, 5.5, 5.5))},
)

HEALTHY = diagnosis(
    "healthy",
    "50 steps, no non-finite value and no spike",
    cleared=CLEARED,
    untold=UNTOLD,
    headroom=(row("blocks.5.mlp", "fp16", 5.2), row("blocks.4.mlp", "fp16", 6.2), row("blocks.5.mlp", "bf16", 112.0)),
    assumptions=("Prefix _orig_mod. was stripped from 124 of 124 tensors.",),
    series={"loss": (STEPS, tuple(3.0 - 0.01 * i for i in range(38)))},
)

INCONCLUSIVE = diagnosis(
    "inconclusive",
    "the loss is NaN from the first step on, and two repetitions of the step differ",
    onset=Onset(kind="nan", step=1, phase="forward", module="", detail="loss is NaN"),
    suspects=(
        Suspect(
            cause="nondeterminism",
            grade=Grade.CONSISTENT,
            summary="repetitions differ by rounding",
            location=Location(),
            exhibits=(Exhibit(claim="largest difference of the two losses", value=math.nan, threshold=-math.inf),),
        ),
    ),
    series={"loss": ((1, 2), (math.nan, math.nan))},
)

INCOMPLETE = diagnosis(
    "healthy",
    "no fault in the steps that were finished",
    run={
        "steps": 50,
        "device": "cuda:0",
        "checkpoint": "ckpt.pt",
        "complete": False,
        "first_step": 1200,
        "last_step": 1212,
        "note": "the replay was killed",
    },
    series={"loss": (STEPS[:13], tuple(3.0 for _ in range(13)))},
)

HOSTILE_STRINGS = diagnosis(
    "fault",
    HOSTILE,
    onset=Onset(
        kind="inf",
        step=7,
        phase=HOSTILE,
        module=HOSTILE,
        name=HOSTILE,
        op=HOSTILE,
        source=HOSTILE,
        detail=HOSTILE,
        lead_step=6,
    ),
    suspects=tuple(
        Suspect(
            cause=HOSTILE,
            grade=grade,
            summary=HOSTILE,
            location=Location(step=7, phase=HOSTILE, module=HOSTILE, parameter=HOSTILE, op=HOSTILE, source="x" * 300),
            exhibits=(Exhibit(claim=HOSTILE * 3, value=math.inf, threshold=1e-8),),
            fixes=(HOSTILE, "- 1. # + = |"),
            trials=((Trial(name=HOSTILE, outcome="cured", detail=HOSTILE, readback=HOSTILE), None),),
        )
        for grade in Grade
    ),
    cleared=(HOSTILE, "x" * 200),
    untold=((HOSTILE, HOSTILE),),
    headroom=(row(HOSTILE, "fp16", -3.0, role=HOSTILE, name=HOSTILE), row("模型" * 60, HOSTILE, math.nan)),
    advice=advised(
        17,
        11,
        HOSTILE,
        missing=(HOSTILE,),
        kept=tuple(
            Kept(
                why=why,
                format="fp16",
                count=9,
                of=9,
                tensors=(KeptTensor(module=HOSTILE, role=HOSTILE, name=HOSTILE, number=0.5),),
            )
            for why in ("fp8", "fp8-blocks", "moment", "update")
        ),
    ),
    trials=(Trial(name=HOSTILE, outcome="failed", detail=HOSTILE, intervention={HOSTILE: HOSTILE}, loss=math.inf),),
    assumptions=(HOSTILE, "1. a list in a list"),
    run={
        "steps": HOSTILE,
        "device": HOSTILE,
        "checkpoint": HOSTILE,
        "complete": False,
        "note": HOSTILE,
        "trace": HOSTILE,
    },
    series={"loss": ((5, 6, 7), (1.0, math.inf, -math.inf)), HOSTILE: ((1,), (1.0,))},
    lineage=tuple((HOSTILE, HOSTILE, HOSTILE, HOSTILE) for _ in range(9)),
    code=((7, f"\tx = {HOSTILE}", True), (8, "```" + "y" * 300, False)),
    code_file=HOSTILE,
    original=OriginalRun(
        source=HOSTILE, verdict="apart", compared=3, leaves=5, leaves_since=5, replayed=math.nan, logged=2.5
    ),
)

NO_SUSPECTS = diagnosis(
    "fault",
    "the gradient of head.weight is inf",
    onset=Onset(kind="inf", step=3, phase="backward", module="head", name="head.weight", detail="gradient is inf"),
)

EMPTY = diagnosis("inconclusive", "", run={})

SAMPLES: dict[str, Diagnosis] = {
    "overflow": OVERFLOW,
    "spike": SPIKE,
    "stall": STALL,
    "healthy": HEALTHY,
    "inconclusive": INCONCLUSIVE,
    "incomplete": INCOMPLETE,
    "hostile": HOSTILE_STRINGS,
    "no-suspects": NO_SUSPECTS,
    "empty": EMPTY,
}
