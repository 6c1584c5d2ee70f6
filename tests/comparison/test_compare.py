"""Where two traces part: healthy pairs do not, one change is named where it is made, and what differs in structure is said."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.pair_programs import CANCELLING, PROGRAMS, Plant, Program, Way, record
from nanhunt.comparison.compare import compare
from nanhunt.comparison.comparison import Comparison
from nanhunt.errors import TraceError, UsageError
from nanhunt.report.diff.reading import headline, next_steps, unequal
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Observation
from tests.comparison.rows import model, row, write

MLP = PROGRAMS[0]
STEPS = 4

Compare = Callable[[Way, Way], Comparison]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Compare:
    """Compare two ways to run a small perceptron; each is trained once."""
    folder = tmp_path_factory.mktemp("pairs")

    def compared(a: Way, b: Way) -> Comparison:
        traces = []
        for way in (a, b):
            path = folder / f"{abs(hash(way))}.parquet"
            traces.append(Trace.open(path if path.exists() else record(MLP, way, 0, path, STEPS)))
        return compare(*traces)

    return compared


@pytest.mark.parametrize(
    "other", [Way(dtype="fp64"), Way(autocast="bf16"), Way(reversed=True)], ids=["fp64", "bf16", "reversed"]
)
def test_another_format_or_order_does_not_part_a_run(pair: Compare, other: Way) -> None:
    found = pair(Way(), other)
    assert (found.outcome, found.born) == ("agree", ())
    assert found.closest is not None
    assert found.closest.ratio < 1


@pytest.mark.parametrize("program", CANCELLING, ids=lambda program: program.name)
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Way(), Way(dtype="fp64")),
        (Way(), Way(autocast="bf16")),
        (Way(), Way(reversed=True)),
        (Way(autocast="bf16"), Way(autocast="bf16", reversed=True)),
    ],
    ids=["fp64", "bf16", "reversed", "bf16 reversed"],
)
def test_arithmetic_that_cancels_does_not_part_a_run(program: Program, a: Way, b: Way, tmp_path: Path) -> None:
    traces = [Trace.open(record(program, way, 0, tmp_path / f"{i}.parquet", STEPS)) for i, way in enumerate((a, b))]
    assert compare(*traces).born == ()


@pytest.mark.parametrize(("factor", "outcome"), [(1.0, "agree"), (1.02, "part")])
def test_one_number_over_and_over_rounds_alike(tmp_path: Path, factor: float, outcome: str) -> None:
    gain = np.full(4096, 0.1)
    rounded = torch.full((4096,), 0.1 * factor).bfloat16().double().numpy()
    loaded = {"phase": "load", "role": "weight", "name": "gain"}
    a, b = [row(gain, dtype="float32", **loaded)], [row(rounded, dtype="bfloat16", **loaded)]
    assert pair_of(tmp_path, a, b).outcome == outcome


def test_a_micro_batch_inherits_nothing_from_the_one_before_it(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((8, 32))
    a = [row(values, module="a", seq=1), row(values, module="b", seq=2, micro=1)]
    b = [row(1.5 * values, module="a", seq=1), row(1.5 * values, module="b", seq=2, micro=1)]
    assert [d.micro for d in pair_of(tmp_path, a, b).born] == [0, 1]
    inside = [row(1.5 * values, module="a", seq=1), row(1.5 * values, module="b", seq=2)]
    within = [row(values, module="a", seq=1), row(values, module="b", seq=2)]
    assert [d.module for d in pair_of(tmp_path, within, inside).born] == ["a"]


def test_a_trace_and_itself_are_the_same(pair: Compare) -> None:
    assert pair(Way(), Way()).outcome == "identical"


@pytest.mark.parametrize(
    ("plant", "where"),
    [
        (Plant(kind="eps"), (0, "forward", "4", "")),
        (Plant(kind="weight"), (0, "load", "7", "weight")),
        (Plant(kind="scale"), (0, "forward", "2", "")),
        (Plant(kind="dropout"), (0, "forward", "6", "")),
        (Plant(kind="batch", step=2), (2, "batch", "", "0")),
        (Plant(kind="lr", step=2), (2, "update", "", "lr")),
    ],
    ids=lambda value: value.kind if isinstance(value, Plant) else "",
)
@pytest.mark.parametrize("base", [Way(), Way(reversed=True)], ids=["same-order", "reversed"])
def test_one_change_is_named_at_its_first_observation(
    pair: Compare, plant: Plant, where: tuple[int, str, str, str], base: Way
) -> None:
    found = pair(base, replace(Way(), plant=plant))
    assert found.first is not None
    assert (found.first.step, found.first.phase, found.first.module, found.first.name) == where
    # what follows from it is inherited
    assert found.inherited > len(found.born)


def changed(rows: list[Observation], step: int, module: str, factor: float) -> list[Observation]:
    """The rows with one output, and all behind it in that step, multiplied."""
    at = next(i for i, r in enumerate(rows) if (r.step, r.module) == (step, module))
    values = np.random.default_rng(0).standard_normal((8, 32)) * factor
    return [*rows[:at], replace(rows[at], stats=row(values).stats), *rows[at + 1 :]]


@pytest.mark.parametrize("observed", [True, False])
@pytest.mark.parametrize("swapped", [False, True])
def test_weights_of_a_later_checkpoint_are_held_against_the_step_before(
    tmp_path: Path, observed: bool, swapped: bool
) -> None:
    weight = np.random.default_rng(1).standard_normal((4, 4))
    site = {"role": "weight", "module": "b", "name": "weight"}
    left = [row(weight, step=1, phase="update", seq=190, **site)] if observed else []
    whole = [r for r in model(range(4)) if observed or r.step != 1] + left
    resumed = [row(weight * 1.01, step=2, phase="load", **site), *changed(model([2, 3]), 2, "b", 1.1)]
    found = pair_of(tmp_path, *((resumed, whole) if swapped else (whole, resumed)))
    if observed:
        assert found.prefaces == ("not the same starting weights: 1 of 1 tensors differ as loaded",)
        assert found.first is not None
        assert (found.first.step, found.first.phase, found.first.module) == (2, "load", "b")
    else:
        assert f"weights before step 2 are in {'A' if swapped else 'B'} alone" in found.prefaces[0]


def test_steps_that_one_trace_has_alone_are_told_and_the_others_compared(tmp_path: Path) -> None:
    a = write(tmp_path / "a.parquet", model(range(6)))
    b = write(tmp_path / "b.parquet", [r for r in model(range(6)) if r.step % 2 == 0])
    found = compare(Trace.open(a), Trace.open(b))
    assert (found.outcome, found.steps, found.alone_a.steps, found.alone_b.steps) == ("identical", 3, (1, 3, 5), ())


def test_a_renamed_module_is_told_and_what_stands_behind_it_compared(tmp_path: Path) -> None:
    a = write(tmp_path / "a.parquet", model(modules=("net.a", "net.mlp", "net.c")))
    b = write(tmp_path / "b.parquet", model(modules=("net.a", "net.ffn", "net.c")))
    found = compare(Trace.open(a), Trace.open(b))
    assert found.outcome == "identical"
    assert found.renamed == (("net.mlp", "net.ffn"),)
    assert found.alone_a.sites == (("output", "net.mlp", ""),)
    assert found.observations == 9  # two outputs and the loss of three steps


def test_micro_batches_that_one_trace_has_alone_are_left_aside(tmp_path: Path) -> None:
    more = [replace(r, micro=1, seq=r.seq + 60) for r in model() if r.role == "output"]
    a, b = write(tmp_path / "a.parquet", [*model(), *more]), write(tmp_path / "b.parquet", model())
    found = compare(Trace.open(a), Trace.open(b))
    assert (found.outcome, found.alone_a.rows, found.alone_a.sites) == ("identical", 9, ())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_in_one_run_alone_parts_them(tmp_path: Path, bad: float) -> None:
    rows = model()
    at = next(i for i, r in enumerate(rows) if (r.step, r.module) == (1, "b"))
    values = np.ones((8, 32))
    values[0, 0] = bad
    broken = [*rows[:at], replace(rows[at], stats=row(values).stats), *rows[at + 1 :]]
    found = compare(Trace.open(write(tmp_path / "a.parquet", rows)), Trace.open(write(tmp_path / "b.parquet", broken)))
    assert found.first is not None
    assert (found.first.step, found.first.module, found.first.statistic) == (1, "b", "non-finite")
    assert (found.first.a, found.first.b, found.first.ratio) == (0.0, 1.0, math.inf)


def pair_of(tmp_path: Path, a: list[Observation], b: list[Observation]) -> Comparison:
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    return compare(Trace.open(write(folder / "a.parquet", a)), Trace.open(write(folder / "b.parquet", b)))


def test_what_is_behind_a_nan_is_inherited(tmp_path: Path) -> None:
    good, bad = [], []
    for step in range(3):
        for at in range(6):
            values = np.random.default_rng(at).standard_normal((8, 32))
            good.append(row(values, step=step, seq=at, module=f"m{at}"))
            values[0 if at == 2 else slice(None)] = math.nan if step and at >= 2 else values[0]
            bad.append(row(values, step=step, seq=at, module=f"m{at}") if step and at >= 2 else good[-1])
    found = pair_of(tmp_path, good, bad)
    assert [(d.step, d.module) for d in found.born] == [(1, "m2")]
    assert [r.verdict for r in found.depth] == ["within"] * 2 + ["born"] + ["inherited"] * 3


def test_an_overflow_in_both_runs_may_be_off_by_what_rounding_moves_across_the_end(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    exact = rng.standard_normal(100_000) * 30_000
    with np.errstate(over="ignore"):
        a, b, fewer = (
            (exact * factor).astype(np.float16).astype(np.float64)
            for factor in (1.0, 1 + rng.standard_normal(exact.size) * 2**-12, 0.98)
        )
    site = {"phase": "backward", "role": "grad_output", "dtype": "float16"}
    assert np.isinf(a).sum() != np.isinf(b).sum()
    assert pair_of(tmp_path, [row(a, **site)], [row(b, **site)]).outcome == "agree"
    found = pair_of(tmp_path, [row(a, **site)], [row(fewer, **site)])
    assert [d.statistic for d in found.born] == ["non-finite"]


@pytest.mark.parametrize(("a", "b"), [(math.nan, math.inf), (math.inf, -math.inf), (1.0, math.nan)])
def test_one_kind_of_value_that_is_not_finite_is_not_another(tmp_path: Path, a: float, b: float) -> None:
    values = np.ones((4, 4))
    of_tensors = pair_of(tmp_path, *([row(np.where(np.eye(4), x, values))] for x in (a, b)))
    loss = {"step": 0, "seq": 0, "phase": "forward", "role": "scalar", "name": "loss"}
    of_losses = pair_of(tmp_path, *([Observation(value=x, **loss)] for x in (a, b)))  # type: ignore[arg-type]
    assert [found.outcome for found in (of_tensors, of_losses)] == ["part", "part"]
    assert {headline(found).split(", which")[1] for found in (of_tensors, of_losses)} == {" no rounding explains"}


def test_a_loss_that_parts_in_a_step_without_outputs_is_told_between_its_neighbours(tmp_path: Path) -> None:
    kept = [[r for r in model(range(3)) if r.step != 1 or r.role == "scalar"] for _ in "ab"]
    other = [replace(r, value=1.5) if (r.step, r.role) == (1, "scalar") else r for r in kept[1]]
    other = [replace(r, stats=row(np.full((8, 32), 1.2)).stats) if (r.step, r.module) == (2, "a") else r for r in other]
    found = pair_of(tmp_path, kept[0], other)
    assert [(d.step, d.name, d.between) for d in found.born] == [(1, "loss", (0, 2))]
    assert headline(found).startswith("parts between steps 0 and 2, seen at step 1, forward, loss: ")
    assert "--every 1" in next_steps(found)[0][1]


def test_losses_alone_are_held_against_a_rounding_of_their_own(tmp_path: Path) -> None:
    loss = {"step": 0, "seq": 0, "phase": "forward", "role": "scalar", "name": "loss"}
    outcomes = [
        pair_of(tmp_path, *([Observation(value=x, **loss)] for x in (1.0, other))).outcome  # type: ignore[arg-type]
        for other in (1.0 + 2e-7, 1.0001)
    ]
    assert outcomes == ["agree", "part"]


@pytest.mark.parametrize(("factor", "outcome"), [(1.0, "part"), (1 + 2**-22, "agree")])
def test_an_index_is_judged_where_all_before_it_is_equal(tmp_path: Path, factor: float, outcome: str) -> None:
    logits = np.random.default_rng(0).standard_normal((64, 8))
    chosen, other = logits.argmax(1).astype(np.float64), logits.argmax(1).astype(np.float64)
    other[0] = (other[0] + 1) % 8
    index = {"module": "route", "seq": 2, "dtype": "int64"}
    a = [row(logits, module="gate", seq=1), row(chosen, **index)]
    b = [row(logits * factor, module="gate", seq=1), row(other, **index)]
    found = pair_of(tmp_path, a, b)
    assert found.outcome == outcome
    assert [d.module for d in found.born] == ["route"] * (outcome == "part")
    assert math.isnan(found.depth[-1].bound) == (outcome == "agree")


@pytest.mark.parametrize("shape", [(8, 4), (4, 2, 4)])
def test_another_shape_is_not_the_same(tmp_path: Path, shape: tuple[int, ...]) -> None:
    found = pair_of(tmp_path, [row(np.ones((4, 8)))], [row(np.ones(shape))])
    assert (found.outcome, found.prefaces) == ("agree", ("not the same shapes: those of 1 of 1 outputs differ",))


def test_the_first_difference_is_the_first_that_ran(tmp_path: Path) -> None:
    rows = changed(changed(model(), 2, "a", 3.0), 1, "c", 3.0)
    found = compare(Trace.open(write(tmp_path / "a.parquet", model())), Trace.open(write(tmp_path / "b.parquet", rows)))
    assert found.first is not None
    assert (found.first.step, found.first.module) == (1, "c")
    assert [row.verdict for row in found.depth] == ["within", "within", "born"]


def test_gradients_are_compared_without_their_loss_scales(tmp_path: Path) -> None:
    paths = []
    for name, scale in (("a", 1024.0), ("b", 1.0)):
        values = np.random.default_rng(0).standard_normal((8, 32))
        rows = [
            *model([0]),
            row(scale * values, phase="backward", role="grad_output", module="a", seq=60),
            Observation(step=0, seq=70, phase="backward", role="scalar", name="loss_scale", value=scale),
        ]
        paths.append(write(tmp_path / f"{name}.parquet", rows))
    found = compare(*map(Trace.open, paths))
    # the scale is a setting of its own, and the gradients agree
    assert [difference.name for difference in found.born] == ["loss_scale"]
    assert found.depth[-1].apart == 0.0


def test_the_first_observation_that_is_not_equal_to_the_bit_is_told_though_rounding_explains_it(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((8, 32))

    def rows(*factors: float, dtype: str = "bfloat16") -> list[Observation]:
        return [
            row(f * values, module=m, seq=i, dtype=dtype) for i, (m, f) in enumerate(zip("abc", factors, strict=True))
        ]

    found = pair_of(tmp_path, rows(1, 1, 1), rows(1, 1 + 2**-12, 1 + 2**-12))
    assert (found.outcome, found.unequal is not None and found.unequal.module) == ("agree", "b")
    assert unequal(found).startswith("equal to the bit up to step 0, forward, b: ")
    # nothing is equal before the first output, and another format is equal nowhere
    assert pair_of(tmp_path, rows(1, 1, 1), rows(1 + 2**-12, 1, 1)).unequal is None
    assert pair_of(tmp_path, rows(1, 1, 1), rows(1, 1 + 2**-12, 1, dtype="float32")).unequal is None


def test_another_loss_scale_hides_nothing_of_the_forward_pass(tmp_path: Path) -> None:
    def scaled(scale: float) -> list[Observation]:
        return [Observation(step=0, seq=70, phase="backward", role="scalar", name="loss_scale", value=scale)]

    a, b = [*model([0]), *scaled(1024.0)], [*changed(model([0]), 0, "b", 1.01), *scaled(4096.0)]
    found = pair_of(tmp_path, a, b)
    assert [d.module or d.name for d in found.born] == ["b", "loss_scale"]


def test_gradients_are_compared_whatever_the_number_of_micro_batches(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((8, 32))
    site = {"phase": "unscale", "role": "grad", "module": "a", "name": "weight"}
    a = [*model([0]), row(values, seq=80, **site)]
    b = [*model([0]), row(1.5 * values, seq=80, micro=3, **site)]
    assert [d.role for d in pair_of(tmp_path, a, b).born] == ["grad"]


def test_a_scalars_gradient_may_cross_zero(tmp_path: Path) -> None:
    site = {"phase": "unscale", "role": "grad", "module": "a", "name": "gate"}
    steps = [
        [
            *model(range(3)),
            *(row(np.array([g + e]), step=s, seq=100 * s + 60, **site) for s, g in enumerate((0.09, -2e-4, -0.07))),
        ]
        for e in (0.0, 6e-8)
    ]
    assert pair_of(tmp_path, *steps).outcome == "agree"


def test_of_several_ranks_the_first_phase_that_parts_is_named(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((8, 32))
    folders = []
    for name, factor in (("a", 1.0), ("b", 1.5)):
        folder = tmp_path / name
        for rank in (0, 1):
            grad = {"phase": "unscale", "role": "grad", "module": "a", "name": "weight", "seq": 60, "rank": rank}
            rows = [row(values * (factor if rank else 1.0), module="a", seq=1, rank=rank), row(factor * values, **grad)]
            write(folder / f"rank-{rank:04d}.parquet", rows, world_size=2, rank=rank)
        folders.append(Trace.open(folder))
    found = compare(*folders)
    assert found.first is not None
    assert (found.first.rank, found.first.phase) == (1, "forward")
    assert headline(found).startswith("parts at step 0, rank 1, forward, a: ")
    assert [(r.rank, r.phase) for r in found.depth] == [(0, "forward"), (1, "forward"), (0, "unscale"), (1, "unscale")]


def test_ranks_of_one_run_are_held_together_by_what_replicas_share(tmp_path: Path) -> None:
    folder, world = tmp_path / "trace.parquet", {"checkpoint_digest": "sha256:0", "world_size": 2}
    for rank in (0, 1):
        values = np.random.default_rng(rank).standard_normal((8, 32))
        weight = row(np.full((4, 4), 1.0 + rank / 100), phase="update", role="weight", name="weight", seq=9, rank=rank)
        batch = row(values, phase="batch", role="batch", module="", name="x", rank=rank)
        write(folder / f"rank-{rank:04}.parquet", [batch, row(values, seq=1, rank=rank), weight], rank=rank, **world)
    found = compare(Trace.open(folder / "rank-0000.parquet"), Trace.open(folder / "rank-0001.parquet"))
    assert "ranks 0 and 1 of one run" in found.prefaces[0]
    assert [(d.role, d.name) for d in found.born] == [("weight", "weight")]
    assert compare(Trace.open(folder), Trace.open(folder)).outcome == "identical"
    with pytest.raises(UsageError, match="2 ranks"):
        compare(Trace.open(folder), Trace.open(folder / "rank-0000.parquet"))


@pytest.mark.parametrize("has_batches", [True, False])
def test_ranks_that_share_nothing_are_refused(tmp_path: Path, has_batches: bool) -> None:
    world = {"checkpoint_digest": "sha256:0", "world_size": 2}
    paths = []
    for rank in (0, 1):
        values = np.random.default_rng(rank).standard_normal((8, 32))
        batch = [row(values, phase="batch", role="batch", module="", name="x", rank=rank)] if has_batches else []
        paths.append(write(tmp_path / f"{rank}.parquet", [*batch, row(values, seq=1, rank=rank)], rank=rank, **world))
    with pytest.raises(TraceError, match="these ranks share nothing"):
        compare(*map(Trace.open, paths))


def test_traces_with_nothing_in_common_are_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.parquet", model([0])), write(tmp_path / "b.parquet", model([5]))
    with pytest.raises(TraceError, match="no observation in common") as caught:
        compare(Trace.open(a), Trace.open(b))
    assert "0 to 0 against 5 to 5" in str(caught.value.hint)


def test_what_differs_around_the_runs_is_told(tmp_path: Path) -> None:
    a = write(tmp_path / "a.parquet", model(), device="cpu", config={"train": {"seed": 1}})
    b = write(tmp_path / "b.parquet", model(), device="cuda:0", config={"train": {"seed": 2}})
    found = compare(Trace.open(a), Trace.open(b))
    assert [(s.name, s.a, s.b) for s in found.settings] == [
        ("device", "cpu", "cuda:0"),
        ("config.train.seed", "1", "2"),
    ]
