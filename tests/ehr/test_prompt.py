import numpy as np
import pytest

from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.prompt import PromptConfig, flag, render, write_value
from eagrl_jax.ehr.tasks import READMISSION
from eagrl_jax.types import EagrlError

LACTATE = FeatureSpec('lactate', 'mmol/L', 0.5, 2.0, log=True)
SODIUM = FeatureSpec('sodium', 'mEq/L', 136, 145, decimals=0)
EYES = FeatureSpec('GCS eye', levels=((1.0, 'None'), (4.0, 'Spontaneously')), kind='ordinal')
TABLE = FeatureTable((LACTATE, SODIUM, EYES))
NAN = np.nan
VALUES = np.array([[1.0, 140, NAN], [NAN, 150, 4], [4.5, 149, NAN]], np.float32)


def show(style='full', order=None, values=VALUES, **kw):
  return render(TABLE, values, np.array([0, 24, 60.0]), 64.2, 1, setting='adults',
                config=PromptConfig(style=style, **kw), order=order)


@pytest.mark.parametrize(('spec', 'value', 'expected'), [
    (SODIUM, 140, ''), (SODIUM, 136, ''), (SODIUM, 145.1, 'H'), (SODIUM, 149.6, 'HH'), (SODIUM, 131, 'LL'),
    (SODIUM, 135.9, 'L'), (LACTATE, 3.9, 'H'), (LACTATE, 4.1, 'HH'), (LACTATE, 0.2, 'LL'), (EYES, 1, '')])
def test_flags_double_half_a_range_beyond(spec, value, expected):
  assert flag(spec, value) == expected


@pytest.mark.parametrize(('value', 'expected'), [(140.4, '140'), (3.96, '4'), (-0.2, '0'), (99.6, '100')])
def test_values_at_assay_precision(value, expected):
  assert write_value(SODIUM, value) == expected


@pytest.mark.parametrize(('spec', 'value', 'expected'), [
    (LACTATE, 0.5, '<0.5'), (LACTATE, 5, '<5.0'), (LACTATE, np.float32(0.05), '<0.05'), (LACTATE, 0.04, '<0.04'),
    (SODIUM, 4.5, '<4.5'), (SODIUM, 140, '<140'), (SODIUM, 12345.6, '<12345.6'), (EYES, 4, '<Spontaneously')])
def test_a_limit_stays_true_at_assay_precision(spec, value, expected):
  assert write_value(spec, value, '<') == expected
  assert write_value(SODIUM, 4.5) == '4'


def test_values_below_and_above_a_limit_have_their_mark():
  censor = np.array([[-1, 0, 0], [-1, 0, 0], [0, 1, 0]], np.int8)  # the second lactate was not measured
  prompts = {style: render(TABLE, VALUES, np.array([0, 24, 60.0]), 64.2, 1, setting='adults',
                           config=PromptConfig(style=style), censor=censor) for style in ('full', 'compact')}
  assert ' lactate HH <1.0 4.5\n' in prompts['compact'].text and ' sodium H 140 150 >149\n' in prompts['compact'].text
  assert '[<1.0, NaN, 4.5]' in prompts['full'].text and '[140, 150, >149]' in prompts['full'].text
  for style, prompt in prompts.items():
    assert prompt.text.replace('<1.0', '1.0').replace('>149', '149') == show(style).text
    assert all(prompt.text[stop] == '\n' for *_, stop in prompt.spans)


def test_full_style_lists_every_visit_and_names_levels():
  text = show().text
  assert '- lactate (Unit: mmol/L. Reference range: 0.5 to 2.): [1.0, NaN, 4.5]' in text
  assert '- GCS eye (Unit: /. Reference range: /.): [NaN, Spontaneously, NaN]' in text
  assert '0, 1, 2.5 days' in text and 'Age: 64 years' in text


@pytest.mark.parametrize(('low', 'high', 'said'), [
    (None, 0.04, '0.04 or less'), (60, None, '60 or more'), (0.5, 2.0, '0.5 to 2'), (None, None, '/')])
def test_a_range_with_one_bound_is_said_in_words(low, high, said):
  table = FeatureTable((FeatureSpec('troponin', 'ng/mL', low, high),))
  prompt = render(table, VALUES[:, :1], np.array([0, 24, 60.0]), 64.2, 1, setting='adults',
                  config=PromptConfig(style='full'))
  assert f'- troponin (Unit: ng/mL. Reference range: {said}.): [' in prompt.text


def test_compact_style_shows_the_last_flag_and_observed_values():
  text = show('compact').text
  assert ' lactate HH 1.0 4.5\n' in text and ' sodium H 140 150 149\n' in text


@pytest.mark.parametrize('style', ['full', 'compact'])
def test_spans_cut_out_exactly_the_feature_lines(style):
  prompt = show(style, order=np.array([2, 0, 1]))
  assert [f for f, _, _ in prompt.spans] == [2, 0, 1]
  for f, start, stop in prompt.spans:
    assert prompt.text[start:stop].lstrip('- ').startswith(TABLE[f].name)
    assert '\n' not in prompt.text[start:stop] and prompt.text[stop] == '\n'


def test_free_reasoning_asks_for_no_sub_questions_and_shows_the_same_record():
  steps, free = show(), show(reasoning='free')
  assert 'Subquestion' in steps.text and 'Subquestion' not in free.text and 'at most 5 features' in free.text
  assert all(tag in free.text for tag in ('<Important Features>', '<Final answer>'))
  assert [free.text[a:b] for _, a, b in free.spans] == [steps.text[a:b] for _, a, b in steps.spans]
  with pytest.raises(EagrlError, match='prompt.reasoning'):
    PromptConfig(style='compact', reasoning='free')


@pytest.mark.parametrize('fields', [{}, {'reasoning': 'free'}, {'wording': 'rephrased'}])
def test_a_way_out_is_offered_unless_it_is_taken_away(fields):
  offered, without = show(**fields), show(may_refuse=False, **fields)
  assert 'I do not know' in offered.text and 'I do not know' not in without.text
  assert offered.text.startswith(without.text) and offered.spans == without.spans
  with pytest.raises(EagrlError, match='prompt.may_refuse'):
    PromptConfig(style='compact', may_refuse=False)


def test_never_measured_features_are_named_once():
  values = VALUES.copy()
  values[:, 1] = NAN
  prompt = show(values=values)
  assert 'Never measured: sodium.' in prompt.text and [f for f, _, _ in prompt.spans] == [0, 2]


@pytest.mark.parametrize(('fields', 'said', 'absent'), [
    ({}, 'The record has 5 visits, of which the last 2 are shown, ending 4, 5 days after the start of the record.',
     'Never measured in them: lactate.'),
    ({'wording': 'rephrased'}, 'There were 5 visits, of which the last 2 are shown, ending 4, 5 days from the start.',
     'Without any measurement in them: lactate.')])
def test_a_full_prompt_says_which_visits_it_shows(fields, said, absent):
  values = np.full((5, 3), NAN)
  values[0, 0], values[:, 1], values[4, 2] = 9.9, np.arange(140, 145), 1
  draw = lambda **more: render(TABLE, values, 24.0 * np.arange(1, 6), 60, 1, setting='x',
                               config=PromptConfig(**fields, **more))
  prompt = draw(max_values=2)
  assert said in prompt.text and absent in prompt.text and [f for f, _, _ in prompt.spans] == [1, 2]
  want = np.full((5, 3), NAN)
  want[3:, 1], want[4, 2] = (143, 144), 1
  np.testing.assert_array_equal(prompt.shown, want)
  assert (prompt.dropped_values, prompt.dropped_features) == (4, 1)
  whole = draw()
  assert '5 visits, ending 1, 2, 3, 4, 5 days' in whole.text and 'Never measured' not in whole.text
  np.testing.assert_array_equal(whole.shown, values)


def test_a_compact_prompt_shows_the_last_observations_of_each_feature():
  values = np.full((4, 3), NAN)
  values[:, 0], values[:2, 1] = (1, 2, NAN, 4), (140, 150)
  prompt = render(TABLE, values, np.zeros(4), 60, 1, setting='x', config=PromptConfig(style='compact', max_values=2))
  want = np.full((4, 3), NAN)
  want[[1, 3], 0], want[:2, 1] = (2, 4), (140, 150)
  np.testing.assert_array_equal(prompt.shown, want)


def test_budget_drops_old_values_then_rare_features():
  everything = show('compact')
  body = sum(stop - start + 1 for _, start, stop in everything.spans)
  less = show('compact', max_characters=body - 1)
  assert (less.dropped_values, less.dropped_features) == (1, 0) and '140' not in less.text
  least = show('compact', max_characters=30)
  assert [f for f, _, _ in least.spans] == [0, 1] and least.dropped_features == 1
  assert least.dropped_values == 4  # one value is left of each of two features
  assert everything.dropped_values == everything.dropped_features == 0


@pytest.mark.parametrize('of', [float, np.float32, np.float64, lambda x: float(np.float32(x))])
@pytest.mark.parametrize('bound', [7.35, 0.1, 136.0])
def test_a_value_on_its_bound_is_within_the_range_in_every_precision(of, bound):
  spec = FeatureSpec('x', ref_low=bound, ref_high=bound + 1)
  assert flag(spec, of(bound)) == '' and flag(spec, of(bound - 0.01)) == 'L'


def test_days_of_a_long_record_are_written_out():
  hours = 24 * np.array([0.125, 99.96, 999.6, 1234.4])
  prompt = render(TABLE, np.ones((4, 3)), hours, 60, 1, setting='x', config=PromptConfig(max_values=4))
  assert 'ending 0.125, 100, 1000, 1234 days after' in prompt.text


def test_a_level_that_float32_does_not_hold_is_written_as_its_word():
  spec = FeatureSpec('oxygen', kind='ordinal', levels=((0.1, 'low'), (0.2, 'high')))
  assert [write_value(spec, x) for x in (0.1, np.float32(0.1), float(np.float32(0.2)))] == ['low', 'low', 'high']


def test_old_age_is_not_written():
  prompt = render(TABLE, VALUES, np.zeros(3), 97.0, -1, setting='x', config=PromptConfig(task=READMISSION))
  assert 'Sex: unknown. Age: >89 years' in prompt.text


def test_unknown_style_is_refused():
  with pytest.raises(EagrlError, match=r'prompt\.style'):
    PromptConfig(style='poem')
