"""A step by the user's own function: what it does, and in which order, heard from the outside.

How it works. torch calls optimizers' hooks around each update, whoever makes it. What has no hook is heard by wrapping
torch's own functions for as long as the step runs: `backward`, a scaler's `unscale_` and `step`, the two clips,
`zero_grad`. Each wrapper notes that it was called and calls through; nothing that the loop computes changes.

What was chosen. Gradients are told as early as they are whole: at the scaler's unscaling, else at the clip, else before
the update, each parameter once after each backward. So they are seen unscaled and not yet clipped, as in the built-in
step. Gradients that a clip meets with the loss scale still in them are told before the update, with what that clip made
of them: the order is the fault then, and it stands in `order`.

Not covered: a clip that is written by hand, and an update that no `torch.optim.Optimizer` makes.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from nanhunt.trace.schema import CLIP_OF_NOTHING, GONE
from nanhunt.training.called_through import called_through
from nanhunt.training.clip import clip_gradients, gradient_norm
from nanhunt.training.leftover import Leftovers
from nanhunt.training.loss import checked_loss
from nanhunt.training.run import TrainingRun
from nanhunt.training.shards import is_spread
from nanhunt.training.step_watch import StepResult, StepWatch

__all__ = ["closure_step", "custom_step", "needs_closure"]


def custom_step(run: TrainingRun, step: int, watch: StepWatch) -> StepResult:
    """Run one step by the user's `train_step` and return its scalars. Raises whatever the user's code raises."""
    assert run.train_step is not None
    loop, losses = _Loop(run, watch), []
    with loop.heard():
        for micro in range(run.accumulate):
            batch = run.batches.get(step, micro)
            watch.batch_read(micro, batch)
            with run.autocasting():
                loss = run.train_step(run.model, batch, run.optimizer if run.handed is None else run.handed)
            losses.append(checked_loss(loss, "train_step").detach().float().to(run.device))
            watch.loss_made(micro, losses[-1])
        loop.ended()
    watch.updated()
    if run.scheduler is not None:
        run.scheduler.step()
    return StepResult(
        step=step,
        loss=float(torch.stack(losses).mean()),  # the host waits here
        grad_norm=float(torch.linalg.vector_norm(torch.stack(loop.norms))) if loop.norms else None,
        clip_coefficient=None if loop.coefficient is None else float(loop.coefficient),
        loss_scale=None if loop.scale is None else float(loop.scale),
        lr=loop.rates(),
        skipped=loop.updates == 0 and (loop.skipped > 0 or loop.withheld),
        by_hand=loop.skipped == 0 and loop.withheld,
        order=loop.settled_order(),  # and here
        players=len(loop.players),
        reused=loop.reused(),  # and here
    )


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's step cannot be called without a closure, as LBFGS's cannot."""
    parameter = inspect.signature(type(optimizer).step).parameters.get("closure")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def closure_step(run: TrainingRun) -> Callable[..., Any]:
    """Return a step for an optimizer that evaluates the loss as often as it likes."""

    def step(model: torch.nn.Module, batch: Any, optimizer: Any) -> Any:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = checked_loss(run.loss(model, batch), "loss")
            torch.autograd.backward(loss)
            clip_gradients(run)
            return loss

        return optimizer.step(closure)

    return step


class _Loop:
    """What is heard of one step."""

    def __init__(self, run: TrainingRun, watch: StepWatch) -> None:
        self._run = run
        self._watch = watch
        #: parameters whose gradients were told since the last backward
        self._told: set[int] = set()
        #: optimizers whose gradients are without a loss scale
        self._unscaled: set[int] = set()
        #: what was done, in its order: "backward", "unscale", "clip", "update", "skip", "zero_grad"; "kept" where a
        #: backward found gradients from before the step, `CLIP_OF_NOTHING` where a clip was given no gradient
        self.order: list[str] = []
        self.norms: list[Tensor] = []
        self.coefficient: Tensor | None = None
        self.scale: Tensor | None = None
        self.updates = 0
        self.skipped = 0
        #: of each update, the parameters with a gradient
        self.players: set[frozenset[int]] = set()
        #: each optimizer's learning rates as its update used them
        self._rates: dict[int, tuple[float, ...]] = {}
        self._leftovers = Leftovers(run.trainable(), run.stepped)
        #: parameters that had a gradient after a backward, and no update since
        self._fresh: set[int] = set()
        #: places in the order of updates whose gradients had gone, where the count of what is left of them is zero
        self._gone: list[tuple[int, Tensor | None]] = []
        #: optimizers inside their step: one may be a class around others, and what counts as an update is the outermost
        self._open: list[int] = []
        #: reentrant checkpointing calls backward inside of backward
        self._depth = 0

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Listen while the body runs."""
        clips = torch.nn.utils.clip_grad
        scaler = torch.amp.GradScaler
        replaced: list[tuple[Any, str, Callable[..., Any]]] = [
            (torch.autograd, "backward", self._backward),
            (clips, "_get_total_norm", self._norm),
            (clips, "_clip_grads_with_norm_", self._clip_by_norm),
            (scaler, "unscale_", self._unscale),
            (scaler, "step", self._scaler_step),
            (torch.optim.Optimizer, "zero_grad", self._zero_grad),
            (torch.nn.Module, "zero_grad", self._zero_grad),
        ]
        # the clip's second half by its public name, which loops of FSDP2 and TP call
        if getattr(torch.nn.utils, "clip_grads_with_norm_", None) is clips._clip_grads_with_norm_:
            replaced.insert(0, (torch.nn.utils, "clip_grads_with_norm_", _clip_of_list))
        with contextlib.ExitStack() as stack:
            for handle in (
                register_optimizer_step_pre_hook(self._before_update),
                register_optimizer_step_post_hook(self._after_update),
            ):
                stack.callback(handle.remove)
            stack.callback(self._leftovers.release)
            for owner, name, listener in replaced:
                stack.enter_context(called_through(owner, name, listener))
            yield

    def rates(self) -> tuple[float, ...]:
        """Return the learning rate of each group of each optimizer: that of its update, else the present one."""
        return tuple(
            rate for optimizer in self._run.optimizers for rate in self._rates.get(id(optimizer), _rates_of(optimizer))
        )

    def reused(self) -> tuple[tuple[str, str], ...]:
        """Return (parameter, how) of the gradients that an update used a second time (the host may wait)."""
        found = self._leftovers.found()
        self._run.stepped = frozenset(self._leftovers.updated)
        if not found:
            return ()
        names = {id(p): n for n, p in self._run.parameters().items()}
        return tuple((names[key], how) for how, keys in found.items() for key in sorted(keys & names.keys()))

    def settled_order(self) -> tuple[str, ...]:
        """Return what was done in its order, with `GONE` before each update of gradients that had gone (the host may wait)."""
        order = list(self.order)
        for place, left in reversed(self._gone):
            if left is None or not int(left):
                order.insert(place, GONE)
        return tuple(order)

    def ended(self) -> None:
        """Tell the gradients of a step that made no update with them."""
        if "backward" in self.order and not self.updates:
            self._tell(self._run.trainable())

    @property
    def withheld(self) -> bool:
        """Whether a loop without a GradScaler made no update, because its gradients are not finite (the host waits)."""
        if self.updates or "backward" not in self.order or {"unscale", "skip"} & set(self.order):
            return False
        return any(not math.isfinite(float(norm)) for norm in self.norms)

    # --- what is heard -------------------------------------------------------------------------------------------

    def _backward(self, call: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        if self._depth:
            return call()
        if not self.order and any(p.grad is not None for p in self._run.trainable()):
            self.order.append("kept")
        self._watch.backward_begins(0)
        self._leftovers.backward_begins()
        self._depth += 1
        try:
            result = call()
        finally:
            self._depth -= 1
        self.order.append("backward")
        self._fresh = {id(p) for p in self._run.trainable() if p.grad is not None}
        self._told.clear()
        self._unscaled.clear()
        self._watch.turned_to("update")
        return result

    def _unscale(self, call: Callable[[], Any], scaler: Any, optimizer: Any) -> Any:
        present = getattr(scaler, "_scale", None)  # a scaler that is off has none
        self.scale = self.scale if present is None else present.detach().clone()
        self._watch.turned_to("unscale")
        result = call()
        self._watch.turned_to("update")
        self.order.append("unscale")
        self._unscaled.add(id(optimizer))
        self._tell(_parameters_of(optimizer))
        return result

    def _scaler_step(self, call: Callable[[], Any], scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        before = self.updates
        result = call()
        if self.updates == before:
            self.order.append("skip")
            self.skipped += 1
        return result

    def _clip_by_norm(
        self, call: Callable[[], Any], parameters: Any, max_norm: float, total_norm: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        self.order.append(CLIP_OF_NOTHING if self._is_nothing(given) else "clip")
        if not self._is_scaled(given):
            self._tell(given)
        norm = total_norm.full_tensor() if is_spread(total_norm) else total_norm  # type: ignore[attr-defined]
        self.coefficient = torch.clamp(max_norm / (norm.detach().float() + 1e-6), max=1.0)
        self._watch.turned_to("clip")
        result = call()
        self._watch.turned_to("update")
        return result

    def _norm(self, call: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        self._watch.turned_to("clip")
        result = call()
        self._watch.turned_to("update")
        return result

    def _zero_grad(self, call: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        self.order.append("zero_grad")
        return call()

    def _before_update(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if all(optimizer is not known for known in self._run.optimizers):
            self._run.owned.optimizers.append(optimizer)
        self._rates[id(optimizer)] = _rates_of(optimizer)
        if id(optimizer) in self._open:  # its last step raised, and the loop went on
            del self._open[self._open.index(id(optimizer)) :]
        self._open.append(id(optimizer))
        if "backward" in self.order:  # an optimizer with a closure has no gradients yet
            if len(self._open) == 1:
                self.players.add(frozenset(id(p) for p in _parameters_of(optimizer) if p.grad is not None))
                self._leftovers.used(_parameters_of(optimizer))
                self._note_gone(_parameters_of(optimizer))
            self._tell(_parameters_of(optimizer))
        self._watch.clipped(_parameters_of(optimizer))

    def _after_update(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._tell(_parameters_of(optimizer))
        del self._open[self._open.index(id(optimizer)) :]
        if self._open:
            return
        self.updates += 1
        self.order.append("update")
        self._watch.update_made(_parameters_of(optimizer))

    def _note_gone(self, parameters: list[Tensor]) -> None:
        """Note an update of an optimizer whose parameters got gradients by backward, and all of them are gone or cleared."""
        had = [p for p in parameters if id(p) in self._fresh]
        self._fresh -= set(map(id, had))
        if not had:
            return
        left = [p.grad for p in parameters if p.grad is not None]
        since = self.order[len(self.order) - self.order[::-1].index("backward") :]
        if not left:
            self._gone.append((len(self.order), None))
        elif "zero_grad" in since and not any(g.is_sparse for g in left):
            self._gone.append((len(self.order), _nonzero(left)))

    # --- what is told --------------------------------------------------------------------------------------------

    def _tell(self, parameters: Iterable[Tensor]) -> None:
        fresh = [p for p in parameters if p.grad is not None and id(p) not in self._told]
        if not fresh:
            return
        self._told.update(map(id, fresh))
        self.norms.append(gradient_norm([p.grad for p in fresh if p.grad is not None], self._run.device))
        self._watch.gradients_ready(fresh)

    def _is_nothing(self, given: list[Tensor]) -> bool:
        """Whether a clip is given no parameter, or parameters that are trained and have no gradient now."""
        if any(p.grad is not None for p in given):
            return False
        return not given or bool(set(map(id, given)) & set(map(id, self._run.trainable())))

    def _is_scaled(self, parameters: list[Tensor]) -> bool:
        """Whether a loss scale is still in these gradients."""
        if not any(s.is_enabled() and s._scale is not None for s in self._run.owned.scalers):
            return False
        given = set(map(id, parameters))
        owners = [o for o in self._run.optimizers if given & set(map(id, _parameters_of(o)))]
        return not any(id(o) in self._unscaled for o in owners)


def _clip_of_list(call: Callable[[], Any], parameters: Any, *args: Any, **kwargs: Any) -> Any:
    """Call what is listened to, with a list: who listens reads the parameters, and a generator is read once."""
    given = parameters if isinstance(parameters, Tensor) else list(parameters)
    return torch.nn.utils.clip_grad._clip_grads_with_norm_(given, *args, **kwargs)


def _nonzero(tensors: list[Tensor]) -> Tensor:
    """Return how many elements are not zero, on the first one's device."""
    counts = [torch.count_nonzero(t).to(tensors[0].device, non_blocking=True) for t in tensors]
    return torch.stack(counts).sum()


def _rates_of(optimizer: torch.optim.Optimizer) -> tuple[float, ...]:
    return tuple(float(group["lr"]) for group in optimizer.param_groups)


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
