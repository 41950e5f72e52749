"""A finished run judged on the other synthetic site."""

import csv
import dataclasses
import json
import pathlib
import shutil
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as sk

from eagrl_jax.ehr import normalise
from eagrl_jax.ehr.sources import synthetic
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import finished as finished_lib
from eagrl_jax.stages import transfer
from eagrl_jax.types import EagrlError

ROOT = pathlib.Path(__file__).parents[2]


def config(variant='', **fields):
  sys.path.insert(0, str(ROOT))
  try:
    from configs import transfer as file
  finally:
    sys.path.remove(str(ROOT))
  c = file.get_config(variant)
  c.data.update({'site': 'eicu', 'n': 40, 'prevalence': 0.5} | fields)
  return c


@pytest.fixture(scope='module')
def run(finished, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('transfer') / 'w'
  shutil.copytree(finished, workdir)
  return workdir


@pytest.fixture
def home(run):
  """The run's context and data."""
  with finished_lib.opened(run, config().mesh, ('rl', 'expert')) as context:
    yield context, data_lib.load(context)


def test_from_one_synthetic_site_to_the_other(run, capsys):
  transfer.run(config(), run)
  folder = run / 'transfer' / 'synthetic-eicu'
  result = json.loads((folder / 'metrics.json').read_text())
  assert set(result['arms']) == {'base', 'sft', 'rl', 'expert', 'logistic', 'boosting'}
  for arm in result['arms'].values():
    for metric in ('auroc', 'auprc'):
      low, high = arm[metric]['ci95']
      assert low <= high and arm[metric]['n_resamples'] > 0
    assert set(arm['auroc_at_home']) == {'point', 'ci95'}
    assert set(arm['calibration']) == {'slope', 'intercept'}
  assert {(row['a'], row['b'], row['metric']) for row in result['paired']} >= {('rl', 'expert', 'auroc'),
                                                                             ('rl', 'expert', 'auprc')}
  told = pq.read_table(folder / 'predictions.parquet').to_pandas()
  assert set(told.groupby('arm').size()) == {40} and set(told.arm) == set(result['arms'])
  for arm, of in told.groupby('arm', sort=False):
    assert sk.roc_auc_score(of.boolean_value, of.predicted_boolean_probability) == pytest.approx(
        result['arms'][arm]['auroc']['point'], abs=1e-12)
  assert told.subject_id.str.fullmatch('[0-9a-f]{16}').all()
  assert (result['trained_on'], result['n_test'], result['mapped_features']) == ('synthetic-mimic', 40, 20)
  assert '20 of 20 features of the run' in capsys.readouterr().out
  audit = {check['name']: check for check in result['audit']}
  assert audit['ids that train or validation patients of the run have too']['value'] > 0  # of another site and seed
  assert {'inputs normalised by others than train patients', 'patients with a visit after the prediction time',
          'order of the ids', 'labels permuted in train', 'missingness alone', 'age alone',
          'record length alone', 'last value of one feature alone'} <= set(audit)
  page = (run / 'report.html').read_text()
  transferred = page[page.index('id="transfer"'):page.index('id="learning"')]
  assert 'missingness alone' in transferred and '<td>simulated</td><td class="n">40</td>' in transferred
  before = (folder / 'metrics.json').stat().st_mtime_ns
  transfer.run(config(), run)
  assert (folder / 'metrics.json').stat().st_mtime_ns == before
  transfer.run(config(), run, dry_run=True)


def test_at_home_is_of_the_policies_that_are_taken_elsewhere(home):
  context, _ = home
  evaluate, mark = (context.workdir / name / 'done.json' for name in ('evaluate', 'rl'))
  made_from = json.loads((context.workdir / 'transfer/synthetic-eicu/manifest.json').read_text())['made_from']['run']
  assert made_from['evaluate'] == json.loads(evaluate.read_text())['hash']
  assert set(transfer.at_home(context)) >= {'base', 'sft', 'rl', 'expert'}
  for path, content in ((mark, {'hash': 'of a policy trained since'}), (evaluate, None)):
    before = path.read_text()
    path.unlink()
    if content:
      path.write_text(json.dumps(content))
    try:
      assert transfer.at_home(context) == {} and not transfer.evaluated(context.workdir)
    finally:
      path.write_text(before)


def test_outcomes_beside_the_path_are_part_of_what_a_transfer_is_made_from(run, monkeypatch, tmp_path):
  other, seen = transfer.other, []

  class Enough(Exception):
    pass

  def publish(workdir, folder, name, made_from, write):
    seen.append(made_from)
    raise Enough

  monkeypatch.setattr(transfer, 'other', lambda _, context, home: other(config(), context, home))
  monkeypatch.setattr(finished_lib, 'publish', publish)
  (tmp_path / 'set-b').mkdir()
  for content in ('one', 'one', 'two'):
    (tmp_path / 'Outcomes-b.txt').write_text(content)
    with pytest.raises(Enough):
      transfer.run(config(source='physionet2012', path=str(tmp_path / 'set-b')), run)
  assert seen[0] == seen[1] != seen[2]


def test_outcomes_of_the_other_cohort_only_judge(home, monkeypatch):
  """With every outcome turned round each arm's AUROC is turned round, to the last bit of its probabilities."""
  context, own = home
  cohort, match = transfer.other(config(), context, own)
  data = finished_lib.dressed(context, own.cohort, transfer.chosen(cohort, 16, 0))
  seen = []
  score = transfer.bootstrap.bootstrap
  monkeypatch.setattr(transfer.bootstrap, 'bootstrap', lambda y, p, n: (seen.append(p), score(y, p, n))[1])
  _, one = transfer.judge(context, own, data, match, 'patients')
  turned = dataclasses.replace(data.cohort, label=1 - data.cohort.label)
  expert = dataclasses.replace(data.expert, label=1 - data.expert.label)
  _, two = transfer.judge(context, own, dataclasses.replace(data, cohort=turned, expert=expert), match, 'patients')
  assert len(seen) == 22  # six arms, and five of the audit
  assert all(np.array_equal(a, b) for a, b in zip(seen[:11], seen[11:]))
  for name, arm in one['arms'].items():
    assert arm['auroc']['point'] == pytest.approx(1 - two['arms'][name]['auroc']['point'])


def test_the_other_cohort_is_read_with_the_codes_for_missing_of_the_run(home, monkeypatch):
  context, own = home
  read, given = transfer.prepare.read_source, []
  monkeypatch.setattr(transfer.prepare, 'read_source', lambda *a, known: (given.append(known), read(*a))[1])
  transfer.other(config(), context, own)
  assert given == [own.cohort.features]


def test_baselines_learn_from_the_runs_train_patients_alone(home):
  """Other values of patients that it may not learn from change nothing; of those it may, they do."""
  context, own = home
  cohort = transfer.other(config(), context, own)[0]
  data = finished_lib.dressed(context, own.cohort, cohort)
  fit = lambda d, judged=data: transfer.fitted_at_home('logistic', d, judged, 0)

  def spoilt(rows):
    label = own.cohort.label.copy()
    label[rows] = 1 - label[rows]
    return dataclasses.replace(own, cohort=dataclasses.replace(own.cohort, label=label))

  held = np.r_[own.splits.valid, own.splits.test]
  assert np.array_equal(fit(own), fit(spoilt(held)))
  assert not np.allclose(fit(own), fit(spoilt(own.splits.train[:20])))
  few = finished_lib.dressed(context, own.cohort, cohort.take(np.arange(20, 40)))  # whoever else is judged
  np.testing.assert_allclose(fit(own, few), fit(own)[20:], rtol=1e-6)


def test_patients_are_shown_as_the_runs_own_were(home):
  """Without a feature that no train patient had, and without marks of limits where the run's cohort has none."""
  context, own = home
  cohort = transfer.other(config(), context, own)[0]
  marked = dataclasses.replace(cohort, censor=np.ones(len(cohort.value), np.int8))
  assert finished_lib.dressed(context, own.cohort, marked).cohort.censor is None
  limits = dataclasses.replace(own.cohort, censor=np.zeros(len(own.cohort.value), np.int8))
  assert finished_lib.dressed(context, limits, marked).cohort.censor.all()
  path = context.folder('prepare') / 'statistics.json'
  before = path.read_text()
  try:
    statistics = normalise.load(path)
    seen = np.where(np.arange(len(statistics.n)) == 0, 0, statistics.n)
    normalise.save(path, dataclasses.replace(statistics, n=seen))
    without = finished_lib.dressed(context, own.cohort, cohort)
  finally:
    path.write_text(before)
  assert (cohort.feature == 0).any() and not without.measured[:, 0].any()
  assert ('of a feature that no train patient of the run had', int((cohort.feature == 0).sum()), 'values') in (
      without.cohort.attrition)


def test_the_runs_own_synthetic_patients_are_refused(run):
  c = config()
  c.seed = 0
  with pytest.raises(EagrlError, match='seed=0'):
    transfer.run(c, run)


def test_another_task_or_one_outcome_is_refused(run, tmp_path):
  with pytest.raises(EagrlError, match='data.path'):
    transfer.run(config(source='csv'), run)
  with pytest.raises(EagrlError, match=r'transfer\.patients'):
    c = config()
    c.transfer.patients = -1
    transfer.run(c, run)
  with pytest.raises(EagrlError, match='cannot be judged'):
    c = config()
    c.transfer.patients = 1
    transfer.run(c, run)
  c = csv_cohort(tmp_path)
  c.data.task = 'readmission'
  with pytest.raises(EagrlError, match="data.task='readmission'"):
    transfer.run(c, run)


def csv_cohort(folder):
  """Thirty patients of the other site as CSV files, glucose under an alias and in another unit."""
  cohort = synthetic.generate(synthetic.SyntheticConfig(n=30, site='eicu', features=('lactate', 'glucose')), 5)
  glucose = cohort.features.find('glucose')
  unit, scale, offset = cohort.features[glucose].accepted_units[0]
  rows = [('patient', 'time', 'feature', 'value', 'unit')]
  for p, hour, f, v in zip(cohort.patient, cohort.hour, cohort.feature, cohort.value):
    known = (cohort.features[glucose].aliases[0], repr((float(v) - offset) / scale), unit) if f == glucose else (
        cohort.features[int(f)].name, repr(float(v)), cohort.features[int(f)].unit)
    rows.append((cohort.subject_id[p], float(hour), *known))
  people = [('patient', 'label', 'age', 'sex')] + [
      (i, y, float(a), 'fm'[s]) for i, y, a, s in zip(cohort.subject_id, cohort.label, cohort.age, cohort.sex)]
  for name, content in (('events', rows), ('outcomes', people)):
    with (folder / f'{name}.csv').open('w', newline='') as f:
      csv.writer(f).writerows(content)
  return config('csv', path=str(folder / 'events.csv'), outcomes=str(folder / 'outcomes.csv'))


def test_a_users_cohort_is_mapped(home, tmp_path):
  context, own = home
  c = csv_cohort(tmp_path)
  c.transfer.same_patients = False
  cohort, match = transfer.other(c, context, own)
  assert set(match.mapped) == {'lactate', 'glucose'} and len(match.lacking) == 18 and match.unknown == 0
  truth = synthetic.generate(synthetic.SyntheticConfig(n=30, site='eicu', features=('lactate', 'glucose')), 5)
  of = lambda x, name: np.sort(x.value[x.feature == x.features.find(name)])
  for name in match.mapped:
    np.testing.assert_allclose(of(cohort, name), of(truth, name), rtol=1e-5)


def test_patients_that_were_learnt_from_are_left_out_and_namesakes_are_not(home, tmp_path):
  context, own = home
  c = csv_cohort(tmp_path)
  learnt = set(own.cohort.subject_id[np.r_[own.splits.train, own.splits.valid]])
  with pytest.raises(EagrlError, match=r'transfer\.same_patients: \d+ ids of the other cohort'):
    transfer.other(c, context, own)
  c.transfer.same_patients = False
  everybody = set(transfer.other(c, context, own)[0].subject_id)
  c.transfer.same_patients = True
  rest = transfer.other(c, context, own)[0]
  assert set(rest.subject_id) == everybody - learnt and 0 < len(rest) < len(everybody)
  assert ('train and validation patients of the run', len(everybody & learnt), 'patients') in rest.attrition


@pytest.mark.parametrize(('source', 'home_source', 'left'), [
    ('mimic4', 'mimic4', 'new'), ('mimic4', 'physionet2012', 'all'), ('synthetic', 'synthetic', 'all'),
    ('meds', 'mimic4', 'ask'), ('csv', 'csv', 'ask')])
def test_a_published_data_set_is_the_same_whatever_is_predicted_of_it(home, source, home_source, left):
  """So is one whose cohort has another name: the index, the task and the window are in it."""
  _, own = home
  renamed = dataclasses.replace(own.cohort, name=f'{source}_hospital_first')
  c = config(source=source)
  if left == 'ask':
    with pytest.raises(EagrlError, match='same_patients'):
      transfer.unseen(renamed, c, home_source, own)
  else:
    expected = own.splits.test if left == 'new' else np.arange(len(renamed))
    assert set(transfer.unseen(renamed, c, home_source, own).subject_id) == set(renamed.subject_id[expected])
