"""Figures of an evaluation, of robustness, of the search and of a case, as inline SVG strings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn import metrics as sk

from eagrl_jax.evaluation import drawing, metrics
from eagrl_jax.evaluation.formats import number

Predictions = Mapping[str, tuple[np.ndarray, np.ndarray]]  # arm -> (label [N], prob [N])


def roc(arms: Predictions, notes: Mapping[str, str]) -> str:
  """ROC curves; `notes` is the text behind an arm's name in the legend (its AUROC and interval)."""
  with mpl.rc_context(drawing.STYLE):
    fig, ax = drawing.axes(316, 390, 'ROC', '1 − specificity (share of negatives)', 'Sensitivity (share of positives)')
    ax.plot([0, 1], [0, 1], color=drawing.COLOURS['muted'], lw=0.8)
    for arm, (label, prob) in arms.items():
      if metrics.undefined(label) is None:
        fpr, tpr, _ = sk.roc_curve(label, prob)
        ax.plot(fpr, tpr, **drawing.look(arm), label=_legend(arm, notes))
    _unit_square(ax)
    drawing.legend_below(fig, ax)
    return drawing.to_svg(fig, 'roc', 'ROC curves of the arms drawn; areas with 95 % intervals in the legend.')


def precision_recall(arms: Predictions, notes: Mapping[str, str]) -> str:
  """Precision–recall curves with the prevalence as a horizontal line."""
  with mpl.rc_context(drawing.STYLE):
    fig, ax = drawing.axes(316, 390, 'Precision–recall', 'Recall (share of positives)', 'Precision')
    for arm, (label, prob) in arms.items():
      if metrics.undefined(label) is None:
        precision, recall, _ = sk.precision_recall_curve(label, prob)
        ax.plot(recall, precision, **drawing.look(arm), drawstyle='steps-post',
                label=_legend(arm, notes))
    prevalence = float(np.mean(next(iter(arms.values()))[0]))
    ax.axhline(prevalence, color=drawing.COLOURS['muted'], lw=0.8, label=f'prevalence {prevalence:.2f}')
    _unit_square(ax)
    drawing.legend_below(fig, ax)
    return drawing.to_svg(
        fig, 'pr', 'Precision-recall curves of the arms drawn; areas with 95 % intervals in the legend.')


def decision(arms: Predictions) -> str:
  """Net benefit over the threshold probability, beside treating everyone and no one."""
  label = next(iter(arms.values()))[0]
  thresholds = np.arange(2, 81) / 100  # the very numbers that policies state
  everyone = metrics.net_benefit(label, np.ones(len(label)), thresholds)
  top = max(float(np.mean(label)), 0.05)
  with mpl.rc_context(drawing.STYLE):
    fig, ax = drawing.axes(316, 390, 'Decision curve', 'Threshold probability', 'Net benefit a patient')
    ax.axhline(0, color=drawing.COLOURS['muted'], lw=0.8)
    ax.plot(thresholds, everyone, color=drawing.COLOURS['muted'], lw=0.8, label='treat everyone (no one: 0)')
    for arm, yp in arms.items():
      ax.plot(thresholds, metrics.net_benefit(*yp, thresholds), **drawing.look(arm),
              label=arm)
    ax.set_xlim(0, 0.8)
    ax.set_ylim(-0.25 * top, 1.05 * top)
    drawing.legend_below(fig, ax)
    return drawing.to_svg(fig, 'decision', 'Net benefit of the arms drawn over the threshold probability.')


def calibration(arms: Predictions, smallest: int = 1) -> str:
  """Observed share of positives against the predicted probability, and below it the patients in each bin.

  Args:
    smallest: bins of fewer patients are left out, see `_not_few`.
  """
  with mpl.rc_context(drawing.STYLE):
    fig = Figure(figsize=(316 / 72, 390 / 72), layout='constrained')
    top, low = fig.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.set(title='Calibration', ylabel='Observed share of positives')
    low.set(xlabel='Predicted probability', ylabel='Patients')
    top.plot([0, 1], [0, 1], color=drawing.COLOURS['muted'], lw=0.8)
    for arm, (label, prob) in arms.items():
      bins = metrics.calibration_bins(label, prob)
      shown = _not_few(bins['count'], smallest)
      bins, patients = {k: v[shown] for k, v in bins.items()}, np.zeros(10)
      patients[bins['bin']] = bins['count']
      top.plot(bins['predicted'], bins['observed'], **drawing.look(arm), lw=1.3, label=arm)
      size = 8 + 90 * bins['count'] / max(len(label), 1)
      top.scatter(bins['predicted'], bins['observed'], s=size, color=drawing.colour(arm), zorder=3, linewidths=0)
      low.stairs(patients, np.linspace(0, 1, 11), **drawing.look(arm), lw=1.3)
    top.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    low.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    drawing.legend_below(fig, top)
    without = f', without bins of fewer than {smallest}' if smallest > 1 else ''
    return drawing.to_svg(fig, 'calibration',
                          f'Calibration curves of the arms drawn, with the number of patients in each bin{without}.')


def _not_few(count: np.ndarray, smallest: int) -> np.ndarray:
  """Which counts may be shown where those below `smallest` must not follow from the total of all. `[K] -> [K]` bool"""
  shown = count >= smallest
  if 0 < count[~shown].sum() < smallest and shown.any():
    shown[np.argmin(np.where(shown, count, np.inf))] = False
  return shown


def robustness(kind: str, title: str, words: str, levels: Sequence[float],
               arms: Mapping[str, Sequence[Mapping]]) -> str:
  """AUROC of every arm over the levels of one perturbation; bars are 95 % intervals, moved apart to be told apart."""
  x, ends = np.asarray(levels, float), []
  with mpl.rc_context(drawing.STYLE):
    fig, ax = drawing.axes(316, 300, title, f'Level ({words})', 'AUROC')
    for i, (arm, found) in enumerate(arms.items()):
      mean, lo, hi = (np.array([math.nan if v.get(k) is None else v[k] for v in found], float)
                      for k in ('mean', 'lo', 'hi'))
      ends.append(f'{arm} {number(mean[0])} unchanged, {number(mean[-1])} at {x[-1]:g}')
      at = x + (i - (len(arms) - 1) / 2) * 0.016 * x[-1]
      ax.vlines(at, lo, hi, color=drawing.colour(arm), lw=1, alpha=0.6)
      ax.plot(at, mean, **drawing.look(arm), marker='o', ms=3.5, label=arm)
    ax.axhline(0.5, color=drawing.COLOURS['muted'], lw=0.8)
    ax.set_xticks(x, [f'{v:g}' for v in x])
    ax.yaxis.set_major_locator(MaxNLocator(5))
    fig.legend(loc='outside lower left', ncols=4, handlelength=2, columnspacing=1, borderaxespad=0.2)
    return drawing.to_svg(fig, f'robustness-{kind}', f'{title}, AUROC by level: {"; ".join(ends)}.')


def rewards(before: Sequence[float], after: Sequence[float]) -> str:
  """Histogram of the reward of all complete trajectories of the search, and of those selected."""
  values, chosen = np.asarray(before, float), np.asarray(after, float)
  edges = np.histogram_bin_edges(np.concatenate([values, chosen]), 24)
  with mpl.rc_context(drawing.STYLE):
    fig, ax = drawing.axes(316, 290, 'Trajectory reward', 'Reward R (ALGORITHM §3)', 'Trajectories')
    for x, name, arm, fill in ((values, 'found by the search', 'base', False), (chosen, 'selected', 'rl', True)):
      mean = f', mean {x.mean():.2f}'.replace('-', '−') if len(x) else ''
      ax.stairs(np.histogram(x, edges)[0], edges, color=drawing.colour(arm), fill=fill, alpha=0.75 if fill else 1,
                lw=1.4, label=f'{name} ({len(x):,}{mean})')
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    drawing.legend_below(fig, ax)
    return drawing.to_svg(fig, 'rewards', 'Reward of the trajectories that the search found and of those selected.')


def paired_bars(names: Sequence[str], salience: Sequence[float], attention: Sequence[float], case: str,
                top: int = 10) -> str:
  """Expert salience beside policy attention for the features with most of either, in percent of their sums.

  Attention without any mass was not read: the answer has no feature list.
  """
  pair = np.array([salience, attention], float)  # [2, F]
  total = pair.sum(1, keepdims=True)
  pair = 100 * pair / np.where(total > 0, total, 1)
  order = np.argsort(-pair.max(0), kind='stable')[:top]
  was_read = total[1, 0] > 0
  y = np.arange(len(order))
  with mpl.rc_context(drawing.STYLE):
    fig, ax = drawing.axes(380, 120 + 26 * len(order), 'Where expert and policy look', 'Share of the total (%)', '')
    ax.barh(y - 0.19, pair[0, order], 0.36, color=drawing.colour('expert'), label='expert salience')
    if was_read:
      ax.barh(y + 0.19, pair[1, order], 0.36, color=drawing.colour('rl'), label='policy attention')
    else:
      ax.plot([], [], ' ', label='policy attention not read: no feature list in its first answer')
    ax.set_yticks(y, [drawing.short(names[i]) for i in order], color=drawing.COLOURS['ink'])
    ax.tick_params(axis='y', length=0)
    ax.grid(False, axis='y')
    ax.invert_yaxis()
    drawing.legend_below(fig, ax)
    if not was_read:
      listed = ', '.join(f'{names[i]} {pair[0, i]:.0f}' for i in order)
      return drawing.to_svg(fig, f'bars-{case}', f'Expert salience, percent; attention was not read: {listed}.')
    listed = ', '.join(f'{names[i]} {pair[0, i]:.0f} against {pair[1, i]:.0f}' for i in order)
    return drawing.to_svg(fig, f'bars-{case}', f'Expert salience against policy attention, percent: {listed}.')


def _legend(arm: str, notes: Mapping[str, str]) -> str:
  return f'{arm}  {notes[arm]}' if arm in notes else arm


def _unit_square(ax: Axes) -> None:
  ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), xticks=np.linspace(0, 1, 6), yticks=np.linspace(0, 1, 6))
