"""The pages of a comparison: each says where the traces part, in any width, whatever the names in the traces are."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from nanhunt.comparison.comparison import Comparison, Setting
from nanhunt.errors import UsageError
from nanhunt.report.diff.html import DiffHtml
from nanhunt.report.diff.json import DIFF_SCHEMA, DiffJson
from nanhunt.report.diff.markdown import DiffMarkdown
from nanhunt.report.diff.renderer import DIFF_RENDERERS, choose_diff
from nanhunt.report.diff.schema import DIFF_SCHEMA_FILE, diff_schema
from nanhunt.report.diff.terminal import DiffTerminal
from tests.report.comparisons import compared
from tests.report.test_markdown import PARSER, leaves

HOSTILE = "</script><img src=x onerror=alert(1)>\x1b[31m`|*\n"

PARTED = compared("fp16-overflow", "bad-sample")
SAME = compared("sqrt-zero", "sqrt-zero")
HOSTILE_ONE = replace(
    PARTED,
    a=HOSTILE,
    born=tuple(replace(d, module=HOSTILE, source=HOSTILE) for d in PARTED.born),
    depth=tuple(replace(row, name=HOSTILE) for row in PARTED.depth),
    renamed=((HOSTILE, HOSTILE),),
)
#: a non-finite value in one run, and numbers that JSON does not have
BROKEN = replace(
    PARTED, born=(replace(PARTED.born[0], statistic="non-finite", a=0.0, b=3.0, ratio=math.inf, phase="forward"),)
)


@pytest.mark.parametrize("renderer", DIFF_RENDERERS)
@pytest.mark.parametrize("comparison", [PARTED, SAME, HOSTILE_ONE, BROKEN], ids=["parted", "same", "hostile", "broken"])
def test_every_format_takes_every_comparison(renderer: Any, comparison: Comparison) -> None:
    page = renderer(width=80).render(comparison)
    assert page.endswith("\n")
    assert "\x1b" not in page


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("comparison", [PARTED, HOSTILE_ONE], ids=["parted", "hostile"])
def test_no_line_is_wider_than_the_terminal(comparison: Comparison, width: int) -> None:
    page = DiffTerminal(width=width, verbose=True).render(comparison)
    assert max(map(cell_len, page.splitlines())) <= width


def test_the_terminal_says_what_where_and_by_how_much() -> None:
    page = " ".join(DiffTerminal(width=200).render(PARTED).split())
    assert "✗ parts at step 30, load, embed.weight (train.py:124): mean -0.001174 against -0.0001485" in page
    assert "not the same starting weights: 12 of 12 tensors differ as loaded" in page
    assert "✓ the same: every statistic is equal to the bit" in DiffTerminal(width=200).render(SAME)


def test_runs_that_are_not_the_same_are_said_so_first_and_no_line_is_blamed() -> None:
    assert PARTED.prefaces[0].startswith("not the same")
    page = " ".join(DiffTerminal(width=200).render(PARTED).split())
    assert "not the same" in page
    assert "what goes into" not in page


def test_a_value_that_no_rounding_explains_is_said_so() -> None:
    page = " ".join(DiffTerminal(width=200).render(BROKEN).split())
    assert "0 non-finite elements against 3, which no rounding explains" in page
    assert "which op made the first non-finite value" in page


@pytest.mark.parametrize("renderer", [DiffTerminal, DiffMarkdown, DiffHtml])
@pytest.mark.parametrize(
    ("ratio", "said"),
    [(1.0004, "just beyond what"), (1.94, "just beyond what"), (1.96, "2 × what"), (2.34, "2.3 × what"), (41_234.0, "41000 × what")],
)  # fmt: skip
def test_a_difference_that_is_little_more_than_its_bound_is_called_so(renderer: Any, ratio: float, said: str) -> None:
    first = replace(
        PARTED.born[0], phase="forward", role="output", statistic="rms", bound=1e-3, rounding=1e-3, ratio=ratio
    )
    page = " ".join(renderer(width=200).render(replace(PARTED, prefaces=(), born=(first,))).split())
    assert f"{said} fp16's rounding explains" in page.replace("&#x27;", "'")


def test_a_gpu_that_parts_from_a_cpu_by_little_is_asked_for_tf32() -> None:
    devices = (Setting(name="device", a="cpu", b="cuda:0"),)
    first = replace(PARTED.born[0], phase="forward", role="output", apart=3e-4, statistic="rms", ratio=90.0)
    near = replace(PARTED, rounding="fp32", settings=devices, born=(first,))
    assert "allow_tf32" in DiffTerminal(width=100).render(near)
    assert "allow_tf32" not in DiffTerminal(width=100).render(replace(near, settings=()))


def test_names_do_not_become_markup() -> None:
    page = DiffHtml().render(HOSTILE_ONE)
    assert "<img" not in page
    assert page.count("</script>") == 2  # the data's and the code's own
    assert "default-src &#x27;none&#x27;" in page
    tokens = leaves(PARSER.parse(DiffMarkdown().render(HOSTILE_ONE)))
    assert not [token.content for token in tokens if "html" in token.type and "<img" in token.content]


@pytest.mark.parametrize("comparison", [PARTED, SAME, BROKEN], ids=["parted", "same", "broken"])
def test_the_document_is_what_the_shipped_schema_says(comparison: Comparison) -> None:
    document = json.loads(DiffJson().render(comparison), parse_constant=pytest.fail)
    schema = json.loads(DIFF_SCHEMA_FILE.read_text(encoding="utf-8"))
    assert schema == diff_schema()
    assert document["schema_version"] == DIFF_SCHEMA
    assert list(problems(document, schema, schema, "$")) == []


def problems(value: Any, shape: dict[str, Any], whole: dict[str, Any], at: str) -> list[str]:
    """Return what a value has against a schema, of the keywords that this schema uses."""
    if "$ref" in shape:
        return problems(value, whole["$defs"][shape["$ref"].rpartition("/")[2]], whole, at)
    if "anyOf" in shape:
        return [] if any(not problems(value, one, whole, at) for one in shape["anyOf"]) else [f"{at}: {value!r}"]
    if "const" in shape or "enum" in shape:
        return [] if value in shape.get("enum", [shape.get("const")]) else [f"{at}: {value!r}"]
    types = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}
    if not isinstance(value, types[shape["type"]]):
        return [f"{at}: {value!r} is no {shape['type']}"]
    found = []
    if isinstance(value, dict):
        assert set(shape["required"]) == set(shape["properties"])
        found += [f"{at}: {key}" for key in set(value) ^ set(shape["properties"])]
        found += [
            p
            for k, v in value.items()
            if k in shape["properties"]
            for p in problems(v, shape["properties"][k], whole, f"{at}.{k}")
        ]
    if isinstance(value, list) and isinstance(shape.get("items"), dict):
        found += [p for i, v in enumerate(value) for p in problems(v, shape["items"], whole, f"{at}[{i}]")]
    return found


def test_a_format_is_chosen_by_its_name_or_by_the_files_suffix() -> None:
    assert choose_diff(None, None) is DiffTerminal
    assert choose_diff("json", Path("x.html")) is DiffJson
    assert choose_diff(None, Path("x.html")) is DiffHtml
    assert choose_diff(None, Path("x.md")) is DiffMarkdown
    with pytest.raises(UsageError, match="yaml"):
        choose_diff("yaml", None)
    with pytest.raises(UsageError, match="suffix"):
        choose_diff(None, Path("x.pdf"))
