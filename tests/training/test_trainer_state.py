"""A Trainer's log: what it says of training, and the NaN behind a loss of zero."""

import json
import math

import pytest

from nanhunt.errors import CheckpointError
from nanhunt.training.trainer_state import LoggedStep, hidden_nans, logged_steps, read_trainer_state

HISTORY = [
    {"step": 1, "loss": 2.5, "grad_norm": 1.5, "learning_rate": 1e-3},
    {"step": 1, "eval_loss": 2.4},
    {"step": 2, "loss": 0.0, "grad_norm": math.nan},
    {"step": 3, "loss": 0.0, "grad_norm": "Infinity"},
    {"step": 4, "loss": 0.0, "grad_norm": 0.5},
    {"step": 5, "loss": "nan"},
    {"step": math.nan, "loss": 1.0},
    "not an entry",
]


def test_a_loss_of_zero_beside_a_norm_that_is_not_finite_is_a_hidden_nan(tmp_path):
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"global_step": 5, "log_history": HISTORY}))
    steps = logged_steps(read_trainer_state(path))
    assert [s.step for s in steps] == [1, 2, 3, 4, 5]
    assert steps[0] == LoggedStep(step=1, loss=2.5, grad_norm=1.5, learning_rate=1e-3)
    assert math.isnan(steps[-1].loss)
    assert [s.step for s in hidden_nans(steps)] == [2, 3]


@pytest.mark.parametrize("state", [{}, {"log_history": None}, {"log_history": 3}, {"log_history": [3, None]}])
def test_a_state_without_a_history_tells_nothing(state):
    assert logged_steps(state) == ()


def test_a_state_that_is_no_json_is_refused_by_name(tmp_path):
    path = tmp_path / "trainer_state.json"
    assert read_trainer_state(path) == {}
    for text in ("{", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(CheckpointError, match="trainer_state"):
            read_trainer_state(path)
