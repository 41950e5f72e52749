"""Numbers that stand for a missing value although no spec lists them: frequent, at an end, and far from all others.

One that is written like a code (-1, 99, 888, -999) or is negative where all others are not is taken for one; one that
is both need not be far away, for the range of a skewed laboratory value is wider than that. Any other such value is
kept and counted: it may be an assay's limit.
"""

from __future__ import annotations

from collections.abc import Sequence

CODE, ODD = 'looks like a code for missing', 'frequent and far from all others, kept; is it a code for missing'
EDGES = 4  # distinct values at either end that are looked at
_SHARE = 0.05
_CODES = frozenset([-1.0, *(sign * float(str(digit) * n) for digit in (7, 8, 9) for n in range(1, 6)
                            for sign in (-1, 1) if n > 1 or sign < 0)])

Edge = tuple[float, int]  # a distinct value and how often it occurs


def suspected(low: Sequence[Edge], high: Sequence[Edge], total: int) -> tuple[list[float], list[float]]:
  """Codes and values that are odd, of one feature.

  Args:
    low, high: the smallest distinct values, ascending, and the largest, descending; up to `EDGES` each.
    total: values in all.
  """
  codes: list[float] = []
  odd: list[float] = []
  ends, found = [list(low), list(high)], True
  while found:
    found, odd = False, []
    for side, other in ((0, 1), (1, 0)):
      if len(ends[side]) < 2 or not ends[other]:
        continue
      (value, count), nearest, furthest = ends[side][0], ends[side][1][0], ends[other][0][0]
      negative = value < 0 <= min(nearest, furthest)
      far = abs(nearest - value) > abs(furthest - nearest) > 0
      if count < _SHARE * total or not (far or (negative and value in _CODES and nearest != furthest)):
        continue
      if value in _CODES or negative:
        codes.append(value)
        del ends[side][0]
        found = True
      else:
        odd.append(value)
  return codes, odd
