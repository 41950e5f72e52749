import time

import pytest

from eagrl_jax.ehr.answers import parse
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable

TABLE = FeatureTable((FeatureSpec('lactate', aliases=('lactic acid',)), FeatureSpec('heart rate')))
GOOD = ('<Subquestion 1> How is it? </Subquestion 1>\n<Answer 1> 3.8, high </Answer 1>\n'
        '<Final subquestion> Now? </Final subquestion>\n<Important Features> Heart Rate, lactic acid, LACTATE, sofa'
        ' </Important Features>\n<Final answer> 0.75 </Final answer>')


def test_reads_a_whole_answer():
  answer = parse(GOOD, TABLE)
  assert answer.probability == 0.75 and answer.features == (1, 0)
  assert answer.steps == (('How is it?', '3.8, high'),) and not answer.refused


@pytest.mark.parametrize(('text', 'expected'), [
    ('0.3', 0.3), ('75%', 0.75), ('1', 1.0), ('0', 0.0), ('about .2', 0.2), ('0.750', 0.75), ('0.2 0.2', 0.2),
    ('1.2', None), ('-0.2', None), ('0.2 or 0.4', None), ('high', None), ('', None), ('150%', None),
    ('0.8765432', 0.8765432), ('0.123456789012', 0.123456789012), ('0.3.', 0.3), ('0.3.1', None), ('0.3 .1', None),
    ('0.007 (0.7%)', 0.007), ('0.29 (29 %)', 0.29), ('\u22120.3', None), ('\u20130.3', None), ('0.3 \u2013 low', 0.3),
    ('1234', None), ('I do not know', None), ("I don't know, 0.5", None), ('nan', None), ('1e-3', None)])
def test_probability(text, expected):
  assert parse(f'<Final answer> {text} </Final answer>', TABLE).probability == expected


@pytest.mark.parametrize(('listed', 'named'), [
    ('lactate (mmol/L), Heart Rate', (0, 1)), ('1. heart rate\n2) lactate (high)', (1, 0)),
    ('lactate (Unit: mmol/L. Reference range: 0.5 to 2.)', (0,)), ('(lactate high), lact (', ()), ('2', ())])
def test_names_may_have_a_number_before_and_a_remark_behind(listed, named):
  assert parse(f'<Important Features> {listed} </Important Features>', TABLE).features == named


def test_refusal_is_told_from_nonsense():
  assert parse('<Final answer> I do not know </Final answer>', TABLE).refused
  assert not parse('<Final answer> ??? </Final answer>', TABLE).refused


@pytest.mark.parametrize(('text', 'refused'), [
    ('I do not know', True), ('The lactate is high.\nI cannot estimate it.\n', True), ('', False),
    ('**Final answer:** I don\'t know.', True), ('"I do not know"', True),
    ('I do not know the dose, but\nthe lactate is high', False),
    ('<Subquestion 1> Is it? </Subquestion 1>\n<Answer 1> I do not know the earlier values </Answer 1>', False),
    ('<Answer 1> We do not know whether', False), ('We do not know the dose, but I put the risk at 0.2', False),
    ('write "I do not know" as the final answer.', False),
    ('I do not know\n<Final answer> 0.3 </Final answer>', False)])
def test_a_last_line_without_tags_may_refuse(text, refused):
  assert parse(text, TABLE).refused == refused


@pytest.mark.parametrize('text', ['', '0.75', '<Final answer> 0.75', '</Final answer> 0.75 <Final answer>'])
def test_unclosed_tags_say_nothing(text):
  assert parse(text, TABLE).probability is None


def test_the_last_final_answer_counts():
  assert parse('<Final answer> 0.1 </Final answer> <Final answer> 0.9 </Final answer>', TABLE).probability == 0.9


def test_the_list_that_names_the_features_is_the_list_that_is_found():
  listed = parse(GOOD, TABLE).listed
  assert GOOD[slice(*listed)] == ' Heart Rate, lactic acid, LACTATE, sofa '
  twice = '<Important Features> heart rate </Important Features>' + GOOD
  assert parse(twice, TABLE).features == (1, 0)
  assert twice[slice(*parse(twice, TABLE).listed)] == GOOD[slice(*listed)]


def test_a_list_left_open_names_nothing_and_is_found_to_the_end():
  assert parse('no list', TABLE).listed is None
  answer = parse('<Important Features> lactate', TABLE)
  assert answer.features == () and answer.listed == (20, 28)


def test_a_long_row_of_digits_takes_no_time():
  begun = time.process_time()
  parse(f'<Final answer> {"1" * 100_000} 0.{"1" * 100_000}.1 </Final answer>', TABLE)
  assert time.process_time() - begun < 1
