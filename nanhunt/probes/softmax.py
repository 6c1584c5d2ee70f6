"""The softmax probe: what attention scores and output logits are, step by step, without an op-level look.

How it works. A `TorchFunctionMode` hears softmax, log-softmax, cross-entropy and scaled-dot-product attention as the
user's code calls them, and leaves device-side scalars; nothing it hears is changed. A softmax is attention when what it
gives (through dropout or a cast) is a factor of a matrix product. One that is written by hand (`softmax_by_hand`) may weigh
vectors as well: (…, 1) times (…, d). Rows, by the module that is running:

- `attention.score_max`: the largest score, where the softmax is the user's own; a mask's constants never enter, for it is
  the largest and not the largest magnitude. Of an exp that had the maximum taken from it, the largest distance to that.
- `attention.entropy`: mean over rows of -Σ p ln p, in nats, with `attention.keys` the columns it is over.
- `attention.score_bound`: of a fused attention, whose scores never exist, max|q| · max|k| · scale ≥ every score
  (Cauchy-Schwarz, the norms taken per head). With `exact`, scores are computed in fp32, and score_max and entropy told.
- `logits.log_z`: mean of log Σ exp over the rows of a cross-entropy or log-softmax; `logits.shift` and `logits.spread`:
  mean and standard deviation of all of its logits.

Losses that have a meaning for some targets only are heard by the way: `target.outside`, how many lie outside of that.

What it costs: one pass over the scores. What it does not see: attention inside other compiled or C++ code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode, resolve_name

from nanhunt.probes.probe import ModuleStack, RowBuffer, in_backward
from nanhunt.probes.score_bound import score_bound
from nanhunt.probes.softmax_by_hand import HEARD_BY_HAND, ByHand, Kept, weighs_vectors
from nanhunt.probes.targets import HEARD_TARGETS, HeardTarget, targets_outside
from nanhunt.trace.schema import Phase
from nanhunt.training.run import TrainingRun
from nanhunt.training.step_watch import StepWatch

__all__ = ["CALLS_THROUGH", "SoftmaxWatch", "watch_softmax"]

#: What stands here between the user's call and the function that they called.
CALLS_THROUGH = ("_call_heard", "__torch_function__", "heard")

_SOFTMAX = frozenset({"softmax"})
_LOGITS = frozenset({"log_softmax", "cross_entropy"})
_CARRIERS = frozenset(
    {"dropout", "dropout_", "to", "type_as", "float", "half", "bfloat16", "view", "reshape", "masked_fill"}
)
_WEIGHTED = frozenset({"mul", "__mul__", "__rmul__", "multiply"})
_PRODUCTS = frozenset({"matmul", "bmm", "einsum", "__matmul__", "baddbmm"})
_HEARD = (
    _SOFTMAX
    | _LOGITS
    | _CARRIERS
    | _WEIGHTED
    | _PRODUCTS
    | HEARD_BY_HAND
    | HEARD_TARGETS
    | {"scaled_dot_product_attention"}
)
#: What is heard whatever was heard before; the others are asked for what becomes of that. `multi_head_attention_forward`
#: calls names of torch.nn.functional.
_BEGINS = _SOFTMAX | _LOGITS | HEARD_TARGETS | {"exp", "scaled_dot_product_attention", "multi_head_attention_forward"}
#: torch's own Python functions call these by their names in torch.nn.functional, where no mode hears them
_INNER = ("scaled_dot_product_attention", "softmax")
#: Elements that means over rows are taken of, and rows whatever their width.
_ELEMENTS, _FEWEST_ROWS = 1 << 19, 64
#: Scores of one head that are computed at once in an exact look, 256 MiB in fp32.
_CHUNK = 1 << 26


@contextmanager
def watch_softmax(run: TrainingRun, rows: RowBuffer, *, exact: bool = False) -> Iterator[SoftmaxWatch]:
    """Record scores, entropies and log Z of what runs inside the body into `rows`; the watch hears where forwards end.

    With `exact`, it holds the targets that were heard.
    """
    stack = ModuleStack()
    ear = _Ear(rows, stack, exact=exact)
    watch = SoftmaxWatch(ear, always=run.train_step is not None)
    with stack.following(run.roots()), _inner_heard(ear), ear.deaf_in_updates():
        try:
            watch.listen()
            yield watch
        finally:
            watch.leave()


class SoftmaxWatch(StepWatch):
    """Lets the ear listen while losses are computed: a step calls functions by the thousand in clip and update as well.

    In a loop of the user's own it listens all the time: between a mode's coming and going their own modes may come and go.
    """

    def __init__(self, ear: _Ear, *, always: bool) -> None:
        self._ear = ear
        self._always = always
        self._listens = False

    @property
    def targets(self) -> list[HeardTarget]:
        """The targets that were heard."""
        return self._ear.targets

    def batch_read(self, micro: int, batch: Any) -> None:
        """A forward begins."""
        self.listen()

    def backward_begins(self, micro: int) -> None:
        """It has ended."""
        if not self._always:
            self.leave()

    def listen(self) -> None:
        """Begin to listen."""
        if not self._listens:
            self._ear.__enter__()  # type: ignore[no-untyped-call]
            self._listens = True

    def leave(self) -> None:
        """Listen no more."""
        if self._listens:
            self._listens = False
            self._ear.__exit__(None, None, None)  # type: ignore[no-untyped-call]


@contextmanager
def _inner_heard(ear: _Ear) -> Iterator[None]:
    """Let the names that `multi_head_attention_forward` calls be heard too."""
    own = {name: getattr(F, name) for name in _INNER}
    for name, function in own.items():
        setattr(F, name, ear.around(function))
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(F, name, function)


class _Ear(TorchFunctionMode):
    """Hears the calls, and remembers which tensors are probabilities."""

    def __init__(self, rows: RowBuffer, stack: ModuleStack, *, exact: bool) -> None:
        super().__init__()
        self._rows = rows
        self._stack = stack
        self._exact = exact
        self._deep = 0
        #: inside of nn.MultiheadAttention, whose products are not heard
        self._whole = 0
        #: inside of an optimizer's step, which calls thousands of functions
        self._updating = False
        self.targets: list[HeardTarget] = []
        #: of a softmax's output, and of what dropout or a cast made of it: its scores and entropy
        self._probabilities = Kept[dict[str, Tensor]]()
        self._by_hand = ByHand()

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is heard when it is called, and behaves as before."""

        def heard(*args: Any, **kwargs: Any) -> Any:
            return self._call_heard(function, args, kwargs)

        return heard

    @contextmanager
    def deaf_in_updates(self) -> Iterator[None]:
        """Hear nothing of what optimizers call while the body runs, but for the closures that they are given."""

        def begun(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._updating = len(args) < 2 and not kwargs

        def ended(*_: Any) -> None:
            self._updating = False

        handles = (register_optimizer_step_pre_hook(begun), register_optimizer_step_post_hook(ended))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`, and note what it was about."""
        name = getattr(func, "__name__", "")
        if name and name not in _BEGINS and not (name in _HEARD and self._is_following):
            return func(*args, **kwargs) if kwargs else func(*args)
        return self._call_heard(func, args, kwargs or {})

    @property
    def _is_following(self) -> bool:
        """Whether there is something that was heard and still lives."""
        return bool(self._probabilities) or self._by_hand.is_following

    def _call_heard(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._deep or self._updating or in_backward() or not self._rows.recording:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        whole = name == "multi_head_attention_forward"
        # inside of MultiheadAttention the names in F are heard, and what they call in turn is not
        self._deep, self._whole = self._deep + (not whole), self._whole + whole
        try:
            output = func(*args, **kwargs)
        finally:
            self._deep, self._whole = self._deep - (not whole), self._whole - whole
        if not name:
            name = resolve_name(func) or ""
        if name in _HEARD:
            self._deep += 1
            try:
                with torch.no_grad(), self._rows.aside():
                    self._note(name, args, kwargs, output)
            finally:
                self._deep -= 1
        return output

    def _note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if any(_has_no_values(value) for value in (*args, *kwargs.values(), output)):
            return
        first = args[0] if args else kwargs.get("input", kwargs.get("query"))
        self._by_hand.hear(name, args, output)
        target = targets_outside(name, args, kwargs)
        if target is not None:
            self._rows.scalar("target.outside", target.outside.sum(), phase=Phase.FORWARD, module=self._stack.current)
            self.targets += [target] if self._exact else []
        elif name in _PRODUCTS:
            self._weighed([self._probabilities.of(a) or self._by_hand.of(a) for a in args])
        elif name in _WEIGHTED and weighs_vectors(args):
            self._weighed([self._by_hand.of(a) for a in args])
        elif not isinstance(first, Tensor) or not first.is_floating_point() or first.numel() == 0:
            return
        elif name in _SOFTMAX and isinstance(output, Tensor) and first.dim() >= 2:
            dim = kwargs.get("dim", args[1] if len(args) > 1 and isinstance(args[1], int) else -1)
            found = _scores(first, output, -1 if dim is None else dim)
            if self._whole:
                self._told("attention", found)
            else:
                self._probabilities.keep(output, found)
        elif name in _CARRIERS:
            self._probabilities.keep(output, self._probabilities.of(first))
        elif name in _LOGITS and first.dim() >= 2:
            dim = kwargs.get("dim", args[1] if name == "log_softmax" and len(args) > 1 else None)
            self._told(
                "logits", _normaliser(first, dim if isinstance(dim, int) else (1 if name == "cross_entropy" else -1))
            )
        elif name == "scaled_dot_product_attention":
            self._attended(args, kwargs)

    def _weighed(self, factors: list[dict[str, Tensor] | None]) -> None:
        for found in factors:
            if found is not None:
                self._told("attention", found)

    def _attended(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
        given = dict(zip(names, args, strict=False)) | kwargs
        query, key = given["query"], given["key"]
        scale = given.get("scale") or 1.0 / math.sqrt(query.shape[-1])
        if query.dim() < 3 or key.numel() == 0:
            return
        held, finish = score_bound(query, key, scale)
        module = self._stack.current
        self._rows.later("attention.score_bound", held, finish, phase=Phase.FORWARD, module=module)
        if self._exact:
            mask = given.get("attn_mask")
            self._told("attention", _exact_scores(query, key, scale, mask, causal=bool(given.get("is_causal"))))

    def _told(self, what: str, found: dict[str, Tensor]) -> None:
        for name, value in found.items():
            self._rows.scalar(f"{what}.{name}", value, phase=Phase.FORWARD, module=self._stack.current)


def _has_no_values(value: Any) -> bool:
    """Whether a value is a tensor of which no number reaches the host: on meta, or one of many inside of `vmap`."""
    if not isinstance(value, Tensor):
        return False
    while is_functorch_wrapped_tensor(value):
        if is_batchedtensor(value):
            return True
        value = get_unwrapped(value)
    return bool(value.is_meta)


def _scores(scores: Tensor, probabilities: Tensor, dim: int) -> dict[str, Tensor]:
    """Return the largest score and the mean entropy (nats) of a softmax's rows along `dim`."""
    p = _some_rows(probabilities, dim).float()
    return {
        "score_max": scores.amax().double(),
        "entropy": torch.special.entr(p).sum(dim=-1).mean().double(),
        "keys": torch.full((), float(scores.shape[dim]), dtype=torch.float64, device=scores.device),
    }


def _normaliser(logits: Tensor, dim: int) -> dict[str, Tensor]:
    """Return the mean log Z of rows along `dim`, and mean and spread of the logits; masked ones of -inf are left out."""
    wide = _some_rows(logits, dim).float()
    masked = torch.isneginf(wide)
    kept, count = wide.masked_fill(masked, 0.0), wide.numel() - torch.count_nonzero(masked)
    shift = kept.sum(dtype=torch.float64) / count
    spread = (kept - shift).masked_fill_(masked, 0.0).square_().sum(dtype=torch.float64) / count
    return {"log_z": torch.logsumexp(wide, dim=-1).mean().double(), "shift": shift, "spread": spread.sqrt()}


def _some_rows(tensor: Tensor, dim: int) -> Tensor:
    """Return rows along `dim` as the last dimension of a matrix: all of few, of many evenly spaced ones.

    A mean over rows is known well from a hundred of them; logits of a large vocabulary are the largest tensor of a step.
    """
    rows = tensor.movedim(dim, -1)
    count, width = rows.numel() // rows.shape[-1], rows.shape[-1]
    wanted = max(_FEWEST_ROWS, _ELEMENTS // width)
    if count <= wanted:
        return rows.reshape(-1, width)
    places, index = torch.arange(wanted, device=tensor.device) * count // wanted, []
    for size in reversed(rows.shape[:-1]):  # torch.unravel_index sends the shape to the device, and waits
        index.append(places % size)
        places = places // size
    return rows[tuple(reversed(index))]


def _exact_scores(query: Tensor, key: Tensor, scale: float, mask: Tensor | None, *, causal: bool) -> dict[str, Tensor]:
    """Return score_max, entropy and keys of an attention, in fp32, a few heads at a time."""
    heads, kv_heads = query.shape[-3], key.shape[-3]
    if heads != kv_heads:
        key = key.repeat_interleave(heads // kv_heads, dim=-3)
    rows, columns = query.shape[-2], key.shape[-2]
    q, k = query.reshape(-1, rows, query.shape[-1]).float(), key.reshape(-1, columns, key.shape[-1]).float()
    masks = None if mask is None else mask.expand(*query.shape[:-1], columns).reshape(-1, rows, columns)
    if causal:
        masks = torch.ones(rows, columns, dtype=torch.bool, device=q.device).tril().expand(q.shape[0], rows, columns)
    most, entropy = [], []
    step = max(1, _CHUNK // max(1, rows * columns))
    for at in range(0, q.shape[0], step):
        scores = q[at : at + step] @ k[at : at + step].transpose(-2, -1) * scale
        if masks is not None:
            part = masks[at : at + step]
            scores = scores.masked_fill(~part, -math.inf) if part.dtype == torch.bool else scores + part
        most.append(scores.amax())
        entropy.append(torch.special.entr(torch.softmax(scores, dim=-1)).sum(dim=-1).nanmean())
    return {
        "score_max": torch.stack(most).amax().double(),
        "entropy": torch.stack(entropy).mean().double(),
        "keys": torch.full((), float(columns), dtype=torch.float64, device=q.device),
    }
