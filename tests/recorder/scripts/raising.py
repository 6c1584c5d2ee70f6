"""In step 4 a label is none of the loss function's."""

import torch
from torch import nn


def train():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    criterion = nn.CrossEntropyLoss()
    for step in range(6):
        x, y = torch.randint(0, 10, (4,)), torch.randint(0, 2, (4,))
        if step == 4:
            y[1] = 5
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()


if __name__ == "__main__":
    train()
