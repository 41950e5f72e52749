import re

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from eagrl_jax.ehr import warmup
from eagrl_jax.ehr.answers import parse
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.prompt import flag
from eagrl_jax.ehr.tasks import MORTALITY

TABLE = FeatureTable(tuple(FeatureSpec(n, ref_low=10, ref_high=20) for n in ('a1', 'b2', 'c3', 'd4')))


def answers(values, n=400, top_k=2, max_steps=3):
  rng = np.random.default_rng(0)
  return [warmup.write_answer(TABLE, values, [0, 1, 2], MORTALITY, top_k, max_steps, rng).text
          for _ in range(n)]


def test_statements_are_true_and_the_format_parses():
  values = np.array([[12, 50, 15, np.nan], [12.5, 40, 9, np.nan]])
  truth = {'a1': 'a1 ok 12.5, steady', 'b2': 'b2 HH 40.0, falling', 'c3': 'c3 L 9.0, falling'}
  steps = set()
  for text in answers(values):
    answer = parse(text, TABLE)
    assert 0 < answer.probability < 1 and len(answer.features) == 2 and 1 <= len(answer.steps) <= 3
    assert 3 not in answer.features  # the prompt does not show it
    for question, said in answer.steps:
      assert said == truth[re.search(r'the (\w+)\?', question)[1]]
    steps.add(len(answer.steps))
  assert steps == {1, 2, 3}


def test_a_limit_is_told_as_one_without_what_would_begin_a_tag():
  values = np.array([[12, 50, 15, np.nan], [12.5, 40, 9, np.nan], [np.nan] * 4])
  censor = np.array([[0, 1, 0, 0], [-1, 0, 1, 0], [1, 1, 1, 1]])  # nothing was measured at the last visit
  rng = np.random.default_rng(0)
  told = {said for _ in range(50) for _, said in parse(warmup.write_answer(
      TABLE, values, [0, 1, 2], MORTALITY, 2, 3, rng, censor).text, TABLE).steps}
  assert told == {'a1 ok below 12.5, steady', 'b2 HH 40.0, falling', 'c3 L above 9.0, falling'}
  assert not any('<' in said for said in told)


def test_probability_says_nothing_about_the_record():
  sick, well = np.full((2, 4), 90.0), np.full((2, 4), 15.0)
  said = [parse(t, TABLE).probability for v in (sick, well) for t in answers(v)]
  assert abs(roc_auc_score([1] * 400 + [0] * 400, said) - 0.5) < 0.02 + 1.96 * 0.0205  # sd of AUROC at 400 + 400


def test_scattered_records_keep_their_gaps_and_leave_no_usual_flag():
  specs = (FeatureSpec('sodium', ref_low=136, ref_high=145, hard_low=100, hard_high=180),
           FeatureSpec('lactate', ref_low=0.5, ref_high=2, hard_low=0, log=True), FeatureSpec('CRP', ref_high=5),
           FeatureSpec('eyes', kind='ordinal', levels=((1.0, 'None'), (4.0, 'Open'))), FeatureSpec('rare'))
  table, values = FeatureTable(specs), np.full((600, 2, 5), 1.5)
  values[::3, 0, :] = np.nan
  out = warmup.scatter(table, values, np.random.default_rng(0))
  assert np.array_equal(np.isnan(out), np.isnan(values)) and values[1, 0, 0] == 1.5
  for f, kinds in enumerate((('', 'H', 'HH', 'L', 'LL'), ('', 'H', 'HH', 'L', 'LL'), ('', 'H'))):
    marks = [flag(specs[f], v) for v in out[:, 1, f]]
    shares = [marks.count(kind) / len(marks) for kind in kinds]
    assert min(shares) > 0.1 and max(shares) < 0.75 and sum(shares) == pytest.approx(1)
  assert np.nanmin(out[..., 0]) >= 100 and set(np.unique(out[:, 1, 3])) == {1.0, 4.0}
  assert np.array_equal(out[..., 4], values[..., 4], equal_nan=True)  # no range: as it was


def test_out_of_range_features_are_useful():
  rng = np.random.default_rng(0)
  for value, verdict in ((15.0, 'No'), (30.0, 'Yes')):
    assert warmup.write_usefulness(TABLE, np.full((1, 4), value), [0, 1], rng).text.endswith(
        f'{warmup.USEFUL} {verdict}')


RECORD = np.array([[12, 50, 15, np.nan], [12.5, 40, 9, np.nan]])


def test_findings_list_every_visible_feature_once():
  text = warmup.write_findings(TABLE, RECORD, [0, 1, 2], np.random.default_rng(1)).text
  head, _, marks = text.removeprefix('<Findings> ').removesuffix(' </Findings>').partition(': ')
  assert head == '2 out of range' and sorted(marks.split(', ')) == ['a1 ok', 'b2 HH', 'c3 L']


def test_the_first_lesson_asks_for_flags_again():
  text = warmup.write_flags(TABLE, RECORD, [0, 1, 2], np.random.default_rng(1)).text
  head, _, marks = text.removeprefix('<Findings> ').removesuffix(' </Findings>').partition(': ')
  marks = marks.split(', ')
  assert head == '2 out of range' and len(marks) == warmup.ASKED and set(marks) == {'a1 ok', 'b2 HH', 'c3 L'}


def test_only_what_the_record_decides_counts_as_read():
  rng = np.random.default_rng(2)
  cut = lambda e: [e.text[a:b] for a, b in e.read]
  answer = warmup.write_answer(TABLE, RECORD, [0, 1, 2], MORTALITY, 2, 3, rng)
  assert cut(answer) == re.findall(r'<Answer \d>(.*) </Answer', answer.text) and answer.ends and not answer.given
  for write in (warmup.write_findings, warmup.write_flags):
    drill = write(TABLE, RECORD, [0, 1, 2], rng)
    assert cut(drill) == re.findall(r'(?:a1|b2|c3|<Findings>)( (?:\d|ok|HH|L)\b)', drill.text)
    assert drill.text[:drill.given] == '<Findings>' and not drill.ends
  useful = warmup.write_usefulness(TABLE, RECORD, [1], rng)
  assert cut(useful) == [' Yes'] and useful.text[:useful.given].endswith(warmup.USEFUL)
