"""Figures: well-formed SVG that says what the numbers say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from eagrl_jax.evaluation import drawing, figures, learning, marks

SVG = '{http://www.w3.org/2000/svg}'


@pytest.fixture(scope='module')
def arms():
  rng = np.random.default_rng(0)
  label = (rng.random(80) < 0.25).astype(float)
  return {'base': (label, rng.random(80)), 'rl': (label, np.clip(0.3 + 0.4 * label + rng.normal(0, 0.2, 80), 0, 1))}


def texts(svg: str) -> list[str]:
  return [''.join(node.itertext()) for node in ET.fromstring(svg).iter(f'{SVG}text')]


def test_curves_carry_titles_axes_intervals_and_prevalence(arms):
  roc = texts(figures.roc(arms, {'rl': '0.91 (0.85–0.96)'}))
  assert {'ROC', 'base', 'rl  0.91 (0.85–0.96)'} <= set(roc) and any('Sensitivity' in t for t in roc)
  pr = texts(figures.precision_recall(arms, {}))
  assert f'prevalence {arms["rl"][0].mean():.2f}' in pr and 'Recall (share of positives)' in pr
  assert {'Calibration', 'Patients', 'Predicted probability'} <= set(texts(figures.calibration(arms)))


def bars(svg: str) -> list[float]:
  """Heights of the ten bars of the calibration figure's histogram, in units of the page."""
  steps = [p.get('d') for p in ET.fromstring(svg).iter(f'{SVG}path') if p.get('d', '').count('L') == 20 + 1]
  assert len(steps) == 1
  corners = np.array(re.findall(r'[ML] ([-\d.]+) ([-\d.]+)', steps[0]), float)
  return (corners[0, 1] - corners[1:-1:2, 1]).tolist()


def test_bars_of_the_calibration_figure_are_the_patients_of_its_dots():
  """.3, .6 and .7 open their bins, whatever ten times them is in floating point."""
  prob = np.repeat([0.3, 0.6, 0.7], [1, 2, 3])
  height = np.array(bars(figures.calibration({'rl': (np.arange(6) % 2, prob)})))
  np.testing.assert_allclose(height / height[3], [0, 0, 0, 1, 0, 0, 2, 3, 0, 0], atol=1e-3)


def test_bins_of_a_few_patients_are_left_out_and_do_not_follow_from_the_rest():
  shown = lambda *counts: figures._not_few(np.array(counts), 10).tolist()
  assert shown(40, 10, 25) == [True, True, True]
  assert shown(40, 3, 25) == [True, False, False]  # 3 would be what 65 of 68 leave
  assert shown(40, 3, 7) == [True, False, False]
  assert shown(3, 9) == [False, False] and shown(0 + 5) == [False]
  prob = np.repeat([0.05, 0.35, 0.65, 0.95], [40, 1, 12, 30])
  few, whole = (figures.calibration({'rl': (np.arange(83) % 2, prob)}, n) for n in (10, 1))
  assert np.flatnonzero(bars(few)).tolist() == [0, 9] and np.flatnonzero(bars(whole)).tolist() == [0, 3, 6, 9]
  assert [svg.count('fill: var(--rl') for svg in (few, whole)] == [2, 4]  # the dots
  assert 'without bins of fewer than 10' in few and 'without' not in whole


def test_one_class_arm_has_no_curve_and_does_not_fail():
  svg = figures.roc({'rl': (np.zeros(3), np.array([0.1, 0.2, 0.3]))}, {'rl': '–'})
  assert 'rl  –' not in texts(svg)


def test_an_undefined_auroc_leaves_a_gap_in_the_robustness_figure():
  at = lambda mean: {'mean': mean, 'lo': mean, 'hi': mean}
  svg = figures.robustness('drop', 'Features left out', 'share', [0.0, 0.5],
                           {'rl': [at(0.8), at(None)], 'base': [{}, {}]})
  assert 'rl 0.800 unchanged, – at 0.5; base – unchanged, – at 0.5' in svg


def test_svg_is_deterministic_themable_and_inline(arms):
  svg = figures.calibration(arms)
  assert svg == figures.calibration(arms)
  assert svg.startswith('<svg') and 'var(--rl, #0b62b3)' in svg and 'var(--base' in svg
  assert not re.search(r'<style|<metadata|<\?xml|https?://(?!www\.w3\.org)', svg)
  ids = re.findall(r'\bid="([^"]+)"', svg)
  assert len(ids) == len(set(ids)) and all(i.startswith('fig-calibration-') for i in ids)
  assert set(re.findall(r'(?:url\(|href=")#([^")]+)', svg)) <= set(ids)


def test_every_colour_is_distinct_and_visible_on_white():
  assert len(set(drawing.COLOURS.values())) == len(drawing.COLOURS)
  for name, value in drawing.COLOURS.items():
    channel = [int(value[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channel]
    contrast = 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
    assert contrast >= 3 or name == 'rule', name


def test_learning_curves_one_a_metric_last_row_of_a_step_counts():
  rows = [{'step': s, 'loss': 10.0 - s, 'time': 1.0, 'flag': True, 'names': ['a']} for s in range(5)]
  rows += [{'step': 4, 'loss': 2.5}, {'step': 4, 'val': 0.5}, {'step': 2, 'val': float('nan')}]
  curves = dict(learning.learning_curves(rows, 'rl'))
  assert list(curves) == ['loss']  # val has one finite point
  assert 'aria-label="rl: loss from 10 at step 0 to 2.5 at step 4."' in curves['loss']
  assert 'rl · loss' in texts(curves['loss'])
  assert learning.learning_curves([], 'rl') == []
  logged = [{'step': s, 'entropy': 1.0, 'reward': 2.0, 'kl': 3.0, 'validation_auroc': 4.0} for s in range(3)]
  assert [name for name, _ in learning.learning_curves(logged, 'rl')] == ['reward', 'validation_auroc', 'entropy', 'kl']


def test_smoothing_does_not_bend_a_constant_series_at_its_ends():
  svg = dict(learning.learning_curves([{'step': s, 'x': 3.0} for s in range(100)], 'sft'))['x']
  line = max(ET.fromstring(svg).iter(f'{SVG}path'), key=lambda p: 'stroke-width: 1.8' in p.get('style', ''))
  heights = {pair.split()[1] for pair in re.findall(r'[ML] ([\d.]+ [\d.]+)', line.get('d'))}
  assert len(heights) == 1


def test_rewards_and_bars_print_their_counts_and_order():
  assert {'found by the search (3, mean 0.00)', 'selected (1, mean 1.00)'} <= set(
      texts(figures.rewards([-1, 0, 1], [1])))
  svg = figures.paired_bars(['a$b', '<i>', 'small'], [1, 6, 0], [0, 2, 2], 'case 1', top=2)
  shown = texts(svg)
  assert shown.index('<i>') < len(shown) and 'small' in shown and 'a$b' not in shown
  assert '&lt;i&gt; 86 against 50' in svg
  assert 'a$b' in texts(figures.paired_bars(['a$b'], [0], [0], 'x'))


def test_sparkline_by_hand():
  svg = marks.sparkline([1.0, None, 3.0], [0.0, 12.0, 24.0], 1.0, 2.0)
  root = ET.fromstring(svg)
  assert root.find('polyline').get('points') == '4.0,25.0 116.0,3.0'
  band = root.find('rect')
  assert (float(band.get('y')), float(band.get('height'))) == (14.0, 11.0)
  assert root.get('aria-label') == '2 values from 1 to 3'
  assert marks.sparkline([None], [0.0], 1.0, 2.0) == ''
  assert 'band' not in marks.sparkline([5.0], [0.0], None, None)


def test_a_distant_reference_band_does_not_flatten_the_values():
  root = ET.fromstring(marks.sparkline([10.0, 12.0], [0.0, 1.0], 0.0, 1000.0))
  heights = [float(p.split(',')[1]) for p in root.find('polyline').get('points').split()]
  assert heights[0] - heights[1] > 5


def test_interval_bar_places_dot_interval_and_chance():
  root = ET.fromstring(marks.interval_bar(0.7, 0.55, 0.85, 'rl', low=0.4, mark=0.4))
  assert float(root.find('circle').get('cx')) == 70
  assert root.find("line[@class='mark']").get('x1') == '3.0' and 'var(--rl)' in root.get('style')
