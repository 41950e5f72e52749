"""Rule-written answers that teach reading and format, and nothing about the outcome.

The base stage trains on these. The rules look at a record alone: is the last value out of
range, is it rising. They see no label and no expert. The probability is 0.50, said by one who
does not know, or drawn uniformly, so a policy that learned them perfectly predicts at chance.
"""

from __future__ import annotations

import numpy as np

from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.prompt import TASKS, flag, write_value

USEFUL = 'Is this sub-question useful?'
MARKS = ('ok', 'H', 'HH', 'L', 'LL')
DRILL = 16  # features that the reading drill lists
ASKED = 8  # flags that the first lesson asks for
SHRUG = 0.2  # how often the probability is 0.50; the rest gives search and RL every number to choose from
REACH = 1.2  # scattered values reach this many widths of the reference range beyond it: five flags, none rare


def scatter(features: FeatureTable, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """A record with every measured value drawn anew around its reference range. `[..., F] -> [..., F]`.

  In real records a feature's name alone tells its flag four times out of five, and a small
  decoder stops there. Here only the record tells. Features without a range keep their values.
  """
  out = values.copy()
  for f, spec in enumerate(features):
    measured = ~np.isnan(values[..., f])
    count = int(measured.sum())
    low, high = spec.ref_low, spec.ref_high
    if spec.levels:
      out[measured, f] = rng.choice([level for level, _ in spec.levels], count)
    elif low is not None or high is not None:
      # An open side is taken as far away as the other bound is from zero.
      low, high = (high - abs(high) if low is None else low), (low + abs(low) if high is None else high)
      scale, back = (np.log, np.exp) if spec.log and low > 0 else (float, np.asarray)
      reach = REACH * (scale(high) - scale(low))
      drawn = back(rng.uniform(scale(low) - reach, scale(high) + reach, count))
      floor = -np.inf if spec.hard_low is None else spec.hard_low
      ceiling = np.inf if spec.hard_high is None else spec.hard_high
      out[measured, f] = np.clip(drawn, floor, ceiling)
  return out


def final_question(task: str) -> str:
  return f'Now we can answer the question: {TASKS[task][0]}'


def _trend(spec: FeatureSpec, seen: np.ndarray) -> str:
  if len(seen) < 2:
    return 'measured once'
  first, last = float(seen[0]), float(seen[-1])
  # A tenth of the reference range, or of the value, is the least change worth a word.
  low, high = spec.ref_low, spec.ref_high
  width = abs(first) if low is None or high is None else high - low
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
  probability = 0.5 if rng.random() < SHRUG else rng.integers(1, 100) / 100
  return text + (f'<Final subquestion> {final_question(task)} </Final subquestion>\n'
                 f'<Important Features> {", ".join(features[int(f)].name for f in named)} </Important Features>\n'
                 f'<Final answer> {probability:.2f} </Final answer>')


def write_findings(features: FeatureTable, values: np.ndarray, visible: list[int], rng: np.random.Generator) -> str:
  """A reading drill: how many features are out of range, then the flags of up to 16 features in random order."""
  marks = [_mark(features[f], values[~np.isnan(values[:, f]), f]) for f in rng.permutation(visible)]
  outside = sum(not m.endswith(' ok') for m in marks)
  return f'<Findings> {outside} out of range: {", ".join(marks[:DRILL])} </Findings>'


def write_flags(features: FeatureTable, values: np.ndarray, visible: list[int], rng: np.random.Generator) -> str:
  """The first lesson: the flags of eight features drawn with replacement.

  Each once would let a decoder rule out flags already told instead of looking the next one up.
  """
  marks = [_mark(features[f], values[~np.isnan(values[:, f]), f]) for f in rng.choice(visible, ASKED)]
  return f'<Findings> {", ".join(marks)} </Findings>'


def write_usefulness(features: FeatureTable, values: np.ndarray, visible: list[int], rng: np.random.Generator) -> str:
  """A sub-question and whether it is worth asking: yes when the feature's last value is out of range."""
  f = int(rng.choice(visible))
  seen = values[~np.isnan(values[:, f]), f]
  verdict = 'Yes' if flag(features[f], float(seen[-1])) else 'No'
  return f'<Subquestion 1> How is the {features[f].name}? </Subquestion 1>\n<Useful> {USEFUL} {verdict}'
