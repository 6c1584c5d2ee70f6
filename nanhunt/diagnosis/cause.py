"""What a cause is, and what it may answer: a suspect, 'could not tell' with a reason, or nothing.

A cause file exports `CAUSE = Cause(slug=…, doc=__doc__, examine=…)`. `examine` reads the evidence and returns a
`Suspect` (found), a `NotApplicable` (could not tell, and why) or None (looked, and cleared). There is no score: a
suspect has exhibits, each one sentence with its number, and a grade that is earned by a stated rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from nanhunt.interventions import Prediction, Trial
from nanhunt.trace.schema import Onset

if TYPE_CHECKING:
    from nanhunt.diagnosis.advice import Advice
    from nanhunt.diagnosis.certificate import Certificate
    from nanhunt.diagnosis.evidence import Evidence
    from nanhunt.diagnosis.format_verdict import FormatVerdict
    from nanhunt.diagnosis.original import OriginalRun
    from nanhunt.diagnosis.precision import PrecisionFacts
    from nanhunt.diagnosis.rank_views import RankView
    from nanhunt.diagnosis.recording import Recording
    from nanhunt.diagnosis.shards import BadShards
    from nanhunt.formats.headroom import Headroom
    from nanhunt.formats.shared_scale import Lost

__all__ = ["Cause", "Diagnosis", "Exhibit", "Grade", "HeadroomRow", "Location", "NotApplicable", "Suspect"]


class Grade(StrEnum):
    """How sure, by a rule that a user can check; in the order of ranking.

    proved: an arithmetic certificate, re-checked. confirmed: a trial cured it as predicted, its placebo did not.
    supported: the cause's own discriminating measurement is there. consistent: the signature fits, nothing tells it
    from its look-alikes. refuted: a prediction failed.
    """

    PROVED = "proved"
    CONFIRMED = "confirmed"
    SUPPORTED = "supported"
    CONSISTENT = "consistent"
    REFUTED = "refuted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """One piece of evidence: a sentence, and where it has them, its number and the number it is held against."""

    claim: str
    value: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where a suspect did it. Any part may be unknown (None)."""

    step: int | None = None
    phase: str | None = None
    module: str | None = None
    parameter: str | None = None
    op: str | None = None
    source: str | None = None
    samples: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A cause with evidence against it.

    `summary` completes "Step 12: …" and names the fault in one clause. `depth` orders a deeper cause before its
    proximate one: 0 is the proximate fault, 1 what brought it about. `trials` is filled in by `diagnose`.
    """

    cause: str
    grade: Grade
    summary: str
    location: Location
    exhibits: tuple[Exhibit, ...] = ()
    fixes: tuple[str, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    depth: int = 0
    trials: tuple[tuple[Trial, Prediction | None], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NotApplicable:
    """The evidence does not let this cause be judged, and why."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A root cause: its slug, its page (the file's docstring), and the function that looks for it."""

    slug: str
    doc: str
    examine: Callable[[Evidence], Suspect | NotApplicable | None]

    @property
    def fault(self) -> str:
        """The page's first line: the fault in one sentence."""
        return self.doc.strip().splitlines()[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadroomRow:
    """What one format would do to one tensor of the run, over all its steps.

    `headroom` is of the tensor as it is, without a scale. `scaled` is what a scale leaves that puts the largest magnitude
    of those that share it at the format's end, by who shares it: "tensor" (each step's own amax), "row", "block" (128 x
    128; of outputs and their gradients 1 x 128). Of a block format `headroom` itself is what its own scales leave, where
    `measured`; else each element is in the block that suits it best.
    """

    module: str
    role: str
    name: str
    headroom: Headroom
    scaled: tuple[tuple[str, Lost], ...] = ()
    #: whether rows and blocks were looked at; `sampled` says that this was at a part of the elements
    measured: bool = False
    sampled: bool = False
    #: where the run held this tensor in this very format, and it was infinite: the `seq` of its first such row
    overflowed: int | None = None
    amax: float = 0.0
    amin: float = 0.0

    def under(self, per: str) -> Lost | None:
        """Return what a scale per "tensor", "row" or "block" leaves; None where that is not known."""
        return next((lost for shared, lost in self.scaled if shared == per), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All that a renderer gets: the verdict and what it stands on. A pure function of the trace."""

    #: "fault", "healthy" or "inconclusive"
    outcome: str
    #: one sentence: what broke first, where, why
    summary: str
    onset: Onset | None
    suspects: tuple[Suspect, ...]
    #: slugs looked at and innocent
    cleared: tuple[str, ...]
    #: (slug, reason) that could not be judged
    untold: tuple[tuple[str, str], ...]
    headroom: tuple[HeadroomRow, ...]
    trials: tuple[Trial, ...]
    assumptions: tuple[str, ...]
    #: steps, device, checkpoint, complete, first_step, last_step, note (why incomplete) …
    run: dict[str, object]
    #: by scalar name ("loss", "grad_norm", "loss_scale", "lr"): (steps, values) of the replay, for sparklines
    series: dict[str, tuple[tuple[int, ...], tuple[float, ...]]]
    #: from the root birth to what it spoiled: (op, module, source, what it does)
    lineage: tuple[tuple[str, str, str, str], ...] = ()
    #: source lines around the onset: (line number, text, whether it is the line)
    code: tuple[tuple[int, str, bool], ...] = ()
    code_file: str = ""
    #: what the fault spoiled, as a clause
    damage: str = ""
    certificate: Certificate | None = None
    #: sample → positions in its sequence that are bad
    positions: tuple[tuple[int, tuple[int, ...]], ...] = ()
    #: why no sample is named, where that was looked into
    no_samples: str = ""
    #: what the run's precision recipe did to it; None without one
    precision: PrecisionFacts | None = None
    #: whether the run fits each format; and what precision it needs, None where the trace holds no tensor
    verdicts: tuple[FormatVerdict, ...] = ()
    advice: Advice | None = None
    #: whether the replay follows the losses that the original run logged; None where the trace holds none
    original: OriginalRun | None = None
    #: sharded tensors that are not finite at the onset, and which ranks' parts hold the bad elements
    shards: tuple[BadShards, ...] = ()
    #: what the ranks saw of the onset's step, or of the last one; () of one process
    ranks: tuple[RankView, ...] = ()
    #: what a page may draw besides: read on demand, for it takes a pass through the trace; None where there is no trace
    recording: Recording | None = field(default=None, compare=False, repr=False)
