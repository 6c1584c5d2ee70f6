"""Nothing that a checkpoint holds can break the written config, nor put a key, a tag or code into it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nanhunt.draft.guess import Guesses
from nanhunt.draft.sections import draft_of
from nanhunt.draft.shown import shown_by
from nanhunt.draft.text import Draft, Entry, draft_text
from nanhunt.training.checkpoint import Checkpoint
from nanhunt.training.config import CheckpointKeys, load_config
from nanhunt.training.yaml_file import read_yaml

#: What YAML, a terminal or a reader could take for something else.
AWKWARD = [
    "on", "yes", "1e-4", "0x1f", "0o17", "010", "12:30", "2026-01-01", "~", "null", ".inf", "<<", "=", "!!python/object:os.system",
    "a: b", "# no comment", "x\ny: 1", "x\r\nmodel: os:system", "x\x85y", "x\u2028y: 1", "x\u2029", "\ufeff", "\x00\x07\x1b[31m", "\ud800",
    "---", "...", "- a", "{a: b}", "[1, 2]", "*anchor", "&anchor", "%TAG", "@at", "`tick`", '"', "'", "\\", " lead", "trail ", "", "\t", "é", "🦙",
    "train:build_model", "C:\\data\\x", "?", "| ", "> folded", "a #b", "a:", "-", "," * 130,
]  # fmt: skip

texts = st.one_of(st.sampled_from(AWKWARD), st.text(st.characters(codec=None), max_size=40))
scalars = st.one_of(texts, st.booleans(), st.none(), st.integers(), st.floats(), st.binary(max_size=3))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)
#: What `plain` leaves of values: YAML's own types.
plains = st.recursive(
    st.one_of(texts, st.booleans(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), inner, max_size=4)
    ),
    max_leaves=12,
)


def read_back(text: str, tmp_path_factory: pytest.TempPathFactory) -> object:
    path = tmp_path_factory.mktemp("draft") / "nanhunt.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path).value


@given(value=plains, notes=st.lists(texts, max_size=3), unused=plains)
@settings(max_examples=300, deadline=None)
def test_a_written_value_is_read_back_and_comments_stay_comments(value, notes, unused, tmp_path_factory):
    draft = Draft(
        head=tuple(notes),
        entries=(
            Entry(key="model", value={"call": "a:b", "kwargs": {"x": value}}, notes=tuple(notes)),
            Entry(key="loss", value=unused, notes=tuple(notes), active=False),
            Entry(
                key="train", value={"seed": 1, "steps": value}, asides={"seed": "".join(notes), "steps": "".join(notes)}
            ),
        ),
    )
    text = draft_text(draft)
    expected = {"model": {"call": "a:b", "kwargs": {"x": value}}, "train": {"seed": 1, "steps": value}}
    assert read_back(text, tmp_path_factory) == expected
    assert all(line.isprintable() for line in text.split("\n"))


@given(value=plains)
@settings(max_examples=200, deadline=None)
def test_another_reader_reads_the_same_texts(value, tmp_path_factory):
    # PyYAML's own rules are those of YAML 1.1: an editor or a script may go by them
    text = draft_text(Draft(head=("x",), entries=(Entry(key="model", value={"call": "a:b", "kwargs": {"x": value}}),)))
    assert yaml.safe_load(text) == {"model": {"call": "a:b", "kwargs": {"x": value}}}


@given(
    arguments=st.dictionaries(texts, values, max_size=6),
    loop=st.dictionaries(st.one_of(texts, st.sampled_from(["seed", "dtype", "grad_clip", "batch_size", "lr"])), values, max_size=6),
    group=st.dictionaries(st.sampled_from(["lr", "betas", "eps", "weight_decay", "momentum", "nesterov"]), values, max_size=6),
    scaler=st.dictionaries(st.sampled_from(["scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"]), values, max_size=5),
    scheduler=st.dictionaries(st.sampled_from(["T_max", "eta_min", "last_epoch", "lr_lambdas", "gamma"]), values, max_size=5),
    name=texts,
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_the_config_is_valid_whatever_a_checkpoint_holds(
    arguments, loop, group, scaler, scheduler, name, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("project")
    checkpoint = Checkpoint(
        path=folder / "ckpt.pt",
        container="torch",
        step=None,
        model={name: torch.zeros(2)},
        optimizer={"state": {}, "param_groups": [{**group, "params": [0]}, {**copy.deepcopy(group), "params": values}]},
        scheduler=scheduler or None,
        scaler=scaler or None,
        extra={"model_args": arguments, "config": loop, name: name},
        locations=frozenset({name}),
    )
    keys = CheckpointKeys(model=name) if name and name.isprintable() else None  # as they are found
    draft = draft_of(
        shown_by(checkpoint, keys), Guesses(near={"model": name}), root=folder, command=f"nanhunt replay {name}"
    )
    path = folder / "nanhunt.yaml"
    path.write_text(draft_text(draft), encoding="utf-8")
    config = load_config(path)
    assert config.model is not None
    assert config.model.call == "train:build_model"
    assert config.data.call == "train:batches"
    assert config.checkpoint == keys


def test_the_awkward_texts_of_a_checkpoint_reach_the_model_as_they_were(tmp_path):
    arguments = {f"a{i}": text for i, text in enumerate(AWKWARD[:60]) if len(text) < 100}
    checkpoint = Checkpoint(
        path=Path("ckpt.pt"), container="torch", step=3, model={"w": torch.zeros(2)}, extra={"model_args": arguments}
    )
    path = tmp_path / "nanhunt.yaml"
    path.write_text(draft_text(draft_of(shown_by(checkpoint), Guesses(), root=tmp_path, command="x")), encoding="utf-8")
    config = load_config(path)
    assert config.model is not None
    assert config.model.kwargs == arguments
