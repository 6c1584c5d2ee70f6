"""The page as a file: what it may run and fetch, what gets into it, how large it is. How it looks, tests/browser tells."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nanhunt.comparison.compare import compare
from nanhunt.diagnosis.recording import Histories, TensorHistory
from nanhunt.formats.headroom import ExponentHistogram
from nanhunt.report.diff.html import DiffHtml
from nanhunt.report.html.block import BUDGET, EMPTY, ZERO, packed
from nanhunt.report.html.element import tag
from nanhunt.report.html.page import HtmlRenderer
from nanhunt.report.json import document
from nanhunt.trace.reader import Trace
from tests.browser.kept import trace_of
from tests.report.samples import HOSTILE, OVERFLOW, SAMPLES

VOID = {"meta", "wbr", "path", "circle", "line", "polyline", "rect"}


class Reader(HTMLParser):
    """The standard library's parser: elements, their attributes, and what stands in style and script elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"style": [], "script": []}
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in self.raw:
            self.raw[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.raw:
            self.raw[self.open[-1]][-1] += data


def page(diagnosis: Any) -> str:
    return HtmlRenderer().render(diagnosis)


def sha256(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# --- what it may do --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_policy_allows_the_pages_own_style_and_script_and_nothing_else(sample: str) -> None:
    read = Reader(page(SAMPLES[sample]))
    policy = next(a["content"] for t, a in read.elements if t == "meta" and "http-equiv" in a)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == "'none'"
    assert rules == {
        "style-src": sha256(read.raw["style"][0]),
        "script-src": sha256(read.raw["script"][-1]),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    # the policy stands before what it is about
    names = [t for t, _ in read.elements]
    assert names.index("meta") < names.index("style") < names.index("script")


@pytest.mark.parametrize("sample", SAMPLES)
def test_nothing_is_fetched_and_no_attribute_runs(sample: str) -> None:
    read = Reader(page(SAMPLES[sample]))
    assert read.open == []
    for name, attributes in read.elements:
        assert name not in ("img", "link", "iframe", "object", "base", "form", "video", "audio", "embed")
        assert not [a for a in attributes if a.startswith("on") or a in ("src", "srcset", "style", "action")]
        assert (attributes.get("href") or "#").startswith("#")
    assert "@import" not in read.raw["style"][0]
    assert "url(" not in read.raw["style"][0]
    # what the policy does not govern is not there either: a `meta` that leads elsewhere, and `link` above
    assert [a["http-equiv"] for t, a in read.elements if "http-equiv" in a] == ["Content-Security-Policy"]


def test_a_name_ends_no_element_wherever_it_stands() -> None:
    attack = "</script></style></title>--><img src=x onerror=alert(1)>\"'"
    plain, struck = page(OVERFLOW), page(_with(OVERFLOW, attack))
    assert "<img" not in struck
    shape = [t for t, _ in Reader(plain).elements]
    assert [t for t, _ in Reader(struck).elements if t != "wbr"] == [t for t in shape if t != "wbr"]


def _with(diagnosis: Any, attack: str) -> Any:
    """Put the attack behind the texts of a diagnosis that stand in each section."""
    first = diagnosis.suspects[0]
    suspect = replace(
        first,
        cause=first.cause + attack,
        summary=first.summary + attack,
        exhibits=tuple(replace(e, claim=e.claim + attack) for e in first.exhibits),
        fixes=tuple(fix + attack for fix in first.fixes),
    )
    return replace(
        diagnosis,
        summary=diagnosis.summary + attack,
        onset=replace(diagnosis.onset, module=attack, source=attack, op=attack),
        suspects=(suspect, *diagnosis.suspects[1:]),
        trials=tuple(replace(t, name=t.name + attack, detail=t.detail + attack) for t in diagnosis.trials),
        lineage=tuple((op + attack, m + attack, s + attack, does) for op, m, s, does in diagnosis.lineage),
        code=tuple((n, text + attack, here) for n, text, here in diagnosis.code),
        assumptions=tuple(text + attack for text in diagnosis.assumptions),
        untold=tuple((slug + attack, why + attack) for slug, why in diagnosis.untold),
    )


def test_text_becomes_markup_in_no_element_and_no_attribute() -> None:
    made = tag("p", "<b>&", title='"><i>', class_="a", hidden=True, lang=None)
    assert made == '<p title="&quot;&gt;&lt;i&gt;" class="a" hidden>&lt;b&gt;&amp;</p>'


# --- what is in it ---------------------------------------------------------------------------------------------------


def test_the_data_block_is_the_json_report_without_its_rows_of_headroom() -> None:
    text = page(OVERFLOW)
    found = re.search(r'<script type="application/json" id="report">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    body = json.loads(found[1])
    assert {r["format"] for r in body.pop("ranges")} == {"fp32", "bf16", "fp16", "e5m2", "e4m3fn"}
    expected = document(OVERFLOW)
    del expected["headroom"]
    assert body == expected


def test_the_data_block_of_hostile_text_holds_no_sign_of_markup() -> None:
    text = page(SAMPLES["hostile"])
    assert "<" not in Reader(text).raw["script"][0]
    assert HOSTILE.split()[0] in json.loads(Reader(text).raw["script"][0])["summary"]


def test_verdict_fix_and_source_line_are_there_without_a_script() -> None:
    text = re.sub(r"<(script|style).*?</\1>", "", page(OVERFLOW), flags=re.DOTALL)
    plain = " ".join(unescape(re.sub("<[^>]*>", "", text)).split())
    assert OVERFLOW.summary in plain
    assert OVERFLOW.suspects[0].fixes[0] in plain
    assert "weights = gate.exp()" in plain
    sections = [a["id"] for t, a in Reader(page(OVERFLOW)).elements if t == "section"]
    assert plain.index("Fix") < plain.index("Where")
    assert sections == [
        "where",
        "timeline",
        "lineage",
        "suspects",
        "trials",
        "formats",
        "others",
        "assumptions",
        "next",
    ]


def test_the_licence_of_what_is_not_ours_is_in_every_page() -> None:
    licence = files("nanhunt.report.html").joinpath("vendor/LICENSE").read_text().strip()
    assert "MIT License" in licence
    assert "*/" not in licence
    comparison = compare(*(Trace.open(trace_of(fault)) for fault in ("fp16-overflow", "bad-sample")))
    for text in (page(OVERFLOW), DiffHtml().render(comparison)):
        script = Reader(text).raw["script"][-1]
        assert f"/*!\n{licence}\n*/" in script
        # before what it is about
        assert script.index(licence) < script.index("leeoniya/uPlot")


def test_the_source_lines_have_a_role_that_may_carry_their_name() -> None:
    lines = next(a for t, a in Reader(page(OVERFLOW)).elements if t == "pre")
    assert lines["aria-label"]
    assert lines["role"] == "group"


# --- the series --------------------------------------------------------------------------------------------------------


def histories(
    modules: int, steps: int, *, roles: tuple[str, ...] = ("output", "grad_output"), seed: int = 0
) -> Histories:
    """Return tensors whose magnitudes wander and jitter as those of a training do."""
    random = np.random.default_rng(seed)
    tensors = []
    for module in range(modules):
        for role in roles:
            usual = np.exp2(random.normal(0, 4)) * np.exp(np.cumsum(random.normal(0, 0.02, steps)))
            amax = 5 * usual * np.exp(random.normal(0, 0.1, steps))
            bins = np.maximum(1e6 * np.exp(-0.5 * ((np.arange(24) - 17) / 3) ** 2), 0).astype(int)
            histogram = ExponentHistogram(-20, tuple((bins + random.integers(0, 1 + bins // 10)).tolist()))
            tensors.append(
                TensorHistory(
                    module=f"model.layers.{module // 10}.part{module % 10}.projection",
                    role=role,
                    name="",
                    dtype="float16",
                    numel=2**22,
                    amax=amax,
                    amin=usual * 2.0**-14 * np.exp(random.normal(0, 1, steps)),
                    rms=usual * np.exp(random.normal(0, 0.03, steps)),
                    bad=np.zeros(steps, int),
                    infinite=np.zeros(steps, int),
                    zero=np.full(steps, 0.3) + random.normal(0, 0.01, steps),
                    before=histogram,
                    at=histogram,
                )
            )
    return Histories(columns=tuple((step, step) for step in range(steps)), tensors=tuple(tensors))


def unpacked(block: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a block back as its description says, independently of how it is written."""
    raw = zlib.decompress(base64.b64decode(block))
    length = int.from_bytes(raw[:4], "little")
    head = json.loads(raw[4 : 4 + length])
    size = len(head["tensors"]), len(head["columns"])
    planes = np.frombuffer(raw, np.uint8, offset=4 + length).reshape(-1, *size).astype(np.int64)
    assert len(planes) == 3 * 2 + 1 + 2 * 4
    found: dict[str, Any] = {"zero": planes[6]}
    for i, name in enumerate(("amax", "rms", "amin")):
        folded = planes[2 * i] + 256 * planes[2 * i + 1]
        steps = np.where(folded % 2, -(folded + 1) // 2, folded // 2)
        found[name] = np.cumsum(steps, axis=1).astype(np.int16).astype(np.int64)
    for i, name in enumerate(("bad", "infinite")):
        found[name] = sum(planes[7 + 4 * i + byte] << (8 * byte) for byte in range(4))
    return head, found


def test_a_block_reads_back_to_a_part_of_a_binade_and_its_counts_exactly() -> None:
    told = histories(3, 50)
    first = replace(
        told.tensors[0],
        amax=np.array([np.nan, 0.0, 65504.0, 1e-30, 3e38] * 10),
        bad=np.array([0, 1, 2**31, 7, 255] * 10),
        zero=np.array([np.nan, 1.0, 0.999, 1e-6, 0.0] * 10),
    )
    head, read = unpacked(packed(replace(told, tensors=(first, *told.tensors[1:]))))
    assert head["left_out"] == 0
    assert read["amax"][0, :2].tolist() == [EMPTY, ZERO]
    levels = read["amax"] / head["parts"]
    assert np.allclose(levels[0, 2:5], np.log2(first.amax[2:5]), atol=0.5 / head["parts"] + 1e-9)
    assert np.allclose(levels[1:], np.log2([t.amax for t in told.tensors[1:]]), atol=0.5 / head["parts"] + 1e-9)
    assert np.allclose(
        read["rms"] / head["parts"], np.log2([t.rms for t in told.tensors]), atol=0.5 / head["parts"] + 1e-9
    )
    assert read["bad"][0].tolist() == first.bad.tolist()
    assert read["zero"][0, :5].tolist() == [255, 100, 99, 1, 0]


def test_a_page_of_300_modules_and_200_steps_is_below_500_kilobytes() -> None:
    recording = SimpleNamespace(
        histories=histories(300, 200),
        health_step=lambda last: None,
        batch=[],
        optimizer={},
        birth_code="",
        sample_losses=[],
    )
    text = page(replace(OVERFLOW, recording=recording))
    head, _ = unpacked(Reader(text).raw["script"][1])
    assert head["left_out"] == 0
    assert len(text.encode()) < 500_000


def test_a_page_of_100_000_steps_is_below_500_kilobytes_and_keeps_the_onsets_neighbourhood() -> None:
    steps, random = tuple(range(100_000)), np.random.default_rng(1)
    onset = replace(OVERFLOW.onset, step=61_234, lead_step=61_180)  # type: ignore[type-var]
    curves = {
        name: tuple(random.normal(3, 1, len(steps)).tolist()) for name in ("loss", "grad_norm", "loss_scale", "lr")
    }
    own = dict(zip(steps, curves["loss"], strict=True))
    recording = SimpleNamespace(
        histories=histories(300, 240), batch=[], optimizer={}, birth_code="", sample_losses=[],
        health_step=lambda last: last, health_of=lambda key, parameter: own,
        health_at=lambda key, step: {f"layers.{i}.weight": own[step] for i in range(3)},
    )  # fmt: skip
    series = {name: (steps, values) for name, values in curves.items()}
    text = page(replace(OVERFLOW, recording=recording, series=series, onset=onset))
    assert len(text.encode()) < 500_000
    told = json.loads(Reader(text).raw["script"][0])["series"]["loss"]
    shown = dict(zip(told["steps"], told["values"], strict=True))
    assert all(shown[step] == own[step] for step in range(61_130, 61_285))
    assert {min(own.values()), max(own.values())} <= set(shown.values())
    assert "Of 100000 steps" in text


def test_where_tensors_do_not_fit_those_of_the_story_and_the_broken_stay() -> None:
    told = histories(60, 100, roles=("output", "weight"))
    broken = replace(told.tensors[41], bad=np.eye(1, 100, 99, dtype=int)[0])
    tensors = (*told.tensors[:41], broken, *told.tensors[42:])
    story = told.tensors[80].module
    block = packed(replace(told, tensors=tensors), frozenset({story}), budget=12_000)
    head, _ = unpacked(block)
    assert len(block) <= 12_000 < BUDGET
    assert head["left_out"] + len(head["tensors"]) == 120
    assert {broken.module, story} <= {line[0] for line in head["tensors"]}
    # a fault of the forward pass is read off outputs, healthy ones too, before weights that it broke
    head, _ = unpacked(packed(replace(told, tensors=tensors), roles=("output", "weight"), budget=12_000))
    assert {line[1] for line in head["tensors"]} == {"output"}
