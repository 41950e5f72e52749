"""Reads a policy's answer: steps, named features, probability. Never raises on model text."""

from __future__ import annotations

import dataclasses
import re

from eagrl_jax.ehr.features import FeatureTable

_NUMBER = re.compile(r'(?<![\d.])(\d{1,3}(?:\.\d{1,6})?|\.\d{1,6})(?!\d)\s*(%?)')
_REFUSAL = re.compile(r'\b(?:do(?: not|n.t) know|cannot (?:tell|estimate|answer))\b', re.I)


@dataclasses.dataclass(frozen=True)
class Answer:
  """What an answer says; `probability` is None when it does not say one."""

  probability: float | None
  features: tuple[int, ...]  # ids in the order written, without repeats
  unknown_names: int  # written names that are no feature of the table
  steps: tuple[tuple[str, str], ...]  # (sub-question, answer)
  refused: bool


def _inside(text: str, tag: str) -> str | None:
  """Text of the last complete `<tag> … </tag>`; None where there is none."""
  end = text.rfind(f'</{tag}>')
  start = text.rfind(f'<{tag}>', 0, end) if end >= 0 else -1
  return text[start + len(tag) + 2:end].strip() if start >= 0 else None


def parse(text: str, features: FeatureTable, max_steps: int = 16) -> Answer:
  """Reads an answer in the format of `ehr.prompt.FORMAT`.

  A percentage is accepted; a number outside [0, 1], two different numbers or an unclosed
  tag is not. Text before and after the tags is ignored.
  """
  final = _inside(text, 'Final answer')
  probability, refused = None, False
  if final is not None:
    refused = bool(_REFUSAL.search(final))
    numbers = {float(n) / (100 if percent else 1) for n, percent in _NUMBER.findall(final)}
    if len(numbers) == 1 and not refused and '-' not in final:
      value = numbers.pop()
      probability = value if value <= 1 else None

  named: list[int] = []
  unknown = 0
  for name in filter(None, (n.strip(' .\n') for n in re.split(r'[,;\n]', _inside(text, 'Important Features') or ''))):
    found = features.find(name)
    unknown += found is None
    if found is not None and found not in named:
      named.append(found)

  steps = []
  for i in range(1, max_steps + 1):
    question, answer = _inside(text, f'Subquestion {i}'), _inside(text, f'Answer {i}')
    if question is None or answer is None:
      break
    steps.append((question, answer))
  return Answer(probability, tuple(named), unknown, tuple(steps), refused)


def find_sections(text: str) -> tuple[tuple[int, int] | None, int | None]:
  """Character span inside `<Important Features>` and where that tag begins; None where absent.

  An unclosed list runs to the end of the text.
  """
  tag, close = '<Important Features>', '</Important Features>'
  start = text.find(tag)
  if start < 0:
    return None, None
  end = text.find(close, start)
  return (start + len(tag), end if end >= 0 else len(text)), start
