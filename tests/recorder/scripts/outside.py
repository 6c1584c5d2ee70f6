"""Trains as soon as it is imported; the loss is made outside of the model; a pixel of step 7 is NaN. Ends with exit code 3."""

import sys

import torch
from torch import nn

torch.manual_seed(0)
WIDTH = int(sys.argv[1])
CLASSES = len(set("abcd"))


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(8, width), nn.Linear(width, CLASSES), nn.Dropout(0.2)

    def forward(self, x):
        return self.down(self.drop(torch.relu(self.up(x))))


model = Net(WIDTH)
model.down = nn.Linear(WIDTH, CLASSES + 1)  # behind the constructor's back
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.AdamW(
    [
        {"params": [model.up.weight, model.down.weight]},
        {"params": [model.up.bias, model.down.bias], "weight_decay": 0.0},
    ],
    lr=1e-2,
)
for step in range(10):
    x, y = torch.randn(16, 8), torch.randint(0, CLASSES, (16,))
    if step == 7:
        x[3, 2] = float("nan")
    logits = model(x)
    logits[:, 0] += 0.1
    loss = criterion(logits.float() * 1.5, y) + 1e-3 * sum(p.square().sum() for p in model.parameters())
    accuracy = (logits.argmax(1) == y).float().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item(), accuracy.item())
print(sys.argv, sys.path[0], __name__)
torch.save(model, "model.pt")
sys.exit(3)
