"""What a checkpoint shows stands in the config: formats, the loop's settings, and where its parts lie."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nanhunt.draft.loop import precision_entry, train_entry
from nanhunt.draft.shown import plain, shown_of
from nanhunt.errors import CheckpointError


@pytest.fixture
def shown(tmp_path):
    """A function that saves a dict and returns what it shows."""

    def save(**content):
        path = tmp_path / "ckpt.pt"
        torch.save(content, path)
        return shown_of(path, trust_pickle=False)

    return save


STATE = {"w": torch.ones(3, 3), "b": torch.zeros(3)}


def adam_state():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def test_parts_below_the_top_are_found_and_an_average_is_not_the_model(shown):
    nets = {"policy": STATE, "policy_ema": {**STATE, "more": torch.ones(9)}}
    found = shown(run={"nets": nets, "opts": {"main": adam_state()}}, state={"progress": {"step": 7}})
    assert found.keys is not None
    assert found.keys.model_dump(exclude_none=True) == {
        "model": "run.nets.policy", "optimizer": "run.opts.main", "step": "state.progress.step",
    }  # fmt: skip
    assert found.checkpoint is not None
    assert found.checkpoint.step == 7
    assert found.checkpoint.optimizer is not None


def test_of_a_known_model_only_what_lies_deeper_is_named(shown):
    found = shown(model=STATE, stuff={"deep": {"optimizer": adam_state()}, "iteration": 4})
    assert found.keys is not None
    assert found.keys.model_dump(exclude_none=True) == {
        "optimizer": "stuff.deep.optimizer",
        "step": "stuff.iteration",
    }


def test_a_known_layout_needs_no_keys(shown):
    assert shown(model=STATE, optimizer=adam_state(), step=3).keys is None
    assert shown(**STATE).keys is None


def test_what_holds_no_model_is_refused_as_a_replay_refuses_it(shown):
    with pytest.raises(CheckpointError, match="optimizer's state alone"):
        shown(**adam_state())


def test_a_scalers_state_means_fp16_with_its_own_arguments(shown):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=7)
    scaler.scale(torch.ones(1))
    entry = precision_entry(shown(model=STATE, scaler=scaler.state_dict()))
    assert entry.value["autocast"] == "fp16"
    assert entry.value["grad_scaler"] == {
        "init_scale": 1024.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 7,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "value"),
    [
        ({"dtype": "float16"}, {"autocast": "fp16", "grad_scaler": True}),
        ({"dtype": "bfloat16"}, {"autocast": "bf16"}),
        ({"trainer": {"precision": "bf16-mixed"}}, {"autocast": "bf16"}),
        ({"fp16": False, "bf16": True}, {"autocast": "bf16"}),
        ({"dtype": torch.float32}, {"autocast": "none"}),
        ({}, {"autocast": "none"}),
    ],
)
def test_the_autocast_that_the_settings_name_is_written(shown, config, value):
    assert precision_entry(shown(model=STATE, config=config)).value == value


def test_weights_in_half_precision_are_cast_to_it(shown):
    half = {k: v.bfloat16() for k, v in STATE.items()}
    assert precision_entry(shown(model=half)).value["params"] == "bf16"
    assert "params" not in precision_entry(shown(model={**STATE, "scale": torch.ones(2).half()})).value


def test_the_loops_settings_are_written_under_their_own_names(shown):
    config = {"gradient_accumulation_steps": 5, "grad_clip": 0.5, "seed": 42, "batch_size": 12}
    entry = train_entry(shown(model=STATE, config=config))
    assert entry.value == {"steps": 50, "accumulate": 5, "clip_grad_norm": 0.5, "seed": 42}
    assert "12 samples" in " ".join(entry.notes)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("inf"), float("nan"), True, "1.0"])
def test_a_clip_that_clips_nothing_is_left_out(shown, clip):
    assert "clip_grad_norm" not in train_entry(shown(model=STATE, config={"grad_clip": clip})).value


def test_plain_values_are_kept_and_others_dropped():
    assert plain({"a": (1, 2.5, "x"), "b": torch.tensor(3), "c": object(), "d e": 1, 5: 6}) == {
        "a": [1, 2.5, "x"],
        "b": 3,
    }
    assert plain(10**30) is None
    assert plain("x" * 1000) is None
    assert plain(torch.ones(2)) is None
