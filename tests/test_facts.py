"""What a trace says of a batch, sample by sample."""

from __future__ import annotations

import torch

from nanhunt.facts import batch_facts
from tests.conftest import tiny_run


def test_of_a_mask_it_is_told_how_much_each_sample_has_left() -> None:
    keep = torch.ones(3, 4, dtype=torch.bool)
    keep[1] = False
    keep[2, 3:] = False
    run = tiny_run(torch.nn.Linear(4, 1), lambda m, b: m(b["x"]).mean(), [{"x": torch.ones(3, 4), "keep": keep}])
    run.batches.get(0, 0)
    fields = {f["field"]: f for f in batch_facts(run, 0)["micros"][0]["fields"]}
    assert fields["keep"]["sample_true"] == [4, 0, 3]
