"""Turn what pydantic says about a config into the field's words, with file, line, column and the nearest valid key."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from nanhunt.training.yaml_file import KeyPath, Place, YamlFile

__all__ = ["described", "shown"]

#: names that other tools use for our keys
_ELSEWHERE = {
    "class_path": "call",
    "target": "call",
    "_target_": "call",
    "init_args": "kwargs",
    "args": "kwargs",
    "arguments": "kwargs",
    "lr_scheduler": "scheduler",
    "dataset": "data",
    "dataloader": "data",
    "batches": "data",
    "criterion": "loss",
    "amp": "precision.autocast",
    "dtype": "precision.autocast",
    "scaler": "precision.grad_scaler",
    "max_steps": "train.steps",
    "grad_clip": "train.clip_grad_norm",
    "max_grad_norm": "train.clip_grad_norm",
    "gradient_clip_val": "train.clip_grad_norm",
    "gradient_accumulation_steps": "train.accumulate",
    "accumulate_grad_batches": "train.accumulate",
    "grad_accum": "train.accumulate",
}

#: a line that would mend a missing key
_EXAMPLES = {"data": "data: train:batches", "call": "call: train:build_model"}

#: what a type error expected, by pydantic's name of the error
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "string_too_short": "a text",
    "bool_type": "true or false",
    "dict_type": "`name: value` pairs",
    "list_type": "a list",
}

_BOUNDS = {
    "greater_than_equal": ("ge", "of at least"),
    "greater_than": ("gt", "greater than"),
    "less_than_equal": ("le", "of at most"),
    "less_than": ("lt", "less than"),
}


def described(error: ValidationError, file: YamlFile, model: type[BaseModel]) -> Iterator[tuple[Place, KeyPath, str]]:
    """Yield (place, key path, what is wrong) for each problem of the config.

    A required key that is missing is not reported where an unknown key beside it is its typo.
    """
    sections = dict(_sections(model, ()))
    details = [(_key_path(d), d) for d in error.errors(include_url=False)]
    unknown = {key: _nearest(key, sections) for key, d in details if d["type"] == "extra_forbidden"}
    typos: set[KeyPath] = {(*key[:-1], near) for key, near in unknown.items() if near}
    for key, detail in details:
        if detail["type"] == "missing" and key in typos:
            continue
        text = _unknown_key(key, unknown[key], sections) if key in unknown else _in_words(detail, key, file, sections)
        yield file.place_of(key), key, text


def shown(value: object) -> str:
    """Return a value as a person would have written it in YAML, cut to a line."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "`name: value` pairs" if value else "an empty mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _key_path(detail: ErrorDetails) -> KeyPath:
    """Return the error's place in the file: pydantic's, without the tag of the union's branch."""
    loc = tuple(map(str, detail["loc"]))
    return (*loc[:2], *loc[3:]) if loc[:2] == ("precision", "grad_scaler") else loc


def _in_words(detail: ErrorDetails, key: KeyPath, file: YamlFile, sections: dict[KeyPath, list[str]]) -> str:
    kind, context, got = detail["type"], detail.get("ctx", {}), shown(_value_at(file.value, key, detail["input"]))
    if kind == "missing":
        example = _EXAMPLES.get(key[-1])
        return f"missing; add for example `{example}`" if example else "missing"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return _expected_one_of(str(context["expected"]), str(detail["input"]), got)
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"expected a number {words} {context[name]:g}, got {got}"
    if key == ("precision", "grad_scaler"):
        return f"expected true, false, or GradScaler's arguments ({', '.join(sections[key])}), got {got}"
    if kind in ("model_type", "model_attributes_type"):
        return f"{_expected_section(sections.get(key, []))}, got {got}"
    if kind == "invalid_key":
        return "a key must be a text"
    return f"expected {_EXPECTED[kind]}, got {got}" if kind in _EXPECTED else f"{detail['msg']}, got {got}"


def _expected_one_of(expected: str, value: str, got: str) -> str:
    choices = expected.replace(" or ", ", ").replace("'", "").split(", ")
    near = difflib.get_close_matches(value, choices, n=1)
    mend = f"; did you mean {near[0]!r}?" if near else ""
    return f"expected one of {', '.join(choices)}, got {got}{mend}"


def _expected_section(keys: list[str]) -> str:
    if "call" in keys:
        return "expected 'package.module:attribute', or {call: 'package.module:attribute', kwargs: {…}}"
    return f"expected keys under it ({', '.join(keys)})"


def _unknown_key(key: KeyPath, near: str | None, sections: dict[KeyPath, list[str]]) -> str:
    if near:
        return f"unknown key, did you mean {near!r}?"
    here = sections.get(key[:-1], [])
    if "call" in here:
        return f"unknown key; arguments of the call go under kwargs: {{{key[-1]}: …}}"
    return f"unknown key; the keys here are {', '.join(here)}"


def _nearest(key: KeyPath, sections: dict[KeyPath, list[str]]) -> str | None:
    """Return the valid key that was most likely meant: in this section, else in another, then with its section."""
    name, here = key[-1], sections.get(key[:-1], [])
    close = difflib.get_close_matches(name.lower(), here, n=1)
    if close:
        return close[0]
    foreign = _ELSEWHERE.get(name.lower())
    if foreign and (foreign in here or "." in foreign):
        return foreign
    if "call" in here:  # a stray name beside call: is an argument, not a key of another section
        return None
    for section, names in sections.items():
        if name in names and "call" not in names:
            return ".".join((*section, name))
    return None


def _sections(model: type[BaseModel], above: KeyPath) -> Iterator[tuple[KeyPath, list[str]]]:
    """Yield each section's path and its keys, from the models themselves."""
    yield above, list(model.model_fields)
    for name, field in model.model_fields.items():
        for inner in _models_in(field.annotation):
            yield from _sections(inner, (*above, name))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        for part in typing.get_args(annotation):
            yield from _models_in(part)


def _value_at(value: Any, key: KeyPath, otherwise: object) -> object:
    """Return what stands in the file, before names of dtypes were unified."""
    for part in key:
        if not isinstance(value, dict) or part not in value:
            return otherwise
        value = value[part]
    return value
