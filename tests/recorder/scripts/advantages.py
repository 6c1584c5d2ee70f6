"""A policy whose advantages are divided by the spread of each group's rewards; in step 7 a group's are all the same."""

import torch
import torch.nn.functional as F
from torch import nn


def normalised(reward):
    return (reward - reward.mean(1, keepdim=True)) / reward.std(1, keepdim=True)


def main():
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    draw = torch.Generator().manual_seed(1)
    for step in range(10):
        state = torch.randn(12, 6, generator=draw)
        action = torch.randint(4, (12,), generator=draw)
        reward = torch.rand(3, 4, generator=draw)
        if step == 7:
            reward[1] = 1.0
        adv = normalised(reward).view(-1)
        chosen = -F.cross_entropy(policy(state), action, reduction="none")
        loss = -(chosen * adv).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    main()
