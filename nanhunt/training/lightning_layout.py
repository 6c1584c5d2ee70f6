"""What a Lightning checkpoint keeps under other keys than its looks say: trained weights beside averaged ones, the step.

Two traps. With the WeightAveraging callback `state_dict` is the average, and what was trained is
`current_model_state`. And `global_step` counts the steps of every optimizer: a GAN's is twice its batches, while one
call of `training_step`, which is what a replay repeats, takes a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanhunt.training.config import CheckpointKeys

__all__ = ["is_lightning", "lightning_content", "lightning_loader"]

_LOOP = "epoch_loop"


def is_lightning(content: Mapping[Any, Any]) -> bool:
    """Whether a Trainer of Lightning saved the dict."""
    return "pytorch-lightning_version" in content


def lightning_content(content: Mapping[str, Any], keys: CheckpointKeys | None) -> tuple[dict[str, Any], list[str]]:
    """Return the dict with the trained weights under `state_dict` and a step in batches, and what was changed.

    What the config names under `checkpoint:` stays as it is.
    """
    found, notes = dict(content), []
    trained = content.get("current_model_state")
    if isinstance(trained, Mapping) and trained and not (keys and keys.model):
        found["averaged_state_dict"], found["state_dict"] = content.get("state_dict"), trained
        del found["current_model_state"]
        notes.append("its state_dict is an average of the weights; loaded are those that were trained")
    batches = _manual_batches(content.get("loops"))
    if batches is not None and not (keys and keys.step) and batches != content.get("global_step"):
        found["global_step"] = batches
        notes.append(
            f"its global_step {content.get('global_step')} counts the steps of each optimizer: "
            f"replayed steps are counted in batches, from {batches} on"
        )
    return found, notes


def lightning_loader(content: Mapping[str, Any]) -> Any:
    """Return what Lightning's fit loop saved of its loaders' states, None where it saved none."""
    inside: Any = content
    for key in ("loops", "fit_loop", "state_dict", "combined_loader"):
        inside = _mapping(inside).get(key)
    return inside


def _manual_batches(loops: object) -> int | None:
    """Return the batches that a run with manual optimization has begun; None with automatic optimization.

    `ready` counts the batch in whose end hook the checkpoint was saved, `completed` does not yet.
    """
    fit = _mapping(_mapping(loops).get("fit_loop"))
    manual = _mapping(fit.get(f"{_LOOP}.manual_optimization.optim_step_progress"))
    batches = _mapping(_mapping(fit.get(f"{_LOOP}.batch_progress")).get("total")).get("ready")
    stepped = _mapping(manual.get("total")).get("completed")
    return batches if isinstance(batches, int) and isinstance(stepped, int) and stepped > 0 else None


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}
