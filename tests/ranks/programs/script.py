"""A script of two ranks as they are written: its own function wraps the model; in step 6 an input of rank 1 is zero."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.head = nn.Linear(width, 32), nn.Linear(32, 4)

    def forward(self, x):
        size = x.square().mean(-1, keepdim=True).sqrt()
        return self.head(torch.relu(self.up(x / size)))


def build_model(width):
    model = nn.parallel.DistributedDataParallel(Net(width))
    model.register_comm_hook(None, fp16_compress_hook)
    return model


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(1)
    model = build_model(16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    draw = torch.Generator().manual_seed(10 + dist.get_rank())
    for step in range(8):
        x, y = torch.randn(8, 16, generator=draw), torch.randint(0, 4, (8,), generator=draw)
        if step == 6 and dist.get_rank() == 1:
            x[2] = 0.0
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
