from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eagrl_jax.ehr import splits
from eagrl_jax.types import EagrlError

IDS = np.array([f'id{i:03d}' for i in range(300)])
LABEL = (np.arange(300) >= 180).astype(np.int8)  # 120 positives, all at the end


def parts(found, ids):
  return {name: set(ids[getattr(found, name)]) for name in ('train', 'valid', 'test')}


def test_every_patient_is_in_one_part_and_prevalence_is_kept():
  found = splits.make_splits(LABEL, IDS, test=100, valid_fraction=1 / 8, seed=42)
  rows = np.concatenate([found.train, found.valid, found.test])
  assert sorted(rows.tolist()) == list(range(300))
  assert (len(found.train), len(found.valid), len(found.test)) == (175, 25, 100)
  assert [int(LABEL[r].sum()) for r in (found.train, found.valid, found.test)] == [70, 10, 40]


def test_parts_depend_on_ids_and_seed_not_on_rows():
  first = parts(splits.make_splits(LABEL, IDS, test=0.2, valid_fraction=0.1, seed=1), IDS)
  order = np.random.default_rng(0).permutation(300)
  again = parts(splits.make_splits(LABEL[order], IDS[order], test=0.2, valid_fraction=0.1, seed=1), IDS[order])
  other = parts(splits.make_splits(LABEL, IDS, test=0.2, valid_fraction=0.1, seed=2), IDS)
  assert first == again and len(first['test']) == 60
  assert first['test'] != other['test']


def test_few_positives_are_spread_and_none_is_an_error():
  label = np.zeros(40, np.int8)
  label[:4] = 1
  found = splits.make_splits(label, IDS[:40], test=0.25, valid_fraction=0.33, seed=0)
  assert [int(label[r].sum()) for r in (found.train, found.valid, found.test)] == [2, 1, 1]
  label[1:] = 0
  with pytest.raises(EagrlError, match='needs both outcomes'):
    splits.make_splits(label, IDS[:40], test=0.25, valid_fraction=0.33, seed=0)


@pytest.mark.parametrize(('change', 'message'), [
    ({'test': 300}, 'data.test'), ({'test': 0}, 'data.test'), ({'test': 1.0}, 'data.test'),
    ({'test': -0.5}, 'data.test'), ({'valid_fraction': 0.0}, 'data.valid_fraction'),
    ({'valid_fraction': 1}, 'data.valid_fraction')])
def test_sizes_that_do_not_fit(change, message):
  with pytest.raises(EagrlError, match=message):
    splits.make_splits(LABEL, IDS, **{'test': 100, 'valid_fraction': 0.1, 'seed': 0} | change)


def test_a_repeated_id_is_refused():
  with pytest.raises(EagrlError, match='an id is repeated'):
    splits.make_splits(LABEL, np.append(IDS[:-1], IDS[0]), test=100, valid_fraction=0.1, seed=0)


def test_file_round_trip_in_another_row_order(tmp_path):
  found = splits.make_splits(LABEL, IDS, test=100, valid_fraction=1 / 8, seed=42)
  splits.save(tmp_path / 'splits.parquet', found, IDS)
  assert set(pq.read_table(tmp_path / 'splits.parquet')['split'].to_pylist()) == {'train', 'tuning', 'held_out'}
  order = np.random.default_rng(0).permutation(300)
  again = splits.load(tmp_path / 'splits.parquet', IDS[order])
  assert parts(again, IDS[order]) == parts(found, IDS)
  same = splits.load(tmp_path / 'splits.parquet', IDS)
  for name in ('train', 'valid', 'test'):
    np.testing.assert_array_equal(getattr(same, name), getattr(found, name))


@pytest.mark.parametrize(('ids', 'names', 'message'), [
    (['a', 'b', 'b', 'c'], ['train', 'tuning', 'held_out', 'train'], '1 patients stand twice'),
    (['a', 'b', 'c', 'd'], ['train', 'tuning', 'held_out', 'train'], '1 patients of the file are not in the cohort'),
    (['a', 'b'], ['train', 'held_out'], '1 patients of the cohort are in no split'),
    (['a', 'b', 'c'], ['train', 'test', 'held_out'], '1 split names')])
def test_a_file_for_other_patients_is_refused(tmp_path, ids, names, message):
  pq.write_table(pa.table({'subject_id': ids, 'split': names}), tmp_path / 's.parquet')
  with pytest.raises(EagrlError, match=message):
    splits.load(tmp_path / 's.parquet', np.array(['a', 'b', 'c']))


def test_not_a_split_file(tmp_path):
  (tmp_path / 's.parquet').write_text('no parquet')
  pq.write_table(pa.table({'x': [1]}), tmp_path / 'x.parquet')
  for name in ('s.parquet', 'x.parquet', 'absent.parquet'):
    with pytest.raises(EagrlError, match='not a parquet file with subject_id and split'):
      splits.load(tmp_path / name, IDS)


def cohort_like(n, share):
  ids = np.array([f'id{i:05d}' for i in range(n)])
  return (np.arange(n) < round(share * n)).astype(np.int8), ids


@pytest.mark.parametrize(('name', 'n', 'sizes'), [
    ('tjh_140_21_200', 361, (140, 21, 200)), ('mimic4_8750_1250_200', 10_200, (8750, 1250, 200)),
    ('10fold:0', 361, (288, 36, 37)), ('10fold:9', 305, (244, 31, 30))])
def test_published_protocols_have_their_sizes(name, n, sizes):
  label, ids = cohort_like(n, 0.4)
  found = splits.by_protocol(name, label, ids, 1)
  rows = [found.train, found.valid, found.test]
  assert tuple(map(len, rows)) == sizes
  assert sorted(np.concatenate(rows).tolist()) == list(range(n))
  order = np.random.default_rng(0).permutation(n)
  assert parts(splits.by_protocol(name, label[order], ids[order], 1), ids[order]) == parts(found, ids)
  shares = [label[r].mean() for r in rows]
  stratified = rows[:2] if name.startswith('tjh') else rows
  assert all(abs(label[r].mean() - np.mean(shares[:2] if name.startswith('tjh') else shares)) < 0.03
             for r in stratified)


def test_ten_folds_test_everyone_once_and_evenly():
  label, ids = cohort_like(361, 0.3)
  folds = [splits.by_protocol(f'10fold:{k}', label, ids, 0).test for k in range(10)]
  assert sorted(np.concatenate(folds).tolist()) == list(range(361))
  assert {len(f) for f in folds} == {36, 37} and {int(label[f].sum()) for f in folds} == {10, 11}


def test_a_protocol_refuses_another_cohort_and_draws_from_a_larger_one():
  label, ids = cohort_like(12_000, 0.1)
  rows = splits.protocol_rows('mimic4_8750_1250_200', label, ids, 0)
  assert len(rows) == 10_200 == len(set(rows.tolist())) and label[rows].sum() == 1020
  assert len(splits.by_protocol('mimic4_8750_1250_200', label[rows], ids[rows], 0).test) == 200
  few = slice(0, 300)
  np.testing.assert_array_equal(splits.protocol_rows('mimic4_8750_1250_200', label[few], ids[few], 0), np.arange(300))
  for name in ('mimic4_8750_1250_200', 'tjh_140_21_200'):
    with pytest.raises(EagrlError, match=f'data.protocol={name!r} is of .* and the cohort has 300'):
      splits.by_protocol(name, LABEL, IDS, 0)
  with pytest.raises(EagrlError, match='an id is repeated'):
    splits.by_protocol('10fold:1', LABEL, np.append(IDS[:-1], IDS[0]), 0)


@pytest.mark.parametrize('name', ['tjh', '10fold', '10fold:10', '10fold:-1', '10fold:x', '5fold:1', '10fold:²'])
def test_an_unknown_protocol_names_the_choices(name):
  assert splits.parse_protocol('') is None
  with pytest.raises(EagrlError, match='choose one of tjh_140_21_200, mimic4_8750_1250_200, or 10fold:<k>'):
    splits.parse_protocol(name)


def test_the_splits_of_a_whole_data_set(tmp_path):
  pq.write_table(pa.table({'subject_id': pa.array([7, 8, 9, 10], pa.int64()),
                           'split': ['train', 'tuning', 'held_out', 'train']}), tmp_path / 's.parquet')
  ids = np.array(['9', '8', '7'])
  found = splits.load(tmp_path / 's.parquet', ids, others=True)
  assert parts(found, ids) == {'train': {'7'}, 'valid': {'8'}, 'test': {'9'}}
  assert splits.outside(tmp_path / 's.parquet', ids) == 1
  with pytest.raises(EagrlError, match='1 patients of the file are not in the cohort'):
    splits.load(tmp_path / 's.parquet', ids)
  with pytest.raises(EagrlError, match='1 patients of the cohort are in no split'):
    splits.load(tmp_path / 's.parquet', np.array(['9', '8', '7', '11']), others=True)
