import pytest

from eagrl_jax.ehr.answers import find_sections, parse
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable

TABLE = FeatureTable((FeatureSpec('lactate', aliases=('lactic acid',)), FeatureSpec('heart rate')))
GOOD = ('<Subquestion 1> How is it? </Subquestion 1>\n<Answer 1> 3.8, high </Answer 1>\n'
        '<Final subquestion> Now? </Final subquestion>\n<Important Features> Heart Rate, lactic acid, LACTATE, sofa'
        ' </Important Features>\n<Final answer> 0.75 </Final answer>')


def test_reads_a_whole_answer():
  answer = parse(GOOD, TABLE)
  assert answer.probability == 0.75 and answer.features == (1, 0) and answer.unknown_names == 1
  assert answer.steps == (('How is it?', '3.8, high'),) and not answer.refused


@pytest.mark.parametrize(('text', 'expected'), [
    ('0.3', 0.3), ('75%', 0.75), ('1', 1.0), ('0', 0.0), ('about .2', 0.2), ('0.750', 0.75), ('0.2 0.2', 0.2),
    ('1.2', None), ('-0.2', None), ('0.2 or 0.4', None), ('high', None), ('', None), ('150%', None),
    ('I do not know', None), ("I don't know, 0.5", None), ('nan', None), ('1e-3', None)])
def test_probability(text, expected):
  assert parse(f'<Final answer> {text} </Final answer>', TABLE).probability == expected


def test_refusal_is_told_from_nonsense():
  assert parse('<Final answer> I do not know </Final answer>', TABLE).refused
  assert not parse('<Final answer> ??? </Final answer>', TABLE).refused


@pytest.mark.parametrize('text', ['', '0.75', '<Final answer> 0.75', '</Final answer> 0.75 <Final answer>'])
def test_unclosed_tags_say_nothing(text):
  assert parse(text, TABLE).probability is None


def test_the_last_final_answer_counts():
  assert parse('<Final answer> 0.1 </Final answer> <Final answer> 0.9 </Final answer>', TABLE).probability == 0.9


def test_sections_of_the_feature_list():
  inside, begin = find_sections(GOOD)
  assert GOOD[slice(*inside)] == ' Heart Rate, lactic acid, LACTATE, sofa ' and GOOD[begin:].startswith('<Important')
  assert find_sections('no list') == (None, None)
  assert find_sections('<Important Features> a')[0] == (20, 22)
