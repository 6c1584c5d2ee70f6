"""NanhuntCallback: the recorder inside a Hugging Face Trainer.

    Trainer(…, callbacks=[NanhuntCallback(out="nanhunt-bundle")])

How it works. A callback is shown no batch: the model's own forward pre-hook is, with the arguments that the Trainer calls
it with, which is also the moment whose random state a replay needs. Everything else the recorder hears by itself. The
bundle brings the model's config.json, so that it replays without a line of config.

Not covered. A Trainer that overrides `compute_loss` needs `loss`. What raises out of `train()` ends no callback: the steps
before it were judged, the step itself is not. With gradient accumulation the Trainer divides a loss by all tokens of the
step or by the micro-batches, by what its model takes: a replay divides by the latter, and shows by its losses if that is
not so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nanhunt.recorder.recipe import Code
from nanhunt.recorder.recorder import Recorder

__all__ = ["NanhuntCallback"]


class NanhuntCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Records a Trainer's run; the arguments are the recorder's own. `bundles` are what it wrote."""

    def __init__(
        self,
        *,
        build: Code = None,
        loss: Code = None,
        out: str | Path = "nanhunt-bundle",
        every: int = 100,
        keep: int = 2,
    ) -> None:
        self._settings: dict[str, Any] = {"build": build, "loss": loss, "out": out, "every": every, "keep": keep}
        self._recorder: Recorder | None = None
        self._handle: RemovableHandle | None = None

    @property
    def bundles(self) -> list[Path]:
        """The bundles that were written."""
        return [] if self._recorder is None else self._recorder.bundles

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to record."""
        self._close()
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        self._recorder = Recorder(
            model,
            optimizer,
            scaler=getattr(optimizer, "scaler", None),
            scheduler=kwargs.get("lr_scheduler"),
            start_step=state.global_step,
            autocast="bf16" if args.bf16 else "fp16" if args.fp16 else None,
            **self._settings,
        )
        self._recorder.__enter__()
        self._handle = model.register_forward_pre_hook(self._hear, with_kwargs=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Judge the last steps, and stop."""
        self._close()

    def _hear(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the batch of a training forward pass; one of an evaluation is none."""
        if self._recorder is not None and module.training and torch.is_grad_enabled():
            self._recorder.step(dict(kwargs) if kwargs else list(args))

    def _close(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if self._recorder is not None:
            self._recorder.__exit__(None, None, None)
