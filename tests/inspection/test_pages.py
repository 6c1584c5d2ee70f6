"""Torn and repeated writes are found by their bytes; tied, copied, padded and pruned tensors are told as what they are."""

from __future__ import annotations

import pytest
import torch

from tests.inspection.trained import inspected, saved, trained_gpt


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return {f"h.{i}.weight": torch.randn(96, 300) for i in range(4)}


@pytest.mark.parametrize("value", [0.0, 0.125])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stretch_of_one_value_inside_of_rows_is_a_torn_write(value, dtype, weights, tmp_path):
    weights = {name: w.to(dtype) for name, w in weights.items()}
    weights["h.2.weight"].view(-1)[5000:8000] = value
    (finding,) = inspected(weights, tmp_path).faults
    assert (finding.kind, finding.tensor, finding.value) == ("torn-block", "h.2.weight", 3000 * dtype.itemsize)
    assert "elements 5000 to 7999" in finding.evidence[0]


def test_a_torn_page_on_the_files_own_grid_is_told_so(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "page.safetensors"
    from safetensors.torch import save_file

    save_file({"w": torch.randn(300, 700)}, path)
    content = bytearray(path.read_bytes())
    content[40960 : 40960 + 8192] = bytes(8192)
    path.write_bytes(content)
    from nanhunt.inspection.contents import read_contents
    from nanhunt.inspection.judge import judge
    from nanhunt.inspection.survey import survey

    (finding,) = judge(survey(read_contents(path, trust_pickle=False))).faults
    assert finding.kind == "torn-block"
    assert finding.value == 8192
    assert "on page boundaries" in finding.evidence[0]


@pytest.mark.parametrize(
    ("first", "second", "distance"), [("h.1", "h.1", 8192), ("h.1", "h.3", 1024), ("h.1", "h.3", 256 * 7)]
)
def test_equal_bytes_at_two_places_are_a_repeated_write(first, second, distance, weights, tmp_path):
    source = weights[f"{first}.weight"].view(-1)[1111:3000].clone()
    weights[f"{second}.weight"].view(-1)[1111 + distance : 3000 + distance] = source
    (finding,) = inspected(weights, tmp_path).faults
    assert finding.kind == "duplicated-block"
    assert finding.value == 4 * len(source)


def test_small_equal_stretches_are_nothing(weights, tmp_path):
    weights["h.1.weight"].view(-1)[9000:9900] = weights["h.1.weight"].view(-1)[100:1000].clone()
    weights["h.2.weight"].view(-1)[5000:5900] = 0.0
    assert inspected(weights, tmp_path).findings == ()


def test_tied_and_copied_tensors_are_told_as_such(weights, tmp_path):
    weights["head.weight"] = weights["h.0.weight"]
    weights["twin.weight"] = weights["h.1.weight"].clone()
    inspection = inspected(weights, tmp_path)
    by_name = {t.name: t for t in inspection.facts.tensors}
    assert by_name["head.weight"].tied_to == "h.0.weight"
    assert by_name["twin.weight"].copy_of == "h.1.weight"
    assert inspection.findings == ()


def test_an_earlier_copy_of_which_a_part_did_not_move_is_no_repetition(weights, tmp_path):
    weights["average.weight"] = weights["h.1.weight"].clone()
    weights["average.weight"][:30] += 0.1
    assert inspected(weights, tmp_path).findings == ()


def test_rows_of_zeros_where_gradients_came_are_a_fault(tmp_path):
    model, optimizer = trained_gpt(4)
    sound = saved(model, optimizer)
    assert inspected(sound, tmp_path).findings == ()
    with torch.no_grad():
        model.h[0].fc.weight[40] = 0.0
        model.h[1].proj.bias.zero_()
    faults = inspected(saved(model, optimizer), tmp_path).faults
    assert {(f.kind, f.tensor) for f in faults} == {("zeroed", "h.0.fc.weight"), ("zeroed", "h.1.proj.bias")}


def test_page_sized_rows_of_zeros_in_a_matrix_are_noticed_and_in_a_table_not(tmp_path):
    torch.manual_seed(0)
    matrix, table = torch.randn(64, 1024), torch.randn(64, 1024)
    matrix[[30, 31]] = 0.0
    table[[30, 31]] = 0.0
    inspection = inspected({"fc.weight": matrix, "tok_embeddings.weight": table}, tmp_path)
    assert [(f.kind, f.tensor, f.severity) for f in inspection.findings] == [("zero-rows", "fc.weight", "notice")]


def test_garbage_is_memory_that_nobody_wrote(weights, tmp_path):
    assert inspected(weights, tmp_path).findings == ()
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (64, 64), generator=generator).to(torch.int32)
    garbage = bits.view(torch.float32).nan_to_num(0.5, 0.5, 0.5)
    assert {(f.kind, f.cause) for f in inspected(weights | {"score.weight": garbage}, tmp_path).faults} == {
        ("garbage", "bad-init")
    }


def test_tensors_that_are_nan_or_of_one_value_are_no_copies_of_one_another(weights, tmp_path):
    weights["h.0.weight"][:] = weights["h.1.weight"][:] = float("nan")
    weights |= {"ln_1.weight": torch.ones(2048), "ln_2.weight": torch.ones(2048)}
    assert not any(t.copy_of for t in inspected(weights, tmp_path).facts.tensors)


@pytest.mark.parametrize("kind", ["SparseAdam", "AdamW", "Adagrad"])
@pytest.mark.parametrize("is_zero", [False, True])
def test_rows_of_a_table_that_no_batch_used_are_no_fault(kind, is_zero, tmp_path):
    torch.manual_seed(0)
    table = torch.nn.Embedding(300, 32, sparse=kind == "SparseAdam")
    if is_zero:
        torch.nn.init.zeros_(table.weight)
    optimizer = getattr(torch.optim, kind)(table.parameters(), lr=1e-2)
    for _ in range(6):
        optimizer.zero_grad()
        (table(torch.randint(0, 100, (64,))) - 1.0).square().mean().backward()
        optimizer.step()
    assert inspected(saved(table, optimizer), tmp_path).faults == ()
    untouched = saved(table, optimizer)
    for entry in untouched["optimizer"]["state"].values():
        for key in ("exp_avg", "exp_avg_sq", "sum"):
            entry.get(key, torch.zeros(1)).zero_()
    torch.nn.init.zeros_(table.weight)
    assert "zeroed" not in {f.kind for f in inspected(untouched, tmp_path).findings}
