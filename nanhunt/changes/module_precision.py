"""One module in fp32: its weights, what goes in and every op inside; what comes out has the dtype that it had.

How it works. The step is run once as it is, to see what the module takes and puts out, and the run is put back. Then the
module's narrow weights, buffers and moments are cast, and its forward is wrapped: inputs cast, autocast off, outputs cast to
the dtypes that were seen. The wrapping lies inside of the module's hooks.

Not covered: autocast that the module's own code turns on inside; a weight that other code reads past the module's forward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.bench import Bench, Made, NotApplicableError
from nanhunt.interventions import ModulePrecision
from nanhunt.probes.probe import is_hookable, modules_below
from nanhunt.rewind import kept
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step
from nanhunt.training.tree import map_tensors, tensors_of

__all__ = ["wide_module"]

_NARROW = (torch.float16, torch.bfloat16)


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What a module took and put out in the plain step."""

    calls: int = 0
    is_narrow: bool = False
    #: dtypes of the tensors that went in, and of those that came out, by how many there were
    taken: set[torch.dtype] = field(default_factory=set)
    made: dict[int, list[torch.dtype]] = field(default_factory=dict)

    def note(self, given: Any, output: Any) -> None:
        """Note a call."""
        self.calls += 1
        self.taken |= {t.dtype for _, t in tensors_of(given) if t.is_floating_point()}
        dtypes = [t.dtype for _, t in tensors_of(output)]
        self.made.setdefault(len(dtypes), dtypes)

    @property
    def put_out(self) -> set[torch.dtype]:
        """Every dtype that came out."""
        return {dtype for made in self.made.values() for dtype in made}


@contextmanager
def wide_module(bench: Bench, change: ModulePrecision) -> Iterator[Made]:
    """Run the module in fp32; what follows gets the dtypes that it always got."""
    run = bench.run
    module = dict(modules_below(run.roots())).get(change.module)
    if module is None or not is_hookable(module):
        raise NotApplicableError(f"the model has no module {change.module!r} whose forward could be changed")
    seen = _plain_step(run, module, bench.window.first)
    narrow = [t for t in (*module.parameters(), *module.buffers()) if t.dtype in _NARROW]
    if not seen.calls:
        raise NotApplicableError(f"{change.module} does not run in step {bench.window.first}")
    if not (seen.is_narrow or narrow or seen.taken & {*_NARROW} or _is_quantized(run, change.module)):
        raise NotApplicableError(f"{change.module} runs in fp32 already")
    _refuse_tied(run, module, change.module)
    own, inside, readback = [(t, t.data) for t in narrow], _Seen(), [""]
    _widen(run, narrow)
    try:
        left = run.emulator.instead(exempt={change.module}) if run.emulator is not None else contextlib.nullcontext()
        with left, _wrapped(module, _wide_forward(run, module.forward, seen, inside)):
            yield Made(readback=readback)
        weights = {t.dtype for t in module.parameters() if t.is_floating_point()}
    finally:
        for tensor, memory in own:  # what shares this memory (a flat buffer, an RNN's weights) goes on sharing it
            tensor.grad, tensor.data = None, memory
    products = "products in their own precision, " if _is_quantized(run, change.module) else ""
    readback[0] = (
        f"{change.module}: {products}autocast off, weights {_said(weights)}, inputs {_said(seen.taken)} → {_said(inside.taken)}, "
        f"outputs {_said(inside.put_out)} → {_said(seen.put_out)}"
    )


def _is_quantized(run: TrainingRun, module: str) -> bool:
    emulator = run.emulator
    return emulator is not None and any(not module or name.startswith(f"{module}.") for name in emulator.quantized)


def _plain_step(run: TrainingRun, module: nn.Module, step: int) -> _Seen:
    seen = _Seen()

    def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen.note([*args, *kwargs.values()], output)
        seen.is_narrow |= torch.is_autocast_enabled(run.device.type)

    handle = module.register_forward_hook(look, with_kwargs=True, always_call=True)
    try:
        with kept(run, step), contextlib.suppress(Exception):  # the fault itself may be one
            train_step(run, step, StepWatch())
    finally:
        handle.remove()
    return seen


def _refuse_tied(run: TrainingRun, module: nn.Module, name: str) -> None:
    own = {id(m) for m in module.modules()}
    mine = {id(p) for p in module.parameters() if p.dtype in _NARROW}
    for other, stranger in modules_below(run.roots()):
        if id(stranger) not in own and any(id(p) in mine for p in stranger.parameters(recurse=False)):
            raise NotApplicableError(f"a weight of {name} is {other}'s as well")


def _widen(run: TrainingRun, narrow: list[Tensor]) -> None:
    """Cast tensors, their gradients and moments to fp32; the trial restores all of it from its snapshot."""
    for tensor in narrow:
        grad, tensor.grad = tensor.grad, None
        tensor.data = tensor.data.float()
        tensor.grad = None if grad is None else grad.float()
        for optimizer in run.optimizers:
            state = optimizer.state.get(tensor)
            if isinstance(state, dict):
                moved = {k: v if k == "step" else map_tensors(_wide, v) for k, v in state.items()}
                optimizer.state[tensor] = moved


def _wide_forward(run: TrainingRun, forward: Callable[..., Any], seen: _Seen, inside: _Seen) -> Callable[..., Any]:
    def wide(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = map_tensors(_wide, args), {k: map_tensors(_wide, v) for k, v in kwargs.items()}
        with torch.autocast(run.device.type, enabled=False):
            output = forward(*args, **kwargs)
        inside.note([*args, *kwargs.values()], output)
        made = [t.dtype for _, t in tensors_of(output)]
        dtypes = iter(seen.made.get(len(made), made))
        return map_tensors(lambda t: t.to(next(dtypes)), output)

    return wide


@contextmanager
def _wrapped(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _NARROW else tensor


def _said(dtypes: set[torch.dtype]) -> str:
    names = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}
    return (
        "/".join(sorted(names.get(d, str(d).removeprefix("torch.")) for d in dtypes if d.is_floating_point)) or "none"
    )
