"""Turn a transformers model's weights from the names that its files have into those that it has in memory.

For some models the two differ, by more than a prefix: a mixture's experts are files' single matrices and one tensor in
memory. transformers converts while it loads, so it is asked to load, from the tensors that were read.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["converted_state"]


def converted_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the tensors by the model's own names; None where it is no transformers model, or some find no place.

    Takes the memory of a second model while it works.
    """
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return None
    try:
        with _quiet(transformers):
            loaded, told = type(model).from_pretrained(
                None,
                config=model.config,
                state_dict=dict(state),
                output_loading_info=True,
                **_dtype(transformers, state),
            )
    except Exception:
        # whatever it stumbles over, the names stay as they are, and the mismatch is told in our words
        return None
    if any(told.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")):
        return None
    return {name: tensor for name, tensor in loaded.state_dict().items() if isinstance(tensor, Tensor)}


def _dtype(transformers: Any, state: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """Return the argument that keeps every tensor exact: without it they are cast to what config.json says.

    It is the dtype that holds all of them; the argument has another name since transformers 5.
    """
    kinds = {t.dtype for t in state.values() if t.dtype.is_floating_point and t.dtype.itemsize > 1}
    name = "torch_dtype" if int(transformers.__version__.partition(".")[0]) < 5 else "dtype"
    return {name: functools.reduce(torch.promote_types, kinds) if kinds else torch.float32}


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers' progress bars and its table of misfits off the terminal."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
