"""A loss that leaps because the code means it to: another term from some step on, or a layer that is drawn anew.

Asked of a spike that no cause explains. Two measurements, both of which must hold. The step is run once more behind a
step at a learning rate of 0, and on the batch of that step: where its loss is high all the same, neither the update nor
the batch made it so, and what is left is the code. And the code must be seen to do something else: ops, or plain numbers
given to them, of a line that the two steps before did not have and the step behind has as well; or random numbers
written into a weight outside of an optimizer. What else is written into a weight or buffer is no sign of a purpose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from nanhunt.changes.rate import at_rate
from nanhunt.hunt.state import HuntState
from nanhunt.probes.op_facts import facts_of
from nanhunt.probes.source import SourceLine, caller_line, place
from nanhunt.rewind import kept, rewind
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step
from nanhunt.training.tree import map_tensors

__all__ = ["meant_so"]

#: Share of a leap that must be there without the update and the batch.
_MOST = 0.5
_DRAWS = frozenset(
    {"uniform_", "normal_", "log_normal_", "cauchy_", "exponential_", "geometric_", "random_", "bernoulli_"}
)

#: Ops whose plain numbers weigh a loss; those of a view or of indexing follow the data.
_ARITHMETIC = frozenset({"mul", "mul_", "div", "div_", "add", "add_", "sub", "sub_", "rsub", "pow", "pow_", "lerp"})

#: An op of a user's line, with the plain numbers among its tensors.
Call = tuple[str, SourceLine, tuple[float, ...]]


def meant_so(state: HuntState) -> dict[str, Any] | None:
    """Return what the code does differently from a spike's alarm on, None where the spike is not the code's doing.

    The body: `step`, `how` ("drawn" or "another-loss"), `source`, `parameters`, and the losses `before` and `after` of
    one batch on the same weights. The run is put back.
    """
    event, run = state.event, state.run
    if event is None or event.kind != "loss-spike" or event.slow:
        return None
    step, losses = event.alarm_step, state.losses
    if step - 2 < max(state.ring.oldest_step, run.start_step) or {step - 1, step + 1} - losses.keys():
        return None
    before, at = losses[step - 1], losses[step]
    if not at - before > _MOST * (event.peak_loss - event.baseline_loss):
        return None  # it came over several steps
    with kept(run, step + 1):
        after = _loss_without_update(state, step)
    if after is None or not after - before > _MOST * (at - before):
        return None
    with kept(run, step + 1):
        seen = _differently(state, step)
    if seen is None:
        return None
    how, line, parameters = seen
    return {
        "step": step, "how": how, "source": place(line, run.root), "parameters": parameters,
        "before": before, "after": after, "loss": at, "baseline": event.baseline_loss,
    }  # fmt: skip


def _loss_without_update(state: HuntState, step: int) -> float | None:
    """Return the loss of the step before's batch in `step`, where the step before moved no weight."""
    run = state.run
    try:
        same = [run.batches.again(step - 1, micro) for micro in range(run.accumulate)]
        rewind(run, state.ring, step - 1)
        with at_rate(run, 0.0):
            train_step(run, step - 1, StepWatch())
        run.batches.transform = lambda s, m, batch: map_tensors(lambda t: t.to(run.device, copy=True), same[m])
        loss = train_step(run, step, StepWatch()).loss
    except Exception:  # a batch in a step that it never met: whatever the user's code raises, there is no loss
        return None
    finally:
        run.batches.transform = None
    return loss if math.isfinite(loss) else None


def _differently(state: HuntState, step: int) -> tuple[str, SourceLine, list[str]] | None:
    """Return how the code differs from the two steps before, its line, and the weights that it drew anew."""
    rewind(state.run, state.ring, step - 2)
    heard = []
    for index in range(4):
        listener = _Listener(state.run)
        with listener:
            train_step(state.run, step - 2 + index, StepWatch())
        heard.append(listener)
    earlier, before, now, later = heard
    for one, last in ((now, before), (before, earlier)):  # a layer may be drawn behind the update of the step before
        drawn = {name: line for name, line in one.drawn.items() if name not in last.drawn}
        written = one.written - last.written
        if drawn and not written - drawn.keys():
            return "drawn", next(iter(drawn.values())), sorted(drawn)
    if now.written - before.written:
        return None
    fresh = [call for call in now.calls if call not in before.calls | earlier.calls and call in later.calls]
    return ("another-loss", fresh[0][1], []) if fresh else None


@dataclass(eq=False)
class _Listener(TorchDispatchMode):
    """Hears a step's ops outside of autograd's engine and of optimizers, and what writes into weights."""

    run: TrainingRun
    #: in the order in which they are first heard
    calls: dict[Call, None] = field(default_factory=dict)
    #: weights that random numbers were written into first, with the line
    drawn: dict[str, SourceLine] = field(default_factory=dict)
    #: weights and buffers that were written into
    written: set[str] = field(default_factory=set)
    supports_higher_order_operators = True

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        owned = {**self.run.buffers(), **self.run.parameters()}
        self._names = {t.untyped_storage().data_ptr(): name for name, t in owned.items()}
        self._updating = False
        self._handles: list[Any] = []

    def __enter__(self) -> _Listener:
        self._handles = [
            register_optimizer_step_pre_hook(lambda *_: self._turn(updating=True)),
            register_optimizer_step_post_hook(lambda *_: self._turn(updating=False)),
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def _turn(self, *, updating: bool) -> None:
        self._updating = updating

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._updating:
            line = caller_line(in_backward=True)
            if line is not None:
                self._hear(func, line, args)
        return func(*args, **(kwargs or {}))

    def _hear(self, func: Any, line: SourceLine, args: tuple[Any, ...]) -> None:
        facts = facts_of(func)
        weighs = facts.name.split(".")[1] in _ARITHMETIC and any(isinstance(x, Tensor) for x in args)
        numbers = tuple(float(x) for x in args if isinstance(x, int | float) and not isinstance(x, bool))
        self.calls.setdefault((facts.name, line, numbers if weighs else ()))
        for argument, value in zip(facts.arguments, args, strict=False):
            if argument not in facts.written or not isinstance(value, Tensor):
                continue
            name = self._names.get(value.untyped_storage().data_ptr())
            if name is None:
                continue
            if name not in self.written and facts.name.split(".")[1] in _DRAWS:
                self.drawn[name] = line
            self.written.add(name)
