"""Small residual MLP language model; the moments of Adam are kept in bfloat16 to halve the optimizer's memory."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["low-precision-accumulation", "lost-update", "optimizer-state"],
    "kind": ["stall"],
    "step": (12020, 12044),
    "phase": ["update"],
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}

VOCAB, CTX = 40, 6
STATE_DTYPE = torch.bfloat16 if FAULTY else torch.float32


class MLPLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(VOCAB, 16)
        self.inp = nn.Linear(16 * CTX, 64)
        self.mid = nn.Linear(64, 64)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, VOCAB)

    def forward(self, x):
        h = torch.tanh(self.inp(self.emb(x).flatten(1)))
        h = h + F.silu(self.mid(self.norm(h)))
        return self.head(h)


class LeanAdam(torch.optim.Optimizer):
    def __init__(self, params, lr=2e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps))

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)  # casts the state to the weights' format
        for s in self.state.values():
            s["exp_avg"], s["exp_avg_sq"] = s["exp_avg"].to(STATE_DTYPE), s["exp_avg_sq"].to(STATE_DTYPE)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                s = self.state[p]
                if not s:
                    s["step"] = torch.tensor(0.0)
                    s["exp_avg"] = torch.zeros_like(p, dtype=STATE_DTYPE)
                    s["exp_avg_sq"] = torch.zeros_like(p, dtype=STATE_DTYPE)
                s["step"] += 1
                s["exp_avg"].mul_(b1).add_(p.grad.to(STATE_DTYPE), alpha=1 - b1)
                g = p.grad.to(STATE_DTYPE)
                s["exp_avg_sq"].mul_(b2).addcmul_(g, g, value=1 - b2)
                t = s["step"].item()
                m = s["exp_avg"].float() / (1 - b1**t)
                v = s["exp_avg_sq"].float() / (1 - b2**t)
                p.addcdiv_(m, v.sqrt() + group["eps"], value=-group["lr"])


def build_model():
    return MLPLM()


def make_optimizer(model):
    return LeanAdam(model.parameters())


TABLE = torch.randint(VOCAB, (VOCAB, 3), generator=torch.Generator().manual_seed(3))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randint(VOCAB, (64, CTX), generator=g)
        pick = torch.randint(3, (64,), generator=g)
        yield x, TABLE[x[:, -1], pick]
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def make_checkpoint(train):
    """20 steps; then the story of a long run: an early burst of gradients 300 times the normal, then 8000 quiet steps, in
    which beta2 = 0.999 must have forgotten the burst. In bfloat16 it has not: v * 0.999 rounds back to v."""
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    data = train.batches()
    for step in range(20):
        opt.zero_grad()
        train.compute_loss(model, next(data)).backward()
        opt.step()
    grads = {p: p.grad.clone() for p in model.parameters()}
    for p, s in opt.state.items():
        s["exp_avg_sq"].addcmul_(
            (300 * p.grad.abs().mean() * torch.ones_like(p)).to(s["exp_avg_sq"].dtype),
            torch.full_like(s["exp_avg_sq"], 300 * float(p.grad.abs().mean())),
            value=1e-3,
        )
    for _ in range(12000):
        for p, s in opt.state.items():
            g = grads[p].to(train.STATE_DTYPE)
            s["exp_avg_sq"].mul_(0.999).addcmul_(g, g, value=1e-3)
    for s in opt.state.values():
        s["step"] += 12000
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 12020}
