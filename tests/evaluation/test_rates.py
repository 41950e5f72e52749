"""An arm's learning rate is chosen by validation patients alone."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_auc_score

from eagrl_jax.evaluation import rates

R = np.random.default_rng(0)
VALID, TEST = (R.random(n) < 0.4 for n in (80, 120))
RATES = {'grpo': 5e-4, 'grpo@0.0002': 2e-4}


def told(label, strength):
  return 1 / (1 + np.exp(-(strength * (label - 0.5) + R.normal(size=len(label)))))


def test_validation_chooses_and_test_patients_do_not():
  valid = {'grpo': {s: told(VALID, 0.5) for s in (0, 1)}, 'grpo@0.0002': {s: told(VALID, 3) for s in (0, 1)}}
  test = {'grpo': {s: told(TEST, 3) for s in (0, 1)}, 'grpo@0.0002': {s: told(TEST, 0.5) for s in (0, 1)}}
  rows = rates.table('grpo', RATES, VALID, valid, TEST, test)
  assert [(row['rate'], row['chosen'], row['seeds']) for row in rows] == [(5e-4, False, [0, 1]), (2e-4, True, [0, 1])]
  assert rows[0]['auroc'] > rows[1]['auroc']
  for row in rows:
    for name, label, by in (('validation', VALID, valid), ('auroc', TEST, test)):
      np.testing.assert_allclose(row[name], np.mean([roc_auc_score(label, p) for p in by[row['cell']].values()]))
  assert {(row['n_validation'], row['positive']) for row in rows} == {(80, VALID.sum())}
  text = rates.markdown(rows, 'eag')
  assert f'on 80 validation patients, {VALID.sum()} of them' in text and 'Perturbed' not in text
  assert 'Perturbed records' in rates.markdown([row | {'arm': 'eag'} for row in rows], 'eag')
  assert 'Not chosen yet' in rates.markdown([], 'eag')
  table = [line for line in text.splitlines() if line.startswith('|')]
  assert len(table) == 4 and table[3].startswith('| grpo | 0.0002 |') and '| yes |' in table[3]


def test_the_configs_own_rate_stays_where_another_is_no_better():
  same = {cell: {0: told(VALID, 0)} for cell in RATES}
  same['grpo@0.0002'] = same['grpo']
  rows = rates.table('grpo', RATES, VALID, same, VALID, same)
  assert [row['chosen'] for row in rows] == [True, False]
