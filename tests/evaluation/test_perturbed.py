"""Changes under perturbed records over seeds, against scikit-learn and by construction."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as sk

from eagrl_jax.evaluation import perturbed, study
from eagrl_jax.types import EagrlError

R = np.random.default_rng(0)
LABEL = (R.random(300) < 0.4).astype(int)
SHUFFLED = ('order', 1.0)


def told(strength):
  """Probabilities that know the outcome so well."""
  return 1 / (1 + np.exp(-(strength * (LABEL - 0.5) + R.normal(size=len(LABEL)))))


def made_up(eag, expert):
  """Two seeds of arms that fall from the first strength to the second when features are shuffled."""
  by = lambda at: {'eag': {s: told(eag[at]) for s in (0, 1)}, 'expert': {s: told(expert[at]) for s in (0, 1)}}
  return {SHUFFLED: by(1), ('order', 0.2): by(0), ('noise', 2.0): by(0), perturbed.UNCHANGED: by(0)}


def test_changes_are_sklearns_means_over_seeds():
  probs = made_up((2, 1), (3, 0))
  rows = perturbed.table(LABEL, probs, 200)
  assert (rows[0]['kind'], rows[0]['level']) == perturbed.UNCHANGED and 'less_than_expert' not in rows[0]
  row = perturbed.all_shuffled(rows)
  assert (row['kind'], row['level']) == SHUFFLED
  for metric, score in (('auroc', sk.roc_auc_score), ('auprc', sk.average_precision_score)):
    change = {arm: [score(LABEL, probs[SHUFFLED][arm][s]) - score(LABEL, probs[perturbed.UNCHANGED][arm][s])
                    for s in (0, 1)] for arm in ('eag', 'expert')}
    for arm in change:
      np.testing.assert_allclose(row['arms'][arm]['change'][metric]['by_seed'], change[arm])
    gap = row['less_than_expert'][metric]
    np.testing.assert_allclose(gap['diff'], np.mean(change['eag']) - np.mean(change['expert']))
    assert gap['ci95'][0] < gap['diff'] < gap['ci95'][1] and 0 < gap['ci95'][0]


def test_half_a_shuffle_is_not_all_of_it():
  rows = perturbed.table(LABEL, made_up((2, 1), (3, 0)), 20)
  assert perturbed.all_shuffled([row for row in rows if (row['kind'], row['level']) != SHUFFLED]) is None


def test_arms_that_lose_the_same_differ_by_nothing():
  """The same numbers in both arms: paired by patient and seed the difference is 0 in every resample."""
  by = lambda strength: (lambda probs: {'eag': probs, 'expert': probs})({s: told(strength) for s in (0, 1)})
  rows = perturbed.table(LABEL, {perturbed.UNCHANGED: by(3), SHUFFLED: by(1)}, 100)
  gap = rows[1]['less_than_expert']['auroc']
  assert gap['diff'] == 0 and gap['ci95'] == [0, 0] and gap['p'] == 1
  assert rows[1]['arms']['eag']['change']['auroc']['ci95'][1] < 0


def test_p_is_adjusted_over_the_conditions():
  rows = perturbed.table(LABEL, made_up((2, 1), (3, 0)), 400)[1:]
  tests = [row['less_than_expert']['auroc'] for row in rows]
  assert [t['p_holm'] for t in tests] == study.holm([t['p'] for t in tests])
  assert min(t['p_holm'] for t in tests) == pytest.approx(len(tests) * min(t['p'] for t in tests))


def test_the_section_has_a_line_a_condition():
  rows = perturbed.table(LABEL, made_up((2, 1), (3, 0)), 50)
  lines = perturbed.markdown(300, rows).splitlines()
  table = [line for line in lines if line.startswith('|')]
  assert len(table) == 2 + len(rows) and len({line.count('|') for line in table}) == 1
  assert table[2].startswith('| unchanged ') and '300 of the test patients, seeds 0, 1.' in '\n'.join(lines)


def write(folder, label, conditions=(perturbed.UNCHANGED, SHUFFLED), named=('rl', 'expert')):
  folder.mkdir()
  n = len(label)
  tables = [pa.table({'kind': [kind] * n, 'level': [level] * n, 'arm': [arm] * n, 'boolean_value': label.astype(bool),
                      'predicted_boolean_probability': told(1)})
            for kind, level in conditions for arm in named]
  pq.write_table(pa.concat_tables(tables), folder / 'predictions.parquet')
  return folder


def test_folders_of_seeds_become_one_table_if_they_judge_the_same(tmp_path):
  names = {'rl': 'eag'}
  assert perturbed.gather({}, names) is None
  found = perturbed.gather({s: write(tmp_path / f'{s}', LABEL) for s in (0, 1)}, names, 50)
  assert found['n'] == 300 and found['rows'][1]['seeds'] == [0, 1]
  assert set(found['rows'][0]['arms']) == {'eag', 'expert'}
  more = write(tmp_path / 'more', LABEL, named=('base', 'rl', 'expert'))  # its first arm is of one seed
  found = perturbed.gather({0: more, 1: tmp_path / '1'}, names, 50)
  assert found['rows'][0]['seeds'] == [0, 1] and set(found['rows'][0]['arms']) == {'eag', 'expert'}
  others = {'patients': write(tmp_path / 'patients', 1 - LABEL),
            'conditions': write(tmp_path / 'conditions', LABEL, (perturbed.UNCHANGED,))}
  for folder in others.values():
    with pytest.raises(EagrlError, match='judges other patients or conditions'):
      perturbed.gather({0: tmp_path / '0', 1: folder}, names, 50)
  (tmp_path / '1' / 'predictions.parquet').unlink()
  with pytest.raises(EagrlError, match='is gone; move 1 away'):
    perturbed.gather({0: tmp_path / '0', 1: tmp_path / '1'}, names, 50)
