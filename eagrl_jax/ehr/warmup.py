"""Rule-written answers that teach reading and format, and nothing about the outcome.

The base stage trains on these. The rules look at a record alone: is the last value out of
range, is it rising. They see no label and no expert. The probability is drawn uniformly,
so a policy that learned them perfectly predicts at chance.
"""

from __future__ import annotations

import numpy as np

from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.prompt import TASKS, flag, write_value

USEFUL = 'Is this sub-question useful?'
DRILL = 16  # features that the reading drill lists


def final_question(task: str) -> str:
  return f'Now we can answer the question: {TASKS[task][0]}'


def _trend(spec: FeatureSpec, seen: np.ndarray) -> str:
  if len(seen) < 2:
    return 'measured once'
  first, last = float(seen[0]), float(seen[-1])
  # A tenth of the reference range, or of the value, is the least change worth a word.
  width = spec.ref_high - spec.ref_low if None not in (spec.ref_low, spec.ref_high) else abs(first)
  if abs(last - first) <= 0.1 * max(width, 1e-6):
    return 'steady'
  return 'rising' if last > first else 'falling'


def _mark(spec: FeatureSpec, seen: np.ndarray) -> str:
  return f'{spec.name} {flag(spec, float(seen[-1])) or "ok"}'


def _describe(spec: FeatureSpec, seen: np.ndarray) -> str:
  # The answer begins like a compact line: a small decoder learns to copy long before it learns to rephrase.
  return f'{_mark(spec, seen)} {write_value(spec, float(seen[-1]))}, {_trend(spec, seen)}'


def write_answer(features: FeatureTable, values: np.ndarray, visible: list[int], task: str, top_k: int, max_steps: int,
                 rng: np.random.Generator) -> str:
  """One answer to a rendered record.

  Args:
    values: [T, F] raw values of the real visits, NaN where not measured.
    visible: features that the prompt shows.
    top_k: length of the list of important features.
    max_steps: the most sub-questions; at least one is written.
  """
  seen = {f: values[~np.isnan(values[:, f]), f] for f in visible}
  # Out-of-range features are asked about and listed more often: a reading habit, no knowledge of the outcome.
  grade = np.array([1 + 2 * len(flag(features[f], float(seen[f][-1]))) for f in visible], float)
  weight = grade / grade.sum()
  asked = rng.choice(visible, size=min(int(rng.integers(1, max_steps + 1)), len(visible)), replace=False, p=weight)
  text = ''
  for i, f in enumerate(asked, 1):
    spec = features[int(f)]
    text += (f'<Subquestion {i}> How is the {spec.name}? </Subquestion {i}>\n'
             f'<Answer {i}> {_describe(spec, seen[int(f)])} </Answer {i}>\n')
  named = rng.choice(visible, size=min(top_k, len(visible)), replace=False, p=weight)
  probability = rng.integers(1, 100) / 100
  return text + (f'<Final subquestion> {final_question(task)} </Final subquestion>\n'
                 f'<Important Features> {", ".join(features[int(f)].name for f in named)} </Important Features>\n'
                 f'<Final answer> {probability:.2f} </Final answer>')


def write_findings(features: FeatureTable, values: np.ndarray, visible: list[int], rng: np.random.Generator) -> str:
  """A reading drill: how many features are out of range, then the flags of up to 16 features in random order."""
  marks = [_mark(features[f], values[~np.isnan(values[:, f]), f]) for f in rng.permutation(visible)]
  outside = sum(not m.endswith(' ok') for m in marks)
  return f'<Findings> {outside} out of range: {", ".join(marks[:DRILL])} </Findings>'


def write_usefulness(features: FeatureTable, values: np.ndarray, visible: list[int], rng: np.random.Generator) -> str:
  """A sub-question and whether it is worth asking: yes when the feature's last value is out of range."""
  f = int(rng.choice(visible))
  seen = values[~np.isnan(values[:, f]), f]
  verdict = 'Yes' if flag(features[f], float(seen[-1])) else 'No'
  return f'<Subquestion 1> How is the {features[f].name}? </Subquestion 1>\n<Useful> {USEFUL} {verdict}'
