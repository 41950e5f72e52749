from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from eagrl_jax.evaluation import metrics, study


def cohort(n=300):
  r = np.random.default_rng(0)
  label = (r.random(n) < 0.4).astype(int)
  noisy = lambda strength: 1 / (1 + np.exp(-(strength * (label - 0.5) + r.normal(size=n))))
  return label, noisy


def test_means_over_seeds_are_sklearns_and_the_seeds_spread_stands_apart():
  label, noisy = cohort()
  probs = {'eag': {0: noisy(3), 1: noisy(3)}, 'sft': {0: noisy(1), 1: noisy(1)}, 'once': {1: noisy(2)}}
  rows = study.table(label, probs, 'eag', 200)
  scores = [sk.roc_auc_score(label, p) for p in probs['sft'].values()]
  np.testing.assert_allclose(rows['sft']['auroc']['mean'], np.mean(scores))
  np.testing.assert_allclose(rows['sft']['auroc']['sd'], np.std(scores, ddof=1))
  np.testing.assert_allclose(rows['sft']['auprc']['by_seed'],
                             [sk.average_precision_score(label, p) for p in probs['sft'].values()])
  assert 'against' not in rows['eag'] and np.isnan(rows['once']['auroc']['sd'])
  gap = rows['once']['against']['auroc']  # over the one seed that both have
  assert gap['seeds'] == [1]
  np.testing.assert_allclose(gap['diff'], np.subtract(*(sk.roc_auc_score(label, probs[a][1]) for a in ('eag', 'once'))))


def test_further_figures_are_means_over_seeds():
  label, noisy = cohort()
  probs = {0: noisy(3), 1: noisy(1)}
  found = study.table(label, {'eag': probs}, 'eag', 10)['eag']['further']
  assert found.keys() == study.FURTHER.keys()
  np.testing.assert_allclose(found['slope'], np.mean([metrics.calibration(label, p)['slope'] for p in probs.values()]))
  rows = study.table(label, {'eag': {0: np.full(len(label), 0.4)}}, 'eag', 10)  # constant: no slope exists
  text = study.markdown({'cohort': 'c', 'task': 't', 'n_test': 300, 'prevalence': 0.4, 'seeds': [0], 'claims': [],
                         'arms': {'eag': rows['eag'] | {'early_score': -0.25}}})
  last = text.splitlines()[-1].split(' | ')
  assert len(last) == 2 + len(study.FURTHER) and last[0] == '| eag' and last[-1] == '-0.250 |'
  assert last[1 + list(study.FURTHER).index('slope')] == '–' and last[1] != '–'


def test_proper_scores_have_intervals_and_paired_differences():
  label, noisy = cohort()
  probs = {'eag': {0: noisy(3), 1: noisy(3)}, 'sft': {0: noisy(1), 1: noisy(1)}}
  rows = study.table(label, probs, 'eag', 200)
  score = {'brier': sk.brier_score_loss, 'log_loss': lambda y, p: sk.log_loss(y, np.clip(p, .01, .99))}
  for m, of in score.items():
    mean = {arm: np.mean([of(label, p) for p in by.values()]) for arm, by in probs.items()}
    gap = rows['sft']['against'][m]
    np.testing.assert_allclose([rows['eag'][m]['mean'], rows['sft'][m]['mean']], [mean['eag'], mean['sft']])
    np.testing.assert_allclose(gap['diff'], mean['eag'] - mean['sft'])
    assert gap['ci95'][0] < gap['diff'] < gap['ci95'][1] < 0 and gap['p_holm'] == gap['p'] < 0.05
  text = study.markdown({'cohort': 'c', 'task': 't', 'n_test': 300, 'prevalence': 0.4, 'seeds': [0, 1], 'claims': [],
                         'arms': rows})
  proper = text[text.index('## Proper scores'):text.index('## Further figures')]
  assert 'Brier 0.240, log loss 0.673.' in proper  # .4 x .6, and the entropy of it
  gap = rows['sft']['against']['brier']
  assert f'| sft | {rows["sft"]["brier"]["mean"]:.3f} (' in proper and f'| {gap["diff"]:+.3f} (' in proper


def test_resamples_are_paired():
  """An arm beside itself with a tiny change has a far narrower interval than its own score."""
  label, noisy = cohort()
  prob = noisy(1)
  rows = study.table(label, {'eag': {0: prob}, 'same': {0: np.clip(prob + 1e-3 * (label - 0.5), 0, 1)}}, 'eag', 200)
  width = lambda row: row['ci95'][1] - row['ci95'][0]
  assert width(rows['same']['against']['auroc']) < 0.1 * width(rows['same']['auroc'])


def test_holm_by_hand():
  np.testing.assert_allclose(study.holm([0.01, 0.04, float('nan'), 0.03]), [0.03, 0.06, np.nan, 0.06])
  assert study.holm([]) == [] and study.holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(('ahead', 'behind', 'verdict'), [(3.0, 0.5, 'reproduced'), (0.5, 3.0, 'reversed'),
                                                          (1.0, 1.0, 'not reproduced')])
def test_a_claim_is_what_the_intervals_say(ahead, behind, verdict):
  label, noisy = cohort()
  rows = study.table(label, {'eag': {0: noisy(ahead)}, 'sft': {0: noisy(behind)}}, 'eag', 200)
  found = {c['claim']: c['verdict'] for c in study.claims(rows)}
  assert found['EAG-RL is ahead of SFT'] == verdict
  assert {v for c, v in found.items() if 'SFT' not in c and 'stage 2' not in c} == {'untested'}


def test_a_claim_that_holm_does_not_bear_out_is_not_reproduced():
  gap = {'diff': 0.02, 'ci95': [0.002, 0.044], 'p': 0.03, 'p_holm': 0.34}
  rows = {'eag': {}, 'sft': {'against': {'auroc': gap, 'auprc': gap | {'p_holm': 0.01}}}}
  verdict = lambda: {c['claim']: c['verdict'] for c in study.claims(rows)}['EAG-RL is ahead of SFT']
  assert verdict() == 'not by Holm'
  gap['p_holm'] = 0.049
  assert verdict() == 'reproduced'


def test_shuffling_and_other_hospitals_are_claims_too():
  shuffled = lambda low, high: {'less_than_expert': {
      m: {'diff': (low + high) / 2, 'ci95': [low, high], 'p': 0.001, 'p_holm': 0.01} for m in study.METRICS}}
  verdict = lambda found: {c['claim']: c['verdict'] for c in study.claims({'eag': {}}, found)}[study.SHUFFLED]
  assert [verdict(shuffled(*ci)) for ci in ((0.1, 0.3), (-0.1, 0.2), (-0.2, -0.09))] == [
      'reproduced', 'not reproduced', 'reversed']
  assert verdict(None) == 'untested'
  gap = lambda low: {'against': {
      m: {'diff': low + 0.1, 'ci95': [low, low + 0.2], 'p_holm': 0.01} for m in study.METRICS}}
  found = {c['claim']: c['verdict'] for c in study.claims({'eag': {}}, None, {
      'tjh': {'arms': {'eag': {}, 'expert': gap(-0.3), 'sft': gap(0.01)}},
      'other': {'arms': {'eag': {}, 'sft': gap(0.01)}}})}
  of = lambda claim: found[f'elsewhere it is ahead of {claim}']
  assert (of('the expert: tjh'), of('SFT: tjh'), of('the expert: other')) == ('reversed', 'reproduced', 'untested')


def test_reversed_needs_holm_as_reproduced_does():
  gap = lambda p: {'against': {m: {'diff': -0.1, 'ci95': [-0.2, -0.01], 'p_holm': p} for m in study.METRICS}}
  verdict = lambda p: study.claims({'eag': {}, 'expert': gap(p)})[10]['verdict']
  assert (verdict(0.01), verdict(0.2)) == ('reversed', 'reversed, not by Holm')


def test_nothing_is_claimed_of_a_handful_of_events():
  gap = {'against': {m: {'diff': 0.5, 'ci95': [0.4, 0.6], 'p_holm': 0.001} for m in study.METRICS}}
  rows = {'eag': {}, 'sft': gap}
  shuffled = {'less_than_expert': gap['against'], 'events': 9}
  found = {c['claim']: c for c in study.claims(rows, shuffled, {'there': {'arms': rows, 'events': 9}}, events=10)}
  assert found['EAG-RL is ahead of SFT']['verdict'] == 'reproduced'
  for claim in (study.SHUFFLED, 'elsewhere it is ahead of SFT: there'):
    assert found[claim]['verdict'] == 'untested' and found[claim]['why'].startswith('9 patients')
  assert {c['verdict'] for c in study.claims(rows, events=9)} == {'untested'}
  assert study.rarer([0, 1, 1, 1, 0]) == study.rarer([1, 0, 0, 0, 1]) == 2


@pytest.mark.parametrize('nothing', [float('nan'), None])  # None: as disk.write_json leaves it
def test_a_claim_without_an_interval_is_untested(nothing):
  gap = {'diff': nothing, 'ci95': [nothing, nothing], 'p': nothing, 'p_holm': nothing}
  rows = {'eag': {}, 'sft': {'against': dict.fromkeys(study.METRICS, gap)}}
  found = study.claims(rows, {'less_than_expert': dict.fromkeys(study.METRICS, gap)}, {'tjh': {'arms': rows}})
  assert {c['verdict'] for c in found} == {'untested'}
  assert sum('does not exist' in c['why'] for c in found) == 4


def test_markdown_holds_every_arm_and_claim():
  label, noisy = cohort()
  rows = study.table(label, {'eag': {0: noisy(3)}, 'sft': {0: noisy(1)}}, 'eag', 50)
  text = study.markdown({'cohort': 'c', 'task': 't', 'n_test': 300, 'prevalence': 0.4, 'seeds': [0], 'arms': rows,
                         'claims': study.claims(rows)})
  table = [line for line in text.splitlines() if line.startswith('|')]
  assert len({line.count('|') for line in table[:4]}) == 1 and 'nan' not in text
  assert all(c in text for c, *_ in study.CLAIMS)
