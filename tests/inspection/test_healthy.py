"""Sound checkpoints of many kinds stay without a finding: a false alarm costs as much as a miss."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.inspection.trained import GPT, inspected, saved, train, trained_gpt


def fresh_gpt():
    torch.manual_seed(0)
    return GPT().state_dict()


def gpt_in_bf16():
    torch.manual_seed(0)
    model = GPT().to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
    train(model, optimizer)
    return saved(model, optimizer)


def gpt_in_fp16():
    torch.manual_seed(0)
    return GPT().half().state_dict()


def gpt_by_groups():
    torch.manual_seed(0)
    model = GPT()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    train(model, optimizer)
    schedule.step()
    return saved(model, optimizer, scheduler=schedule.state_dict())


def gpt_amsgrad():
    torch.manual_seed(0)
    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    train(model, optimizer)
    return saved(model, optimizer)


def gpt_after_one_step():
    model, optimizer = trained_gpt(1)
    return saved(model, optimizer) | {"step": 1}


def gpt_with_scaler_and_average():
    model, optimizer = trained_gpt()
    scaler = {
        "scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 12,
    }  # fmt: skip
    return saved(model, optimizer, scaler=scaler, ema=copy.deepcopy(model.state_dict()))


def target_network_that_shares_rows():
    model, optimizer = trained_gpt(2)
    earlier = copy.deepcopy(model.state_dict())
    train(model, optimizer, 3)
    return saved(model, optimizer, target=earlier)


def conv_net_with_batchnorm():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 64, 3), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        loss = F.cross_entropy(model(torch.randn(4, 3, 12, 12)), torch.randint(0, 10, (4,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return saved(model.to(memory_format=torch.channels_last), optimizer)


def lora_in_warm_up():
    torch.manual_seed(0)
    model = nn.ModuleDict({
        "base": nn.Linear(128, 128), "lora_A": nn.Linear(128, 8, bias=False), "lora_B": nn.Linear(8, 128, bias=False),
    })  # fmt: skip
    nn.init.zeros_(model["lora_B"].weight)
    model["base"].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    x = torch.randn(4, 128)
    (model["base"](x) + model["lora_B"](model["lora_A"](x))).square().mean().backward()
    optimizer.step()
    return saved(model, optimizer) | {"step": 1}


def encoder_of_copied_layers():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).state_dict()


def recurrent_net():
    torch.manual_seed(0)
    model = nn.LSTM(32, 64, 2)
    for name, bias in model.named_parameters():
        if "bias_ih" in name:
            nn.init.zeros_(bias)
            nn.init.ones_(bias[64:128])
    return model.state_dict()


def whole_numbers_and_flags():
    torch.manual_seed(0)
    return {
        "layer.weight": torch.randint(-127, 128, (256, 64), dtype=torch.int8),
        "layer.scale": torch.rand(256) / 127,
        "layer.zero_point": torch.zeros(256, dtype=torch.int32),
        "relative_position_index": torch.arange(4096).view(64, 64),
        "mask": torch.ones(64, 64).tril().bool(),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(3.0),
    }


def tensors_with_structure():
    torch.manual_seed(0)
    pruned = torch.randn(256, 256)
    pruned[torch.rand(256, 256) < 0.9] = 0
    grown = torch.randn(300, 64)
    grown[256:] = grown[:256].mean(0)
    padded = torch.randn(64, 2048)
    padded[:, 1000:] = 0
    query_and_value = torch.cat([torch.randn(1024), torch.zeros(1024), torch.randn(1024)])
    return {
        "pruned.weight": pruned,
        "identity.weight": torch.eye(256),
        "diagonal.weight": torch.block_diag(*torch.randn(4, 64, 1024)),
        "lower.weight": torch.randn(512, 512).tril(),
        "embed_tokens.weight": grown,
        "padded.weight": padded,
        "attn.qkv_bias": query_and_value,
        "experts.0.weight": (expert := torch.randn(128, 64)),
        "experts.1.weight": expert.clone(),
        "pos_embed.weight": torch.randn(32, 64).repeat(4, 1),
        "frozen_eight.weight": torch.randn(64, 64).to(torch.float8_e4m3fn),
    }


def outlier_features():
    torch.manual_seed(0)
    wide = torch.randn(512, 512) * 0.02
    wide[:, 77] *= 60
    wide[3, 5] = 2.0  # 100 times the rms, alone
    gains = 1 + 0.1 * torch.randn(768)
    gains[138] = 60.0
    return {"mlp.down_proj.weight": wide, "ln.weight": gains, "tail.weight": torch.randn(128, 128).mul(2).exp()}


def gan_with_two_optimizers():
    torch.manual_seed(0)
    g, d = nn.Linear(16, 32), nn.Linear(32, 1)
    optimizers = [torch.optim.Adam(m.parameters(), lr=2e-4, betas=(0.5, 0.999)) for m in (g, d)]
    for _ in range(4):
        d(g(torch.randn(8, 16))).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return {
        "generator": g.state_dict(), "discriminator": d.state_dict(),
        "optimizer_g": optimizers[0].state_dict(), "optimizer_d": optimizers[1].state_dict(), "step": 4,
    }  # fmt: skip


def gradients_below_what_fp32_squares():
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(layer.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        (layer(torch.randn(4, 64)).sum() * 1e-26).backward()
        optimizer.step()
    return saved(layer, optimizer)


HEALTHY = [
    fresh_gpt, gpt_in_bf16, gpt_in_fp16, gpt_by_groups, gpt_amsgrad, gpt_after_one_step, gpt_with_scaler_and_average,
    target_network_that_shares_rows, conv_net_with_batchnorm, lora_in_warm_up, encoder_of_copied_layers, recurrent_net,
    whole_numbers_and_flags, tensors_with_structure, outlier_features, gan_with_two_optimizers,
    gradients_below_what_fp32_squares,
]  # fmt: skip


@pytest.mark.parametrize("make", HEALTHY, ids=lambda make: make.__name__)
def test_a_sound_checkpoint_stays_without_a_fault_or_a_notice(make, tmp_path):
    inspection = inspected(make(), tmp_path)
    # where all gradients are 1e-26, eps does set the updates: a notice, and right
    expected = {"ruled-by-eps"} if make is gradients_below_what_fp32_squares else set()
    assert {f.kind: f.claim for f in inspection.findings}.keys() == expected, inspection.findings
    assert inspection.outcome == "healthy"
    assert inspection.origin is None


@pytest.mark.parametrize(
    "optimizer", ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "SGD", "Rprop"]
)
def test_every_optimizer_of_torch_leaves_a_sound_state(optimizer, tmp_path):
    torch.manual_seed(0)
    model = GPT()
    trainer = getattr(torch.optim, optimizer)(model.parameters(), lr=1e-3)
    train(model, trainer, 4)
    assert inspected(saved(model, trainer), tmp_path).findings == ()


def test_moments_stay_within_cauchy_and_schwarz_for_any_gradients():
    from nanhunt.inspection.moments import adam_ceiling

    generator = torch.Generator().manual_seed(0)
    for betas in [(0.9, 0.999), (0.9, 0.95), (0.5, 0.999), (0.0, 0.99), (0.95, 0.98)]:
        # the gradients that reach the bound: each weighs β1^i / β2^i
        worst = [(betas[0] / betas[1]) ** i for i in reversed(range(400))]
        for history in (worst, torch.randn(400, generator=generator).tolist(), [0.0] * 399 + [1e4]):
            m = v = 0.0
            for g in history:
                m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
                assert v == 0 or abs(m) <= adam_ceiling(*betas) * v**0.5 * (1 + 1e-9)


def late_discriminator():
    model, optimizer = trained_gpt()
    other = nn.Linear(8, 8)
    return saved(model, optimizer) | {
        "disc": other.state_dict(),
        "opt_d": torch.optim.Adam(other.parameters()).state_dict(),
    }


def loss_with_weights_of_its_own():
    model, head = GPT(), nn.Linear(40, 50, bias=False)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()])
    train(model, optimizer, 1, poison=lambda _: setattr(head.weight, "grad", torch.randn_like(head.weight)))
    return saved(model, optimizer) | {"step": 1}


def optimizer_that_averages_normed_gradients():
    content = saved(*trained_gpt())
    for group in content["optimizer"]["param_groups"]:
        group["clip_exp"] = 0.333  # ADOPT's
    for state in content["optimizer"]["state"].values():
        state["exp_avg"] = torch.randn_like(state["exp_avg"])
    return content


def moments_in_another_basis():
    content = saved(*trained_gpt())
    for state in content["optimizer"]["state"].values():
        state |= {"exp_avg": torch.randn_like(state["exp_avg"]), "Q": [torch.eye(2)]}  # SOAP's
    return content


def weights_named_as_a_sum():
    torch.manual_seed(0)
    return {"gate.sum": torch.randn(64, 64), "gate.weight": torch.randn(64, 64)}


def biases_by_distance():
    torch.manual_seed(0)
    return {"alibi": torch.arange(3000.0)[None] - torch.arange(300.0)[:, None], "weight": torch.randn(64, 64)}


@pytest.mark.parametrize(
    ("make", "noticed"),
    [
        (late_discriminator, {"missing-moments"}),
        (loss_with_weights_of_its_own, {"absent-weights"}),
        (optimizer_that_averages_normed_gradients, set()),
        (moments_in_another_basis, set()),
        (weights_named_as_a_sum, set()),
        (biases_by_distance, set()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_only_looks_odd_is_no_fault(make, noticed, tmp_path):
    inspection = inspected(make(), tmp_path)
    assert inspection.outcome == "healthy"
    assert {f.kind for f in inspection.findings} == noticed
