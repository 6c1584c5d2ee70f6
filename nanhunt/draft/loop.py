"""The `precision:` and `train:` of a drafted config, from a scaler's state, weights' dtypes and the loop's settings."""

from __future__ import annotations

import math
from typing import Any

from nanhunt.draft.shown import Shown, plain
from nanhunt.draft.text import Entry

__all__ = ["precision_entry", "train_entry"]

#: What loops call the format that they compute in, by the value's end.
_AUTOCAST = {
    "float16": "fp16", "fp16": "fp16", "half": "fp16", "16": "fp16", "16-mixed": "fp16",
    "bfloat16": "bf16", "bf16": "bf16", "bf16-mixed": "bf16",
    "float32": "none", "fp32": "none", "32": "none", "32-true": "none", "no": "none", "none": "none",
}  # fmt: skip
_FORMATS = {"bfloat16": "bf16", "float16": "fp16"}
#: Names of settings, the usual ones first.
_CLIPS = ("grad_clip", "max_grad_norm", "gradient_clip_val", "clip_grad_norm", "grad_clip_norm", "grad_norm_clip")
_ACCUMULATES = ("gradient_accumulation_steps", "accumulate_grad_batches", "grad_accum_steps", "accumulation_steps")
_SCALER = ("growth_factor", "backoff_factor", "growth_interval")


def precision_entry(shown: Shown) -> Entry:
    """Return `precision:`: a scaler's state means fp16; else what the settings name, and what the weights are in."""
    value: dict[str, Any] = {}
    asides: dict[str, str] = {}
    scaler = (shown.checkpoint.scaler if shown.checkpoint else None) or {}
    named = _autocast_of(shown)
    if scaler:
        value["autocast"], asides["autocast"] = "fp16", "a gradient scaler's state is in the checkpoint"
        value["grad_scaler"], asides["grad_scaler"] = _scaler_arguments(scaler), "as in its state"
    elif named is not None:
        value["autocast"], asides["autocast"] = named[0], f"{named[1]} in {shown.settings_in}"
        if named[0] == "fp16":
            value["grad_scaler"], asides["grad_scaler"] = True, "its state is not in the checkpoint"
    else:
        value["autocast"], asides["autocast"] = "none", "none | fp16 | bf16: the checkpoint does not tell"
    weights = shown.dtypes.most_common(1)
    if weights and weights[0][0] in _FORMATS:
        value["params"], asides["params"] = _FORMATS[weights[0][0]], f"the saved weights are in {weights[0][0]}"
    notes = ("What the step computes in. `params` casts the model; `recipe` emulates fp8 and its kin.",)
    return Entry(key="precision", value=value, notes=notes, asides=asides)


def _autocast_of(shown: Shown) -> tuple[str, str] | None:
    """Return the autocast that a setting names, and the setting."""
    for name in ("dtype", "precision", "mixed_precision", "amp_dtype"):
        found = str(shown.settings.get(name, "")).lower().removeprefix("torch.")
        if found in _AUTOCAST:
            return _AUTOCAST[found], f"{name} {found}"
    return next(
        ((fmt, name) for name, fmt in (("bf16", "bf16"), ("fp16", "fp16")) if shown.settings.get(name) is True), None
    )


def _scaler_arguments(scaler: dict[str, Any]) -> dict[str, Any] | bool:
    """Return GradScaler's arguments from its state, as the config takes them; what it would refuse is left out."""
    scale = plain(scaler.get("scale"))
    usable = isinstance(scale, (int, float)) and not isinstance(scale, bool) and math.isfinite(scale) and scale > 0
    found: dict[str, Any] = {"init_scale": scale} if usable else {}
    for key in _SCALER:
        value = plain(scaler.get(key))
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            continue
        inside = {"growth_factor": value > 1, "backoff_factor": 0 < value < 1, "growth_interval": value >= 1}[key]
        if inside and (key != "growth_interval" or isinstance(value, int)):
            found[key] = value
    return found or True


def train_entry(shown: Shown) -> Entry:
    """Return `train:`: steps, accumulation, clipping and seed, as the settings name them."""
    value: dict[str, Any] = {"steps": 50}
    asides = {"steps": "optimizer steps to replay: as many as reach the fault"}
    accumulate, by = _whole(shown, _ACCUMULATES, least=1)
    value["accumulate"] = accumulate or 1
    asides["accumulate"] = f"{by}, divided by the number of ranks" if by else "micro-batches a step"
    clip, by = _clip(shown)
    if clip is not None:
        value["clip_grad_norm"], asides["clip_grad_norm"] = clip, by
    seed, by = _whole(shown, ("seed", "random_seed"), least=0)
    value["seed"] = 1337 if seed is None else seed
    asides["seed"] = by or "where the checkpoint holds no random state"
    notes = ["The loop."]
    if clip is None:
        notes.append("A run that clips needs clip_grad_norm: 1.0 here, or clip_grad_value, clip_param_norm or agc.")
    size = shown.setting("batch_size", "train_batch_size", "micro_batch_size")
    if isinstance(size, int):
        notes.append(f"The run's batches had {size} samples.")
    return Entry(key="train", value=value, notes=(" ".join(notes),), asides=asides)


def _clip(shown: Shown) -> tuple[float | None, str]:
    for name in _CLIPS:
        value = shown.settings.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            # 0 stands for no clipping in nanoGPT and Lightning
            return (float(value), f"{name} of the checkpoint") if value > 0 and math.isfinite(value) else (None, "")
    if shown.container == "hf-trainer":
        return 1.0, "the Trainer's default: its arguments are a pickle that is not read"
    return None, ""


def _whole(shown: Shown, names: tuple[str, ...], *, least: int) -> tuple[int | None, str]:
    for name in names:
        value = shown.settings.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 63:
            return value, f"{name} of the checkpoint"
    return None, ""
