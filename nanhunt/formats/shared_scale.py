"""What a format loses of numbers that share a scale, once the scale has put the largest of them at the format's end.

How it works. The scale is a power of two, and never makes the largest magnitude overflow: it stands in the format's last
binade, or one lower where its significand is beyond that of the format's largest value (E4M3 ends at 1.75 x 2^8, E2M1
at 1.5 x 2^2). What then happens to an element depends on two things only: how many binades it lies below the largest of
those that it shares the scale with (its depth), and on which side of that significand the largest one is (its class).
So counts by depth and class answer for every such format, and for any mixture of scales.

What is not covered. An element on the very midpoint between zero and the smallest value flushes; depths do not show
that, and count it as subnormal. `stats.blocks` looks at the elements themselves, and is exact there too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from nanhunt.formats.number_format import NumberFormat

__all__ = ["CLASS_TOPS", "DEPTHS", "Lost", "class_of", "depth_limits"]

#: Largest significand of each class of a scale's largest magnitude: the ends of E2M1, of both FP8 formats, and beyond.
CLASS_TOPS = (1.5, 1.75, 2.0)
#: Depths kept apart; what lies deeper is counted with the last one. E5M2 spans 32 binades, the most of those that are
#: used under a scale.
DEPTHS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """How many of some elements a format flushes to zero or stores as subnormal, and what share of energy goes.

    Elements are finite and not zero; energy is the sum of squares. Adding up is exact for counts.
    """

    of: int = 0
    flushed: int = 0
    subnormal: int = 0
    energy: float = 0.0
    flushed_energy: float = 0.0

    def __add__(self, other: Lost) -> Lost:
        """Return what both sets of elements lose, taken as one."""
        return Lost(
            of=self.of + other.of,
            flushed=self.flushed + other.flushed,
            subnormal=self.subnormal + other.subnormal,
            energy=self.energy + other.energy,
            flushed_energy=self.flushed_energy + other.flushed_energy,
        )

    @property
    def flushed_share(self) -> float:
        """Share of the elements that become zero; 0.0 of none."""
        return self.flushed / self.of if self.of else 0.0

    @property
    def subnormal_share(self) -> float:
        """Share of the elements below the smallest normal that do not become zero; 0.0 of none."""
        return self.subnormal / self.of if self.of else 0.0

    @property
    def energy_share(self) -> float:
        """Share of the energy in elements that become zero; 0.0 of no energy, or of one that float64 does not hold."""
        share = self.flushed_energy / self.energy if self.energy else 0.0
        return min(share, 1.0) if math.isfinite(share) else 0.0


def class_of(magnitude: float) -> int:
    """Return the class of a scale's largest magnitude: the first of `CLASS_TOPS` that its significand does not pass."""
    significand = 2.0 * math.frexp(magnitude)[0]
    return next(index for index, top in enumerate(CLASS_TOPS) if significand <= top)


@cache
def depth_limits(fmt: NumberFormat, klass: int) -> tuple[int, int]:
    """Return the first depth that is below the smallest normal and the first that flushes, for a class of scales."""
    largest = 2.0 * math.frexp(fmt.max)[0]
    top = fmt.emax - (CLASS_TOPS[klass] > largest)
    smallest = math.frexp(fmt.smallest)[1] - 1
    return top - fmt.emin + 1, top - smallest + 2
