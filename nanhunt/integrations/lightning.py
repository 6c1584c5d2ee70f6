"""NanhuntCallback: the recorder inside a Lightning Trainer, of `lightning.pytorch` or of `pytorch_lightning`.

    Trainer(…, callbacks=[NanhuntCallback(out="nanhunt-bundle")])

How it works. `on_train_batch_start` brings the batch, on its device and converted; everything else the recorder hears by
itself: Lightning runs forward, backward and clip in a closure that it gives to the optimizer. The bundle names the
LightningModule, with the arguments that `save_hyperparameters` has kept, and is replayed by its `training_step`.

Not covered. In a replay there is no Trainer: a `training_step` that asks for `self.trainer` or `self.optimizers()` needs
`loss`, and one under manual optimization `train_step`, `(module, batch, optimizers) -> loss`; steps are then counted in
batches. `batch_idx` is 0 in a replay. A batch for which `training_step` gives None is no step of the recorder's. A `configure_gradient_clipping` that clips by hand is not repeated.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, optim

from nanhunt.recorder.recipe import Code
from nanhunt.recorder.recorder import Recorder

__all__ = ["NanhuntCallback", "build_optimizer", "training_loss"]

_HERE = "nanhunt.integrations.lightning"
_AUTOCAST = {"16-mixed": "fp16", "bf16-mixed": "bf16"}
_NO_STEP = (
    "manual optimization: a replay has no Trainer for training_step; name a train_step (module, batch, optimizers)"
)


def _callback_classes() -> tuple[type, ...]:
    """Return Lightning's Callback: that of the package which is imported, of both names where none is."""
    names = ("lightning.pytorch", "pytorch_lightning")
    found = [name for name in names if name in sys.modules]
    found = found or [name for name in names if importlib.util.find_spec(name.split(".")[0]) is not None]
    if not found:
        raise ImportError(f"{_HERE} needs lightning: pip install lightning")
    return tuple(importlib.import_module(name).Callback for name in found)


class NanhuntCallback(*_callback_classes()):  # type: ignore[misc]
    """Records `Trainer.fit`; the arguments are the recorder's own. `bundles` are what it wrote.

    `build` is needed where `save_hyperparameters` has not kept every argument of the module.
    """

    def __init__(
        self,
        *,
        build: Code = None,
        loss: Code = None,
        build_optimizer: Code = None,
        train_step: Code = None,
        out: str | Path = "nanhunt-bundle",
        **settings: Any,
    ) -> None:
        self._code = {"build": build, "loss": loss, "build_optimizer": build_optimizer, "train_step": train_step}
        self._settings: dict[str, Any] = {"out": out, **settings}
        self._recorder: Recorder | None = None

    @property
    def bundles(self) -> list[Path]:
        """The bundles that were written."""
        return [] if self._recorder is None else self._recorder.bundles

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to record; a checkpoint has been restored."""
        self._close(None)
        by_itself = pl_module.automatic_optimization
        code: dict[str, Any] = dict(self._code)
        code["build"] = code["build"] or _builder(pl_module)
        code["build_optimizer"] = code["build_optimizer"] or _optimizer_builder(trainer.optimizers)
        if by_itself and code["train_step"] is None:
            code["loss"] = code["loss"] or f"{_HERE}:training_loss"
        self._recorder = Recorder(
            pl_module,
            trainer.optimizers,
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            start_step=trainer.global_step if by_itself else trainer.fit_loop.total_batch_idx + 1,
            autocast=_AUTOCAST.get(str(trainer.precision)),
            known=() if by_itself or code["train_step"] is not None else (_NO_STEP,),
            **code,
            **self._settings,
        )
        self._recorder.__enter__()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Take the batch."""
        if self._recorder is not None:
            self._recorder.step(batch)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take the loss of a step by hand; take a batch back that `training_step` has left out with None."""
        if self._recorder is None:
            return
        if pl_module.automatic_optimization:
            if not outputs:
                self._recorder.left_out()
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if self._code["train_step"] is not None and isinstance(loss, Tensor) and loss.numel() == 1:
            self._recorder.loss(loss)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Judge the last steps, and stop."""
        self._close(None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Write the bundle of what leaves `fit`, and stop."""
        self._close(exception)

    def _close(self, error: BaseException | None) -> None:
        if self._recorder is not None:
            self._recorder.__exit__(type(error) if error is not None else None, error, None)


def _builder(module: Any) -> Code:
    """Return the module's class with the arguments that `save_hyperparameters` kept; None where it kept not all."""
    kind: Any = type(module)
    wanted = inspect.signature(kind).parameters
    kept = dict(module.hparams)
    if set(kept) != set(wanted) or any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in wanted.values()):
        return None
    return functools.partial(kind, **kept) if kept else kind


def _optimizer_builder(optimizers: list[Any]) -> Code:
    """Return `configure_optimizers` where the groups are more than the recorder can tell; None where it can."""
    return f"{_HERE}:build_optimizer" if len(optimizers) > 1 or len(optimizers[0].param_groups) > 1 else None


# What the bundle's nanhunt.yaml names.


def training_loss(module: Any, batch: Any) -> Any:
    """Return the loss of the module's own `training_step`; `self.log` does nothing without a Trainer."""
    module.log = module.log_dict = _nothing
    step = module.training_step
    result = step(batch, 0) if len(inspect.signature(step).parameters) > 1 else step(batch)
    return result["loss"] if isinstance(result, Mapping) else result


def build_optimizer(module: Any) -> Any:
    """Return what the module's `configure_optimizers` makes, without its schedulers: one optimizer, or a list of them."""
    made = module.configure_optimizers()
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], (list, tuple)):
        made = made[0]  # ([optimizers], [schedulers])
    found = [item["optimizer"] if isinstance(item, Mapping) else item for item in _listed(made)]
    return found[0] if len(found) == 1 else found


def _listed(made: Any) -> list[Any]:
    return list(made) if isinstance(made, (list, tuple)) and not isinstance(made, optim.Optimizer) else [made]


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Log nothing."""
