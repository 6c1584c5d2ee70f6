"""What a loop does is heard once, by whatever name it calls torch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from nanhunt.recorder.hearing import Ear, NormClip, listening
from nanhunt.recorder.recipe import Recipe


class Notes(Ear):
    def __init__(self) -> None:
        self.clips: list[NormClip] = []
        self.done = 0

    def clip_begins(self, clip: NormClip) -> None:
        self.clips.append(clip)

    def clip_done(self) -> None:
        self.done += 1


def heard(clip: Any) -> Notes:
    layer, notes = nn.Linear(3, 2), Notes()
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    with listening(notes, []):
        clip(layer)
    return notes


def test_a_clip_by_any_name_is_heard_once_with_the_order_of_its_norm() -> None:
    for clip in (
        lambda net: clip_grad_norm_(net.parameters(), 0.5, math.inf, foreach=False),
        lambda net: nn.utils.clip_grad_norm_(net.parameters(), 0.5, norm_type=math.inf, foreach=False),
        lambda net: nn.utils.clip_grad.clip_grad_norm_(list(net.parameters()), 0.5, "inf", False, False),
    ):
        notes = heard(clip)
        found = [(c.max_norm, c.norm_type, c.foreach) for c in notes.clips]
        assert (found, notes.done) == ([(0.5, math.inf, False)], 1)


def test_a_norm_that_the_loop_takes_itself_is_not_taken_for_torchs() -> None:
    own = heard(lambda net: nn.utils.clip_grad._clip_grads_with_norm_(net.parameters(), 0.5, torch.tensor(3.0)))
    assert [c.norm_type for c in own.clips] == [None]
    assert heard(lambda net: clip_grad_norm_(net.parameters(), 0.5)).clips[0].norm_type == 2.0


def test_a_recipe_says_how_gradients_were_clipped() -> None:
    net = nn.Linear(3, 2)
    recipe = Recipe(code={}, model=net)
    for given, config in (
        ((list(net.parameters()), 2.0), {"clip_grad_norm": 0.5}),
        ((list(net.parameters()), 1.0), {"clip_grad_norm": 0.5, "clip_norm_type": 1.0}),
        (([net.weight], math.inf), {"clip_param_norm": 0.5, "clip_norm_type": math.inf}),
    ):
        recipe.heard_clip(
            NormClip(parameters=given[0], max_norm=0.5, norm_type=given[1], foreach=None, total_norm=torch.tensor(1.0))
        )
        assert recipe._clip() == config
