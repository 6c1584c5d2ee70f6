"""One half of a narrow format, its range or its rounding, laid upon a step that runs in fp32.

How it works. The step runs in fp32, and a `TorchDispatchMode` cuts what ops put out, forward and backward, in place.
Range: beyond the format's largest number comes an infinity, at half of its smallest or below a zero; no bit of the mantissa
is lost. Rounding: the mantissa to nearest, ties to even; the exponent is fp32's.

What is cut is what the run would have had in the format: a loss times its scale never was in it. A tensor is narrow when a
product made it, or when all that it was made of is narrow, and so is its gradient; under autocast, what autocast runs in
fp32 is not, nor a gradient once it has come to its parameter, nor what the code itself casts to fp32.

Not covered: `.to(x.dtype)`, which means fp32 once x is; what a fused kernel keeps inside, and torch's own Python functions
between their ops' gradients. What is in half precision still (a `.half()` of the code's) has both halves of its format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from nanhunt.bench import Bench, Made, NotApplicableError
from nanhunt.changes.cuts import range_of, rounding_of
from nanhunt.changes.narrow import LOSSES, WIDE_ON_CUDA, Narrow
from nanhunt.changes.precision import precision_of
from nanhunt.formats.catalogue import lookup
from nanhunt.formats.number_format import NumberFormat
from nanhunt.interventions import Emulation
from nanhunt.precision import in_precision
from nanhunt.probes.op_facts import facts_of, fresh_outputs, taken_apart
from nanhunt.probes.probe import in_backward
from nanhunt.recipes.product_ops import is_product
from nanhunt.training.step import StepWatch
from nanhunt.training.tree import map_tensors, tensors_of

__all__ = ["emulated"]

_ATTENTION = "aten._scaled_dot_product"
#: What attention keeps in fp32 for its backward.
_KEPT = ("logsumexp", "log_sumexp", "softmax_lse")


@contextmanager
def emulated(bench: Bench, change: Emulation) -> Iterator[Made]:
    """Run the step in fp32, what would have been narrow cut to the format's range or rounding."""
    run, was = bench.run, precision_of(bench.run)
    form = lookup(change.format)
    if was not in ("fp16", "bf16") or not isinstance(form, NumberFormat):
        raise NotApplicableError(f"the step runs in {was}: nothing of it is in {change.format}")
    live = {**run.parameters(), **run.buffers()}
    narrow = [t for t in live.values() if t.dtype in (torch.float16, torch.bfloat16)]
    wide = [t for t in live.values() if t.dtype is torch.float32 and t.is_leaf and t.requires_grad]
    on_cuda = run.cuda_lists or run.device.type == "cuda"
    cut = range_of(form) if change.part == "range" else rounding_of(form)
    tags = Narrow()
    wide_ops = (WIDE_ON_CUDA if on_cuda else LOSSES) if run.autocast else frozenset()
    mode, readback = _Cut(cut, tags, wide_ops), [""]
    with ExitStack() as stack:
        stack.enter_context(in_precision(run, "fp32"))
        for tensor in narrow:
            tags.add(tensor)
        for parameter in wide:
            hook: Any = parameter.register_post_accumulate_grad_hook
            handle = hook(lambda p: tags.drop(p.grad))
            stack.callback(handle.remove)
        for register, by in ((register_optimizer_step_pre_hook, 1), (register_optimizer_step_post_hook, -1)):
            stack.callback(register(lambda *_, by=by: mode.pause(by)).remove)
        stack.enter_context(_Above(mode))
        stack.enter_context(mode)
        yield Made(readback=readback, watches=[] if run.autocast else [_NarrowBatches(tags)])
    kept = "fp32's rounding kept" if change.part == "range" else "fp32's range kept"
    readback[0] = f"step in fp32, outputs of {mode.calls} calls cut to {form.name}'s {change.part} ({kept})"


class _NarrowBatches(StepWatch):
    """Batches of a run whose weights are narrow are so, too."""

    def __init__(self, tags: Narrow) -> None:
        self._tags = tags

    def batch_read(self, micro: int, batch: Any) -> None:
        for _, tensor in tensors_of(batch):
            if tensor.dtype is torch.float32 and tensor.layout is torch.strided:
                self._tags.add(tensor)


class _Above(TorchFunctionMode):
    """What autograd and casts do with narrow tensors, which no op shows once both formats are fp32."""

    def __init__(self, mode: _Cut) -> None:
        super().__init__()
        self._mode = mode

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`: a cast to fp32 makes narrow tensors wide, and the gradient of a narrow output is cut."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "float" or any(v is torch.float32 for v in (*args, *kwargs.values())):
            args = map_tensors(self._mode.widened, args)
        output = func(*args, **kwargs)
        if name not in ("__get__", "__set__", "__delete__"):
            for _, tensor in tensors_of(output):
                if tensor.requires_grad and tensor.grad_fn is not None and tensor in self._mode.tags:
                    tensor.register_hook(self._mode.cut_gradient)  # type: ignore[no-untyped-call]
        return output


class _Cut(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Cuts what ops put out where it would have been narrow."""

    supports_higher_order_operators = True

    def __init__(self, cut: Callable[[Tensor], Tensor], tags: Narrow, wide: frozenset[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cut = cut
        self.tags = tags
        self._wide = wide
        self._paused = 0
        self.calls = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def pause(self, by: int) -> None:
        """Let ops pass while `by` sums up to more than 0."""
        self._paused += by

    def widened(self, tensor: Tensor) -> Tensor:
        """Return a narrow tensor's numbers in memory that is not."""
        if tensor not in self.tags:
            return tensor
        copy = tensor.clone(memory_format=torch.preserve_format)
        self.tags.drop(copy)
        return copy

    def cut_gradient(self, gradient: Tensor) -> Tensor:
        """Return a narrow tensor's gradient as narrow as it is."""
        if not _is_cut(gradient):
            return gradient
        self.pause(1)
        try:
            gradient = self._cut(gradient)
        finally:
            self.pause(-1)
        self.tags.add(gradient)
        return gradient

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the op, and cut its outputs and what it wrote in place."""
        kwargs = kwargs or {}
        facts = facts_of(func)
        if self._paused or facts.is_transparent or torch._C._is_torch_function_all_disabled():
            return func(*args, **kwargs)  # the optimizer, a view, a probe
        given, _ = taken_apart(facts, args, kwargs)
        if is_product(facts.name):
            named = zip(facts.arguments, args, strict=False)
            args = tuple(a if n in (*facts.written, *_KEPT) else map_tensors(self._operand, a) for n, a in named)
        result = func(*args, **kwargs)
        made = [t for n, t in given if n.partition(".")[0] in facts.written and t in self.tags]
        if self._is_narrow(facts.name, [t for n, t in given if n.partition(".")[0] not in facts.written]):
            fresh = [t for _, t in fresh_outputs(facts, result) if _is_cut(t)]
            made += fresh[:1] if facts.name.startswith(_ATTENTION) and "backward" not in facts.name else fresh
        for tensor in filter(_is_cut, made):
            self.tags.add(tensor)
            if not facts.is_factory:
                tensor.copy_(self._cut(tensor))
        self.calls += bool(made) and not facts.is_factory
        return result

    def _operand(self, tensor: Tensor) -> Tensor:
        """Return what a product gets: autocast casts it, whatever it was."""
        return self._cut(tensor) if _is_cut(tensor) and tensor not in self.tags else tensor

    def _is_narrow(self, op: str, operands: list[Tensor]) -> bool:
        """Whether an op puts out narrow tensors: numbers without dimensions do not widen others, as in torch's rule."""
        is_forward = not in_backward() or torch.is_grad_enabled()  # a checkpoint runs its forward in backward
        if is_product(op) or (is_forward and op.split(".")[1] in self._wide):
            return is_product(op)
        numbers = [t for t in operands if t.is_floating_point()]
        sized = [t for t in numbers if t.dim()] or numbers
        return bool(sized) and all(t in self.tags for t in sized)


def _is_cut(tensor: Tensor) -> bool:
    return tensor.dtype is torch.float32 and tensor.layout is torch.strided and tensor.numel() > 0
