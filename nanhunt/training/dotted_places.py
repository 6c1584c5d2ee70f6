"""Dicts below the top of a checkpoint by their dotted paths, and what is read of a layout that nobody knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from nanhunt.training.saved_value import as_step, is_optimizer_state, model_state

__all__ = [
    "EPOCH_KEYS",
    "MODEL_ARGUMENT_KEYS",
    "SETTINGS_KEYS",
    "STEP_KEYS",
    "count_below",
    "is_scaler",
    "is_scheduler",
    "paths",
    "places",
]

# an epoch is no step
STEP_KEYS = ("step", "iter_num", "global_step", "iteration", "it", "steps")
EPOCH_KEYS = ("epoch", "current_epoch", "epoch_num", "epochs")
#: What is kept beside the state of a run, by the name that loops give it: arguments of the model, and settings, in which
#: `steps` and `epochs` are how many were wanted.
MODEL_ARGUMENT_KEYS = ("model_args", "model_kwargs", "model_config", "net_args")
SETTINGS_KEYS = (
    "config", "hyper_parameters", "hparams", "args", "cfg", "opt", "train_config", "training_args", "settings",
)  # fmt: skip
#: Levels that are looked through, and dicts of one: a file can nest as it likes.
_DEPTH, _MOST = 4, 5000


def places(content: Mapping[Any, Any], above: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield each dict below the top with its dotted path; what is in states of optimizers is left alone."""
    count = 0
    for key, value in content.items():
        if not isinstance(value, Mapping) or not isinstance(key, str) or not key or "." in key or not key.isprintable():
            continue
        count += 1
        if count > _MOST:
            return
        yield f"{above}{key}", value
        if depth > 1 and not is_optimizer_state(value):
            yield from places(value, f"{above}{key}.", depth - 1)


def paths(content: Mapping[Any, Any]) -> Iterator[str]:
    """Yield the dotted path of what stands at the top, and in the dicts and lists below it that are no state."""
    for above, value in [("", content), *((f"{path}.", inner) for path, inner in places(content))]:
        if above and (is_optimizer_state(value) or model_state(value) is not None):
            continue
        for key, item in islice(value.items(), _MOST):
            yield f"{above}{key}"
            if isinstance(item, (list, tuple)):
                yield from (f"{above}{key}.{index}" for index in range(min(len(item), _DEPTH)))


def count_below(
    content: Mapping[Any, Any], keys: Sequence[str], *, within: Sequence[str] | None = None
) -> tuple[str, int] | None:
    """Return the dotted path and value of the first count under one of the keys, the shallowest first; None without one.

    `within` are the dicts at the top that may hold it, any without them. The counts of a schedule, of settings, of a loader
    and of the best so far are none.
    """
    found = [
        (f"{path}.{key}", count)
        for path, value in places(content)
        if within is None or path.partition(".")[0] in within
        if not (_counts_else(path) or is_optimizer_state(value) or is_scheduler(value))
        for key in keys
        if (count := as_step(value.get(key))) is not None
    ]
    return min(found, key=lambda pair: pair[0].count("."), default=None)


def _counts_else(path: str) -> bool:
    """Whether a dict is one whose counts are plans, or places in something else than the run."""
    keys = path.lower().split(".")
    is_plan = any(key in SETTINGS_KEYS or key in MODEL_ARGUMENT_KEYS for key in keys)
    return is_plan or any(word in key for key in keys for word in ("loader", "sampler", "best"))


def is_scheduler(value: Mapping[Any, Any]) -> bool:
    """Whether a dict is the state of one of torch's schedulers."""
    return "last_epoch" in value and ("_step_count" in value or "base_lrs" in value)


def is_scaler(value: Mapping[Any, Any]) -> bool:
    """Whether a dict is a GradScaler's state."""
    return "_growth_tracker" in value and "scale" in value
