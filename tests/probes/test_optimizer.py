"""The optimizer probe: what was really applied, and Adam's health by the definitions, in numpy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nanhunt.probes.adam import adam_health
from nanhunt.probes.optimizer import OptimizerProbe, record_state
from nanhunt.probes.probe import RowBuffer
from nanhunt.trace.schema import Observation, Phase
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import train_step
from tests.conftest import tiny_run


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).exp().mean()


def data(count: int = 4) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(5, 3, generator=draw) for _ in range(count)]


def rows_of(run: TrainingRun, steps: int = 1) -> list[Observation]:
    """Return the rows of the last of `steps` steps."""
    rows = RowBuffer()
    for step in range(steps):
        rows.take()
        train_step(run, step, OptimizerProbe(run, rows))
    return rows.take()


def tensors(rows: list[Observation], role: str) -> dict[str, Observation]:
    return {f"{r.module}.{r.name}": r for r in rows if r.role == role}


def scalars(rows: list[Observation]) -> dict[str, float | None]:
    return {f"{r.module}.{r.name}": r.value for r in rows if r.role == "scalar"}


@pytest.mark.parametrize("kind", ["loop", "foreach", "fused"])
def test_the_update_is_the_difference_of_the_weights(kind: str) -> None:
    model = Net()
    more: dict[str, Any] = {} if kind == "loop" else {kind: True}
    run = tiny_run(model, loss_of, data(), optimizer=torch.optim.AdamW(model.parameters(), lr=0.1, **more))
    rows_of(run, 1)
    before = model.layer.weight.detach().clone()
    run.batches = tiny_run(model, loss_of, data()).batches
    rows = rows_of(run, 1)
    update = tensors(rows, "update")["layer.weight"].stats
    assert update is not None
    assert update.l2 == pytest.approx(float((model.layer.weight - before).detach().double().norm()), rel=1e-6)
    expected = float((model.layer.weight - before).detach().square().mean().sqrt()) / 0.1
    assert scalars(rows)["layer.weight.update_lr"] == pytest.approx(expected, rel=1e-5)


def test_gradients_are_recorded_before_the_clip() -> None:
    rows = rows_of(tiny_run(Net(), loss_of, data(), clip_grad_norm=1e-3))
    norms = [r.stats.l2 for r in tensors(rows, "grad").values() if r.stats]
    assert math.hypot(*norms) > 0.01


def test_weights_buffers_and_moments_are_recorded_under_their_names() -> None:
    model = Net()
    run = tiny_run(model, loss_of, data(), optimizer=torch.optim.AdamW(model.parameters()))
    rows = rows_of(run)
    names = {n for n, _ in model.named_parameters()}
    for role in ("weight", "exp_avg", "exp_avg_sq", "grad", "update"):
        assert set(tensors(rows, role)) == names
    assert set(tensors(rows, "buffer")) == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    loaded = RowBuffer()
    record_state(run, loaded, Phase.LOAD)
    assert {r.phase for r in loaded.take()} == {"load"}


def test_a_weight_that_rounding_holds_still_is_frozen() -> None:
    model = nn.Linear(4, 1, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    for rate, share in ((1e-3, 1.0), (1e-1, 0.0)):  # half an ulp of bf16 below 1 is 2^-9
        run = tiny_run(model, lambda m, x: m(x).mean(), [torch.ones(2, 4).bfloat16()],
                       optimizer=torch.optim.SGD(model.parameters(), lr=rate))  # fmt: skip
        assert scalars(rows_of(run))[".weight.frozen"] == share


def test_a_weight_without_a_gradient_counts_as_neither() -> None:
    model = nn.Linear(4, 1, bias=False)
    x = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    rows = rows_of(tiny_run(model, lambda m, b: m(b).mean(), [x]))
    assert scalars(rows)[".weight.frozen"] == 0.0


def test_a_rate_of_zero_has_no_update_in_its_units() -> None:
    model = Net()
    rows = rows_of(tiny_run(model, loss_of, data(), optimizer=torch.optim.SGD(model.parameters(), lr=0.0)))
    assert "layer.weight.update_lr" not in scalars(rows)


@pytest.mark.parametrize("step", [1, 2, 1000])
def test_adams_health_follows_its_definitions(step: int) -> None:
    draw = np.random.default_rng(step)
    g, m = draw.normal(size=(2, 20)) * 1e-3
    before, eps, beta2 = draw.random(20) * 1e-6, 1e-8, 0.95
    v = beta2 * before + (1 - beta2) * g**2
    v[3] = 0.0
    state = {"step": torch.tensor(float(step)), "exp_avg": torch.tensor(m), "exp_avg_sq": torch.tensor(v)}
    group = {"betas": (0.9, beta2), "eps": eps}
    health = adam_health(torch.tensor(g), state, group, torch.tensor(before))
    v_hat = v / (1 - beta2**step)
    v_old = before / (1 - beta2 ** (step - 1)) if step > 1 else before
    expected = {
        "rms_t": np.sqrt(np.mean(g**2 / np.maximum(v_hat, eps**2))),
        "kappa_eps": np.sqrt(v_hat.mean()) / eps,
        "v_zero": 1 / 20,
        "v_below_eps2": 1 / 20,
        "v_stuck": 0.0,  # each element moved: no format stood in its way
        "v_stale": np.sqrt(np.mean(g**2) / v_old.mean()),
    }
    assert {k: float(x) for k, x in health.items() if x is not None} == pytest.approx(expected, rel=1e-9)


def test_rmsprops_gradient_is_held_against_its_own_second_moment() -> None:
    model = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    batches = [torch.full((1, 3), size) for size in (1.0, 1.0, 20.0)]
    run = tiny_run(model, lambda m, x: m(x).sum(), batches, optimizer=optimizer)
    assert scalars(rows_of(run, 3))[".weight.v_stale"] == pytest.approx(20 / math.sqrt(0.0199), rel=1e-5)


def test_an_optimizer_of_two_epsilons_has_no_health_and_breaks_nothing() -> None:
    state = {"step": 1, "exp_avg_sq": torch.ones(3)}
    assert adam_health(torch.ones(3), state, {"eps": (1e-30, 1e-3)}, torch.ones(3)) == {}
    assert adam_health(torch.ones(3), state, {"lr": 1.0}, torch.ones(3)) == {}


def test_a_gradient_below_epsilon_says_nothing_of_its_second_moment() -> None:
    state = {"step": torch.tensor(5.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.full((3,), 1e-22)}
    group = {"betas": (0.9, 0.999), "eps": 1e-8}
    health = adam_health(torch.full((3,), 1e-11), state, group, torch.full((3,), 1e-22))
    assert health["v_stale"] is not None
    assert math.isnan(float(health["v_stale"]))


def test_what_is_written_into_a_weight_after_its_update_is_told_apart_from_the_update() -> None:
    model = nn.Linear(4, 1, bias=False)

    def step(module: nn.Module, batch: Any, optimizer: Any) -> Any:
        optimizer.zero_grad()
        loss = module(batch).mean()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            module.weight += 0.25  # type: ignore[operator]
        return loss

    run = tiny_run(model, lambda m, x: m(x).mean(), [torch.ones(2, 4)], train_step=step)
    assert scalars(rows_of(run))[".weight.moved_outside"] >= 0.25 * 2 - 1e-6


def test_a_steady_state_has_an_rms_near_one_and_a_jump_more() -> None:
    model = nn.Linear(64, 1, bias=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.95))
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randn(1, 64, generator=draw) for _ in range(60)]
    run = tiny_run(model, lambda m, x: m(x).mean(), [*batches, batches[0] * 100], optimizer=optimizer)
    rows = RowBuffer()
    values = []
    for step in range(61):
        rows.take()
        train_step(run, step, OptimizerProbe(run, rows))
        values.append(scalars(rows.take()))
    assert 0.7 < (values[59][".weight.rms_t"] or 0) < 1.5
    ceiling = 1 / math.sqrt(1 - 0.95)
    assert 0.95 * ceiling < (values[60][".weight.rms_t"] or 0) <= ceiling
    assert (values[60][".weight.v_stale"] or 0) > 50


def test_an_optimizer_without_moments_has_no_adams_health() -> None:
    assert adam_health(torch.ones(2), {}, {}, None) == {}
    factored = {"exp_avg_sq": torch.ones(1), "exp_avg": torch.ones(2)}
    assert adam_health(torch.ones(2), factored, {"betas": (0.9, 0.99), "eps": 1e-8}, None) == {}


def test_an_epsilon_of_zero_has_no_kappa() -> None:
    state = {"step": torch.tensor(1.0), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}
    assert adam_health(torch.ones(2), state, {"betas": (0.9, 0.99), "eps": 0.0}, None)["kappa_eps"] is None


def test_complex_and_sparse_parameters_are_recorded_without_health() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(4, 2, sparse=True)
            self.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))

        def forward(self, ids: Tensor) -> Tensor:
            return (self.embed(ids) * self.phase).real

    model = Mixed()
    probe_rows = RowBuffer()
    run = tiny_run(model, lambda m, ids: m(ids).mean(), [])
    run.optimizer.zero_grad()
    model(torch.tensor([1, 1])).mean().backward()
    probe = OptimizerProbe(run, probe_rows)
    probe.gradients_ready()
    probe.clipped()
    run.optimizer.step()
    probe.updated()
    rows = probe_rows.take()
    assert set(tensors(rows, "update")) == {"embed.weight", ".phase"}
    assert scalars(rows) == {}


class Wide(nn.Module):
    """A weight of which tiles are looked at, and whose gradient lies in memory as the weight does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(256, 256))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pytest.mark.parametrize("moved", ["grad", "exp_avg_sq"])
def test_a_gradient_or_moment_of_other_strides_is_looked_at_at_the_same_elements(moved: str) -> None:
    def rows_where(strange: bool) -> dict[str, float | None]:
        model = Wide()
        optimizer = torch.optim.Adam(model.parameters(), foreach=False)

        def step(model: Any, batch: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = model(batch).square().mean()
            loss.backward()
            state = optimizer.state[model.weight]
            if strange and moved == "grad":
                model.weight.grad = model.weight.grad.t().contiguous().t()
            elif strange and state:
                state[moved] = state[moved].t().contiguous().t()
            optimizer.step()
            return loss

        batches = [torch.randn(4, 256, generator=torch.Generator().manual_seed(i)) for i in range(2)]
        run = tiny_run(model, None, batches, optimizer=optimizer, train_step=step)  # type: ignore[arg-type]
        return {name: value for name, value in scalars(rows_of(run, 2)).items() if name.startswith(".weight.")}

    plain, strange = rows_where(False), rows_where(True)
    assert {".weight.frozen", ".weight.v_stuck", ".weight.v_stale"} <= set(plain)
    assert strange == pytest.approx(plain, rel=1e-5)


@pytest.fixture
def mesh() -> Iterator[Any]:
    dist = pytest.importorskip("torch.distributed")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_of_a_dtensor_the_ranks_own_part_is_told(mesh: Any) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    def rows_where(distributed: bool) -> dict[str, float | None]:
        model = Wide()
        if distributed:
            model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh, [Shard(0)]))
        optimizer = torch.optim.Adam(model.parameters())
        rows, run = RowBuffer(), tiny_run(model, loss_of, [], optimizer=optimizer)
        probe = OptimizerProbe(run, rows)
        for _ in range(2):
            rows.take()
            model.weight.grad = torch.sin(model.weight.detach())
            probe.clipped()
            optimizer.step()
            probe.update_made()
            probe.updated()
        return scalars(rows.take())

    assert rows_where(True) == pytest.approx(rows_where(False), rel=1e-5)


def test_moments_in_eight_bits_are_told_of() -> None:
    grad = torch.tensor([1.0, -2.0, 0.5])
    m, v = (t.to(torch.float8_e5m2) for t in (grad, grad.square()))
    group = {"betas": (0.9, 0.99), "eps": 1e-8}
    found = adam_health(grad, {"exp_avg": m, "exp_avg_sq": v, "step": 1}, group, v)
    assert found["rms_t"] == pytest.approx(0.1)
    assert found["v_zero"] == 0.0


def test_nothing_is_kept_or_recorded_on_an_unrecorded_step() -> None:
    model = Net()
    run, rows = tiny_run(model, loss_of, data()), RowBuffer()
    rows.recording = False
    train_step(run, 0, OptimizerProbe(run, rows))
    assert not list(rows.take())


def test_a_users_own_step_shows_its_update() -> None:
    def step(model: nn.Module, batch: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        return loss

    model = Net()
    before = model.layer.weight.detach().clone()
    rows = rows_of(tiny_run(model, loss_of, data(), train_step=step))
    update = tensors(rows, "update")["layer.weight"].stats
    assert update is not None
    assert update.l2 == pytest.approx(float((model.layer.weight - before).detach().norm()), rel=1e-6)
    assert "layer.weight" in tensors(rows, "grad")
