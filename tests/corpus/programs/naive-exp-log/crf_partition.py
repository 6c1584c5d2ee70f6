"""BiGRU named-entity tagger with a linear-chain CRF; the forward algorithm runs in probability space.

alpha is a product of exp(emission) over the sentence. The bucket of long sentences (contracts) takes it beyond 3.4e38, so that
log Z is inf; in log space it is a few hundred.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "crf",
    "causes": ["naive-exp-log", "activation-overflow"],
    "kind": ["inf", "nan"],
    "step": 27,
    "phase": ["forward"],
    "module": ["crf"],
    "op": ["aten.mul", "aten.bmm", "aten.einsum", "aten.mm"],
    "line": ["alpha = torch.einsum("],
}
CONFIG = {"train": {"steps": 20}}
BEFORE = 18

WORDS, TAGS, LONG_BUCKET = 60, 7, 27


class LinearChain(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.trans = nn.Parameter(torch.randn(k, k) * 0.1)

    def log_z(self, emit):
        if not FAULTY:
            alpha = emit[:, 0]
            for t in range(1, emit.shape[1]):
                alpha = torch.logsumexp(alpha[:, :, None] + self.trans, dim=1) + emit[:, t]
            return alpha.logsumexp(-1)
        alpha, hop = emit[:, 0].exp(), self.trans.exp()
        for t in range(1, emit.shape[1]):
            alpha = torch.einsum("bi,ij->bj", alpha, hop) * emit[:, t].exp()
        return alpha.sum(-1).log()

    def forward(self, emit, tags):
        gold = emit.gather(2, tags[..., None]).sum((1, 2)) + self.trans[tags[:, :-1], tags[:, 1:]].sum(1)
        return self.log_z(emit) - gold


class Tagger(nn.Module):
    def __init__(self, d=24):
        super().__init__()
        self.words = nn.Embedding(WORDS, d)
        self.rnn = nn.GRU(d, d, batch_first=True, bidirectional=True)
        self.emit = nn.Linear(2 * d, TAGS)
        self.crf = LinearChain(TAGS)

    def forward(self, words, tags):
        return self.crf(self.emit(self.rnn(self.words(words))[0]), tags)


def build_model():
    return Tagger()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=2e-2)


KIND = torch.randint(TAGS, (WORDS,), generator=torch.Generator().manual_seed(8))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(6100 + step)
        length = 40 if step == LONG_BUCKET else 8
        words = torch.randint(WORDS, (12, length), generator=g)
        yield {"words": words, "tags": KIND[words]}
        step += 1


def compute_loss(model, batch):
    return (model(batch["words"], batch["tags"]) / batch["words"].shape[1]).mean()
