"""Renders one patient for a language model, with the character span of every feature.

Two styles. `full` follows the paper: a role line, the format of the answer, one line a
feature with unit and reference range, one value a visit and `NaN` where none was taken. Where
no reference is known the range may be what is usual among the train patients (`ehr.usual`),
and is called so. `compact` is for small policies with short contexts: the flag of the last
value by that range (HH, H, ok, L, LL) in place of unit and range, then the observed values,
oldest first. The flag stands right behind the name, where a small decoder finds it by one
look-up. Lines are indented, so that a name is the same token, with its leading space, here
and in an answer.

Times are relative, never calendar dates. Features keep the table's clinical order unless
the caller gives another; an order by the expert's salience would leak the reward's target.

Of each style there are two wordings: `standard`, which policies are trained on, and `rephrased`,
other words around the same feature lines, to see whether an answer hangs on the words.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.tasks import MORTALITY, Task
from eagrl_jax.types import EagrlError

FORMAT = (
    'Work in numbered sub-questions, at most {depth}, then give the features that matter most (at most {k}, names as '
    'written above) and the probability between 0 and 1. Write exactly:\n'
    '<Subquestion 1> a question about the record </Subquestion 1>\n<Answer 1> its answer </Answer 1>\n'
    '<Final subquestion> Now we can answer the question: {question} </Final subquestion>\n'
    '<Important Features> name, name </Important Features>\n<Final answer> a number such as 0.35 </Final answer>\n')

THINK_FORMAT = (
    'Think step by step about what the record shows. Then name what matters most (at most {k} features, spelt as '
    'above) and give a probability between 0 and 1. End with exactly these two lines:\n'
    '<Important Features> name, name </Important Features>\n<Final answer> a number such as 0.35 </Final answer>\n')

FULL_HEAD = (
    'You are an experienced physician reading the record of {setting}.\nEstimate {quantity}.\n'
    'The record has {visits}, ending {times} days after the start of the record. Each line is one feature with one '
    'value per visit, oldest first; NaN means not measured at that visit.\nSex: {who}. Age: {years} years.\n')

REPHRASED_HEAD = (
    'Below is what was measured in {setting}. As a doctor with long practice, say {quantity}.\n'
    'Patient: {who}, {years} years. There were {visits}, ending {times} days from the start. A line holds a feature '
    'and its values, one for each visit, the earliest first; NaN stands for a visit without that measurement.\n')

REPHRASED_FORMAT = (
    'Break the problem into no more than {depth} numbered sub-questions. After them list what counts most (no more '
    'than {k} features, spelt as above) and a probability from 0 to 1, in exactly this layout:\n'
    '<Subquestion 1> something to find out from the record </Subquestion 1>\n'
    '<Answer 1> what you found </Answer 1>\n'
    '<Final subquestion> Now we can answer the question: {question} </Final subquestion>\n'
    '<Important Features> name, name </Important Features>\n<Final answer> for instance 0.35 </Final answer>\n')

REFUSAL = 'If the record does not allow an estimate, write "I do not know" as the final answer.\n'
REPHRASED_REFUSAL = 'Where no estimate is possible, let the final answer be "I do not know".\n'


MARKS = {-1: '<', 0: '', 1: '>'}  # of `Cohort.censor`


@dataclasses.dataclass(frozen=True)
class PromptConfig:
  """How a record is written.

  Attributes:
    task: what is asked.
    style: 'full' or 'compact'.
    max_depth: the most sub-questions the format text asks for.
    top_k: the most important features it asks for.
    max_values: the latest values shown of a feature.
    max_characters: budget of the feature lines; the oldest values go first, then the lines of the
      features with the fewest values. 0 means no limit.
    wording: 'standard' or 'rephrased'; feature lines and answer tags are the same in both.
    reasoning: what 'full' asks for: 'questions', the steps of the method, or 'free', thinking in any form before the
      same two last lines. 'compact' gives no instructions: its policies are trained to answer in steps.
    may_refuse: whether 'full' offers "I do not know" as an answer; a small model may take it for everybody.
  """

  task: Task = MORTALITY
  style: str = 'full'
  max_depth: int = 5
  top_k: int = 5
  max_values: int = 8
  max_characters: int = 0
  wording: str = 'standard'
  reasoning: str = 'questions'
  may_refuse: bool = True

  def __post_init__(self):
    if self.style not in ('full', 'compact'):
      raise EagrlError(f"prompt.style={self.style!r}: choose 'full' or 'compact'")
    if self.max_values < 1:
      raise EagrlError(f'prompt.max_values={self.max_values} must be at least 1')
    if self.max_characters < 0:
      raise EagrlError(f'prompt.max_characters={self.max_characters} must not be negative; 0 = no limit')
    if self.reasoning not in ('questions', 'free'):
      raise EagrlError(f"prompt.reasoning={self.reasoning!r}: choose 'questions' or 'free'")
    if self.reasoning == 'free' and self.style != 'full':
      raise EagrlError("prompt.reasoning='free' is an instruction: it needs prompt.style='full'")
    if not self.may_refuse and self.style != 'full':
      raise EagrlError("prompt.may_refuse=False leaves out an instruction: it needs prompt.style='full'")
    if self.wording not in ('standard', 'rephrased'):
      raise EagrlError(f"prompt.wording={self.wording!r}: choose 'standard' or 'rephrased'")


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A rendered record."""

  text: str
  spans: tuple[tuple[int, int, int], ...]  # (feature id, first character, one past the last)
  dropped_values: int  # left out by the budget
  dropped_features: int
  shown: np.ndarray  # [T, F] the values that stand in it, NaN where there is none


def flag(spec: FeatureSpec, value: float) -> str:
  """Laboratory flag of a value: H or L outside the reference range, doubled when far outside.

  Far is more than half the width of the range beyond its bound, on the log scale for skewed features. Bounds compare as
  the float32 that records hold: 7.35 is not below 7.35.
  """
  value = float(np.float32(value))
  low, high = (None if bound is None else float(np.float32(bound)) for bound in (spec.ref_low, spec.ref_high))
  if high is not None and value > high:
    side, bound = 'H', high
  elif low is not None and value < low:
    side, bound = 'L', low
  else:
    return ''
  if low is None or high is None or high <= low:
    return side
  if spec.log and low > 0 and value > 0:
    excess, width = abs(np.log(value / bound)), np.log(high / low)
  else:
    excess, width = abs(value - bound), high - low
  return side * 2 if excess > width / 2 else side


def write_value(spec: FeatureSpec, value: float, mark: str = '') -> str:
  """A value at assay precision; an ordinal level as its word; large values without decimals.

  A value with a mark is a limit, which rounding could make a false one: '<0.04' is not '<0.0'.
  """
  for level, word in spec.levels:
    if np.float32(value) == np.float32(level):  # a record's 0.1 is not the spec's
      return mark + word
  decimals = 0 if abs(value) >= 100 else spec.decimals
  text = f'{value:.{decimals}f}'
  if mark and not np.isclose(float(text), value, rtol=1e-6, atol=0):
    text = f'{value:.6g}'
  return mark + ('0' + text[2:] if text.startswith('-0') and float(text) == 0 else text)


def _range(spec: FeatureSpec) -> str:
  if spec.ref_low is None:
    return '/' if spec.ref_high is None else f'{spec.ref_high:g} or less'
  return f'{spec.ref_low:g} or more' if spec.ref_high is None else f'{spec.ref_low:g} to {spec.ref_high:g}'


def _latest(series: np.ndarray, style: str, keep: int) -> np.ndarray:
  """Which entries of `series [T]` a line has: the full style cuts positions, the compact style observations."""
  there = ~np.isnan(series)
  if style == 'full':
    there[:-keep] = False
  else:
    there[np.flatnonzero(there)[:-keep]] = False
  return there


def _line(spec: FeatureSpec, series: np.ndarray, sign: np.ndarray, style: str, keep: int) -> str:
  # In: series [T] with NaN where not measured, sign [T].  Out: at most `keep` of its latest entries.
  if style == 'compact':
    at = np.flatnonzero(_latest(series, style, keep))
    shown = ' '.join(write_value(spec, series[t], MARKS[sign[t]]) for t in at)
    return f' {spec.name} {flag(spec, series[at[-1]]) or "ok"} {shown}\n'
  shown = ', '.join('NaN' if np.isnan(v) else write_value(spec, v, MARKS[s])
                    for v, s in zip(series[-keep:], sign[-keep:]))
  kind = 'Usual' if spec.usual else 'Reference'
  return f'- {spec.name} (Unit: {spec.unit or "/"}. {kind} range: {_range(spec)}.): [{shown}]\n'


def _fit(series: dict[int, np.ndarray], signs: np.ndarray, features: FeatureTable, config: PromptConfig):
  """Lines within the character budget, of features with a value among those kept.

  `-> ({feature: line}, how many values or visits are kept, dropped values, dropped features)`
  """

  def shown(keep, order):
    return {f: _line(features[f], series[f], signs[:, f], config.style, keep) for f in order
            if _latest(series[f], config.style, keep).any()}

  def count(keep, order):
    return sum(int(_latest(series[f], config.style, keep).sum()) for f in order)

  order = list(series)
  total = sum(int(np.sum(~np.isnan(s))) for s in series.values())
  keep = config.max_values
  lines = shown(keep, order)
  budget = config.max_characters or float('inf')
  while sum(map(len, lines.values())) > budget and keep > 1:
    keep -= 1
    lines = shown(keep, order)
  order = list(lines)
  if sum(map(len, lines.values())) > budget:
    by_count = sorted(order, key=lambda f: -int(np.sum(~np.isnan(series[f]))))
    kept, used = set(), 0
    for f in by_count:
      if used + len(lines[f]) <= budget:
        kept.add(f)
        used += len(lines[f])
    order = [f for f in order if f in kept]
    lines = {f: lines[f] for f in order}
  return lines, keep, total - count(keep, order), len(series) - len(order)


def render(features: FeatureTable, values: np.ndarray, hours: np.ndarray, age: float, sex: int, *, setting: str,
           config: PromptConfig, order: np.ndarray | None = None, censor: np.ndarray | None = None) -> Prompt:
  """Writes one patient.

  Args:
    values: [T, F] raw values of the real visits (no padding), NaN where not measured.
    hours: [T] hours since the start of the record, as of `Cohort`.
    age: years, NaN unknown. sex: 1 male, 0 female, -1 unknown.
    order: permutation of the features; the table's order when None.
    censor: [T, F] -1 or 1 where a value is a limit, written with < or >; all are exact when None.
  """
  standard = config.wording == 'standard'
  question, quantity = (config.task.question, config.task.quantity) if standard else config.task.rephrased
  order = np.arange(len(features)) if order is None else order
  series = {int(f): values[:, f] for f in order if not np.all(np.isnan(values[:, f]))}
  signs = np.zeros(values.shape, np.int8) if censor is None else censor
  lines, keep, dropped_values, dropped_features = _fit(series, signs, features, config)
  who = {1: 'male', 0: 'female'}.get(int(sex), 'unknown')
  years = 'unknown' if np.isnan(age) else '>89' if age > 89 else f'{age:.0f}'  # one group in released data

  if config.style == 'compact':
    head = (f'Sex: {who} Age: {years} Visits: {len(hours)}\n' if standard else
            f'Record of {len(hours)} visits. Patient of {years} years, {who}.\n')
    tail = f'Question: {question}\n' if standard else f'Please answer: {question}\n'
  else:
    times = ', '.join(f'{h / 24:.3g}' if h < 2400 else f'{h / 24:.0f}' for h in hours[-keep:])
    absent = [s.name for i, s in enumerate(features) if np.isnan(values[-keep:, i]).all()]
    cut = f', of which the last {keep} are shown' if keep < len(hours) else ''
    visits = f'{len(hours)} visit{"s" * (len(hours) != 1)}{cut}'
    fields = {'setting': setting, 'quantity': quantity, 'question': question, 'visits': visits, 'times': times,
              'who': who, 'years': years, 'absent': ', '.join(absent), 'depth': config.max_depth, 'k': config.top_k}
    head = (FULL_HEAD if standard else REPHRASED_HEAD).format(**fields)
    never = ('Never measured' if standard else 'Without any measurement') + ' in them' * bool(cut)
    tail = f'{never}: {{absent}}.\n' if absent else ''
    layout = THINK_FORMAT if config.reasoning == 'free' else FORMAT if standard else REPHRASED_FORMAT
    refusal = '' if not config.may_refuse else REFUSAL if standard else REPHRASED_REFUSAL
    tail = (tail + layout + refusal).format(**fields)

  text, spans, shown = head, [], np.full(values.shape, np.nan, values.dtype)
  for f, line in lines.items():
    spans.append((f, len(text), len(text) + len(line) - 1))
    text += line
    there = _latest(values[:, f], config.style, keep)
    shown[there, f] = values[there, f]
  return Prompt(text + tail, tuple(spans), dropped_values, dropped_features, shown)
