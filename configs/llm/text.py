"""Batches of the text that Python itself carries, a token a byte, and the loss on them."""

from __future__ import annotations

from collections.abc import Iterator
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def batches(
    start_step: int = 0, batch_size: int = 8, block_size: int = 64, seed: int = 1337
) -> Iterator[tuple[Tensor, Tensor]]:
    """Crops (batch_size, block_size) and the same crops one byte later, without end, from `start_step` on.

    A step's crops depend on the seed and the step alone: a replay gets those that the run had.
    """
    text = "\n".join(topics[key] for key in sorted(topics)).encode()
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    step = start_step
    while True:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        starts = torch.randint(len(tokens) - block_size, (batch_size,), generator=generator).tolist()
        crops = torch.stack([tokens[i : i + block_size + 1] for i in starts])
        yield crops[:, :-1], crops[:, 1:]
        step += 1


def compute_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of the next byte, in fp32."""
    tokens, targets = batch
    return F.cross_entropy(model(tokens).flatten(0, 1).float(), targets.flatten())
