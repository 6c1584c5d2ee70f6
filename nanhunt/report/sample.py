"""The samples that carry the fault: their position, their own loss, their tokens around it, and the batch's fields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.report import reading, words

__all__ = ["FIELD_COLUMNS", "BadSample", "Excerpt", "bad_samples", "field_rows"]

FIELD_COLUMNS = ("field of the batch", "dtype", "shape", "range, or amax", "non-finite", "ignored labels")
#: Samples that are shown.
_SAMPLES = 4
#: Share of one token, and repetitions of a phrase, that are worth a line.
_SAME, _REPEATED = 0.5, 8
#: Tokens that are shown of a sample.
_AROUND = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Excerpt:
    """Values of one field of a sample in a row, from position `start` on, and how many there are behind them."""

    start: int
    #: each with whether it is a bad one
    values: tuple[tuple[str, bool], ...]
    rest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BadSample:
    """What is known of one sample: which it is, and named facts of it."""

    which: str
    facts: tuple[tuple[str, str | Excerpt], ...]


def bad_samples(diagnosis: Diagnosis) -> tuple[list[BadSample], int]:
    """Return the first samples that carry the fault, and how many more there are."""
    onset, recording = diagnosis.onset, diagnosis.recording
    if onset is None or recording is None:
        return [], 0
    shown = [
        BadSample(
            which=f"number {number} of {reading.whose_batch(diagnosis)}, counted from 0",
            facts=tuple(_facts(diagnosis, number, recording.batch, recording.sample_losses)),
        )
        for number in onset.samples[:_SAMPLES]
    ]
    return shown, len(onset.samples) - len(shown)


def field_rows(diagnosis: Diagnosis) -> list[tuple[str, ...]]:
    """Return a row a field of the batch, by `FIELD_COLUMNS`."""
    fields = diagnosis.recording.batch if diagnosis.recording else []
    return [
        (
            _name(f),
            str(f.get("dtype", "")),
            " × ".join(str(n) for n in f.get("shape", [])),
            _range(f),
            words.counted(int(f.get("nan", 0)) + int(f.get("inf", 0)), "value") if f.get("nan") or f.get("inf") else "",
            str(f["ignored"]) if f.get("ignored") else "",
        )
        for f in fields
    ]


def _range(field: dict[str, Any]) -> str:
    if field.get("dtype") == "bool":
        return "false to true" if field.get("amax") else "all false"
    if "min" in field:
        return f"{words.number(field['min'])} to {words.number(field['max'])}"
    return words.number(field.get("amax"))


def _name(field: dict[str, Any]) -> str:
    """Return a field's name; a batch that is a tensor has none."""
    return str(field["field"]) or "batch"


def _facts(
    diagnosis: Diagnosis, number: int, fields: list[dict[str, Any]], losses: list[float]
) -> Iterator[tuple[str, str | Excerpt]]:
    places = dict(diagnosis.positions).get(number, ())
    if places:
        yield "position", f"{words.listed(places, limit=12)} of its sequence"
    if number < len(losses):
        among = sorted(losses)[len(losses) // 2]
        yield "loss alone", f"{words.number(losses[number])}, median of the batch {words.number(among)}"
    for field in fields:
        # a batch that is a tuple has numbers for names
        name = f"field {_name(field)}" if _name(field).isdigit() else _name(field)
        said = "; ".join(_said(field, number))
        if said:
            yield name, said
        for excerpt in field.get("excerpts", []):
            if excerpt["sample"] == number:
                yield name, _excerpt(excerpt, places)


def _said(field: dict[str, Any], number: int) -> Iterator[str]:
    """Yield what a field's facts say of one sample."""
    of = {key: values[number] for key, values in field.items() if key.startswith("sample_") and number < len(values)}
    if of.get("sample_nonfinite"):
        yield words.counted(int(of["sample_nonfinite"]), "non-finite value")
    if "sample_amax" in of:
        yield f"largest magnitude {words.number(float(of['sample_amax']))}"
    if "sample_true" in of:
        whole = int(field.get("numel", 0)) // max(len(field["sample_true"]), 1)
        yield f"{int(of['sample_true'])} of {whole} true"
    if of.get("sample_ignored"):
        yield words.counted(int(of["sample_ignored"]), "ignored label")
    if of.get("sample_top_share", 0.0) > _SAME:
        yield f"{words.percent(float(of['sample_top_share']))} are one and the same token"
    elif of.get("sample_repeats", 0) > _REPEATED:  # one and the same token repeats itself as a matter of course
        yield f"a phrase repeats {int(of['sample_repeats'])} times in a row"


def _excerpt(excerpt: dict[str, Any], places: tuple[int, ...]) -> Excerpt:
    values, bad = excerpt["values"], next(iter(places), 0)
    # what leads up to the first bad position, and a little of what follows
    start = max(min(bad - _AROUND // 2, len(values) - _AROUND), 0)
    stop = min(start + _AROUND, len(values))
    shown = tuple((str(values[i]), i in places and excerpt["of"] > 1) for i in range(start, stop))
    return Excerpt(start=start, values=shown, rest=max(excerpt["of"] - stop, 0))
