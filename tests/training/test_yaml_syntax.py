"""A slip in a YAML file is told by its line and in words, with the mend; PyYAML's grammar is not quoted."""

from __future__ import annotations

import pytest

from nanhunt.errors import ConfigError
from nanhunt.training.yaml_file import read_yaml

SLIPS = [
    ("train:\n  steps: 4\n   seed: 3\n", 3, "indented by 3 spaces, line 2 above it by 2 spaces: seed: 3"),
    ("train:\n  steps: 4\n seed: 3\n", 3, "indented by 1 space, where the keys above stand at 0 or 2: seed: 3"),
    ("data: a:b\n model: c:d\n", 2, "indented by 1 space, line 1 above it by 0 spaces: model: c:d"),
    ("a: b\n# why\n\n  c: d  # here\n", 4, "indented by 2 spaces, line 1"),
    ("data: {call: a:b\nmodel: c:d\n", 1, "the '{' is not closed"),
    ("steps: [1, 2\n", 1, "the '[' is not closed"),
    ('data: "a:b\nmodel: c:d\n', 1, "the quote that opens here is not closed"),
    ("data: a:b\nmodel\nloss: c:d\n", 2, "a key without its colon: model"),
    ("data: a:b\n- model: c:d\n", 2, "a list's item where keys stand"),
    ("train: {steps: 3}}\n", 1, "a '}' that closes or parts nothing"),
    ("model: @a:b\n", 1, "begins with '@', which YAML keeps for itself"),
    ("model: *a\n", 1, "begins with '*', which YAML keeps for itself"),
]


@pytest.mark.parametrize(("text", "line", "told"), SLIPS)
def test_a_slip_is_told_by_its_line_in_words_with_a_mend(text, line, told, tmp_path):
    path = tmp_path / "nanhunt.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert caught.value.message.startswith(f"{path}:{line}:")
    assert told in caught.value.message
    assert caught.value.hint
    for jargon in ("block", "mapping", "token", "scalar", "stream", "alias"):
        assert jargon not in caught.value.message


@pytest.mark.parametrize(
    "text", ["train:  # the loop\n  steps: 4\n", "a:\n- b\n- c\n", "a: |\n  x\n   y\n", "a: b\n\n\nc: d\n"]
)
def test_sound_indents_are_read(text, tmp_path):
    (tmp_path / "nanhunt.yaml").write_text(text)
    assert read_yaml(tmp_path / "nanhunt.yaml").value
