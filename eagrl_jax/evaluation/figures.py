"""Figures as inline SVG strings. Text stays text, colours are CSS variables with a light-mode fallback.

Figures are small (one panel, 316 to 380 pixels wide) so that they read at their own size on a
phone. An arm has one colour and one dash everywhere; neither alone carries the meaning.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn import metrics as sk

from eagrl_jax.evaluation import metrics

# CSS variable -> its light value; the page overrides them in the dark. Contrast to white is at least 3 : 1.
COLOURS = {
    'ink': '#1c2430', 'muted': '#5c6673', 'rule': '#dde1e6', 'base': '#6f7782', 'sft': '#bf6900', 'rl': '#0b62b3',
    'expert': '#00805f', 'oracle': '#1c2431', 'extra0': '#a33b7c', 'extra1': '#7a5c00', 'extra2': '#5a4fcf',
    'extra3': '#b23a2e'}
_DASHES = {'base': (0, (1, 1.2)), 'sft': (0, (5, 1.6)), 'rl': 'solid', 'expert': (0, (6, 1.5, 1.5, 1.5)),
           'oracle': (0, (2, 2))}
_RUNS = ('rl', 'sft', 'expert', 'extra0', 'extra2', 'extra1', 'extra3', 'base')  # colours of runs compared
_STYLE: dict[Any, Any] = {
    'svg.fonttype': 'none', 'svg.hashsalt': 'eagrl', 'text.parse_math': False, 'axes.unicode_minus': True,
    'font.family': 'DejaVu Sans', 'font.size': 10.5, 'axes.titlesize': 12, 'axes.titlelocation': 'left',
    'axes.titleweight': 'bold', 'axes.spines.top': False, 'axes.spines.right': False, 'axes.linewidth': 0.8,
    'axes.edgecolor': COLOURS['muted'], 'axes.labelcolor': COLOURS['muted'], 'axes.titlecolor': COLOURS['ink'],
    'text.color': COLOURS['ink'], 'xtick.color': COLOURS['muted'], 'ytick.color': COLOURS['muted'],
    'axes.grid': True, 'grid.color': COLOURS['rule'], 'grid.linewidth': 0.7, 'axes.axisbelow': True,
    'legend.frameon': False, 'legend.fontsize': 11, 'lines.linewidth': 1.8, 'figure.facecolor': 'none',
    'axes.facecolor': 'none', 'savefig.facecolor': 'none'}

Predictions = Mapping[str, tuple[np.ndarray, np.ndarray]]  # arm -> (label [N], prob [N])


def colour(arm: str) -> str:
  """Light-mode colour of an arm; an arm outside the table keeps one of four extra colours by its name."""
  return COLOURS[token(arm)]


def token(arm: str) -> str:
  """Name of the CSS variable that holds an arm's colour."""
  return arm if arm in _DASHES else f'extra{sum(arm.encode()) % 4}'


def roc(arms: Predictions, notes: Mapping[str, str]) -> str:
  """ROC curves; `notes` is the text behind an arm's name in the legend (its AUROC and interval)."""
  with mpl.rc_context(_STYLE):
    fig, ax = _axes(316, 390, 'ROC', '1 − specificity (share of negatives)', 'Sensitivity (share of positives)')
    ax.plot([0, 1], [0, 1], color=COLOURS['muted'], lw=0.8)
    for arm, (label, prob) in arms.items():
      if metrics.undefined(label) is None:
        fpr, tpr, _ = sk.roc_curve(label, prob)
        ax.plot(fpr, tpr, color=colour(arm), ls=_DASHES.get(arm, 'dashed'), label=_legend(arm, notes))
    _unit_square(ax)
    _legend_below(fig, ax)
    return _svg(fig, 'roc', 'ROC curves of all arms; areas with 95 % intervals in the legend.')


def precision_recall(arms: Predictions, notes: Mapping[str, str]) -> str:
  """Precision–recall curves with the prevalence as a horizontal line."""
  with mpl.rc_context(_STYLE):
    fig, ax = _axes(316, 390, 'Precision–recall', 'Recall (share of positives)', 'Precision')
    for arm, (label, prob) in arms.items():
      if metrics.undefined(label) is None:
        precision, recall, _ = sk.precision_recall_curve(label, prob)
        ax.plot(recall, precision, color=colour(arm), ls=_DASHES.get(arm, 'dashed'), drawstyle='steps-post',
                label=_legend(arm, notes))
    prevalence = float(np.mean(next(iter(arms.values()))[0]))
    ax.axhline(prevalence, color=COLOURS['muted'], lw=0.8, label=f'prevalence {prevalence:.2f}')
    _unit_square(ax)
    _legend_below(fig, ax)
    return _svg(fig, 'pr', 'Precision-recall curves of all arms; areas with 95 % intervals in the legend.')


def decision(arms: Predictions) -> str:
  """Net benefit over the threshold probability, beside treating everyone and no one."""
  label = next(iter(arms.values()))[0]
  thresholds = np.linspace(0.02, 0.8, 79)
  everyone = metrics.net_benefit(label, np.ones(len(label)), thresholds)
  top = max(float(np.mean(label)), 0.05)
  with mpl.rc_context(_STYLE):
    fig, ax = _axes(316, 390, 'Decision curve', 'Threshold probability', 'Net benefit a patient')
    ax.axhline(0, color=COLOURS['muted'], lw=0.8)
    ax.plot(thresholds, everyone, color=COLOURS['muted'], lw=0.8, label='treat everyone (no one: 0)')
    for arm, yp in arms.items():
      ax.plot(thresholds, metrics.net_benefit(*yp, thresholds), color=colour(arm), ls=_DASHES.get(arm, 'dashed'),
              label=arm)
    ax.set_xlim(0, 0.8)
    ax.set_ylim(-0.25 * top, 1.05 * top)
    _legend_below(fig, ax)
    return _svg(fig, 'decision', 'Net benefit of every arm over the threshold probability.')


def calibration(arms: Predictions) -> str:
  """Observed share of positives against the predicted probability, and below it the patients in each bin."""
  with mpl.rc_context(_STYLE):
    fig = Figure(figsize=(316 / 72, 390 / 72), layout='constrained')
    top, low = fig.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.set(title='Calibration', ylabel='Observed share of positives')
    low.set(xlabel='Predicted probability', ylabel='Patients')
    top.plot([0, 1], [0, 1], color=COLOURS['muted'], lw=0.8)
    edges = np.linspace(0, 1, 11)
    for arm, (label, prob) in arms.items():
      bins = metrics.calibration_bins(label, prob)
      top.plot(bins['predicted'], bins['observed'], color=colour(arm), ls=_DASHES.get(arm, 'dashed'), lw=1.3, label=arm)
      size = 8 + 90 * bins['count'] / max(len(label), 1)
      top.scatter(bins['predicted'], bins['observed'], s=size, color=colour(arm), zorder=3, linewidths=0)
      low.stairs(np.histogram(prob, edges)[0], edges, color=colour(arm), ls=_DASHES.get(arm, 'dashed'), lw=1.3)
    top.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    low.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    _legend_below(fig, top)
    return _svg(fig, 'calibration', 'Calibration curves of all arms, with the number of patients in each bin.')


def learning_curves(rows: Sequence[Mapping], stage: str) -> list[tuple[str, str]]:
  """One figure for each numeric metric of a stage's metrics.jsonl: (metric, svg).

  Rows are {'step': …, '<metric>': …}; of several rows with one step (after a resume) the last
  counts. The thin line is the raw series, the thick one a centred moving mean.
  """
  return [(name, _curve(points, stage, name)) for name, points in _series(rows).items() if len(points) > 1]


def overlaid(logs: Mapping[str, Sequence[Mapping]], stage: str) -> list[tuple[str, str]]:
  """Learning curves of several runs over each other: a figure for each metric that two of them log, centred means."""
  series = {run: {m: p for m, p in _series(rows).items() if len(p) > 1} for run, rows in logs.items()}
  names = dict.fromkeys(m for found in series.values() for m in found)
  having = {m: {run: found[m] for run, found in series.items() if m in found} for m in names}
  return [(m, _overlay(runs, list(logs), stage, m)) for m, runs in having.items() if len(runs) > 1]


def run_token(i: int) -> str:
  """Name of the CSS variable of the i-th run of a comparison."""
  return _RUNS[i % len(_RUNS)]


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
  with mpl.rc_context(_STYLE):
    fig, ax = _axes(316, 230, f'{stage} · {name}', 'Step', '')
    said = []
    for run, points in runs.items():
      step, _, smooth, _ = _smoothed(points)
      thin = slice(None, None, max(1, len(step) // 400))
      i = order.index(run)
      ax.plot(step[thin], smooth[thin], color=COLOURS[run_token(i)], ls=('solid', 'dashed', 'dashdot', 'dotted')[i % 4],
              marker='o' if len(step) < 12 else None, ms=3, label=_short(run, 40))
      said.append(f'{run} {smooth[0]:.3g} to {smooth[-1]:.3g}')
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    _legend_below(fig, ax)
    return _svg(fig, f'compare-{stage}-{name}', f'{stage}: {name}, first to last: {"; ".join(said)}.')


def _curve(points: Mapping[float, float], stage: str, name: str) -> str:
  step, value, smooth, width = _smoothed(points)
  thin = slice(None, None, max(1, len(value) // 400))
  with mpl.rc_context(_STYLE):
    fig, ax = _axes(316, 200, f'{stage} · {name}', 'Step', '')
    if width > 1:
      ax.plot(step[thin], value[thin], color=colour(stage), alpha=0.3, lw=0.8)
    ax.plot(step[thin], smooth[thin], color=colour(stage), marker='o' if len(value) < 12 else None, ms=3)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    label = f'{stage}: {name} from {value[0]:.3g} at step {step[0]:g} to {value[-1]:.3g} at step {step[-1]:g}.'
    return _svg(fig, f'{stage}-{name}', label)


def robustness(kind: str, title: str, words: str, levels: Sequence[float],
               arms: Mapping[str, Sequence[Mapping]]) -> str:
  """AUROC of every arm over the levels of one perturbation; bars are 95 % intervals, moved apart to be told apart."""
  x = np.asarray(levels, float)
  with mpl.rc_context(_STYLE):
    fig, ax = _axes(316, 300, title, f'Level ({words})', 'AUROC')
    for i, (arm, found) in enumerate(arms.items()):
      mean, lo, hi = (np.array([math.nan if v.get(k) is None else v[k] for v in found], float)
                      for k in ('mean', 'lo', 'hi'))
      at = x + (i - (len(arms) - 1) / 2) * 0.016 * x[-1]
      ax.vlines(at, lo, hi, color=colour(arm), lw=1, alpha=0.6)
      ax.plot(at, mean, color=colour(arm), ls=_DASHES.get(arm, 'dashed'), marker='o', ms=3.5, label=arm)
    ax.axhline(0.5, color=COLOURS['muted'], lw=0.8)
    ax.set_xticks(x, [f'{v:g}' for v in x])
    ax.yaxis.set_major_locator(MaxNLocator(5))
    fig.legend(loc='outside lower left', ncols=4, handlelength=2, columnspacing=1, borderaxespad=0.2)
    said = '; '.join(f'{arm} {found[0].get("mean", math.nan):.3f} unchanged, {found[-1].get("mean", math.nan):.3f} at '
                     f'{x[-1]:g}' for arm, found in arms.items())
    return _svg(fig, f'robustness-{kind}', f'{title}, AUROC by level: {said}.')


def rewards(before: Sequence[float], after: Sequence[float]) -> str:
  """Histogram of the reward of all complete trajectories of the search, and of those selected."""
  values, chosen = np.asarray(before, float), np.asarray(after, float)
  edges = np.histogram_bin_edges(np.concatenate([values, chosen]), 24)
  with mpl.rc_context(_STYLE):
    fig, ax = _axes(316, 290, 'Trajectory reward', 'Reward R (ALGORITHM §3)', 'Trajectories')
    for x, name, arm, fill in ((values, 'found by the search', 'base', False), (chosen, 'selected', 'rl', True)):
      mean = f', mean {x.mean():.2f}'.replace('-', '−') if len(x) else ''
      ax.stairs(np.histogram(x, edges)[0], edges, color=colour(arm), fill=fill, alpha=0.75 if fill else 1, lw=1.4,
                label=f'{name} ({len(x):,}{mean})')
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    _legend_below(fig, ax)
    return _svg(fig, 'rewards', 'Reward of the trajectories that the search found and of those selected.')


def paired_bars(names: Sequence[str], salience: Sequence[float], attention: Sequence[float], case: str,
                top: int = 10) -> str:
  """Expert salience beside policy attention for the features with most of either, in percent of their sums."""
  pair = np.array([salience, attention], float)  # [2, F]
  total = pair.sum(1, keepdims=True)
  pair = 100 * pair / np.where(total > 0, total, 1)
  order = np.argsort(-pair.max(0), kind='stable')[:top]
  y = np.arange(len(order))
  with mpl.rc_context(_STYLE):
    fig, ax = _axes(380, 120 + 26 * len(order), 'Where expert and policy look', 'Share of the total (%)', '')
    ax.barh(y - 0.19, pair[0, order], 0.36, color=colour('expert'), label='expert salience')
    ax.barh(y + 0.19, pair[1, order], 0.36, color=colour('rl'), label='policy attention')
    ax.set_yticks(y, [_short(names[i]) for i in order], color=COLOURS['ink'])
    ax.tick_params(axis='y', length=0)
    ax.grid(False, axis='y')
    ax.invert_yaxis()
    _legend_below(fig, ax)
    listed = ', '.join(f'{names[i]} {pair[0, i]:.0f} against {pair[1, i]:.0f}' for i in order)
    return _svg(fig, f'bars-{case}', f'Expert salience against policy attention, percent: {listed}.')


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
          f'style="--arm: var(--{token(arm)})"><line class="axis" x1="3" x2="137" y1="9" y2="9"/>{tick}'
          f'<line class="ci" x1="{x(lo):.1f}" x2="{x(hi):.1f}" y1="9" y2="9"/>'
          f'<circle cx="{x(mean):.1f}" cy="9" r="3.6"/></svg>')


def _or(value: float | None, default: float) -> float:
  return default if value is None else value


def _short(name: str, limit: int = 26) -> str:
  return name if len(name) <= limit else name[:limit - 1] + '…'


def _legend(arm: str, notes: Mapping[str, str]) -> str:
  return f'{arm}  {notes[arm]}' if arm in notes else arm


def _axes(width: float, height: float, title: str, x: str, y: str) -> tuple[Figure, Axes]:
  fig = Figure(figsize=(width / 72, height / 72), layout='constrained')
  ax = fig.subplots()
  ax.set(title=title, xlabel=x, ylabel=y)
  return fig, ax


def _unit_square(ax: Axes) -> None:
  ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), xticks=np.linspace(0, 1, 6), yticks=np.linspace(0, 1, 6))


def _legend_below(fig: Figure, ax: Axes) -> None:
  handles, labels = ax.get_legend_handles_labels()
  if handles:
    fig.legend(handles, labels, loc='outside lower left', ncols=1 if max(map(len, labels)) > 12 else 3,
               handlelength=2.8, borderaxespad=0.2)


def _svg(fig: Figure, name: str, label: str) -> str:
  """The figure as one <svg> element: own id space, themable colours, accessible name, fluid width."""
  buffer = io.StringIO()
  fig.savefig(buffer, format='svg', metadata={'Date': None, 'Creator': None, 'Format': None, 'Type': None})
  text = buffer.getvalue()
  text = text[text.index('<svg'):]
  # The renderer's own <style> would apply to the whole page.
  text = re.sub(r'<metadata>.*?</metadata>|<style.*?</style>', '', text, flags=re.S)
  prefix = re.sub(r'\W+', '-', f'fig-{name}')
  text = re.sub(r'\bid="', f'id="{prefix}-', text)
  text = re.sub(r'url\(#', f'url(#{prefix}-', text)
  text = re.sub(r'xlink:href="#', f'href="#{prefix}-', text)
  for variable, value in COLOURS.items():
    text = text.replace(value, f'var(--{variable}, {value})')
  width, height = (fig.get_size_inches() * 72).round().astype(int)
  head = (f'<svg class="figure" role="img" aria-label="{html.escape(label)}" viewBox="0 0 {width} {height}" '
          f'width="{width}" height="{height}" xmlns="http://www.w3.org/2000/svg">')
  return head + text[text.index('>') + 1:].strip()
