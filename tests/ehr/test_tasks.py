"""What is asked: known outcomes, and a user's own through every text that a policy reads."""

import numpy as np
import pytest

from eagrl_jax.ehr import tasks, warmup
from eagrl_jax.ehr.answers import parse
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.prompt import PromptConfig, render
from eagrl_jax.types import EagrlError

OWN = tasks.find('aki', 'will the patient need dialysis?', 'the probability that the patient needs dialysis')
TABLE = FeatureTable((FeatureSpec('creatinine', 'mg/dL'),))


def test_known_tasks_have_words_of_their_own_and_may_be_given_others():
  assert tasks.find('mortality') is tasks.MORTALITY and 'die' in tasks.MORTALITY.question
  other = tasks.find('mortality', 'will the patient die in 28 days?', 'the probability of death in 28 days')
  assert other.name == 'mortality' and other.question != tasks.MORTALITY.question


@pytest.mark.parametrize(('given', 'match'), [
    (('aki',), "data.question: data.task='aki' is none of mortality, readmission"),
    (('aki', 'x?'), "data.quantity=''"), (('aki', '', 'x'), "data.question=''"),
    (('aki', '<b>', 'x'), 'data.question='), (('aki', 'two\nlines', 'x'), 'data.question='),
    (('aki', ' x', 'x'), 'data.question='), (('aki', 'x' * 301, 'x'), 'data.question=')])
def test_words_that_cannot_be_asked_are_refused(given, match):
  with pytest.raises(EagrlError, match=match):
    tasks.find(*given)


@pytest.mark.parametrize('style', ['full', 'compact'])
@pytest.mark.parametrize('wording', ['standard', 'rephrased'])
def test_a_users_question_is_what_every_prompt_asks(style, wording):
  text = render(TABLE, np.ones((1, 1)), np.zeros(1), 50.0, 1, setting='adults',
                config=PromptConfig(OWN, style, wording=wording)).text
  assert OWN.question in text and (style == 'compact' or OWN.quantity in text)
  assert not any(task.question in text or task.rephrased[0] in text for task in tasks.KNOWN.values())


def test_a_users_question_ends_the_answers_that_are_learnt_from():
  text = warmup.write_answer(TABLE, np.ones((1, 1)), [0], OWN, 1, 1, np.random.default_rng(0)).text
  assert f'<Final subquestion> Now we can answer the question: {OWN.question} </Final' in text
  assert parse(text, TABLE).features == (0,)
