"""A config runs nothing by being read, and does not grow: tags, aliases, depth, numbers, size."""

from __future__ import annotations

import time

import pytest
import yaml

from nanhunt.errors import ConfigError
from nanhunt.training.config import load_config

WHOLE = "model: a:b\ndata: a:c\n"


def test_the_tags_work_where_nothing_guards(tmp_path):
    """The control: PyYAML's unsafe loader runs them."""
    yaml.unsafe_load(f"!!python/object/apply:os.system ['touch {tmp_path / 'it_ran'}']")
    assert (tmp_path / "it_ran").exists()


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch {marker}']",
        '!!python/object/apply:builtins.exec [\'open("{marker}", "w")\']',
        "!!python/object/new:os.system ['touch {marker}']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/tuple [a, b]",
        "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch {marker}']",
    ],
)
@pytest.mark.parametrize(
    "where", ["model: {tag}\ndata: a:c\n", "{tag}\n", "model: a:b\ndata: {{call: a:c, kwargs: {{x: {tag}}}}}\n"]
)
def test_a_tag_that_makes_objects_does_nothing(where, tag, tmp_path):
    path = tmp_path / "nanhunt.yaml"
    path.write_text(where.format(tag=tag.format(marker=tmp_path / "it_ran")))
    with pytest.raises(ConfigError):
        load_config(path)
    assert not (tmp_path / "it_ran").exists()


def _laughs(levels: int, merge: bool) -> str:
    """Return aliases of aliases: each level is nine times the one before."""
    if merge:
        return "a0: &a0 {x: 1}\n" + "".join(
            f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, levels)
        )
    return "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, levels))


@pytest.mark.parametrize(
    "text",
    [
        _laughs(12, merge=False) + WHOLE,
        _laughs(12, merge=True) + WHOLE,
        "model: &m [*m]\ndata: a:c\n",
        "model: &m {<<: *m}\ndata: a:c\n",
        "[" * 100_000,
        "{a: " * 100_000,
        "- " * 100_000,
        "? " * 100_000,
        WHOLE + "train: {steps: " + "9" * 200_000 + "}\n",
        WHOLE + "train: {steps: 0x" + "f" * 200_000 + "}\n",
        WHOLE + "".join(f"k{i}: 1\n" for i in range(50_000)),
        "#" * (2 << 20),
    ],
    ids=[
        "laughs",
        "merges",
        "cycle",
        "merge-cycle",
        "brackets",
        "braces",
        "dashes",
        "questions",
        "digits",
        "hex",
        "keys",
        "megabytes",
    ],
)
def test_what_grows_when_it_is_read_is_refused_in_time(text, tmp_path):
    path = tmp_path / "nanhunt.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(ConfigError):
        load_config(path)
    assert time.process_time() - began < 10
