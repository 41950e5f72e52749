"""Rule-written answers that teach reading and format, and nothing about the outcome.

The base stage trains on these. The rules look at a record alone: is the last value out of
range, is it rising. They see no label and no expert. The probability is 0.50, said by one who
does not know, or drawn uniformly, so a policy that learned them perfectly predicts at chance.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.prompt import flag, write_value
from eagrl_jax.ehr.tasks import Task

USEFUL = 'Is this sub-question useful?'
DRILL = 16  # features that the reading drill lists
ASKED = 8  # flags that the first lesson asks for
SHRUG = 0.2  # how often the probability is 0.50; the rest gives search and RL every number to choose from
LIMITS = {-1: 'below ', 0: '', 1: 'above '}  # of `Cohort.censor`; in an answer '<' would begin a tag
REACH = 1.2  # scattered values reach this many widths of the reference range beyond it: five flags, none rare


@dataclasses.dataclass(frozen=True)
class Exercise:
  """A text to imitate, and which of its characters matter how."""

  text: str
  read: tuple[tuple[int, int], ...]  # [first, one past the last) characters that the record decides, not chance
  given: int = 0  # leading characters that the policy is handed; they are not asked of it
  ends: bool = False  # the text is a whole answer: the end token follows


def compose(parts: list[tuple[str, bool]], given: int = 0, ends: bool = False) -> Exercise:
  """Joins pieces of text, each with whether the record decides it."""
  text, read = '', []
  for piece, decided in parts:
    if decided:
      read.append((len(text), len(text) + len(piece)))
    text += piece
  return Exercise(text, tuple(read), given, ends)


def scatter(features: FeatureTable, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """A record with every measured value drawn anew around its reference range. `[..., F] -> [..., F]`.

  In real records a feature's name alone tells its flag four times out of five, and a small
  decoder stops there. Here only the record tells. Features without a range, or with one of no width, keep their values.
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
      if high <= low:
        continue
      scale, back = (np.log, np.exp) if spec.log and low > 0 else (float, np.asarray)
      reach = REACH * (scale(high) - scale(low))
      drawn = back(rng.uniform(scale(low) - reach, scale(high) + reach, count))
      floor = -np.inf if spec.hard_low is None else spec.hard_low
      ceiling = np.inf if spec.hard_high is None else spec.hard_high
      out[measured, f] = np.clip(drawn, floor, ceiling)
  return out


def final_question(task: Task) -> str:
  return f'Now we can answer the question: {task.question}'


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


def _flag(spec: FeatureSpec, seen: np.ndarray) -> str:
  return flag(spec, float(seen[-1])) or 'ok'


def _describe(spec: FeatureSpec, seen: np.ndarray, sign: int) -> str:
  # The answer begins like a compact line: a small decoder learns to copy long before it learns to rephrase.
  last = write_value(spec, float(seen[-1]), LIMITS[sign])
  return f'{spec.name} {_flag(spec, seen)} {last}, {_trend(spec, seen)}'


def write_answer(features: FeatureTable, values: np.ndarray, visible: list[int], task: Task, top_k: int, max_steps: int,
                 rng: np.random.Generator, censor: np.ndarray | None = None) -> Exercise:
  """One answer to a rendered record.

  Args:
    values: [T, F] raw values of the real visits, NaN where not measured.
    visible: features that the prompt shows.
    top_k: length of the list of important features.
    max_steps: the most sub-questions; at least one is written.
    censor: [T, F] as `prompt.render` is given it.
  """
  seen = {f: values[~np.isnan(values[:, f]), f] for f in visible}
  sign = dict.fromkeys(visible, 0) if censor is None else {
      f: int(censor[~np.isnan(values[:, f]), f][-1]) for f in visible}
  # Out-of-range features are asked about and listed more often: a reading habit, no knowledge of the outcome.
  grade = np.array([1 + 2 * len(flag(features[f], float(seen[f][-1]))) for f in visible], float)
  weight = grade / grade.sum()
  asked = rng.choice(visible, size=min(int(rng.integers(1, max_steps + 1)), len(visible)), replace=False, p=weight)
  parts = []
  for i, f in enumerate(asked, 1):
    spec = features[int(f)]
    parts += [(f'<Subquestion {i}> How is the {spec.name}? </Subquestion {i}>\n<Answer {i}>', False),
              (f' {_describe(spec, seen[int(f)], sign[int(f)])}', True), (f' </Answer {i}>\n', False)]
  named = rng.choice(visible, size=min(top_k, len(visible)), replace=False, p=weight)
  probability = 0.5 if rng.random() < SHRUG else rng.integers(1, 100) / 100
  parts.append((f'<Final subquestion> {final_question(task)} </Final subquestion>\n'
                f'<Important Features> {", ".join(features[int(f)].name for f in named)} </Important Features>\n'
                f'<Final answer> {probability:.2f} </Final answer>', False))
  return compose(parts, ends=True)


def write_findings(features: FeatureTable, values: np.ndarray, visible: list[int],
                   rng: np.random.Generator) -> Exercise:
  """A reading drill: how many features are out of range, then the flags of up to 16 in random order."""
  return _findings(features, values, visible, rng.permutation(visible)[:DRILL])


def write_flags(features: FeatureTable, values: np.ndarray, visible: list[int], rng: np.random.Generator) -> Exercise:
  """The first lesson: the same with eight features drawn with replacement.

  Each once would let a decoder rule out flags already told instead of looking the next one up.
  """
  return _findings(features, values, visible, rng.choice(visible, ASKED))


def _findings(features: FeatureTable, values: np.ndarray, visible: list[int], listed: np.ndarray) -> Exercise:
  """` name flag,` of each listed feature: which one comes next is chance, its flag and the count are not."""
  flags = {f: _flag(features[f], values[~np.isnan(values[:, f]), f]) for f in visible}
  parts = [('<Findings>', False), (f' {sum(mark != "ok" for mark in flags.values())}', True), (' out of range:', False)]
  for f in listed.tolist():
    parts += [(f' {features[f].name}', False), (f' {flags[f]}', True), (',', False)]
  return compose([*parts[:-1], (' </Findings>', False)], given=len('<Findings>'))


def write_usefulness(features: FeatureTable, values: np.ndarray, visible: list[int],
                     rng: np.random.Generator) -> Exercise:
  """A sub-question and whether it is worth asking: yes when the feature's last value is out of range."""
  f = int(rng.choice(visible))
  seen = values[~np.isnan(values[:, f]), f]
  question = f'<Subquestion 1> How is the {features[f].name}? </Subquestion 1>\n<Useful> {USEFUL}'
  verdict = ' No' if _flag(features[f], seen) == 'ok' else ' Yes'
  return compose([(question, False), (verdict, True)], given=len(question))
