"""The part of docs/formats.md on log-sum-exp: five logits worked through in each format, naive and stable."""

from __future__ import annotations

from collections.abc import Callable

from figures import off, table, text

from nanhunt.formats.arithmetic import Arithmetic
from nanhunt.formats.catalogue import BF16, E4M3FN, E5M2, FORMATS, FP16, FP32
from nanhunt.formats.log_sum_exp import Stable, exact, naive, stable
from nanhunt.formats.notation import as_typed, value_text
from nanhunt.formats.number_format import NumberFormat, fate

__all__ = ["LOGITS", "SHIFTS", "naive_way", "shifted", "stable_way"]

#: exp() overflows in the narrow formats for the first and underflows for the last, in wide ones neither
LOGITS = (12.0, 11.0, 3.0, -2.0, -90.0)
#: beyond the upper and the lower end of fp32's exp()
SHIFTS = (0.0, 80.0, -120.0)
#: what stands in the tables of worked arithmetic: each format, and FP8 E4M3 under a cast that saturates besides
ROWS = {
    name: arithmetic
    for fmt in FORMATS
    if isinstance(fmt, NumberFormat)
    for name, arithmetic in [
        (fmt.name, Arithmetic(fmt=fmt)),
        (f"{fmt.name}, saturating", Arithmetic(fmt=fmt, saturating=True)),
    ]
    if arithmetic.saturating is None or fmt is E4M3FN
}


def naive_way() -> str:
    """Return log(sum(exp)) worked through in each format."""
    worked = {name: naive(arithmetic, LOGITS) for name, arithmetic in ROWS.items()}
    true = exact(LOGITS)
    table_of_exponentials = table(
        ["format", *(f"exp({as_typed(x)})" for x in LOGITS)],
        [[name, *map(value_text, w.exponentials)] for name, w in worked.items()],
    )
    table_of_sums = table(
        ["format", *(f"+ exp({as_typed(x)})" for x in LOGITS[1:]), "log", "off by"],
        [[name, *map(value_text, (*w.sums[1:], w.result)), off(w.result, true)] for name, w in worked.items()],
    )
    silent = worked["e4m3fn, saturating"]
    return (
        "## Log-sum-exp, as it is written\n\n"
        "log Σ exp(x) stands in every softmax, cross-entropy and log-probability. Take five logits: "
        f"{', '.join(map(as_typed, LOGITS))}. The exact value is {text(true)}. Here each step is done in each format, "
        "and what comes out of a step is stored before the next one. The logits are stored first: a format with few bits "
        f"has no {as_typed(LOGITS[1])} ({text(fate(E5M2, LOGITS[1]).rounded)} in e5m2) and no {as_typed(LOGITS[-1])} "
        f"({text(fate(E5M2, LOGITS[-1]).rounded)} there). Block formats are not here: nobody adds in them, matrix units "
        "multiply their elements and add in fp32.\n\n"
        f"{table_of_exponentials}\n\n"
        f"exp overflows above ln(largest): {text(FP16.exp_limit)} in fp16, {text(BF16.exp_limit)} in bf16, "
        f"{text(FP32.exp_limit)} in fp32. A logit of {as_typed(LOGITS[0])} is enough for fp16. exp({as_typed(LOGITS[-1])}) "
        "is subnormal in fp32 and bf16 and zero in fp16; nobody misses it, as the sum's other terms are larger.\n\n"
        f"{table_of_sums}\n\n"
        "One inf, and the result is inf. bf16 gets through, as wide as fp32; what it loses are the small terms, for "
        f"{text(worked['bf16'].sums[1])} + {text(worked['bf16'].exponentials[2])} is {text(worked['bf16'].sums[2])} in "
        "it. The rows to fear are those that saturate, e4m3fn under such a cast and the formats of six and four bits: no "
        f"inf, no NaN, and a result of {text(silent.result)} that looks like any other. (e8m0fnu is a format of scales: it has no sign and no zero, and nobody adds in it. tf32 is one of "
        "matrix units, which add in fp32; its row shows what its precision would do.)"
    )


def stable_way() -> str:
    """Return max + log(sum(exp(x - max))) worked through in each format."""
    worked = {name: stable(arithmetic, LOGITS) for name, arithmetic in ROWS.items()}
    true = exact(LOGITS)

    def steps(titles: list[str], cells: Callable[[Stable], list[str]]) -> str:
        return table(["format", *titles], [[name, *cells(w)] for name, w in worked.items()])

    differences = steps(["max", *map(as_typed, LOGITS)], lambda w: [text(w.largest), *map(text, w.differences)])
    exponentials = steps([f"of {as_typed(x)}" for x in LOGITS], lambda w: [*map(value_text, w.exponentials)])
    sums = steps(
        [*(f"+ that of {as_typed(x)}" for x in LOGITS[1:]), "log", "max + log", "off by"],
        lambda w: [*map(value_text, (*w.sums[1:], w.logarithm, w.result)), off(w.result, true)],
    )
    return (
        "## Log-sum-exp, the stable way\n\n"
        "Take the largest logit out: max + log Σ exp(x - max). It is the same number, by algebra. First the largest, and "
        f"what is left of each logit without it.\n\n{differences}\n\n"
        f"Then exp of each difference. None is above 1, and one is 1: nothing overflows, and the sum is not zero.\n\n"
        f"{exponentials}\n\nThen the sum, its logarithm, and the largest added again.\n\n{sums}\n\n"
        f"fp16 gets through now, and nothing is further off than half the spacing of its numbers at {as_typed(LOGITS[0])} "
        f"({text(FP16.ulp(LOGITS[0]) / 2)} in fp16, {text(BF16.ulp(LOGITS[0]) / 2)} in bf16, "
        f"{text(E4M3FN.ulp(LOGITS[0]) / 2)} in e4m3fn), save where the largest logit itself could not be stored: what is "
        "spoilt before the first step, no formula mends."
    )


def shifted() -> str:
    """Return both ways for the same logits moved up and down."""
    titles = [
        f"{way}, {as_typed(shift) if shift <= 0 else '+' + as_typed(shift)}"
        for shift in SHIFTS
        for way in ("naive", "stable")
    ]
    rows = [["exact", *(text(exact(moved(shift))) for shift in SHIFTS for _ in range(2))]]
    for name, arithmetic in ROWS.items():
        pairs = [(naive(arithmetic, moved(s)).result, stable(arithmetic, moved(s)).result) for s in SHIFTS]
        rows.append([name, *(text(result) for pair in pairs for result in pair)])
    up, down = SHIFTS[1:]
    return (
        "## The same logits, moved\n\n"
        "A softmax does not change when one number is added to all logits; log Σ exp grows by that number. Only the naive "
        f"way is hurt: {as_typed(up)} more, and fp32 and bf16 overflow as fp16 did; {as_typed(-down)} less, and every exp "
        "is zero, and the log of the sum is -inf. This is why a run in bf16 is not safe from it, and why logits that "
        f"drift break a loss that has worked for weeks.\n\n{table(['format', *titles], rows)}"
    )


def moved(shift: float) -> tuple[float, ...]:
    """Return the five logits, each with `shift` added."""
    return tuple(x + shift for x in LOGITS)
