"""The three private names of autograd that the hunt stands on, in one place, each with a test.

`torch.autograd._get_sequence_nr() - 1`, asked for while a forward op is dispatched, equals `node._sequence_nr()` of
the backward node that this op made. So every backward op maps to its forward op exactly, without anomaly mode.
torch's own DebugMode and AOTAutograd use the same names.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["backward_node", "forward_sequence"]

#: The number of AccumulateGrad nodes, which no forward op made.
_ACCUMULATE = 2**64 - 1


def forward_sequence() -> int:
    """Return the sequence number of the autograd node that the op being dispatched belongs to."""
    number: int = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
    return number - 1


def backward_node() -> tuple[str, int | None] | None:
    """Return (name, sequence number) of the autograd node that is running, None outside of backward.

    The number is None of a node that no forward op made.
    """
    node: Any = torch._C._current_autograd_node()  # None outside of backward, whatever the stub says
    if node is None:
        return None
    number = node._sequence_nr()
    return node.name(), None if number >= _ACCUMULATE else number
