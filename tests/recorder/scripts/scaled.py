"""fp16 with a scaler, a weighted loss outside of autocast; a weight of step 6 is infinite."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_


def train():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(8):
        for micro in range(2):
            x, y, weight = torch.randn(6, 8), torch.randint(0, 4, (6,)), torch.rand(6)
            if step == 6 and micro == 0:
                weight[2] = float("inf")
            with torch.autocast("cpu", torch.float16):
                logits = model(x)
            loss = (F.cross_entropy(logits.float(), y, reduction="none") * weight).mean()
            scaler.scale(loss / 2).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 1.0, norm_type=1)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


if __name__ == "__main__":
    train()
