"""Marks of a line's height, written by hand: a patient's values over time, a mean with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eagrl_jax.evaluation import drawing


def sparkline(values: Sequence[float | None], hours: Sequence[float], ref_low: float | None,
              ref_high: float | None) -> str:
  """Values over time, with the reference band shaded; the last value is a dot. '' without a value."""
  points = [(h, v) for h, v in zip(hours, values, strict=True) if v is not None and math.isfinite(v)]
  if not points:
    return ''
  seen = [v for _, v in points]
  lo, hi = min(seen), max(seen)
  # A band far wider than the values would flatten them: it may stretch the axis by one range only.
  room = (hi - lo) or abs(hi) * 0.1 or 1.0
  lo, hi = max(lo - room, min(lo, _or(ref_low, lo))), min(hi + room, max(hi, _or(ref_high, hi)))
  t0, t1 = min(hours), max(hours)

  def x(hour: float) -> float:
    return 4 + 112 * (hour - t0) / ((t1 - t0) or 1)

  def y(value: float) -> float:
    return 25 - 22 * (min(max(value, lo), hi) - lo) / ((hi - lo) or 1)

  band = ''
  if ref_low is not None or ref_high is not None:
    top, bottom = y(_or(ref_high, hi)), y(_or(ref_low, lo))
    band = f'<rect class="band" x="0" y="{top:.1f}" width="120" height="{max(bottom - top, 0.5):.1f}"/>'
  line = ' '.join(f'{x(h):.1f},{y(v):.1f}' for h, v in points)
  dots = ''.join(f'<circle class="dot" cx="{x(h):.1f}" cy="{y(v):.1f}" r="1.3"/>' for h, v in points[:-1])
  h, v = points[-1]
  label = f'{len(points)} values from {seen[0]:g} to {seen[-1]:g}'
  return (f'<svg class="spark" viewBox="0 0 120 28" width="120" height="28" role="img" aria-label="{label}">{band}'
          f'<polyline points="{line}"/>{dots}<circle class="last" cx="{x(h):.1f}" cy="{y(v):.1f}" r="2.4"/></svg>')


def interval_bar(mean: float, lo: float, hi: float, arm: str, low: float = 0.0, mark: float | None = None) -> str:
  """A dot with its 95 % interval on an axis from `low` to 1; `mark` is a reference line (chance, prevalence)."""

  def x(value: float) -> float:
    return 3 + 134 * (min(max(value, low), 1.0) - low) / (1 - low)

  tick = '' if mark is None else f'<line class="mark" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="0" y2="18"/>'
  return (f'<svg class="forest" viewBox="0 0 140 18" width="140" height="18" aria-hidden="true" '
          f'style="--arm: var(--{drawing.token(arm)})"><line class="axis" x1="3" x2="137" y1="9" y2="9"/>{tick}'
          f'<line class="ci" x1="{x(lo):.1f}" x2="{x(hi):.1f}" y1="9" y2="9"/>'
          f'<circle cx="{x(mean):.1f}" cy="9" r="3.6"/></svg>')


def _or(value: float | None, default: float) -> float:
  return default if value is None else value
