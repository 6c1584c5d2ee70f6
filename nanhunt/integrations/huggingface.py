"""NanhuntCallback: the recorder inside a Hugging Face Trainer.

    Trainer(…, callbacks=[NanhuntCallback(out="nanhunt-bundle")])

How it works. A callback is shown no batch: the model's own forward pre-hook is, with the arguments that the Trainer calls
it with, which is also the moment whose random state a replay needs. Everything else the recorder hears by itself. The
bundle brings the model's config.json, so that it replays without a line of config.

What raises out of `train()` tells no callback. An exception of the forward pass is seen by a forward hook that torch calls
in any case, one of the backward pass by the recorder, at once; any other when it has reached `sys.excepthook`, which is
called through and given back. The bundle is written, and the exception goes on as it was.

Not covered. A Trainer that overrides `compute_loss` needs `loss`. An exception from outside of the model that the script
catches itself leaves no bundle. With gradient accumulation the Trainer divides a loss by all tokens of the step or by the
micro-batches, by what its model takes: a replay divides by the latter, and shows by its losses if that is not so.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import transformers.trainer
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nanhunt.recorder.present import PresentStep
from nanhunt.recorder.recipe import Code
from nanhunt.recorder.recorder import Recorder

__all__ = ["NanhuntCallback"]


class _TrainerRecorder(Recorder):
    """A recorder that no `with` surrounds."""

    def backward_failed(self, error: BaseException) -> None:
        """Write the bundle while the state is there."""
        self.raised(error)

    def _is_behind(self, present: PresentStep) -> bool:
        return False  # a batch is heard with the forward pass: what a loss raises before it is the next step's


class NanhuntCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Records a Trainer's run; the arguments are the recorder's own. `bundles` are what it wrote."""

    def __init__(
        self,
        *,
        build: Code = None,
        loss: Code = None,
        out: str | Path = "nanhunt-bundle",
        **settings: Any,
    ) -> None:
        self._settings: dict[str, Any] = {"build": build, "loss": loss, "out": out, **settings}
        self._recorder: Recorder | None = None
        self._hooks = contextlib.ExitStack()

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
        self._finds_batch_size = args.auto_find_batch_size
        self._recorder = _TrainerRecorder(
            model,
            optimizer,
            scaler=getattr(optimizer, "scaler", None),
            scheduler=kwargs.get("lr_scheduler"),
            start_step=state.global_step,
            autocast="bf16" if args.bf16 else "fp16" if args.fp16 else None,
            **self._settings,
        )
        self._recorder.__enter__()
        self._hooks.callback(model.register_forward_pre_hook(self._hear, with_kwargs=True).remove)
        self._hooks.callback(model.register_forward_hook(self._forward_ends, always_call=True).remove)
        self._hooks.enter_context(_last_of_all(self._uncaught))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Judge the last steps, and stop."""
        self._close()

    def _hear(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the batch of a training forward pass; one of an evaluation is none."""
        if self._recorder is not None and module.training and torch.is_grad_enabled():
            self._recorder.step(dict(kwargs) if kwargs else list(args))

    def _forward_ends(self, module: nn.Module, args: Any, output: Any) -> None:
        """Take an exception of a training forward pass, which has no output."""
        error = sys.exc_info()[1] if output is None else None
        # a Trainer that looks for its batch size catches what has no room, and begins again
        is_sought = self._finds_batch_size and isinstance(error, torch.OutOfMemoryError)
        if self._recorder is not None and error is not None and module.training and not is_sought:
            self._recorder.raised(error)

    def _uncaught(self, error: BaseException, trace: TracebackType | None) -> None:
        """Take what has left `train()` by another way."""
        frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]
        if self._recorder is not None and transformers.trainer.__file__ in frames:
            self._recorder.__exit__(type(error), error, trace)

    def _close(self) -> None:
        self._hooks.close()
        if self._recorder is not None:
            self._recorder.__exit__(None, None, None)


@contextlib.contextmanager
def _last_of_all(told: Callable[[BaseException, TracebackType | None], None]) -> Iterator[None]:
    """Tell what reaches `sys.excepthook` first; a hook that another has put over it in the meantime stays."""
    before, is_on = sys.excepthook, True

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if is_on:
            told(error, trace)
        before(kind, error, trace)

    sys.excepthook = hook
    try:
        yield
    finally:
        is_on = False
        if sys.excepthook is hook:
            sys.excepthook = before
