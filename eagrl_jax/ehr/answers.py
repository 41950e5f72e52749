"""Reads a policy's answer: steps, named features, probability. Never raises on model text."""

from __future__ import annotations

import dataclasses
import re

from eagrl_jax.ehr.features import FeatureTable

# All of a number or nothing of it: quantifiers that give nothing back, and no digit behind.
_NUMBER = re.compile(r'(?<![\d.])(\d{1,3}+(?:\.\d++)?+|\.\d++)(?!\.?\d)\s*(%?)')
_NEGATIVE = re.compile(r'-|[\u2212\u2013]\s*\.?\d')  # a minus sign or an en dash before a number
_AROUND = re.compile(r'^\d+[.)]|\([^()]*\)$')  # a number before a name, a unit or remark behind it
_REFUSAL = re.compile(r'\b(?:do(?: not|n.t) know|cannot (?:tell|estimate|answer))\b', re.I)
_BARE_REFUSAL = re.compile(
    r'\W*(?:final answer\W+)?i (?:do(?: not|n.t) know|cannot (?:tell|estimate|answer))(?: (?:it|that|this))?\W*$', re.I)

FEATURES = 'Important Features'  # the tag


@dataclasses.dataclass(frozen=True)
class Answer:
  """What an answer says; `probability` is None when it does not say one."""

  probability: float | None
  features: tuple[int, ...]  # ids in the order written, without repeats
  listed: tuple[int, int] | None  # characters of the feature list that was read; of one left open, to the end
  steps: tuple[tuple[str, str], ...]  # (sub-question, answer)
  refused: bool


def _span(text: str, tag: str) -> tuple[int, int] | None:
  """Characters inside the last complete `<tag> … </tag>`; None where there is none."""
  end = text.rfind(f'</{tag}>')
  start = text.rfind(f'<{tag}>', 0, end) if end >= 0 else -1
  return (start + len(tag) + 2, end) if start >= 0 else None


def _inside(text: str, tag: str) -> str | None:
  span = _span(text, tag)
  return text[slice(*span)].strip() if span else None


def parse(text: str, features: FeatureTable, max_steps: int = 16) -> Answer:
  """Reads an answer in the format of `ehr.prompt.FORMAT`.

  A percentage is accepted; a number outside [0, 1], two different numbers or an unclosed
  tag is not. Text before and after the tags is ignored, but for a refusal: without a final
  answer the last line may be one and nothing else.
  """
  final = _inside(text, 'Final answer')
  probability, last = None, text.rstrip().rpartition('\n')[2]
  refused = bool(_BARE_REFUSAL.match(last) if final is None else _REFUSAL.search(final))
  if final is not None:
    numbers = {round(float(n) / (100 if percent else 1), 12) for n, percent in _NUMBER.findall(final)}
    if len(numbers) == 1 and not refused and not _NEGATIVE.search(final):
      value = numbers.pop()
      probability = value if value <= 1 else None

  listed = _span(text, FEATURES)
  named: list[int] = []
  for name in re.split(r'[,;\n]', text[slice(*listed)]) if listed else ():
    name = name.strip(' .\n')
    found = features.find(name)
    if found is None:  # '1. creatinine', 'creatinine (umol/L)'
      found = features.find(_AROUND.sub('', name).strip())
    if found is not None and found not in named:
      named.append(found)
  if not listed and (begin := text.rfind(f'<{FEATURES}>')) >= 0:
    listed = begin + len(FEATURES) + 2, len(text)

  steps = []
  for i in range(1, max_steps + 1):
    question, answer = _inside(text, f'Subquestion {i}'), _inside(text, f'Answer {i}')
    if question is None or answer is None:
      break
    steps.append((question, answer))
  return Answer(probability, tuple(named), listed, tuple(steps), refused)
