"""Words that more than one cause reads on a source line."""

from __future__ import annotations

__all__ = ["PROBABILITY"]

#: Words on the source line that say the argument is a probability.
PROBABILITY = ("softmax", "sigmoid", "prob", "exp(")
