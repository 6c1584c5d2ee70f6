"""nanhunt.yaml: what it may say, what it means, and what is said where it is wrong."""

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from nanhunt.errors import ConfigError
from nanhunt.training.config import SCHEMA_FILE, RunConfig, find_config, json_schema, load_config

CONTRACT = """
model: train:build_model          # callable -> nn.Module
data: train:batches
loss: train:compute_loss
optimizer: {call: torch.optim:AdamW, kwargs: {lr: 3.0e-4}}
scheduler: train:make_scheduler
train_step: train:my_step
precision:
  autocast: fp16
  grad_scaler: {init_scale: 65536, growth_interval: 2000}
  params: fp32
  recipe: fp8-hybrid
train:
  steps: 50
  accumulate: 1
  clip_grad_norm: 1.0
  seed: 1337
checkpoint:
  model: model
  optimizer: optimizer
  scheduler: scheduler
  scaler: scaler
  step: step
"""

HEAD = "model: train:build_model\ndata: train:batches\n"


@pytest.fixture
def load(tmp_path: Path):
    def read(text: str) -> RunConfig:
        path = tmp_path / "nanhunt.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path)

    return read


@pytest.fixture
def complaint(load, tmp_path: Path):
    def read(text: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(text)
        return caught.value.message.replace(str(tmp_path) + "/", "")

    return read


def test_every_key_of_the_contract_is_read(load):
    config = load(CONTRACT)
    assert config.optimizer.call == "torch.optim:AdamW"
    assert config.optimizer.kwargs == {"lr": 3.0e-4}
    assert config.precision.scaler_arguments()["init_scale"] == 65536.0
    assert config.precision.recipe.name == "fp8-hybrid"
    assert config.train.clip_grad_norm == 1.0
    assert config.checkpoint.step == "step"


def test_two_lines_are_a_config(load):
    config = load(HEAD)
    assert (config.train.steps, config.train.accumulate, config.train.seed) == (50, 1, 1337)
    assert (config.precision.autocast, config.precision.params) == ("none", None)
    assert config.loss is config.optimizer is config.checkpoint is None


def test_an_import_string_and_its_mapping_mean_the_same(load):
    assert load(HEAD).model == load("model: {call: train:build_model}\ndata: train:batches\n").model


def test_an_empty_section_is_a_section_left_out(load):
    assert load(HEAD + "train:\nprecision:\n") == load(HEAD)


def test_a_config_does_not_change(load):
    with pytest.raises(ValidationError):
        load(HEAD).train.steps = 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("1.", 1.0),
        (".inf", math.inf),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("", None),
        ("'1e-4'", "1e-4"),
    ],
)
def test_scalars_follow_yaml_1_2(load, text, value):
    found = load(f"data: train:batches\nmodel: {{call: a:b, kwargs: {{x: {text}}}}}").model.kwargs["x"]
    assert found == value
    assert type(found) is type(value)


def test_merge_keys_are_defaults_and_no_duplicates(load):
    config = load("model: {call: a:b, kwargs: &k {x: 1, y: 1}}\ndata:\n  call: a:c\n  kwargs:\n    <<: *k\n    x: 2\n")
    assert config.data.kwargs == {"x": 2, "y": 1}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("float16", "fp16"),
        ("half", "fp16"),
        ("torch.bfloat16", "bf16"),
        ("BF16", "bf16"),
        ("float32", "none"),
        ("fp32", "none"),
        ("null", "none"),
        ("false", "none"),
    ],
)
def test_autocast_knows_the_dtypes_other_names(load, written, meant):
    assert load(HEAD + f"precision: {{autocast: {written}}}").precision.autocast == meant


@pytest.mark.parametrize(
    ("written", "meant"), [("half", "fp16"), ("float32", "fp32"), ("none", None), ("null", None), ("bfloat16", "bf16")]
)
def test_params_know_the_dtypes_other_names(load, written, meant):
    assert load(HEAD + f"precision: {{params: {written}}}").precision.params == meant


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ("null", None),
        ("false", None),
        ("{enabled: false}", None),
        ("true", 65536.0),
        ("{}", 65536.0),
        ("{init_scale: 1024}", 1024.0),
    ],
)
def test_scaler_arguments_are_none_where_no_scaler_is_wanted(load, written, arguments):
    found = load(HEAD + f"precision: {{grad_scaler: {written}}}").precision.scaler_arguments()
    assert (found and found["init_scale"]) == arguments


def test_scaler_defaults_are_those_of_torch():
    torch = pytest.importorskip("torch")
    config = RunConfig.model_validate({"model": "a:b", "data": "a:c", "precision": {"grad_scaler": True}})
    ours = torch.amp.GradScaler("cpu", **config.precision.scaler_arguments())
    assert ours.state_dict() == torch.amp.GradScaler("cpu").state_dict()


def test_clipping_by_an_infinite_norm_can_be_said(load):
    assert load(HEAD + "train: {clip_grad_norm: .inf}").train.clip_grad_norm == math.inf


def test_the_document_is_json_with_defaults(load):
    document = load(HEAD).document()
    assert json.loads(json.dumps(document)) == document
    assert document["train"]["steps"] == 50
    assert document["model"] == {"call": "train:build_model", "kwargs": {}, "mesh": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:\n  stepz: 3\n", "nanhunt.yaml:4:3: train.stepz: unknown key, did you mean 'steps'?"),
        ("optimiser: a:b\n", "nanhunt.yaml:3:1: optimiser: unknown key, did you mean 'optimizer'?"),
        ("steps: 3\n", "nanhunt.yaml:3:1: steps: unknown key, did you mean 'train.steps'?"),
        ("max_grad_norm: 1.0\n", "max_grad_norm: unknown key, did you mean 'train.clip_grad_norm'?"),
        ("loss: {class_path: a:b}\n", "loss.class_path: unknown key, did you mean 'call'?"),
        ("loss: {call: a:b, smoothing: 1}\n", "loss.smoothing: unknown key; arguments of the call go under kwargs"),
        ("zzz: 3\n", "zzz: unknown key; the keys here are model, data, loss"),
        ("1: 3\n", "nanhunt.yaml:3:1: 1: a key must be a text"),
        ("precision: {grad_scaler: {init_scal: 1}}\n", "precision.grad_scaler.init_scal: unknown key, did you mean"),
        ("train: {steps: many}\n", "nanhunt.yaml:3:9: train.steps: expected a whole number, got 'many'"),
        ("train: {steps: 1.5}\n", "train.steps: expected a whole number, got 1.5"),
        ("train: {steps: true}\n", "train.steps: expected a whole number, got true"),
        ("train: {steps: '50'}\n", "train.steps: expected a whole number, got '50'"),
        ("train: {steps: }\n", "train.steps: expected a whole number, got nothing"),
        ("train: {steps: 0}\n", "train.steps: expected a number of at least 1, got 0"),
        ("train: {clip_grad_norm: 0}\n", "train.clip_grad_norm: expected a number greater than 0, got 0"),
        ("train: {agc: .nan}\n", "train.agc: expected a number greater than 0, got nan"),
        ("train: {clip_grad_norm: high}\n", "train.clip_grad_norm: expected a number, got 'high'"),
        (
            "train: {clip_grad_norm: 1, clip_param_norm: 1}\n",
            "train: clip_grad_norm and clip_param_norm exclude each other: keep one",
        ),
        ("train: {clip_grad_norm: 1, agc: 1}\n", "train: clip_grad_norm and agc exclude each other: keep one"),
        ("precision: fp16\n", "precision: expected keys under it (autocast, grad_scaler, params, recipe), got 'fp16'"),
        ("precision: {autocast: fp61}\n", "expected one of none, fp16, bf16, got 'fp61'; did you mean 'fp16'?"),
        ("precision: {autocast: 16}\n", "precision.autocast: expected one of none, fp16, bf16, got 16"),
        ("precision: {params: int8}\n", "precision.params: expected one of fp32, bf16, fp16, got 'int8'"),
        ("precision: {grad_scaler: on}\n", "precision.grad_scaler: expected true, false, or GradScaler's arguments"),
        ("precision: {grad_scaler: {backoff_factor: 2}}\n", "backoff_factor: expected a number less than 1, got 2"),
        ("loss: train\n", "loss: expected 'package.module:attribute' or 'path/to/file.py:attribute', got 'train'"),
        ("loss: train.loss\n", "got 'train.loss'; did you mean 'train:loss'?"),
        ("loss: train.py\n", "got 'train.py'"),
        ("loss: [1]\n", "loss: expected 'package.module:attribute', or {call:"),
        ("loss: {call: a:b, kwargs: 3}\n", "loss.kwargs: expected `name: value` pairs, got 3"),
        ("loss: {kwargs: {}}\n", "loss.call: missing; add for example `call: train:build_model`"),
        ("checkpoint: {step: 5}\n", "checkpoint.step: expected a text, got 5"),
        ("model: other:model\n", "nanhunt.yaml:3:1: model: written twice, first in line 1"),
        ("train: {seed: 1, seed: 2}\n", "nanhunt.yaml:3:18: train.seed: written twice, first in line 3"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_its_mend(complaint, text, expected):
    assert expected in complaint(HEAD + text)


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(complaint):
    lines = complaint(HEAD + "train:\n  stepz: 1\n  seed: x\nfoo: 1\nfoo: 2\n").splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"nanhunt.yaml:{n}" for n in ("4:3", "5:3", "6:1", "7:1")]


def test_a_missing_key_is_told_with_a_line_that_mends_it(complaint):
    assert complaint("model: a:b\n") == "nanhunt.yaml:1:1: data: missing; add for example `data: train:batches`"


def test_a_key_is_not_missing_where_its_typo_stands(complaint):
    assert complaint("modle: a:b\ndata: a:c\n") == "nanhunt.yaml:1:1: modle: unknown key, did you mean 'model'?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- model\n", "nanhunt.yaml:1:1: expected `key: value` lines, got a list"),
        ("model\n", "expected `key: value` lines, got 'model'"),
        ("train:\n\tsteps: 1\n", "nanhunt.yaml:2:1: a tab where YAML wants spaces"),
        ("model: a: b\n", "nanhunt.yaml:1:9: a second ': ' in one line"),
        ("model: [a\n", "nanhunt.yaml:1:8: the '[' is not closed"),
        ('model: "a\n', "the quote that opens here is not closed"),
        ("---\nmodel: a:b\n---\ndata: a:b\n", "nanhunt.yaml:3:1: a second document begins here"),
        ("model: !!python/object/apply:os.getcwd []\n", "nanhunt.yaml:1:8: a tag"),
        ("model: \x07\n", "which YAML forbids"),
        ("? [a]\n: b\n", "nanhunt.yaml:1:3: a key that is a list or a mapping"),
        ("model: &m [*m]\n", "nested more than"),
    ],
)
def test_what_is_no_config_is_refused_with_its_place(complaint, text, expected):
    assert expected in complaint(text)


def test_nested_aliases_do_not_eat_the_memory(complaint):
    bomb = "a0: &a0 {x: 1, y: 2}\n" + "".join(
        f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}, r: *a{n - 1}, s: *a{n - 1}}}\n" for n in range(1, 15)
    )
    assert "keys" in complaint(bomb)


def test_a_file_that_is_no_utf8_is_refused(tmp_path):
    path = tmp_path / "nanhunt.yaml"
    path.write_bytes(b"model: \xff\xfe\n")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_config(path)


def test_a_byte_order_mark_is_not_part_of_the_first_key(tmp_path):
    path = tmp_path / "nanhunt.yaml"
    path.write_text(HEAD, encoding="utf-8-sig")
    assert load_config(path).model.call == "train:build_model"


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path)


def test_the_named_config_wins_over_those_that_would_be_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nanhunt.yaml").write_text(HEAD)
    (tmp_path / "mine.yaml").write_text(HEAD)
    assert find_config(tmp_path / "mine.yaml", None) == tmp_path / "mine.yaml"
    with pytest.raises(ConfigError, match="no such file"):
        find_config(tmp_path / "absent.yaml", None)


def test_the_config_here_wins_over_the_one_beside_the_checkpoint(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    (there / "nanhunt.yaml").write_text(HEAD)
    assert find_config(None, there / "ckpt.pt") == there / "nanhunt.yaml"
    (here / "nanhunt.yaml").write_text(HEAD)
    assert find_config(None, there / "ckpt.pt") == Path("nanhunt.yaml")


def test_no_config_names_both_places_and_how_to_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        find_config(None, tmp_path / "runs" / "ckpt.pt")
    assert str(tmp_path / "nanhunt.yaml") in caught.value.message
    assert str(tmp_path / "runs" / "nanhunt.yaml") in caught.value.message
    assert "model: train:build_model" in caught.value.hint


def test_the_shipped_schema_is_the_models(tmp_path):
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == json_schema()


def test_the_schema_lets_an_import_be_a_string_or_a_mapping():
    forms = json_schema()["$defs"]["ImportSpec"]["anyOf"]
    assert [form["type"] for form in forms] == ["string", "object"]
    assert json_schema()["additionalProperties"] is False
