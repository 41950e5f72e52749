"""Feature specifications: name, unit, reference range, hard range, aliases.

A feature's position in its table is its id everywhere: event arrays, prompts,
salience vectors, parsed answers.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import Any

from eagrl_jax.types import EagrlError

MOST_DECIMALS = 6
# UCUM's spellings (ucum.org), in small letters, and the usual ones.
_UCUM = {'10*': '10^', '[hg]': 'hg', '[h2o]': 'h2o', '[iu]': 'iu', '[degf]': 'degf', '[lb_av]': 'lb', '[in_i]': 'in',
         '/{1.73_m2}': '/1.73m2', '/1.73.m2': '/1.73m2'}


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
  """One clinical feature.

  Attributes:
    name: how prompts and answers write it, unique in its table.
    unit: UCUM-like text, '' when dimensionless or unknown.
    ref_low, ref_high: two-sided reference range in `unit`; None where unknown.
    usual: the range is not of a laboratory: it is the middle of the train patients' values (`ehr.usual`).
    hard_low, hard_high: values outside cannot be real and become missing.
    log: modelled and noised on the log scale (positive, skewed).
    decimals: digits after the point in a prompt (assay precision).
    kind: 'numeric', or 'ordinal' whose `levels` are written as words.
    levels: (value, word) pairs of an ordinal feature.
    aliases: other spellings in sources and answers.
    group: organ system or panel; orders the prompt.
    accepted_units: (unit, scale, offset): value_in_unit = scale * value + offset.
    sentinels: values that mean missing in this source.
    rescale: (from, to, scale, offset): a value in this closed range is in another unit beyond doubt, whatever it says,
      and is converted, as a fraction of oxygen where percent are meant. The first range that holds decides.
    repeats: which of several values at one time is used: 'mean', or 'last', the one that became available last, else
      the last in the file, as of a laboratory that corrects itself. Only csv and wide_csv have an order.
    encoding: how the expert reads it: 'number', one z-scored channel, or 'one_hot', a channel a level. The prompt shows
      it once either way.
    specimen: what is measured, as 'blood'. Without it a feature with many impossible values is not used: its column
      may hold two specimens.
  """

  name: str
  unit: str = ''
  ref_low: float | None = None
  ref_high: float | None = None
  hard_low: float | None = None
  hard_high: float | None = None
  log: bool = False
  decimals: int = 1
  kind: str = 'numeric'
  levels: tuple[tuple[float, str], ...] = ()
  aliases: tuple[str, ...] = ()
  group: str = ''
  accepted_units: tuple[tuple[str, float, float], ...] = ()
  sentinels: tuple[float, ...] = ()
  rescale: tuple[tuple[float, float, float, float], ...] = ()
  specimen: str = ''
  encoding: str = 'number'
  repeats: str = 'mean'
  usual: bool = False


def canonical(name: str) -> str:
  """Spelling-insensitive form of a feature name: case, spaces and punctuation do not count."""
  name = name.replace('α', 'a').replace('β', 'b').replace('γ', 'g')
  return re.sub(r'[^\w%#+]+|_', '', name.lower())  # letters of every script: hospital exports carry Chinese headers


def is_word(entry: str) -> bool:
  """Whether an entry may be a name or a unit: no number, date or mere signs, which could be a patient's."""
  return not re.match(r'^[\W\d_]*$|^\d{4}-\d\d', entry)


def plain_unit(unit: str) -> str:
  """Spelling-insensitive form of a unit.

  Of UCUM's annotations only one in place of a count goes, as in {beats}/min. One after a unit says of what it is: a
  ug/mL{FEU} of D-dimer is about half a ug/mL{DDU}.
  """
  plain = unit.replace('µ', 'u').replace('μ', 'u').replace('°', 'deg').replace(' ', '').lower()
  for ucum, usual in _UCUM.items():
    plain = plain.replace(ucum, usual)
  return 'degc' if plain == 'cel' else re.sub(r'^{[^{}]*}/', '/', plain)


class FeatureTable:
  """An ordered, immutable set of features with look-up by any known spelling."""

  def __init__(self, specs: tuple[FeatureSpec, ...]):
    self.specs = tuple(specs)
    self._index: dict[str, int] = {}
    for i, spec in enumerate(self.specs):
      for name in (spec.name, *spec.aliases):
        if self._index.setdefault(canonical(name), i) != i:
          raise EagrlError(f'features: the name {name!r} belongs to two features; rename one')

  def __len__(self) -> int:
    return len(self.specs)

  def __iter__(self):
    return iter(self.specs)

  def __getitem__(self, i: int) -> FeatureSpec:
    return self.specs[i]

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(s.name for s in self.specs)

  def find(self, name: str) -> int | None:
    """Id of a feature by name or alias, None where unknown."""
    return self._index.get(canonical(name))

  def require(self, name: str, field: str) -> int:
    """Like `find`, but an unknown name is an error that offers the nearest one."""
    found = self.find(name)
    if found is None:
      raise EagrlError(f'{field}: unknown feature {name!r}; did you mean {self.near(name)!r}?')
    return found

  def near(self, name: str, likeness: float = 0.0) -> str | None:
    """Name of the feature that is spelt most like `name`; None where none is as like as `likeness`, 0 to 1."""
    found = difflib.get_close_matches(canonical(name), self._index, n=1, cutoff=likeness)
    return self.specs[self._index[found[0]]].name if found else None

  def subset(self, ids: list[int]) -> FeatureTable:
    return FeatureTable(tuple(self.specs[i] for i in ids))

  def with_sentinels(self, known: FeatureTable | None) -> FeatureTable:
    """What stands for a missing value in `known` does so here too, of features of the same name and unit."""
    if known is None:
      return self
    specs = list(self.specs)
    for f, spec in enumerate(self.specs):
      i = known.find(spec.name)
      if i is not None and plain_unit(known[i].unit) == plain_unit(spec.unit):
        specs[f] = dataclasses.replace(spec, sentinels=tuple(dict.fromkeys((*spec.sentinels, *known[i].sentinels))))
    return FeatureTable(tuple(specs))

  def to_json(self) -> list[dict]:
    # A cohort of before these fields keeps its fingerprint.
    since = {'rescale': (), 'specimen': '', 'encoding': 'number', 'repeats': 'mean', 'usual': False}
    return [{k: v for k, v in dataclasses.asdict(s).items() if k not in since or v != since[k]} for s in self.specs]

  @classmethod
  def from_json(cls, rows: list[dict]) -> FeatureTable:
    def spec(row: dict) -> FeatureSpec:
      nested: dict[str, Any] = {
          k: tuple(tuple(x) if isinstance(x, list) else x for x in v) if isinstance(v, list) else v
          for k, v in row.items()}
      return FeatureSpec(**nested)
    return cls(tuple(spec(r) for r in rows))
