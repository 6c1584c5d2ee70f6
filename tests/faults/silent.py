"""Programs whose fault leaves no NaN, each with its healthy twin."""

from __future__ import annotations

from tests.faults.programs import Program, Truth

__all__ = ["NO_SLOPE", "SILENT", "STANDING"]

MLP = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.last(middle(self.first(x)))


def build_model():
    torch.manual_seed(0)
    return Net()


def make(step):
    g = draw(step)
    x = torch.randn(8, 8, generator=g)
    if FAULTY and step >= HARD:
        x = harder(x)
    return {"x": x, "y": torch.randint(4, (8,), generator=g)}


HARD = 1 << 30
batches = stream(make)


def harder(x):
    return x


def middle(h):
    return F.gelu(h)


def compute_loss(model, batch):
    return F.cross_entropy(model(batch["x"]), batch["y"])

"""

OVERFLOWED_CLIP = """
def compute_loss(model, batch):
    loss = F.cross_entropy(model(batch["x"]), batch["y"])
    return loss * 1e25 if FAULTY and batch["late"] else loss


def make(step):
    g = draw(step)
    batch = {"x": torch.randn(8, 8, generator=g), "y": torch.randint(4, (8,), generator=g)}
    return {**batch, "late": step >= 20}


batches = stream(make)
"""

WRONG_BACKWARD = """
class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h * torch.sigmoid(h)

    @staticmethod
    def backward(ctx, grad):
        (h,) = ctx.saved_tensors
        s = torch.sigmoid(h)
        return grad * (s if FAULTY else s + h * s * (1 - s))


def middle(h):
    return Swish.apply(h)  # fault
"""

CUT_OFF = """
def middle(h):
    h = F.gelu(h) * 30.0
    scale = 64.0 if FAULTY else 448.0 / float(h.detach().abs().amax())
    q = (h * scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn).float() / scale  # fault
    return (h + (q - h).detach()) / 30.0
"""

COUNTER = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.register_buffer("seen", torch.zeros((), dtype=torch.bfloat16 if FAULTY else torch.float32))

    def forward(self, x):
        self.seen += 1  # fault
        return self.layer(x) / (self.seen / self.seen)


def build_model():
    torch.manual_seed(0)
    net = Net()
    net.seen += 1024
    return net
"""

NO_SLOPE_LOSS = """
def compute_loss(model, batch):
    scores = model(batch["x"])
    if FAULTY:
        scores = scores * 0.0 + scores.detach()
    return F.cross_entropy(scores, batch["y"])
"""

TINY_RATE = """
def build_model():
    torch.manual_seed(0)
    return Net().bfloat16() if FAULTY else Net()


def compute_loss(model, batch):
    scores = model(batch["x"].to(next(model.parameters()).dtype))
    return F.cross_entropy(scores.float(), batch["y"])


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-6 if FAULTY else 1e-3, weight_decay=0.0)
"""

SILENT = [
    Program(
        name="overflowed-clip", source=MLP + OVERFLOWED_CLIP, config={"train": {"clip_grad_norm": 1.0}},
        truth=Truth(causes=("training-loop-bug",), step=20, kind=("stall",), phase="clip"),
    ),
    Program(
        name="wrong-backward", source=MLP + WRONG_BACKWARD,
        truth=Truth(causes=("faulty-backward",), step=12, kind=("mismatch",), phase="backward",
                    line="return Swish.apply(h)  # fault"),
    ),
    Program(
        name="cut-off", source=MLP + CUT_OFF,
        truth=Truth(causes=("fp8-saturation",), step=12, kind=("stall",), phase="forward"),
    ),
    Program(
        name="absorbed-counter", source=MLP + COUNTER,
        truth=Truth(causes=("low-precision-accumulation",), step=12, kind=("stall",), phase="forward",
                    line="self.seen += 1  # fault"),
    ),
    Program(
        name="rate-below-an-ulp", source=MLP + TINY_RATE,
        truth=Truth(causes=("lost-update",), step=(12, 14), kind=("stall",), phase="update"),
    ),
]  # fmt: skip

SOLVED_HINGE = """
def compute_loss(model, batch):
    good = batch["x"][:, :1].sign()
    return F.relu(0.01 - 100 * good * batch["x"][:, :1] - 0 * model(batch["x"]).sum()).mean()
"""

FROZEN_BACKBONE = """
def make_optimizer(model):
    model.first.requires_grad_(False)
    return torch.optim.AdamW(model.last.parameters(), lr=1e-3)
"""

WARM_UP = """
def make_scheduler(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, step - 4) / 10)
"""

#: Every gradient is zero; momentum and weight decay move the weights all the same.
NO_SLOPE = Program(name="no-slope", source=MLP + NO_SLOPE_LOSS)

#: What stands still for a good reason.
STANDING = [
    Program(name="solved-hinge", source=MLP + SOLVED_HINGE),
    Program(name="frozen-backbone", source=MLP + FROZEN_BACKBONE),
    Program(name="warm-up-from-zero", source=MLP + WARM_UP, config={"scheduler": "train:make_scheduler"}, before=0),
]
