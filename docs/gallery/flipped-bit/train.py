"""A bit of one activation flips once, as a failing memory cell does it: the step again has other bits."""

import torch
import torch.nn.functional as F
from torch import nn

STRUCK = [False]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(10, 32), nn.Linear(32, 4)

    def forward(self, x, step):
        h = F.gelu(self.first(x))
        if step == 16 and not STRUCK[0]:
            STRUCK[0] = True
            h.view(torch.int32)[2, 9] ^= 1 << 30  # fault: the top bit of an exponent, once
        return self.second(h)


def batches(start_step=0):
    step = start_step
    while True:
        draw = torch.Generator().manual_seed(step)
        yield {"x": torch.randn(8, 10, generator=draw), "y": torch.randint(4, (8,), generator=draw), "step": step}
        step += 1


def loss(model, batch):
    return F.cross_entropy(model(batch["x"], batch["step"]), batch["y"])


def optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


if __name__ == "__main__":
    torch.manual_seed(0)
    model, data = Net(), batches()
    adam = optimizer(model)
    for _ in range(10):
        adam.zero_grad()
        loss(model, next(data)).backward()
        adam.step()
    torch.save({"model": model.state_dict(), "optimizer": adam.state_dict(), "step": 10}, "ckpt.pt")
