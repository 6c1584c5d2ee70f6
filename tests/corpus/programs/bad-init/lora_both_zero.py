"""LoRA fine-tuning of a pretrained text classifier: both factors of the adapters start at zero.

B is zero by design; A was created on the meta device and filled with zeros by `to_empty` and `zero_`. Each factor's
gradient is a product with the other, so both stay zero for ever.
Source: construction, after reports of LoRA weights that stay zero.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["bad-init"],
    "kind": ["stall"],
    "step": (0, 39),
    "module": ["layers.*", "head"],
    "parameter": ["*.lora_a", "*.lora_b"],
    "samples": [],
}
CONFIG = {"train": {"steps": 40}}

VOCAB, DIM, CLASSES = 50, 32, 4


class LoRALinear(nn.Module):
    def __init__(self, base, rank=4, alpha=8.0):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.zeros(rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scaling = alpha / rank
        if not FAULTY:
            nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)

    def forward(self, x):
        return self.base(x) + self.scaling * (x @ self.lora_a.T @ self.lora_b.T)


class Classifier(nn.Module):
    """Mean of the embeddings, and an MLP."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(VOCAB, DIM)
        self.layers = nn.ModuleList([nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)])
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, ids):
        x = self.emb(ids).mean(1) * ids.shape[1] ** 0.5
        for layer in self.layers:
            x = x + F.gelu(layer(x))
        return self.head(x)


def build_model():
    model = Classifier()
    model.requires_grad_(False)
    for i, layer in enumerate(model.layers):
        model.layers[i] = LoRALinear(layer)
    model.head = LoRALinear(model.head)
    return model


def make_optimizer(model):
    return torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2, weight_decay=0.0)


def batches(start_step=0, task=1):
    step = start_step
    lean = torch.randn(VOCAB, CLASSES, generator=torch.Generator().manual_seed(task))
    while True:
        g = torch.Generator().manual_seed(900 * task + step)
        ids = torch.randint(VOCAB, (64, 10), generator=g)
        yield ids, lean[ids].sum(1).argmax(-1)
        step += 1


def compute_loss(model, batch):
    ids, label = batch
    return F.cross_entropy(model(ids), label)


def make_checkpoint(train):
    """Pretraining on another task, then the adapters are put in and saved before the first step."""
    torch.manual_seed(0)
    base = train.Classifier()
    opt = torch.optim.Adam(base.parameters(), lr=5e-3)
    for _, batch in zip(range(60), train.batches(task=2)):
        opt.zero_grad()
        train.compute_loss(base, batch).backward()
        opt.step()
    model = train.build_model()
    weights = {
        k.replace("layers.0.", "layers.0.base.").replace("layers.1.", "layers.1.base."): v
        for k, v in base.state_dict().items()
    }
    weights = {k.replace("head.", "head.base."): v for k, v in weights.items()}
    model.load_state_dict(weights, strict=False)
    return {"model": model.state_dict(), "step": 0}
