"""Write a demo project, as a user would have it on disk, and train it to its checkpoint.

A project is a folder with `train.py`, `nanhunt.yaml` and `ckpt.pt`. Its `train.py` is the template beside this file
with the constants filled in and the other faults' lines left out, so that it reads like any small training script.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from nanhunt.demo.faults import Fault, Size

__all__ = ["Project", "configuration", "load_script", "prepare", "script"]

TEMPLATE = Path(__file__).with_name("train.py")
OPENING = re.compile(r"\s*# fault: (\S+)\n")
CLOSING = re.compile(r"\s*# end fault\n")
LINTER_REMARK = re.compile(r"  # (noqa|type: ignore).*$", re.MULTILINE)
#: a call or signature, an argument a line: what is left of it may fit on one line
SPREAD = re.compile(r"^(?P<head> *.*)\(\n(?P<arguments>(?: +[^\n()#]+,\n)+) *\)(?P<tail>.*)$", re.MULTILINE)
LINE_LENGTH = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A demo project on disk, ready for `nanhunt replay CHECKPOINT -c CONFIG`."""

    config: Path
    checkpoint: Path


def prepare(
    fault: Fault,
    folder: Path,
    *,
    steps: int = 30,
    size: Size | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Project:
    """Write the project into `folder`, which is made if it is missing, and train `steps` steps to its checkpoint.

    Takes some 5 s on one slow core. Files of the same names are overwritten. `on_step` gets each step's number and
    its loss. `size` replaces the fault's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train, config, checkpoint = folder / "train.py", folder / "nanhunt.yaml", folder / "ckpt.pt"
    train.write_text(script(fault, steps=steps, size=size or fault.size), encoding="utf-8")
    config.write_text(configuration(fault), encoding="utf-8")
    load_script(train).train(checkpoint, on_step)
    return Project(config=config, checkpoint=checkpoint)


def script(fault: Fault, *, steps: int, size: Size) -> str:
    """The project's `train.py`: the template with this fault's lines and constants."""
    constants: dict[str, object] = {
        "FAULT": fault.name,
        "FAULT_STEP": steps + fault.delay,
        "STEPS": steps,
        "LAYERS": size.layers,
        "WIDTH": size.width,
        "HEADS": size.heads,
        "CONTEXT": size.context,
        "BATCH": size.batch,
        "ACCUMULATE": fault.settings.get("train", {}).get("accumulate", 1),
        # Without a scaler the checkpoint is trained in fp32: the fault is that the run was then moved to fp16.
        "FP16": bool(fault.settings.get("precision", {}).get("grad_scaler", False)),
    }
    text = _keep_fault(TEMPLATE.read_text(encoding="utf-8"), fault.name)
    for name, value in constants.items():
        literal = f'"{value}"' if isinstance(value, str) else repr(value)
        text, found = re.subn(rf"^{name} = \S+", f"{name} = {literal}", text, flags=re.MULTILINE)
        if found != 1:
            raise AssertionError(f"train.py must set {name} exactly once, found {found}")
    return text


def _keep_fault(text: str, name: str) -> str:
    """Drop the marked lines of every fault but `name`, the markers, and what else a user's file would not have."""
    kept: list[str] = []
    inside: str | None = None
    for line in text.splitlines(keepends=True):
        if opening := OPENING.fullmatch(line):
            inside = opening.group(1)
        elif CLOSING.fullmatch(line):
            inside = None
        elif inside in (None, name):
            kept.append(line)
    text = LINTER_REMARK.sub("", "".join(kept))
    text = re.sub(r"\n{3,}(?= )", "\n\n", text)
    return SPREAD.sub(_on_one_line, text)


def _on_one_line(spread: re.Match[str]) -> str:
    arguments = ", ".join(line.strip().rstrip(",") for line in spread["arguments"].splitlines())
    line = f"{spread['head']}({arguments}){spread['tail']}"
    return line if len(line) <= LINE_LENGTH else spread[0]


def configuration(fault: Fault) -> str:
    """The project's `nanhunt.yaml`."""
    common: dict[str, Any] = {
        "model": "train:build_model",
        "data": "train:batches",
        "loss": "train:compute_loss",
        "optimizer": "train:make_optimizer",
        "scheduler": "train:make_scheduler",
        "train": {"steps": 20, "clip_grad_norm": 1.0, "seed": 1337},
    }
    body = _merge(common, fault.settings)
    return f"# nanhunt demo {fault.name}: {fault.title}\n" + yaml.safe_dump(body, sort_keys=False)


def _merge(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in extra.items():
        merged[key] = {**base.get(key, {}), **value}
    return merged


def load_script(path: Path) -> ModuleType:
    """Import a project's `train.py` as a module of its own, which `sys.modules` doesn't know."""
    spec = importlib.util.spec_from_file_location("train", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} can't be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
