"""Where the samples of a batch lie, and how some of them are taken out or replaced.

A batch is any nesting: tensors, arrays, lists of names, objects of the user's own class. What has as many entries as
there are samples belongs to them; all else (positions, class weights, a text) stays whole.

What was chosen. Samples are counted along the first dimension, which is what a report's numbers mean. Where they lie
elsewhere, it is said and not guessed: a sequence that stands first (T, B, …), several documents packed into one row, no
dimension that the tensors share. Labels that were flattened, B·T of them beside tokens of (B, T), are a sample's T by T.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nanhunt.training.tree import map_leaves, map_tensors, tensors_of

__all__ = ["batch_size", "cast_batch", "replace_samples", "take_samples", "why_no_samples"]

#: Names of fields that tell where documents begin inside a row.
_PACKING = ("cu_seqlens", "cu_seq_lens", "seq_idx", "doc_ids", "document_ids", "segment_ids", "sequence_ids")


def batch_size(batch: Any) -> int | None:
    """Return the number of samples along the first dimension; None where there is none, or they lie elsewhere.

    It is the leading dimension that most tensors of the batch share; where there are lists of dicts, their length.
    """
    listed = _listed_samples(batch)
    if listed is not None:
        return listed
    tensors = [t for _, t in tensors_of(batch) if t.dim() >= 1]
    seconds = {t.shape[1] for t in tensors if t.dim() > 1}
    sizes = Counter(t.shape[0] for t in tensors if not (t.shape[0] in seconds and _counts_up(t)))
    if not sizes or _second_dimension(batch) is not None:
        return None
    flattened = _flattened(batch)
    if flattened is not None:
        return flattened[0]
    size, votes = sizes.most_common(1)[0]
    return size if votes * 2 > sum(sizes.values()) or len(sizes) == 1 else None


def why_no_samples(batch: Any, model: nn.Module, outputs: Mapping[str, tuple[int, ...]] | None = None) -> str:
    """Return why no sample of this batch can be told by its number, '' where one could be.

    `outputs` are the shapes that modules put out for it, by name: they show which way round a recurrent module took it.
    """
    shapes = [tuple(t.shape) for _, t in tensors_of(batch) if t.dim() >= 1]
    if not shapes:
        return "the batch holds no tensor"
    packed = _packed_by(batch)
    if packed:
        return f"sequences are packed ({packed}): a row holds several documents"
    second = _second_dimension(batch)
    if second is not None:
        return f"the batch's {second} samples lie along the second dimension, behind the sequence"
    size = batch_size(batch)
    if size is None:
        return f"the batch's tensors share no first dimension: {', '.join(str(s) for s in shapes[:4])}"
    if size < 2:
        return "the batch has one sample"
    sequence_first = _sequence_first_module(model, shapes, outputs or {})
    if sequence_first:
        return f"{sequence_first} takes the sequence first: along the first dimension of the batch lie positions"
    return ""


def take_samples(batch: Any, samples: list[int]) -> Any:
    """Return the batch with only these samples, in this order; leaves that are not per sample stay whole."""
    size, flattened = batch_size(batch), _flattened(batch)

    def pick(leaf: Any) -> Any:
        if flattened is not None and _is_flat(leaf, flattened):
            return leaf.reshape(flattened)[samples].reshape(-1)
        if not _is_per_sample(leaf, size):
            return leaf
        if isinstance(leaf, Tensor):
            return leaf[torch.tensor(samples, dtype=torch.int64, device=leaf.device)]
        if isinstance(leaf, np.ndarray):
            return leaf[samples]
        return type(leaf)(leaf[i] for i in samples)

    return map_leaves(pick, batch, is_leaf=_is_list_of(batch, size))


def replace_samples(batch: Any, donor: Any, samples: list[int]) -> Any | None:
    """Return the batch with these samples replaced by those of `donor` at the same places; None where they do not fit.

    The number of samples, and with it every random number that the step draws, stays as it was.
    """
    size, flattened = batch_size(batch), _flattened(batch)
    if size is None or batch_size(donor) != size:
        return None
    if flattened is not None:
        return _replaced_flat(batch, donor, samples, flattened)
    given = _per_sample_leaves(donor, size)
    own = _per_sample_leaves(batch, size)
    if len(given) != len(own) or any(_form(a) != _form(b) for a, b in zip(own, given, strict=True)):
        return None
    others = iter(given)

    def swap(leaf: Any) -> Any:
        if not _is_per_sample(leaf, size):
            return leaf
        other = next(others)
        if isinstance(leaf, Tensor):
            index = torch.tensor(samples, dtype=torch.int64, device=leaf.device)
            return leaf.index_copy(0, index, other.to(leaf.device)[index])
        if isinstance(leaf, np.ndarray):
            new = leaf.copy()
            new[samples] = other[samples]
            return new
        return type(leaf)(other[i] if i in samples else item for i, item in enumerate(leaf))

    return map_leaves(swap, batch, is_leaf=_is_list_of(batch, size))


def _replaced_flat(batch: Any, donor: Any, samples: list[int], shape: tuple[int, int]) -> Any | None:
    """Replace samples of a batch with flattened labels: what was flattened is folded, and flattened again."""
    if _flattened(donor) != shape:
        return None

    def folded(value: Any) -> Any:
        return map_tensors(lambda t: t.reshape(shape) if _is_flat(t, shape) else t, value)

    replaced = replace_samples(folded(batch), folded(donor), samples)
    if replaced is None:
        return None
    was_flat = {path for path, t in tensors_of(batch) if _is_flat(t, shape)}
    flat = {id(t) for path, t in tensors_of(replaced) if path in was_flat}
    return map_tensors(lambda t: t.reshape(-1) if id(t) in flat else t, replaced)


def cast_batch(batch: Any, old: torch.dtype, new: torch.dtype) -> Any:
    """Return the batch with floating tensors of dtype `old` turned into `new`."""
    return map_tensors(lambda t: t.to(new) if t.dtype == old else t, batch)


def _is_per_sample(leaf: Any, size: int | None) -> bool:
    if isinstance(leaf, (Tensor, np.ndarray)):
        return leaf.ndim > 0 and leaf.shape[0] == size
    return isinstance(leaf, (list, tuple)) and len(leaf) == size


def _is_list_of(batch: Any, size: int | None) -> Callable[[Any], bool]:
    """Return whether a list of the batch has one entry a sample: names, numbers, and beside dicts a tensor each."""
    listed = _listed_samples(batch) is not None

    def is_leaf(value: Any) -> bool:
        if not isinstance(value, (list, tuple)) or hasattr(value, "_fields") or len(value) != size:
            return False
        if value is batch:
            return _holds_dicts(value)
        return listed or not any(isinstance(item, (Tensor, Mapping, list, tuple)) for item in value)

    return is_leaf


def _per_sample_leaves(batch: Any, size: int) -> list[Any]:
    found: list[Any] = []

    def keep(leaf: Any) -> Any:
        if _is_per_sample(leaf, size):
            found.append(leaf)
        return leaf

    map_leaves(keep, batch, is_leaf=_is_list_of(batch, size))
    return found


def _form(leaf: Any) -> object:
    """Return what must be the same for a leaf's entries to take the place of another's."""
    return (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, (Tensor, np.ndarray)) else type(leaf)


def _listed_samples(batch: Any) -> int | None:
    """Return the length of the lists that hold a dict a sample, as a detector's targets do; None where there are none."""
    parts = [
        batch,
        *(batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()),
    ]
    lengths = {len(part) for part in parts if _holds_dicts(part)}
    return lengths.pop() if len(lengths) == 1 else None


def _holds_dicts(value: Any) -> bool:
    is_list = isinstance(value, (list, tuple)) and not hasattr(value, "_fields") and len(value) > 0
    return is_list and all(isinstance(item, Mapping) for item in value)


def _second_dimension(batch: Any) -> int | None:
    """Return the samples of a batch whose sequence stands first: second in some tensors, alone in all others.

    Tokens of (T, B) beside labels or lengths of (B,). A row of positions (T,) beside (B, T) would read likewise; it
    counts up.
    """
    tensors = [t for _, t in tensors_of(batch) if t.dim() >= 1 and not _counts_up(t)]
    rows, lines = [t for t in tensors if t.dim() > 1], [t for t in tensors if t.dim() == 1]
    if not rows or not lines or len({t.shape[:2] for t in rows}) > 1 or len({t.shape for t in lines}) > 1:
        return None
    length, size = rows[0].shape[:2]
    return int(size) if lines[0].shape[0] == size != length else None


def _flattened(batch: Any) -> tuple[int, int] | None:
    """Return (samples, positions) of a batch of (B, T, …) and lines of B·T, of B also; None of any other."""
    tensors = [t for _, t in tensors_of(batch) if t.dim() >= 1 and not _counts_up(t)]
    rows, lines = [t for t in tensors if t.dim() > 1], [t for t in tensors if t.dim() == 1]
    # an image's channels times the images may be as many as the boxes in all of them
    if not rows or not lines or len({t.shape[:2] for t in rows}) > 1 or any(t.dim() > 3 for t in rows):
        return None
    size, length = rows[0].shape[:2]
    lengths = {t.shape[0] for t in lines}
    is_flat = size > 0 and length > 1 and size * length in lengths <= {size, size * length}
    return (int(size), int(length)) if is_flat else None


def _is_flat(leaf: Any, shape: tuple[int, int]) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() == 1 and leaf.shape[0] == shape[0] * shape[1]


def _counts_up(tensor: Tensor) -> bool:
    """Whether a line of numbers is 0, 1, 2 …: positions."""
    return (
        tensor.dim() == 1
        and tensor.numel() > 1
        and bool((tensor == torch.arange(len(tensor), device=tensor.device)).all())
    )


def _packed_by(batch: Any) -> str:
    """Return the field that says that rows hold several documents; '' where none does."""
    for path, tensor in tensors_of(batch):
        name = path.rpartition(".")[2].lower()
        if name.startswith(_PACKING):
            return path
        if name == "position_ids" and tensor.dim() == 2 and bool(((tensor == 0).sum(dim=1) > 1).any()):
            return f"{path} starts anew inside a row"
    return ""


def _sequence_first_module(
    model: nn.Module, shapes: list[tuple[int, ...]], outputs: Mapping[str, tuple[int, ...]]
) -> str:
    """Return the recurrent or attention module that put out (T, B, …) for a batch of nothing but (T, B, …)."""
    lead = next((s[:2] for s in shapes if len(s) > 1), ())
    flat = (lead[0] * lead[1],) if lead else ()
    if not lead or lead[0] == lead[1] or any(s[:2] != lead and s != flat for s in shapes):
        return ""
    found = [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)) and not module.batch_first
        if outputs.get(name, ())[:2] == lead
    ]
    return next(iter(found), "")
