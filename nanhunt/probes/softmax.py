"""The softmax probe: what attention scores and output logits are, step by step, without an op-level look.

How it works. A `TorchFunctionMode` hears softmax, log-softmax, cross-entropy and scaled-dot-product attention as the
user's code calls them, and leaves device-side scalars; nothing it hears is changed. A softmax is attention when what it
gives (through dropout or a cast) is a factor of a matrix product. One that is written by hand, over the edges of a graph
say, is an exp that is divided by a sum of itself, and it may weigh vectors as well: (…, 1) times (…, d). Rows, by the
module that is running:

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
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from nanhunt.probes.probe import ModuleStack, RowBuffer, in_backward
from nanhunt.probes.targets import HeardTarget, targets_outside
from nanhunt.trace.schema import Phase
from nanhunt.training.run import TrainingRun

__all__ = ["CALLS_THROUGH", "watch_softmax"]

T = TypeVar("T")

#: What stands here between the user's call and the function that they called.
CALLS_THROUGH = ("_call_heard", "__torch_function__", "heard")

_SOFTMAX = frozenset({"softmax"})
_LOGITS = frozenset({"log_softmax", "cross_entropy"})
_CARRIERS = frozenset(
    {"dropout", "dropout_", "to", "type_as", "float", "half", "bfloat16", "view", "reshape", "masked_fill"}
)
#: What adds exponentials up, and what leaves such a sum one: more of it than the numbers that are added for safety.
_SUMS = frozenset({"sum", "index_add", "index_add_", "scatter_add", "scatter_add_", "scatter_reduce", "segment_reduce"})
_SUM_STILL = frozenset({"__getitem__", "index_select", "gather", "unsqueeze", "expand", "expand_as", "view", "reshape"})
_SUM_STILL |= {"clamp", "clamp_min", "clamp_", "add", "add_", "__add__", "__radd__", "repeat_interleave"}
_QUOTIENTS = frozenset({"div", "div_", "true_divide", "__truediv__"})
_WEIGHTED = frozenset({"mul", "__mul__", "__rmul__", "multiply"})
_PRODUCTS = frozenset({"matmul", "bmm", "einsum", "__matmul__", "baddbmm"})
#: torch's own Python functions call these by their names in torch.nn.functional, where no mode hears them
_INNER = ("scaled_dot_product_attention", "softmax")
#: ln of an exponential that is 1 but for rounding: its maximum was taken from the scores.
_ROUNDED_ZERO = 1e-2
#: The norms are rounded to fp32: so much more is a bound again.
_ROUNDING = 1.0 + 1e-5
#: Scores of one head that are computed at once in an exact look, 256 MiB in fp32.
_CHUNK = 1 << 26


@contextmanager
def watch_softmax(run: TrainingRun, rows: RowBuffer, *, exact: bool = False) -> Iterator[list[HeardTarget]]:
    """Record scores, entropies and log Z of what runs inside the body into `rows`; yield what targets are heard if `exact`."""
    stack = ModuleStack()
    ear = _Ear(rows, stack, exact=exact)
    with stack.following(run.roots()), _inner_heard(ear), ear:
        yield ear.targets


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


class _Kept(Generic[T]):
    """What is known of tensors, for as long as they live."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, T]] = {}

    def of(self, tensor: Any) -> T | None:
        """Return what is known of a tensor; None of any other value."""
        held = self._known.get(id(tensor)) if isinstance(tensor, Tensor) else None
        return None if held is None else held[1]

    def keep(self, tensor: Any, known: T | None) -> None:
        """Keep what is known, where anything is."""
        if known is None or not isinstance(tensor, Tensor):
            return
        key = id(tensor)
        self._known[key] = (weakref.ref(tensor, lambda _: self._known.pop(key, None)), known)


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
        self.targets: list[HeardTarget] = []
        #: of a softmax's output, and of what dropout or a cast made of it: its scores and entropy
        self._probabilities = _Kept[dict[str, Tensor]]()
        #: of those that were written by hand, again
        self._by_hand = _Kept[dict[str, Tensor]]()
        #: of what exp gave, and of sums of it: the exponentials' own number
        self._exponentials, self._sums = _Kept[int](), _Kept[int]()
        self._count = 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is heard when it is called, and behaves as before."""

        def heard(*args: Any, **kwargs: Any) -> Any:
            return self._call_heard(function, args, kwargs)

        return heard

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`, and note what it was about."""
        return self._call_heard(func, args, kwargs or {})

    def _call_heard(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = getattr(func, "__name__", "")
        if self._deep or in_backward() or not self._rows.recording:
            return func(*args, **kwargs)
        whole = name == "multi_head_attention_forward"
        # inside of MultiheadAttention the names in F are heard, and what they call in turn is not
        self._deep, self._whole = self._deep + (not whole), self._whole + whole
        try:
            output = func(*args, **kwargs)
        finally:
            self._deep, self._whole = self._deep - (not whole), self._whole - whole
        self._deep += 1
        try:
            with torch.no_grad(), self._rows.aside():
                self._note(name or resolve_name(func) or "", args, kwargs, output)
        finally:
            self._deep -= 1
        return output

    def _note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        first = args[0] if args else kwargs.get("input", kwargs.get("query"))
        target = targets_outside(name, args, kwargs)
        if target is not None:
            self._rows.scalar("target.outside", target.outside.sum(), phase=Phase.FORWARD, module=self._stack.current)
            self.targets += [target] if self._exact else []
        elif name in _PRODUCTS or (name in _WEIGHTED and _weighs_vectors(args)):
            self._multiplied(args, only_by_hand=name in _WEIGHTED)
        elif name in _SUMS and (added := next((k for a in args if (k := self._exponentials.of(a)) is not None), None)):
            self._sums.keep(output, added)
        elif not isinstance(first, Tensor) or not first.is_floating_point() or first.numel() == 0:
            return
        elif name in _SOFTMAX and isinstance(output, Tensor) and first.dim() >= 2:
            dim = kwargs.get("dim", args[1] if len(args) > 1 and isinstance(args[1], int) else -1)
            found = _scores(first, output, -1 if dim is None else dim)
            if self._whole:
                self._told("attention", found)
            else:
                self._probabilities.keep(output, found)
        elif name == "exp":
            self._count += 1
            self._exponentials.keep(output, self._count)
        elif name in _QUOTIENTS and len(args) > 1:
            self._divided(first, args[1], output)
        elif name in _SUM_STILL and (added := self._sums.of(first)) is not None:
            self._sums.keep(output, added)
        elif name in _CARRIERS or name in _SUM_STILL:
            for kept in (self._probabilities, self._by_hand) if name in _CARRIERS else (self._by_hand,):
                kept.keep(output, kept.of(first))
        elif name in _LOGITS and first.dim() >= 2:
            dim = kwargs.get("dim", args[1] if name == "log_softmax" and len(args) > 1 else None)
            self._told(
                "logits", _normaliser(first, dim if isinstance(dim, int) else (1 if name == "cross_entropy" else -1))
            )
        elif name == "scaled_dot_product_attention":
            self._attended(args, kwargs)

    def _divided(self, exponentials: Tensor, divisor: Any, output: Any) -> None:
        """Note a softmax by hand: exponentials over a sum of the very same."""
        number = self._exponentials.of(exponentials)
        if number is not None and self._sums.of(divisor) == number and isinstance(output, Tensor):
            found = _scores_by_hand(exponentials, output)
            self._probabilities.keep(output, found)
            self._by_hand.keep(output, found)

    def _multiplied(self, args: tuple[Any, ...], *, only_by_hand: bool) -> None:
        for factor in args:
            held = (self._by_hand if only_by_hand else self._probabilities).of(factor)
            if held is not None:
                self._told("attention", held)

    def _attended(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
        given = dict(zip(names, args, strict=False)) | kwargs
        query, key = given["query"], given["key"]
        scale = given.get("scale") or 1.0 / math.sqrt(query.shape[-1])
        if query.dim() < 3 or key.numel() == 0:
            return
        self._told("attention", {"score_bound": _bound(query, key, scale)})
        if self._exact:
            mask = given.get("attn_mask")
            self._told("attention", _exact_scores(query, key, scale, mask, causal=bool(given.get("is_causal"))))

    def _told(self, what: str, found: dict[str, Tensor]) -> None:
        for name, value in found.items():
            self._rows.scalar(f"{what}.{name}", value, phase=Phase.FORWARD, module=self._stack.current)


def _scores(scores: Tensor, probabilities: Tensor, dim: int) -> dict[str, Tensor]:
    """Return the largest score and the mean entropy (nats) of a softmax's rows along `dim`."""
    p = probabilities.float()
    return {
        "score_max": scores.amax().double(),
        "entropy": torch.special.entr(p).sum(dim=dim).mean().double(),
        "keys": torch.full((), float(scores.shape[dim]), dtype=torch.float64, device=scores.device),
    }


def _weighs_vectors(args: tuple[Any, ...]) -> bool:
    """Whether (…, 1) is multiplied with (…, d)."""
    ends = [a.shape[-1] for a in args[:2] if isinstance(a, Tensor) and a.dim() >= 2]
    return len(ends) == 2 and min(ends) == 1 < max(ends)


def _scores_by_hand(exponentials: Tensor, probabilities: Tensor) -> dict[str, Tensor]:
    """Return the same of exp(scores) and what a division made of it, whatever the rows are: each of them adds up to 1."""
    e, p = exponentials.double(), probabilities.double()
    high, low = e.amax().log(), torch.where(e > 0, e, math.inf).amin().log()
    rows = p.sum()
    return {
        "score_max": torch.where(high.abs() < _ROUNDED_ZERO, -low, high),
        "entropy": torch.special.entr(p).sum() / rows,
        "keys": p.numel() / rows,
    }


def _normaliser(logits: Tensor, dim: int) -> dict[str, Tensor]:
    """Return the mean log Z of rows along `dim`, and mean and spread of the logits; masked ones of -inf are left out."""
    wide = logits.float()
    kept = torch.where(torch.isneginf(wide), math.nan, wide)
    shift = kept.nanmean()
    return {
        "log_z": torch.logsumexp(wide, dim=dim).mean().double(),
        "shift": shift.double(),
        "spread": (kept - shift).square().nanmean().sqrt().double(),
    }


def _bound(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Return max|q| · max|k| · scale over heads: no score is larger. (…, heads, tokens, d) each."""
    q: Tensor = torch.linalg.vector_norm(query, dim=-1, dtype=torch.float32).amax(dim=-1)
    k: Tensor = torch.linalg.vector_norm(key, dim=-1, dtype=torch.float32).amax(dim=-1)
    # grouped queries have fewer heads of keys: over all of them it is still a bound
    largest = (q * k).amax() if q.shape == k.shape else q.amax() * k.amax()
    return largest.double() * abs(scale) * _ROUNDING


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
