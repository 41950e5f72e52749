"""What a run left behind is on its page to the last figure, bar, step and row: a part that goes missing is noticed."""

from __future__ import annotations

import json
import re

import pytest
from made_up_run import ANSWER, NAMES, row_of

ARMS = {'base', 'sft', 'rl', 'expert'}
LINE, AREA = r'"fill: none; [^"]*stroke: var\(--(\w+),', r'"fill: var\(--(\w+),'  # in a figure, with its arm's colour
BAR = r'<svg class="forest"[^>]*--arm: var\(--(\w+)\)'


def section(html: str, name: str) -> str:
  part = html[html.index(f'<section aria-labelledby="{name}">'):]
  return part[:part.index('</section>')]


def figures(part: str) -> dict[str, str]:
  """Every figure of a part of the page by its name, in order."""
  found = re.findall(r'<svg class="figure".*?</svg>', part, re.S)
  return {re.search(r'id="fig-(.*?)-figure_1"', svg)[1]: svg for svg in found}


def test_the_curves_are_drawn_of_every_arm(html):
  found = figures(section(html, 'discrimination'))
  assert list(found) == ['roc', 'pr', 'calibration', 'decision']
  assert all(set(re.findall(LINE, svg)) >= ARMS for svg in found.values())


@pytest.mark.parametrize('kind', ['order', 'noise', 'drop', 'units'])
def test_the_expert_is_in_the_robustness_figures(run, html, kind):
  svg = figures(section(html, 'robustness'))[f'robustness-{kind}']
  assert set(re.findall(LINE, svg)) >= ARMS and '>expert</text>' in svg
  unchanged = json.loads((run / 'robustness/metrics.json').read_text())['unchanged']['expert']['auroc']['point']
  assert f'expert {unchanged:.3f} unchanged' in svg


def test_every_metric_of_every_stage_has_its_learning_curve(run, html):
  found = {part.partition('</h3>')[0]: figures(part) for part in section(html, 'learning').split('<h3>')[1:]}
  for stage in ('expert', 'base', 'sft', 'rl'):
    first = json.loads((run / stage / 'metrics.jsonl').read_text().split('\n')[0])
    assert sorted(found[stage]) == sorted(f'{stage}-{metric}' for metric in first if metric != 'step')
    assert all(stage in re.findall(LINE, svg) for svg in found[stage].values())


def test_the_forest_bars_stand_in_the_rows_of_their_figures(html):
  arms = re.findall(BAR, section(html, 'results'))
  assert arms == [arm for arm in ('base', 'sft', 'rl', 'expert', 'oracle') for _ in ('auroc', 'auprc')]
  rows = dict(re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', section(html, 'subgroups')))
  assert re.findall(BAR, rows['women']) == ['rl', 'expert']
  assert not re.findall(BAR, rows['age 80 and over'])


def test_every_case_has_its_sparklines_bars_and_marked_features(run, html):
  shown = re.findall(r'<article class="case">.*?</article>', html, re.S)
  cases = json.loads((run / 'evaluate/cases.json').read_text())
  named = re.findall('|'.join(NAMES), ANSWER)
  assert len(named) == 3
  for case, article in zip(cases, shown, strict=True):
    seen = [f for f in case['features'] if any(v is not None for v in f['values'])]
    assert len(re.findall(r'<svg class="spark".*?<polyline points="\d', article)) == len(seen) > 10
    (name, svg), = figures(article).items()
    assert name == f'bars-{case["label"].replace(" ", "-")}'
    assert [re.findall(AREA, svg).count(arm) for arm in ('expert', 'rl')] == [10 + 1] * 2  # and the legend's
    assert re.findall('<mark>(.*?)</mark>', article) == named * len(case['answers'])


def test_attrition_is_that_of_the_manifest(run, html):
  for step, count, unit in json.loads((run / 'prepare/manifest.json').read_text())['attrition']:
    assert row_of(html, 'Attrition', step) == [step, f'{count:,}', unit]
