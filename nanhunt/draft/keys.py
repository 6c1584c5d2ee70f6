"""Where the parts of a checkpoint lie when its layout is none that is known: dotted paths, found by what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nanhunt.training.averages import is_average
from nanhunt.training.checkpoint import LOADERS
from nanhunt.training.config import CheckpointKeys
from nanhunt.training.dotted_places import STEP_KEYS, count_below, is_scaler, is_scheduler, places
from nanhunt.training.saved_value import elements_of, is_optimizer_state, whole_state
from nanhunt.training.torch_file import read_torch_file

__all__ = ["found_keys"]


def found_keys(path: Path, *, trust_pickle: bool) -> CheckpointKeys | None:
    """Return the keys of a torch file's parts that lie below its top; None where it is no such file, or has none.

    Of several states that could be the model's the largest is taken that is not named as an average.
    """
    loader = next((loader for loader in LOADERS if loader.recognises(path)), None)
    if loader is None or loader.name != "torch":
        return None
    content, _ = read_torch_file(path, trust_pickle=trust_pickle)
    if not isinstance(content, Mapping):
        return None
    below = list(places(content))
    models = [(key, state) for key, value in below if (state := whole_state(value))]
    chosen: dict[str, str] = {}
    if models:
        chosen["model"] = max(models, key=lambda m: (not is_average(m[0]), elements_of(m[1])))[0]
    for name, is_it in (("optimizer", is_optimizer_state), ("scheduler", is_scheduler), ("scaler", is_scaler)):
        first = next((key for key, value in below if is_it(value)), None)
        chosen |= {name: first} if first is not None else {}
    step = count_below(content, STEP_KEYS)
    chosen |= {"step": step[0]} if step is not None else {}
    # a key at the top that is known is found without being named
    return CheckpointKeys(**chosen) if chosen else None
