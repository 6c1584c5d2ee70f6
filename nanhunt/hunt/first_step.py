"""The first replayed step raises: whether nanhunt.yaml put together what does not fit, or the training did.

A batch without the key that the loss reads says nothing of a run that has trained for days. It says that `loss:` or
`data:` names something else than the run used, and thirty innocent causes would only hide that.

How the two are told apart. By the kind of exception: calls with wrong arguments, keys and attributes that are not there,
shapes, dtypes and devices that do not go together. What values do is the training's: an index out of range, an assertion
of the user's, a matrix that is singular, autograd's anomaly mode, a device that asserts. And by the next batch: where
that does not raise the same, in the same line, it is the batch that is at fault, and a finding; so is what raises in a
later step, or in a recorder's bundle, whose steps have run.

Which key. The weights have matched, shape for shape, so the model is the run's: what does not fit inside it is the
batch's, or its dtype the precision's. Otherwise it is the callable that raises.
"""

from __future__ import annotations

import re
import traceback
from types import FrameType

import torch
from torch import nn

from nanhunt.errors import ConfigError, NanhuntError
from nanhunt.hunt.state import HuntState
from nanhunt.inert import few
from nanhunt.probes.source import is_user_file, place
from nanhunt.raised import complains_of_numbers, user_line
from nanhunt.replay import device_is_lost
from nanhunt.rewind import rewind
from nanhunt.training.batches import DataEndedError
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step
from nanhunt.training.tree import tensors_of

__all__ = ["is_of_the_setup", "refuse_wrong_setup"]

#: exceptions of a call that cannot work, whatever the numbers are
_OF_CALLS = (TypeError, KeyError, AttributeError, NameError, ImportError, NotImplementedError)

#: what torch, Python and transformers say of shapes, dtypes and arguments that do not go together
_OF_FIT = re.compile(
    r"shapes? .*cannot be multiplied|must match|size mismatch|mat1 and mat2|Expected target size|"
    r"Expected input batch_size|Given (groups|transposed|normalized_shape|input size)|invalid for input of size|"
    r"same dtype|scalar type|Expected tensor for argument|on the same device|but got|but found|not implemented for|"
    r"values to unpack|(must|have to) specify|does not require grad|dimensions? .*(expected|specified)|expected \dD|"
    r"size of tensor|expanded size|self must be|tensors? expected|same number of dim|not broadcastable|"
    r"target size|only for scalar outputs|is not compatible|too many indices|Dimension out of range|(tuple|list) index out of range",
    re.IGNORECASE,
)
#: dtypes that a precision makes
_OF_PRECISION = re.compile(r"\b(c10::)?(Half|BFloat16|Float8\w*|Double)(Tensor)?\b")

#: what must be mended, by the key that most likely is wrong
_MENDS = {
    "data": "let data: yield what the loop read, and loss: hand it to the model as the loop did",
    "loss": "let loss: name what the loop called, a callable (model, batch) -> scalar loss, and data: what it reads",
    "train_step": "let train_step: name a callable (model, batch, optimizer) -> loss, and data: what it reads",
    "precision": "write under precision: what the run had: autocast, and the dtype of params",
    "optimizer": "let optimizer: build what the loop built",
    "scheduler": "let scheduler: build what the loop built",
}


def refuse_wrong_setup(state: HuntState, step: int, error: Exception) -> None:
    """Raise ConfigError where what the first step raised is of the set-up; return where it is a finding.

    The run stands before `step` afterwards, if it was run on.
    """
    if state.settings.recorded or not is_of_the_setup(error):
        return
    run = state.run
    alike = _raised_next(state, step, error)
    if alike is False:
        state.assume(f"the batch of step {step + 1} does not raise it: it is that of step {step}")
        return
    key = _key_of(run, error)
    said = (str(error).strip().splitlines() or [""])[0][:300]
    line = _line_of(run, error)
    again = ", and the next batch raises the same" if alike else ""
    raise ConfigError(
        f"{key}: the first replayed step, {step}, does not run{again}: {type(error).__name__}: {said}"
        + (f", at {line}" if line else ""),
        hint=f"{_MENDS[key]}; {_batch(run, step)}",
    ) from error


def is_of_the_setup(error: BaseException) -> bool:
    """Whether an exception is of the kind that a wrong set-up raises, and not one that numbers lead to."""
    if device_is_lost(error) or complains_of_numbers(error):
        return False
    if isinstance(error, _OF_CALLS):
        return True
    # RuntimeError's own children tell of memory and of singular matrices
    fits = type(error) in (RuntimeError, ValueError, IndexError)
    return fits and _OF_FIT.search(str(error)) is not None


def _raised_next(state: HuntState, step: int, error: Exception) -> bool | None:
    """Whether the next step's batch, on the same state, raises the same in the same line; None where there is none."""
    run = state.run
    rewind(run, state.ring, step)
    try:
        train_step(run, step + 1, StepWatch())
    except (DataEndedError, NanhuntError):
        return None
    except Exception as other:  # whatever the user's code raises
        return type(other) is type(error) and user_line(other) == user_line(error)
    finally:
        rewind(run, state.ring, step)
    return False


# --- which key -------------------------------------------------------------------------------------------------------


def _key_of(run: TrainingRun, error: Exception) -> str:
    """Return the config key that most likely is wrong."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    owners = [frame.f_locals.get("self") for frame in frames]
    step = "loss" if run.train_step is None or _calls_loss(run) else "train_step"
    if any(isinstance(owner, torch.optim.lr_scheduler.LRScheduler) for owner in owners):
        return "scheduler"
    if any(isinstance(o, torch.optim.Optimizer) for o in owners) and not _is_of(run, frames, owners):
        return "optimizer"
    if _OF_PRECISION.search(str(error)):
        return "precision"
    return "data" if _is_of(run, frames, owners) else step


def _calls_loss(run: TrainingRun) -> bool:
    """Whether the step is the built-in one around an optimizer that asks for a closure: it calls `loss:`."""
    return getattr(run.train_step, "__module__", "") == "nanhunt.training.custom_step"


def _is_of(run: TrainingRun, frames: list[FrameType], owners: list[object]) -> bool:
    """Whether the exception came out of the model's forward pass, and of no call to it that it does not take."""
    return any(
        isinstance(owner, nn.Module) and frame.f_code.co_name == "forward" and _is_inside(run, owner)
        for frame, owner in zip(frames, owners, strict=True)
    )


def _is_inside(run: TrainingRun, module: nn.Module) -> bool:
    return any(module is own for root in run.roots().values() for own in root.modules())


# --- what is said ----------------------------------------------------------------------------------------------------


def _line_of(run: TrainingRun, error: Exception) -> str:
    """Return the innermost line of the project's own code, else of a library's; '' where there is none."""
    lines = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)]
    users = [line for line in lines if is_user_file(line[0])]
    root = str(run.root.resolve())
    own = [line for line in users if line[0].startswith(root)]
    found = (own or users)[-1:]
    return place(found[0], run.root) if found else ""


def _batch(run: TrainingRun, step: int) -> str:
    """Say what a batch holds."""
    try:
        batch = run.batches.peek(step, 0)
    except KeyError:
        return "no batch was read"
    told = [f"{name} {_told(tensor)}".strip() for name, tensor in tensors_of(batch)]
    return f"a batch is a {type(batch).__name__} with {few(told)}" if told else f"a batch is a {type(batch).__name__}"


def _told(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
