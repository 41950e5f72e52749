"""What is predicted, in the words that a prompt asks it in."""

from __future__ import annotations

import dataclasses

from eagrl_jax.types import EagrlError

LONGEST = 300  # characters of a question


@dataclasses.dataclass(frozen=True)
class Task:
  """A yes-or-no outcome.

  Attributes:
    name: what cohorts and reports call it.
    question: asks for the outcome; ends an answer's sub-questions.
    quantity: names the probability of the outcome, behind 'Estimate'.
    rephrased: question and quantity in other words, behind 'say' (`PromptConfig.wording`).
  """

  name: str
  question: str
  quantity: str
  rephrased: tuple[str, str]


MORTALITY = Task(
    'mortality', 'will the patient die in hospital?', 'the probability that the patient dies in hospital',
    ('is this patient going to die during the stay?',
     'how likely it is that this patient dies before leaving the hospital'))
READMISSION = Task(
    'readmission', 'will the patient be readmitted within 30 days?',
    'the probability that the patient is readmitted or dies within 30 days of leaving',
    ('is this patient going to come back within 30 days?',
     'how likely it is that this patient comes back or dies in the 30 days after leaving'))
KNOWN = {task.name: task for task in (MORTALITY, READMISSION)}


def find(name: str, question: str = '', quantity: str = '') -> Task:
  """A known task, or one in a user's own words, which then stand for its rephrased ones too.

  Raises:
    EagrlError: words that are missing, or that an answer's tags cannot stand beside.
  """
  if not question and not quantity:
    if name not in KNOWN:
      raise EagrlError(f'data.question: data.task={name!r} is none of {", ".join(KNOWN)}; say what is asked, such as '
                       "'will the patient need dialysis?', and in data.quantity 'the probability that …'")
    return KNOWN[name]
  for field, text in (('question', question), ('quantity', quantity)):
    if not text or len(text) > LONGEST or not text.isprintable() or '<' in text or text != text.strip():
      raise EagrlError(f'data.{field}={text!r}: give question and quantity, each one line of up to {LONGEST} '
                       "characters without '<'")
  return Task(name, question, quantity, (question, quantity))
