"""Learning-rate schedules: a warm-up, a plateau of any length, a cosine down to a share of the peak."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: Optimizer, warmup: int, total: int, hold: int = 0, floor: float = 0.1) -> LambdaLR:
    """Linear over `warmup` steps, the optimizer's own rate for `hold` more, a cosine to `floor` of it at `total`."""

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(max(0.0, step - warmup - hold) / (total - warmup - hold), 1.0)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, share)
