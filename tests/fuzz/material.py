"""What the fuzz tests share: absurd cells and columns, damage, and the two verdicts."""

from __future__ import annotations

import contextlib
import datetime
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from eagrl_jax.ehr.records import Cohort, to_visits
from eagrl_jax.types import EagrlError

CELL = st.one_of(st.sampled_from([
    '', ' ', '1', '-1', '0', 'NaN', 'inf', '1e400', '-1e400', '1e-400', '2020-01-01', '2020-01-01T00:00:00Z',
    '2020-13-45', '12:61', 'x', '"', '""', "'", '1,5', '1;5', '\t', '\u200b', '\x00', '1' * 400, 'é', '<5', '>9',
    'true', 'm', '2']), st.text(max_size=8), st.floats().map(str), st.integers().map(str))
JSON = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
                              st.sampled_from([10**400, -1e308])),
                    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=4), inner,
                                                                                         max_size=2)), max_leaves=4)
MOMENT = st.one_of(st.none(), st.integers(-2**63, 2**63 - 1), st.integers(0, 10**6).map(
    lambda minutes: int((datetime.datetime(2150, 1, 1) - datetime.datetime(1970, 1, 1)).total_seconds() + 60 * minutes)
    * 10**6))


@contextlib.contextmanager
def files(**content: bytes | str) -> Iterator[pathlib.Path]:
  """A folder of these files; `__` in a name is its dot."""
  with tempfile.TemporaryDirectory() as folder:
    for name, body in content.items():
      raw = body.encode('utf8', 'surrogatepass') if isinstance(body, str) else body
      pathlib.Path(folder, name.replace('__', '.')).write_bytes(raw)
    yield pathlib.Path(folder)


def only_our_error(call: Callable[[], object]) -> bool:
  """True where the call worked; its refusal is one line."""
  try:
    call()
  except EagrlError as error:
    assert '\n' not in str(error), error
    return False
  return True


def refused_or_sound(load: Callable[[], Cohort]) -> None:
  """A cohort whose arrays agree and that a grid takes, or our own error in one line."""
  try:
    cohort = load()
  except EagrlError as error:
    assert '\n' not in str(error)
    return
  assert len(cohort.patient) == len(cohort.hour) == len(cohort.value) == len(cohort.feature)
  assert np.isfinite(cohort.value).all() and np.isfinite(cohort.hour).all() and (cohort.hour >= 0).all()
  assert set(np.unique(cohort.label)) <= {0, 1}
  if len(cohort.patient):
    assert cohort.patient.max() < len(cohort) and cohort.feature.max() < len(cohort.features)
  for aggregate in ('mean', 'last'):
    visits = to_visits(cohort, 6.0, 3, aggregate)
    assert np.isfinite(visits.hours).all() and (visits.hours >= 0).all()


def damaged(data, whole: bytes, header: int | None = None) -> bytes:
  """A few bytes changed (within the first `header`), or the end cut off."""
  raw = bytearray(whole)
  for _ in range(data.draw(st.integers(0, 4))):
    raw[data.draw(st.integers(0, (header or len(raw)) - 1))] = data.draw(st.integers(0, 255))
  return bytes(raw[:data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)


def mostly(*good: str) -> st.SearchStrategy[str]:
  """One of these entries, now and then anything."""
  return st.one_of(*[st.sampled_from(good)] * 6, CELL)


def csv(max_rows: int = 8, **columns: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
  """A table of these columns, in which now and then one is missing."""
  line = st.tuples(*columns.values())
  keep = st.one_of(*[st.just(len(columns))] * 5, st.integers(0, len(columns) - 1))

  def text(drawn: tuple[Sequence[tuple[str, ...]], int]) -> str:
    lines, left_out = drawn
    return ''.join(','.join(c for i, c in enumerate(line) if i != left_out) + '\n' for line in [tuple(columns), *lines])
  return st.tuples(st.lists(line, max_size=max_rows), keep).map(text)


def column(data, kind: pa.DataType, good: st.SearchStrategy, n: int) -> pa.Array:
  """A column of `n` entries: nearly always of its kind, now and then of another."""
  strategy, kind = data.draw(st.one_of(*[st.just((good, kind))] * 8, st.sampled_from([
      (st.text(max_size=4), pa.string()), (st.integers(-2**63, 2**63 - 1), pa.int64()), (st.floats(), pa.float64()),
      (st.booleans(), pa.bool_()), (st.binary(max_size=3), pa.binary()), (st.none(), pa.null()),
      (st.lists(st.integers(0, 9), max_size=2), pa.list_(pa.int64())),
      (st.integers(-10**6, 10**6), pa.date32()), (st.integers(0, 10**6), pa.duration('us')),
      (st.integers(-2**63, 2**63 - 1), pa.timestamp('us')), (st.integers(0, 10**15), pa.timestamp('ns', 'UTC')),
      (st.integers(0, 10**9), pa.decimal128(20, 3))])))
  return pa.array(data.draw(st.lists(st.one_of(st.none(), strategy), min_size=n, max_size=n)), kind)
