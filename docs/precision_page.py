"""Makes docs/precision.md: the precision recipes, what each sets, how they are emulated, and what a replay tells of them."""

from __future__ import annotations

from figures import table

from nanhunt.recipes.catalogue import RECIPES
from nanhunt.recipes.recipe import Operand, Recipe

__all__ = ["precision_page"]

HEAD = """\
# Precision recipes

What would this run do in FP8? `nanhunt replay ckpt.pt --precision fp8-hybrid` replays its steps so, from a checkpoint of any
precision, and the report says what became of them: the loss and the gradient beside those of fp32 from the same weights and
batch, the first operand of a product that lost more than rounding can lose, and the worst of the others. Where the recipe
breaks the run, the hunt goes on as with any fault, and tries it without the recipe, with other scales, with a module left out.

```
precision  fp8-delayed: products with 3 weights
  step 60: loss 0.0004267, in fp32 0.0003915; gradient 21 % off, cosine 0.9878
  step 71: loss 1.308, in fp32 0.0003392; gradient 2676 % off, cosine 0.0399
  breaks   step 70, the input of down.weight: 100 % of its norm lost in e4m3fn, where rounding
           loses less than 12 %; 0.2 % cut off at the end
```

In `nanhunt.yaml` a recipe stands under `precision.recipe`: a name, names joined by `+`, or
`{name: fp8-delayed, skip: [lm_head, "*.gate"], amax_history: 16, margin: 1}`. `--precision` takes its place, and keeps its
`skip`. A recipe sets what its row says and leaves the rest of `precision:` as it is.
"""

TAIL = """\
## How they are emulated

**Products.** A product of an activation with a weight, and the two of its backward pass, take rounded operands: out = x Wᵀ,
dx = dy W, dW = dyᵀ x. Each operand is rounded from its own precision, anew for each product, along the dimension that is
summed over. A `TorchDispatchMode` below autograd does so, whatever called the product: `nn.Linear`, `@`, `einsum`, a
checkpointed block. A weight is a parameter or a cast of one: what is computed from parameters (weight norm, a merged
adapter, `W / s`) is not known for one, and its products stay as they are. Rounded operands are multiplied in fp32; where a GPU has FP8 matrix units, a tensor has one scale and the
sizes are multiples of 16, `torch._scaled_mm` multiplies them. Attention's own products, convolutions and embeddings stay as
they are.

**Rounding** is to nearest, ties to even, bit for bit as ml_dtypes rounds, on any version of torch. Finite values beyond the
end saturate, as FP8 units cast. An infinity becomes NaN, where a unit would make 448 of it and hide it.

**Scales.** A scale in fp32 is the format's largest number over the amax. `mxfp8` rounds the power of two so that no amax is cut
off; `mxfp4` has OCP's rule, which cuts off up to a quarter of it. A delayed scale is made for the largest amax of the last
`amax_history` steps, `margin` binades left free; an operand without a history is scaled by its own amax. Histories and the
generator of lots are part of a snapshot: a step that is run again is the same.

**Storage.** `bf16-no-master` computes the update in fp32, with moments in fp32, and rounds it into bf16 weights; `stochastic`
rounds by lot there and in bf16 moments. `states-8bit` has the dynamic codes of 8-bit optimizers, a scale for 256 elements,
and leaves moments of fewer than 4096 elements alone, as those do.

**A loop of your own** (`train_step`) keeps its own autocast and scaler; products, moments and weights are emulated in it too.

## What it cannot show

- Sums inside of matrix units are in fp32 here; H100's keep some 14 bits.
- Kernels of a real FP8 library fuse and order their sums in other ways: the rounding of the rest differs.
- A faster step: emulation is slower than what it emulates.

## What is measured

On recorded steps each operand leaves four scalars in the trace, named `weight.input.flushed` and so on: `flushed`, the share of
its non-zero elements that became zero; `saturated`, the share that was cut off at the end; `error`, the norm of what was lost
over its norm; `rows`, the share of its rows that lost half of theirs. It is broken where the error passes an ulp, which
rounding cannot, or where a tenth of an input's or a weight's rows or elements are lost (in 4 bits nine tenths of the elements):
one outlier that sets the scale of all loses little of the norm and every other row, one outlying channel every other element.
"""


def precision_page() -> str:
    """Return the page."""
    rows = [[f"`{recipe.name}`", recipe.title, *_products(recipe)] for recipe in RECIPES]
    listing = table(["recipe", "what it sets", "inputs", "weights", "gradients"], rows)
    return "\n\n".join([HEAD.strip(), "## The recipes", listing, TAIL.strip()]) + "\n"


def _products(recipe: Recipe) -> list[str]:
    products = recipe.products
    if products is None:
        return ["", "", ""]
    return [_operand(operand) for operand in (products.input, products.weight, products.gradient)]


def _operand(operand: Operand) -> str:
    block = "tensor" if operand.block == "tensor" else f"{operand.block[0]}×{operand.block[1]}"
    return f"{operand.format}, {block}"
