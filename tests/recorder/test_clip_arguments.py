"""What a clip is given stays the clip's: an iterator is read once."""

from __future__ import annotations

import itertools

from torch import nn

from nanhunt.recorder.hearing import clipped_parameters


def test_an_iterator_that_can_be_read_once_is_left_to_the_clip() -> None:
    layer, other = nn.Linear(2, 2), nn.Linear(2, 2)
    for given in (
        filter(lambda p: p.requires_grad, layer.parameters()),
        itertools.chain(layer.parameters(), other.parameters()),
        (p for p in layer.parameters()),
    ):
        assert clipped_parameters(given) == []
        assert len(list(given)) >= 2


def test_what_a_module_will_yield_is_known_without_reading_it() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    whole, alone = net.parameters(), net.parameters(recurse=False)
    assert len(clipped_parameters(whole)) == len(list(whole)) == 4
    assert clipped_parameters(alone) == list(alone) == []
    assert len(clipped_parameters(list(net.parameters()))) == 4
