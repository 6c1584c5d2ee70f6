"""The scoreboard: how often the report is right, by cause and in total, and where it is worst."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from tests.corpus.hunted import Moved
from tests.corpus.judge import Verdict
from tests.corpus.thresholds import Sensitivity

__all__ = ["Scoreboard"]

_MEASURES = ("detected", "top1", "top3", "location", "step", "module", "op", "line", "samples")
_WORST = 12
#: Shares that are to be right, and of the suspects that are called proved or confirmed.
_REACH = {"top1": 0.95, "top3": 0.99, "location": 0.95, "samples": 0.95}
_PRECISION = 0.99
#: Share of faulty programs that end with a suspect who is proved or confirmed.
_SURE = 0.80
_TIPPED = 2
#: What a miss costs, for the list of the worst ones.
_COST = {"detected": 8, "top1": 4, "samples": 1, "step": 2, "module": 1, "line": 2, "op": 1, "phase": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoreboard:
    """Verdicts on faulty programs, and (name, outcome, what was said) of healthy ones."""

    verdicts: tuple[Verdict, ...]
    healthy: tuple[tuple[str, str, str], ...]
    sensitivities: tuple[Sensitivity, ...] = ()
    hunted: tuple[Moved, ...] = ()

    def rows(self) -> list[tuple[str, ...]]:
        """Return a row a cause, and the total: name, programs, then a share of each measure."""
        causes = sorted({v.cause for v in self.verdicts})
        rows = [_row(cause, [v for v in self.verdicts if v.cause == cause]) for cause in causes]
        return [*rows, _row("total", self.verdicts)]

    @property
    def precision(self) -> dict[str, tuple[int, int]]:
        """How many suspects of each grade were right, of how many."""
        counts = {}
        for grade in ("proved", "confirmed"):
            found = [right for v in self.verdicts for g, _, right in v.graded if g == grade]
            counts[grade] = (sum(found), len(found))
        return counts

    @property
    def sure(self) -> int:
        """Programs with a suspect who is proved or confirmed."""
        return sum(bool(v.graded) for v in self.verdicts)

    @property
    def false_alarms(self) -> list[tuple[str, str, str]]:
        """Healthy programs and twins that were called anything but healthy."""
        return [h for h in self.healthy if h[1] != "healthy"]

    def short_of(self) -> list[str]:
        """Return what is below its reach, in words; another machine's rounding may tip over `_TIPPED` programs."""
        found = []
        for name, reach in _REACH.items():
            judged = [bool(x) for v in self.verdicts if (x := getattr(v, name)) is not None]
            if sum(not right for right in judged) > (1.0 - reach) * len(judged) + _TIPPED:
                found.append(f"{name} {sum(judged)}/{len(judged)}, for {reach:.0%}")
        for grade, (right, all_) in self.precision.items():
            if all_ - right > (1.0 - _PRECISION) * all_ + _TIPPED:
                found.append(f"{grade} {right}/{all_}, for {_PRECISION:.0%}")
        if self.sure + 2 * _TIPPED < _SURE * len(self.verdicts):  # a grade hangs on more steps than a verdict
            found.append(f"proved or confirmed {self.sure}/{len(self.verdicts)}, for {_SURE:.0%}")
        if len(self.false_alarms) > _TIPPED:
            found.append(f"{len(self.false_alarms)} false alarms")
        return found

    def worst(self, count: int = _WORST) -> list[Verdict]:
        """Return the verdicts with the costliest misses, worst first."""
        wrong = [v for v in self.verdicts if v.misses or v.error]
        return sorted(wrong, key=lambda v: (-sum(_COST[m] for m in v.misses), v.program))[:count]

    def show(self, console: Console, seconds: float) -> None:
        """Print the tables."""
        table = Table(title=f"{len(self.verdicts)} faulty programs, {len(self.healthy)} healthy ones, {seconds:.0f} s")
        for index, name in enumerate(("cause", "n", *_MEASURES)):
            table.add_column(name, justify="left" if index == 0 else "right")
        for row in self.rows():
            table.add_row(*row, end_section=row is self.rows()[-2:][0])
        console.print(table)
        for line in self._sentences():
            console.print(line, highlight=False)
        for verdict in self.worst():
            console.print(f"  {verdict.program}: {_said(verdict)}", highlight=False, markup=False)
        for name, outcome, said in self.false_alarms:
            console.print(f"  FALSE ALARM {name}: {outcome}: {said}", highlight=False, markup=False)

    def _sentences(self) -> list[str]:
        lines = [
            f"{grade}: {right} of {all_} suspects right{_share(right, all_)}"
            for grade, (right, all_) in self.precision.items()
        ]
        share = _share(self.sure, len(self.verdicts))
        lines.append(f"faulty programs that end proved or confirmed: {self.sure} of {len(self.verdicts)}{share}")
        lines.append(f"false alarms: {len(self.false_alarms)} of {len(self.healthy)} healthy programs and twins")
        lines.append(f"the true cause was called innocent in {sum(v.cleared for v in self.verdicts)} programs")
        return lines

    def markdown(self) -> str:
        """Return the page."""
        head = ["cause", "programs", *_MEASURES]
        table = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
        table += [f"| {' | '.join(row)} |" for row in self.rows()]
        worst = [f"- `{v.program}`: {_said(v)}" for v in self.worst()]
        alarms = [f"- `{name}`: {outcome}: {said}" for name, outcome, said in self.false_alarms]
        parts = [
            _HEAD.format(faulty=len(self.verdicts), healthy=len(self.healthy), families=len(self.families)),
            "\n".join(table),
            "\n".join(f"- {line}" for line in self._sentences()),
            "## By model family\n\n" + "\n".join(self._by_family()),
            "## The worst misses\n\n" + ("\n".join(worst) or "None."),
            *(["## Thresholds\n\n" + _THRESHOLDS + "\n".join(self._by_threshold())] if self.sensitivities else []),
            *(["### While a replay runs\n\n" + _HUNTED + "\n".join(self._by_hunted())] if self.hunted else []),
            *(["## False alarms\n\n" + "\n".join(alarms)] if alarms else []),
        ]
        return "\n\n".join(parts) + "\n"

    def _by_threshold(self) -> list[str]:
        lines = [
            "| threshold | shipped | right, of | without its family | nothing changes from | to |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for found in self.sensitivities:
            lines.append("| " + " | ".join(_sensitivity(found)) + " |")
        return lines

    def _by_hunted(self) -> list[str]:
        lines = [
            "| threshold | shipped | hang on it | right, of | without its family | nothing changes from | to |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for found in self.hunted:
            where, shipped, *rest = _sensitivity(found.sensitivity)
            lines.append("| " + " | ".join([where, shipped, str(found.hanging), *rest]) + " |")
        return lines

    @property
    def families(self) -> list[str]:
        """Model families of the faulty programs."""
        return sorted({v.family for v in self.verdicts})

    def _by_family(self) -> list[str]:
        lines = ["| family | programs | top1 | location |", "| --- | ---: | ---: | ---: |"]
        for family in self.families:
            own = [v for v in self.verdicts if v.family == family]
            lines.append(f"| {family} | {len(own)} | {_measure(own, 'top1')} | {_measure(own, 'location')} |")
        return lines


_HEAD = """\
<!-- made by `make corpus`: change the programs in tests/corpus, not this page -->

# Scoreboard

How often the report is right, on {faulty} programs that fail for a known reason, from {families} model families, and on
{healthy} that are healthy: the mended twin of each, and look-alikes that are often mistaken for a fault. Each is trained,
replayed and reported through the command line; `tests/corpus` holds them with their truth.

`top1`: the first suspect is the cause, or one that an expert would accept; `location`: step, module, op and line are all
right, as far as the truth states them; `samples`: exactly the culprits, or none where the fault is no sample's."""


_THRESHOLDS = """\
Each number that was chosen by looking at runs, moved between a quarter and four times its value, all else unchanged.
*Without its family*: for each model family the value is chosen anew on all other families, and the family is scored
with it. Cause thresholds are judged by the first suspect of faulty programs, those of `onset` by whether the loss's
watch sees the fault of a program whose loss shows it, and none in a healthy one.

"""


_HUNTED = """\
Numbers that decide what a replay looks at, moved between a half and twice their value: each program in whose replay
another value turns a comparison is replayed anew with it. Judged by the first suspect of faulty programs, and by healthy
ones being called so. `python -m tests.corpus --hunted` measures these.

"""


def _sensitivity(found: Sensitivity) -> list[str]:
    """Return the cells of a threshold's row."""
    own, (low, high) = found.threshold, found.plateau
    where = f"`{own.module.removeprefix('nanhunt.').rpartition('.')[2]}.{own.name}`"
    shipped = found.shipped if found.shipped == own.shown else f"{own.shown}, measured at {found.shipped}"
    return [
        where,
        shipped,
        f"{found.right[1.0]}/{found.of}",
        f"{found.left_out}/{found.of}",
        f"{low:g} ×",
        f"{high:g} ×",
    ]


def _row(name: str, verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    return name, str(len(verdicts)), *(_measure(verdicts, m) for m in _MEASURES)


def _measure(verdicts: Iterable[Verdict], name: str) -> str:
    judged = [bool(x) for v in verdicts if (x := getattr(v, name)) is not None]
    return f"{sum(judged)}/{len(judged)}" if judged else "-"


def _share(right: int, all_: int) -> str:
    return f" ({100 * right / all_:.1f} %)" if all_ else ""


def _said(verdict: Verdict) -> str:
    if verdict.error:
        return f"could not be run: {verdict.error.strip().splitlines()[-1]}"
    return f"said {verdict.said}; wrong in {', '.join(verdict.misses)}"
