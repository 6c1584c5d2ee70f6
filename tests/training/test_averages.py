"""An average is told by its name and by the weights that it is one of; a layer of such a name that is trained is none."""

from __future__ import annotations

import pytest

from nanhunt.training.averages import averages_among, is_average

NET = {"fc.weight": (4, 4), "fc.bias": (4,), "out.weight": (2, 4)}


def beside(own, average, wrap=""):
    shapes = {f"{own}{name}": shape for name, shape in NET.items()}
    return shapes | {f"{average}{wrap}{name}": shape for name, shape in NET.items()}


@pytest.mark.parametrize(
    ("own", "average", "wrap"),
    [
        ("", "ema.", ""),
        ("nets.net.", "nets.ema.", ""),
        ("", "state_dict_ema.", "module."),
        ("student.", "teacher.", ""),
    ],
)
def test_each_tensor_of_an_average_finds_its_weight(own, average, wrap):
    owners = {name: average.rstrip(".") for name in beside(own, average, wrap) if name.startswith(average)}
    found = averages_among(beside(own, average, wrap), owners)
    assert found == {f"{average}{wrap}{name}": f"{own}{name}" for name in NET}


def test_names_without_dots_and_lists_without_names_are_known():
    flat = NET | {f"model_ema.{name.replace('.', '')}": shape for name, shape in NET.items()}
    assert averages_among(flat, {}) == {f"model_ema.{name.replace('.', '')}": name for name in NET}
    listed = {f"ema.shadow_params.{i}": shape for i, shape in enumerate(NET.values())}
    owners = dict.fromkeys(listed, "ema.shadow_params")
    assert averages_among(NET | listed, owners) == dict(zip(listed, NET, strict=True))


def test_of_two_networks_an_average_is_that_of_its_name():
    shapes = {f"{key}.{name}": shape for key in ("d", "g", "g_ema") for name, shape in NET.items()}
    owners = {name: name.partition(".")[0] for name in shapes}
    assert set(averages_among(shapes, owners).values()) == {f"g.{name}" for name in NET}


def test_without_weights_beside_it_or_inside_of_a_model_it_is_none():
    assert averages_among({f"ema.{name}": shape for name, shape in NET.items()}, {}) == {}
    layers = {"h.swa.weight": (4, 4), "h.attn.weight": (4, 4), "target.weight": (4, 4), "proj.weight": (4, 4)}
    assert averages_among(layers, {}) == {}


@pytest.mark.parametrize(("path", "expected"), [("nets.ema", True), ("modelEMA", True), ("averaged_state_dict", True),
                                                ("gemma", False), ("schema.semantic", False), ("attention", False)])  # fmt: skip
def test_words_of_a_key_tell_and_letters_in_a_word_do_not(path, expected):
    assert is_average(path) is expected
