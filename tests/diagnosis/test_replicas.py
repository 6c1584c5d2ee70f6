"""Two single parameters are copies by their gradients, and part where those do."""

from __future__ import annotations

from nanhunt.diagnosis.replicas import Parted, parted_replicas
from nanhunt.trace.schema import Observation
from tests.diagnosis.builders_b import evidence, tensor

STEPS = range(30, 40)


def copies(one: str, other: str, parts: int, gradients: tuple[float, float], before: float = 0.5) -> list[Observation]:
    """Two parameters of equal weights up to step `parts`, from which on their gradients are those given."""
    rows = []
    for name, index in ((one, 0), (other, 1)):
        rows.append(tensor(30, "weight", name, rms=1.0, amin=0.1, phase="load"))
        for step in STEPS:
            weight = 1.0 + 0.01 * step + (0.1 * index if step >= parts else 0.0)
            grad = gradients[index] if step >= parts else before
            rows.append(tensor(step, "weight", name, rms=weight, amin=0.1))
            rows.append(tensor(step, "grad", name, rms=grad, zero=0 if grad else 1024))
    return rows


def found(rows: list[Observation]) -> Parted | None:
    return parted_replicas(evidence(None, rows=rows))


def test_a_tied_weight_held_twice_parts_where_its_gradients_differ() -> None:
    parted = found(copies("first.embed.weight", "last.head.table", 36, (0.5, 0.9)))
    assert parted is not None
    assert (parted.step, parted.one, parted.other, parted.alike) == (36, "first.embed.weight", "last.head.table", 6)


def test_what_is_equal_by_chance_by_construction_or_for_a_moment_is_no_copy() -> None:
    assert found(copies("a.up.weight", "b.table", 33, (0.5, 0.9))) is None, "three steps"
    assert found(copies("a.up.bias", "b.bias", 36, (0.5, 0.9))) is None, "biases that are added to each other"
    assert found(copies("a.up.weight", "b.table", 36, (0.5, 0.5001))) is None, "another order of sums"
    assert found(copies("a.up.weight", "b.table", 36, (0.5, 0.0))) is None, "one that is switched off"
    assert found(copies("a.up.weight", "b.table", 36, (0.5, 0.9), before=0.0)) is None, "decay alone"
    assert found(copies("a.up.weight", "b.table", 99, (0.5, 0.9))) is None, "they never part"
