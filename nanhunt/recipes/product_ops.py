"""Which ops are products, by name, and the memory of weights and of what products were given."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["Operands", "is_product"]

#: Products and their derivatives, which autocast runs in the narrow format whatever they are given.
_PRODUCTS = tuple(
    "aten.mm aten.bmm aten.addmm aten.addbmm aten.baddbmm aten.mv aten.addmv aten.addr aten.dot aten.linear aten.matmul "
    "aten.convolution aten._convolution aten.mkldnn_ aten.cudnn_convolution aten.miopen_convolution aten.prelu "
    "aten._prelu aten._scaled_dot_product aten._thnn_fused aten._cudnn_rnn aten.lstm aten.gru".split()
)


def is_product(op: str) -> bool:
    """Whether an op (`aten.mm`) is a product, an attention, or the derivative of one."""
    return op.startswith(_PRODUCTS)


@dataclass(frozen=True, slots=True)
class _Span:
    """A parameter's place in its memory: of a flat buffer each parameter is a part."""

    first: int
    last: int
    name: str


class Operands:
    """What memory holds weights (and copies of them), and what was the input of a product with which weight.

    Known by storage, so that views, transposes and what autograd saved are known too.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._weights: dict[int, list[_Span]] = {}
        #: of an input, and of the autograd node that a product made: the weights that were multiplied
        self._inputs: dict[int, dict[str, None]] = {}
        self._nodes: dict[int, dict[str, None]] = {}
        #: references keep the storages' handles from being given to others
        self._handles: dict[int, StorageWeakRef] = {}
        for name, parameter in parameters.items():
            if parameter.dim() >= 2 and parameter.layout is torch.strided:
                first = int(parameter.storage_offset())
                self._note(parameter, _Span(first, first + parameter.numel(), name))

    def weight(self, tensor: Tensor) -> str | None:
        """Return the name of the weight that this memory holds; None where it holds none."""
        at = tensor.storage_offset()
        spans = self._weights.get(tensor.untyped_storage()._cdata, ()) if tensor.layout is torch.strided else ()
        place = bisect.bisect_right(spans, at, key=lambda span: span.first) - 1
        return spans[place].name if place >= 0 and at < spans[place].last else None

    def input_of(self, tensor: Tensor, node: int | None) -> str | None:
        """Return the weight that this memory was multiplied with, by the forward product whose node runs; None of others.

        A checkpoint computes inputs anew, in products whose nodes never run: input and node are known each by itself.
        """
        if tensor.layout is not torch.strided or node is None:
            return None
        known, made = self._inputs.get(tensor.untyped_storage()._cdata, {}), self._nodes.get(node, {})
        return next((name for name in known if name in made), None)

    def copied(self, copy: Tensor, name: str) -> None:
        """Take a cast of a weight for the weight."""
        self._note(copy, _Span(0, copy.untyped_storage().nbytes(), name))

    def given(self, tensor: Tensor, name: str, node: int) -> None:
        """Note the input of a product with a weight, and the autograd node that the product made."""
        handle = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        self._handles[handle.cdata] = handle
        self._inputs.setdefault(handle.cdata, {})[name] = None
        self._nodes.setdefault(node, {})[name] = None

    def _note(self, tensor: Tensor, span: _Span) -> None:
        handle = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        self._handles[handle.cdata] = handle
        bisect.insort(self._weights.setdefault(handle.cdata, []), span, key=lambda span: span.first)
