"""Sources that are read through the database, with columns of any kind: MEDS, YAIB, MIMIC-IV; and our own parquet."""

from __future__ import annotations

import functools
import pathlib
import tempfile

import mimic4_fixture
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st
from material import MOMENT, column, damaged, files, mostly, only_our_error, refused_or_sound

from eagrl_jax.ehr import splits
from eagrl_jax.ehr.sources import meds, mimic4, yaib
from eagrl_jax.ehr.sources.bounded import Grid

GRIDS = st.sampled_from([Grid(1.0), Grid(6.0, 'last', 24.0), Grid(24.0, 'mean', 48.0)])
IDS = st.integers(1, 3)
NUMBER = st.one_of(st.sampled_from([1.0, 80.0, 120.0, 38.5, float('nan'), float('inf'), -1.0, 1e300]), st.floats())
SPECS = """
- {name: heart rate, unit: /min, accepted_units: [[bpm, 1, 0]], aliases: [L//1], hard_low: 10, hard_high: 300}
- {name: SBP, unit: mmHg, aliases: [L//2]}
- {name: DBP, unit: mmHg, aliases: [L//3]}
"""
CODES = st.sampled_from(['L//1//bpm', 'L//1//kelvin', 'L//1', 'L//2//mmHg', 'L//3//mmHg', 'MEDS_BIRTH', 'GENDER//F',
                         'GENDER//M', 'SEX//x', '', '//', 'é'])


def table(data, n: int, **columns: tuple[pa.DataType, st.SearchStrategy]) -> pa.Table:
  """Columns of `n` rows, one of which is missing now and then."""
  gone = data.draw(st.one_of(*[st.none()] * 9, st.sampled_from(sorted(columns))))
  return pa.table({name: column(data, kind, good, n) for name, (kind, good) in columns.items() if name != gone})


@given(st.data(), GRIDS)
def test_a_meds_set_of_anything(data, grid):
  rows, asked = data.draw(st.integers(0, 6)), data.draw(st.integers(0, 4))
  unit = {'unit': (pa.string(), st.sampled_from(['bpm', 'mmHg', '']))} if data.draw(st.integers(0, 4)) == 0 else {}
  with files(f__yaml=SPECS) as at:
    pq.write_table(table(data, rows, subject_id=(pa.int64(), IDS), time=(pa.timestamp('us'), MOMENT),
                         code=(pa.string(), CODES), numeric_value=(pa.float32(), st.floats(width=32)), **unit),
                   at / 'd.parquet')
    pq.write_table(table(data, asked, subject_id=(pa.int64(), IDS), prediction_time=(pa.timestamp('us'), MOMENT),
                         boolean_value=(pa.bool_(), st.booleans())), at / 'l.parquet')
    refused_or_sound(lambda: meds.load(at / 'd.parquet', at / 'l.parquet', features=at / 'f.yaml', grid=grid,
                                       task='mortality', setting='patients'))


@given(st.data(), GRIDS)
def test_yaib_tables_of_anything(data, grid):
  ids = list(range(data.draw(st.integers(1, 4))))
  label = data.draw(st.lists(st.one_of(st.sampled_from([0, 1]), st.none()), min_size=len(ids), max_size=len(ids)))
  hours = st.one_of(st.integers(-3, 60).map(lambda h: 3600 * h), st.integers(-2**62, 2**62))
  unit = data.draw(st.sampled_from(['s', 'ms', 'us', 'ns']))
  with tempfile.TemporaryDirectory() as folder:
    at = pathlib.Path(folder)
    tables = {
        'dyn': table(data, 5, stay_id=(pa.int64(), st.sampled_from(ids)), time=(pa.duration(unit), hours),
                     hr=(pa.float64(), NUMBER), sbp=(pa.float64(), NUMBER), dbp=(pa.float64(), NUMBER)),
        'sta': table(data, len(ids), age=(pa.float64(), st.one_of(st.integers(0, 90).map(float), st.floats())),
                     sex=(pa.string(), st.sampled_from(['Male', 'Female', 'M', 'x'])), height=(pa.float64(), NUMBER))
        .append_column('stay_id', pa.array(ids)),
        'outc': pa.table({'stay_id': pa.array(ids), 'label': data.draw(st.one_of(
            *[st.just(pa.array(label))] * 5, st.just(column(data, pa.int64(), st.integers(-2, 2**40), len(ids)))))})}
    for name, content in tables.items():
      pq.write_table(content, at / f'{name}.parquet')
    refused_or_sound(lambda: yaib.load(at, grid=grid, task='mortality', setting='adults'))


@given(st.data(), st.sampled_from(['dyn', 'sta', 'outc']))
def test_yaib_tables_with_damaged_bytes(data, name):
  out = pa.BufferOutputStream()
  pq.write_table(pa.table({'stay_id': [1, 2], 'time': pa.array([0, 3600], pa.duration('s')), 'hr': [80.0, 90.0]}
                          if name == 'dyn' else {'stay_id': [1, 2], 'age': [50.0, 60.0], 'sex': ['M', 'F']}
                          if name == 'sta' else {'stay_id': [1, 2], 'label': [0, 1]}), out)
  whole = out.getvalue().to_pybytes()
  with files(**{f'{name}__parquet': damaged(data, whole)}) as at:
    refused_or_sound(lambda: yaib.load(at, grid=Grid(1.0), task='mortality', setting='adults'))


@functools.cache
def hospital() -> dict[str, str]:
  with tempfile.TemporaryDirectory() as folder:
    root = mimic4_fixture.write(pathlib.Path(folder), zipped=False)
    return {p.relative_to(root).as_posix(): p.read_text() for p in root.rglob('*.csv')}


ODD = mostly('', '2150-03-01 20:30:00', '2150-03-02', '2150-03-09 01:00:00', 'infinity', '-infinity', '290000-01-01',
             '0001-01-01', '1', '6', '11', '61', '1e300', 'nan', '220045', '50931', 'mg/dL', 'bpm', '91')


@settings(max_examples=max(10, settings().max_examples // 10))  # five tables through the database: a third of a second
@given(st.data(), st.sampled_from([('mortality', 'icu'), ('readmission', 'hospital'), ('readmission', 'icu')]), GRIDS)
def test_a_hospital_of_anything(data, task, grid):
  tables = {name: text.splitlines() for name, text in hospital().items()}
  for _ in range(data.draw(st.integers(0, 3))):  # entries of rows, of a header only now and then
    lines = tables[data.draw(st.sampled_from(sorted(tables)))]
    row = data.draw(st.integers(0 if data.draw(st.integers(0, 9)) == 0 else 1, len(lines) - 1))
    cells = lines[row].split(',')
    cells[data.draw(st.integers(0, len(cells) - 1))] = data.draw(ODD)
    lines[row] = ','.join(cells)
  with tempfile.TemporaryDirectory() as folder:
    at = pathlib.Path(folder)
    for name, lines in tables.items():
      (at / name).parent.mkdir(exist_ok=True)
      raw = ('\n'.join(lines) + '\n').encode('utf8', 'surrogatepass')
      (at / name).write_bytes(damaged(data, raw) if data.draw(st.integers(0, 19)) == 0 else raw)
    refused_or_sound(lambda: mimic4.load(at, task=task[0], index=task[1], grid=grid))


@given(st.data(), st.booleans())
def test_a_splits_table_of_anything(data, others):
  n = data.draw(st.integers(0, 6))
  part = st.sampled_from(['train', 'tuning', 'held_out', 'test', ''])
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'splits.parquet')
    pq.write_table(table(data, n, subject_id=(pa.int64(), st.integers(0, 5)), split=(pa.string(), part)), path)
    ids = np.array([str(i) for i in range(3)])
    only_our_error(lambda: splits.load(path, ids, others=others))
    only_our_error(lambda: splits.outside(path, ids))
