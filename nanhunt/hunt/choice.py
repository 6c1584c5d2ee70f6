"""Which trial comes next: the one that tells most for each second that it takes.

Suspects predict what a trial will do. One that two suspects predict differently separates them; one that the first
suspect expects a cure of may confirm it, and is a fix that was tried. A placebo is worth its time only where its trial
cured. What was asked for by name is always run.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from nanhunt.diagnosis.cause import Suspect
from nanhunt.interventions import Intervention, Outcome

__all__ = ["next_trial"]

#: Worth of a cure that the first suspect expects, and of a trial that is always of use, in pairs of suspects.
_CONFIRMS, _USUAL = 2.0, 0.5


def next_trial(
    rest: Sequence[Intervention],
    suspects: Sequence[Suspect],
    outcomes: dict[str, Outcome],
    usual: frozenset[str],
    asked: frozenset[str],
) -> Intervention | None:
    """Return the most telling of the interventions that are left, None where no further one tells anything.

    `outcomes` are those of the trials so far, `usual` the names of what is tried of every fault, `asked` those that the
    user named.
    """
    alive = [s for s in suspects if not _is_contradicted(s, outcomes)]
    worths = [(_worth(i, alive, outcomes, usual, asked) / i.cost, -n, i) for n, i in enumerate(rest)]
    best = max(worths, key=lambda w: w[:2], default=None)
    return best[2] if best is not None and best[0] > 0.0 else None


def _is_contradicted(suspect: Suspect, outcomes: dict[str, Outcome]) -> bool:
    told = {p.trial: p.expect for p in suspect.predictions if p.refutes}
    return any(outcomes.get(trial, expect) not in (expect, "failed") for trial, expect in told.items())


def _worth(
    intervention: Intervention,
    suspects: Sequence[Suspect],
    outcomes: dict[str, Outcome],
    usual: frozenset[str],
    asked: frozenset[str],
) -> float:
    name = intervention.name
    if name == "exact":
        return 1e9  # without it no other one can be read
    if name in asked:
        return 1e6
    if intervention.missing:
        return 0.0
    if intervention.placebo_of is not None:
        return 1e2 if outcomes.get(intervention.placebo_of) == "cured" else 0.0
    expects = [next((p.expect for p in s.predictions if p.trial == name), None) for s in suspects]
    told = [e for e in expects if e is not None]
    separated = sum(a != b for a, b in combinations(expects, 2)) if told else 0
    confirms = _CONFIRMS if expects and expects[0] == "cured" else 0.0
    return separated + confirms + (0.5 if told else 0.0) + (_USUAL if name in usual else 0.0)
