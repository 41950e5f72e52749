"""Learning curves of a stage, and of several runs over each other."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import MaxNLocator

from eagrl_jax.evaluation import drawing

FIRST = ('validation_', 'reward', 'loss')  # what a stage is for; a report folds all but six away


def learning_curves(rows: Sequence[Mapping], stage: str) -> list[tuple[str, str]]:
  """One figure for each numeric metric of a stage's metrics.jsonl: (metric, svg).

  Rows are {'step': …, '<metric>': …}; of several rows with one step (after a resume) the last
  counts. The thin line is the raw series, the thick one a centred moving mean. `FIRST` come first.
  """
  series = {name: points for name, points in _series(rows).items() if len(points) > 1}
  order = sorted(series, key=lambda name: not name.startswith(FIRST))  # otherwise as they are logged
  return [(name, _curve(series[name], stage, name)) for name in order]


def overlaid(logs: Mapping[str, Sequence[Mapping]], stage: str) -> list[tuple[str, str]]:
  """Learning curves of several runs over each other: a figure for each metric that two of them log, centred means."""
  series = {run: {m: p for m, p in _series(rows).items() if len(p) > 1} for run, rows in logs.items()}
  names = dict.fromkeys(m for found in series.values() for m in found)
  having = {m: {run: found[m] for run, found in series.items() if m in found} for m in names}
  return [(m, _overlay(runs, list(logs), stage, m)) for m, runs in having.items() if len(runs) > 1]


def _series(rows: Sequence[Mapping]) -> dict[str, dict[float, float]]:
  """{metric: {step: value}} of the numeric ones; of several rows with one step the last counts."""
  series: dict[str, dict[float, float]] = {}
  for row in rows:
    for name, value in row.items():
      if name != 'step' and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        series.setdefault(name, {})[float(row.get('step', 0))] = float(value)
  return {name: found for name, found in series.items() if not re.fullmatch(r'time|wall_?time|timestamp|epoch', name)}


def _smoothed(points: Mapping[float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
  """Steps, values, their centred moving mean and its width."""
  step = np.array(sorted(points))
  value = np.array([points[s] for s in step])
  width = max(1, len(value) // 20) | 1
  kernel = np.ones(width)
  return step, value, np.convolve(value, kernel, 'same') / np.convolve(np.ones_like(value), kernel, 'same'), width


def _overlay(runs: Mapping[str, Mapping[float, float]], order: Sequence[str], stage: str, name: str) -> str:
  with mpl.rc_context(drawing.STYLE):
    fig, ax = drawing.axes(316, 230, f'{stage} · {name}', 'Step', '')
    said = []
    for run, points in runs.items():
      step, _, smooth, _ = _smoothed(points)
      thin = slice(None, None, max(1, len(step) // 400))
      i = order.index(run)
      ax.plot(step[thin], smooth[thin], color=drawing.COLOURS[drawing.run_token(i)],
              ls=('solid', 'dashed', 'dashdot', 'dotted')[i % 4], marker='o' if len(step) < 12 else None, ms=3,
              label=drawing.short(run, 40))
      said.append(f'{run} {smooth[0]:.3g} to {smooth[-1]:.3g}')
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    drawing.legend_below(fig, ax)
    return drawing.to_svg(fig, f'compare-{stage}-{name}', f'{stage}: {name}, first to last: {"; ".join(said)}.')


def _curve(points: Mapping[float, float], stage: str, name: str) -> str:
  step, value, smooth, width = _smoothed(points)
  thin = slice(None, None, max(1, len(value) // 400))
  with mpl.rc_context(drawing.STYLE):
    fig, ax = drawing.axes(316, 200, f'{stage} · {name}', 'Step', '')
    if width > 1:
      ax.plot(step[thin], value[thin], color=drawing.colour(stage), alpha=0.3, lw=0.8)
    ax.plot(step[thin], smooth[thin], color=drawing.colour(stage), marker='o' if len(value) < 12 else None, ms=3)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    label = f'{stage}: {name} from {value[0]:.3g} at step {step[0]:g} to {value[-1]:.3g} at step {step[-1]:g}.'
    return drawing.to_svg(fig, f'{stage}-{name}', label)
