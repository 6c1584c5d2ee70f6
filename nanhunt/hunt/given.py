"""What trials act on: the suspects' samples, module, line and parameters, and for each a placebo of equal size."""

from __future__ import annotations

import random

from torch import Tensor, nn

from nanhunt.bench import Window
from nanhunt.changes.precision import precision_of
from nanhunt.diagnosis.cause import Diagnosis, Location
from nanhunt.diagnosis.dynamics import rate_jump, restart
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.hunt.state import HuntState
from nanhunt.library import Given
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import NoteKind
from nanhunt.training.batch_layout import batch_size

__all__ = ["given_of"]

#: Healthy steps that say how large a gradient is.
_HEALTHY = 5
#: A gradient's RMS over that of the second moment before it, from which the moment is not its own.
_STALE = 3.0


def given_of(state: HuntState, window: Window, diagnosis: Diagnosis) -> Given:
    """Return what the library's interventions are made with."""
    onset = state.onset
    assert onset is not None
    evidence = Evidence(Trace.open(state.writer.partial))
    places = [s.location for s in diagnosis.suspects]
    samples = tuple(onset.samples) or next((p.samples for p in places if p.samples), ())
    module = next((p.module for p in places if p.module), "") or onset.module
    modules = dict(state.run.model.named_modules())
    named = _suspect_parameters(state, evidence, places[:1])
    wrong = evidence.wrong_backward()
    narrow, jump = precision_of(state.run), rate_jump(evidence) or restart(evidence)
    norms = [r.grad_norm for s, r in sorted(state.results.items()) if s < window.first and r.grad_norm is not None]
    return Given(
        samples=samples,
        placebo=_other_samples(state, evidence, samples),
        other_step=_healthy_step(state, window),
        earlier_step=window.first - 1 if window.first - 1 >= _oldest(state) else None,
        module=module if module in modules else "",
        drawn=_layers(modules, module),
        other_module=_other_module(modules, module),
        source=onset.source or "",
        above=tuple(sorted({a.source for a in evidence.ancestry.values() if a.source} - {onset.source})),
        parameters=named,
        other_parameters=_other_parameters(state.run.parameters(), named),
        grad_norm=_middle(norms[-_HEALTHY:]),
        grad_amax=_amax(evidence, window.first),
        rate=jump.before / jump.rate if jump is not None and jump.rate > 0.0 and not jump.is_new else None,
        format=narrow if narrow in ("fp16", "bf16") else "",
        recipe=state.run.emulator is not None and state.run.emulator.recipe.products is not None,
        reference=state.settings.reference,
        function=str(wrong["function"]) if wrong else "",
    )


def _suspect_parameters(state: HuntState, evidence: Evidence, places: list[Location]) -> tuple[str, ...]:
    """Return the first suspect's parameter, and those whose gradient is as far beyond the second moment it met."""
    own = state.run.parameters()
    named = {p.parameter for p in places if p.parameter in own}
    for place in places if named else ():
        stale = evidence.health_at("v_stale", place.step if place.step is not None else -1)
        named |= {name for name, times in stale.items() if name in own and not times < _STALE}
    return tuple(sorted(str(name) for name in named))


def _oldest(state: HuntState) -> int:
    return max(state.ring.oldest_step, state.run.start_step)


def _healthy_step(state: HuntState, window: Window) -> int | None:
    """Return the first of as many steps before the window as it has, one behind them left out; None where none is kept."""
    first = window.first - 1 - (window.last - window.first + 1)
    step = max(first, _oldest(state))
    return step if step <= window.first - 2 else None


def _other_samples(state: HuntState, evidence: Evidence, samples: tuple[int, ...]) -> tuple[int, ...]:
    """Return as many samples that are not suspect: those of the search, where it had a placebo."""
    onset = state.onset
    assert onset is not None
    note = evidence.note(NoteKind.SAMPLES) or {}
    if note.get("placebo") and set(note.get("samples", ())) == set(samples):
        return tuple(note["placebo"])
    try:
        size = batch_size(state.run.batches.peek(onset.step, onset.micro))
    except KeyError:
        return ()
    rest = [i for i in range(size or 0) if i not in samples]
    return tuple(sorted(random.Random(0).sample(rest, len(samples)))) if samples and len(rest) >= len(samples) else ()


def _other_module(modules: dict[str, nn.Module], name: str) -> str:
    """Return the name of another module of the same class, not inside of the suspect nor around it; '' without one."""
    own = modules.get(name)
    if own is None or not name:
        return ""
    apart = (
        n for n, m in modules.items() if type(m) is type(own) and not _within(n, name) and not _within(name, n) and n
    )
    return next(apart, "")


def _layers(modules: dict[str, nn.Module], name: str) -> str:
    """Return a module, or the list that it is one of: blocks are drawn together."""
    around = name.rpartition(".")[0]
    return around if isinstance(modules.get(around), nn.ModuleList | nn.Sequential) and around else name


def _within(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}.")


def _other_parameters(parameters: dict[str, Tensor], named: tuple[str, ...]) -> tuple[str, ...]:
    """Return parameters that have about as many elements as the suspect ones: those nearest in size, until as many."""
    wanted = sum(parameters[n].numel() for n in named)
    rest = sorted((abs(p.numel() - wanted), n) for n, p in parameters.items() if n not in named and p.requires_grad)
    chosen: list[str] = []
    for _, name in rest if named else []:
        chosen.append(name)
        if sum(parameters[n].numel() for n in chosen) >= wanted:
            break
    return tuple(chosen)


def _middle(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def _amax(evidence: Evidence, before: int) -> float | None:
    """Return the largest gradient element of the last healthy steps."""
    peaks: dict[int, float] = {}
    for series in evidence.history("grad", "amax").values():
        for step, value in series.items():
            if step < before and value == value:
                peaks[step] = max(peaks.get(step, 0.0), value)
    return max((peaks[s] for s in sorted(peaks)[-_HEALTHY:]), default=None)
