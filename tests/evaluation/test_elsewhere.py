"""A study's arms on other cohorts over seeds, against scikit-learn and by construction."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as sk

from eagrl_jax.evaluation import elsewhere, study
from eagrl_jax.types import EagrlError

R = np.random.default_rng(0)
LABEL = R.random(200) < 0.4
NAMES = {'rl': 'eag'}


def told(strength, label=LABEL):
  return 1 / (1 + np.exp(-(strength * (label - 0.5) + R.normal(size=len(label)))))


def wrote(folder, probs, label=LABEL):
  folder.mkdir(parents=True)
  pq.write_table(pa.table({
      'arm': [arm for arm in probs for _ in label], 'boolean_value': np.tile(label, len(probs)),
      'predicted_boolean_probability': np.concatenate([*probs.values()])}), folder / 'predictions.parquet')
  (folder / 'metrics.json').write_text(json.dumps({'mapped_features': 5}))
  return folder


def test_arms_over_seeds_are_sklearns_means(tmp_path):
  probs = {seed: {'sft': told(0), 'rl': told(2), 'expert': told(4)} for seed in (0, 1)}
  folders = {seed: wrote(tmp_path / f'{seed}', by) for seed, by in probs.items()}
  found = elsewhere.gather({'there': folders}, NAMES, 200)['there']
  assert (found['n'], found['prevalence'], found['mapped_features'], found['seeds']) == (200, LABEL.mean(), 5, [0, 1])
  score = lambda of, arm: [of(LABEL, probs[s][arm]) for s in (0, 1)]
  for metric, of in (('auroc', sk.roc_auc_score), ('auprc', sk.average_precision_score),
                     ('brier', sk.brier_score_loss)):
    np.testing.assert_allclose(found['arms']['eag'][metric]['by_seed'], score(of, 'rl'))
    gap = found['arms']['sft']['against'][metric]
    np.testing.assert_allclose(gap['diff'], np.mean(score(of, 'rl')) - np.mean(score(of, 'sft')))
  less, more = (found['arms'][arm]['against']['auroc']['ci95'] for arm in ('sft', 'expert'))
  assert less[0] > 0 > more[1]


def test_an_arm_that_a_seed_lacks_is_left_out(tmp_path):
  folders = {0: wrote(tmp_path / '0', {'rl': told(2), 'expert': told(3), 'rule': told(1)}),
             1: wrote(tmp_path / '1', {'rl': told(2), 'expert': told(3)})}
  assert set(elsewhere.gather({'there': folders}, NAMES, 20)['there']['arms']) == {'eag', 'expert'}


def test_p_is_adjusted_over_the_arms_of_all_cohorts(tmp_path):
  weak, strong = ({'rl': told(1), 'expert': told(x), 'sft': told(1)} for x in (1, 4))
  folders = {name: {0: wrote(tmp_path / name, probs)} for name, probs in (('a', weak), ('b', strong))}
  for m in study.METRICS:
    both = elsewhere.gather(folders, NAMES, 200)
    tests = [both[name]['arms'][arm]['against'][m] for name in 'ab' for arm in ('expert', 'sft')]
    assert [t['p_holm'] for t in tests] == study.holm([t['p'] for t in tests])
    alone = elsewhere.gather({'b': folders['b']}, NAMES, 200)['b']['arms']['expert']['against'][m]
    assert alone['p'] == tests[2]['p'] and alone['p_holm'] < tests[2]['p_holm']


def test_seeds_that_judged_others_are_refused(tmp_path):
  folders = {0: wrote(tmp_path / '0', {'rl': told(1)}), 1: wrote(tmp_path / '1', {'rl': told(1, ~LABEL)}, ~LABEL)}
  with pytest.raises(EagrlError, match='judges other patients'):
    elsewhere.gather({'there': folders}, NAMES, 20)


def test_the_section_has_a_row_an_arm(tmp_path):
  assert elsewhere.gather({}, NAMES) == {}
  folders = {0: wrote(tmp_path / '0', {'base': told(0), 'rl': told(2), 'expert': told(4)})}
  text = elsewhere.markdown(elsewhere.gather({'there': folders}, NAMES, 50))
  rows = [line.split(' | ')[0].strip('| ') for line in text.splitlines() if line.startswith('|')]
  assert rows[2:] == ['base', 'eag', 'expert'] and 'there: 200 patients' in text and '5 features met' in text
