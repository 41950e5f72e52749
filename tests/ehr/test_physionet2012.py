"""Small sets with the challenge's traps, and set A where it is present."""

from __future__ import annotations

import io
import pathlib
import tarfile

import numpy as np
import pytest

from eagrl_jax.ehr.sources import physionet2012
from eagrl_jax.types import EagrlError

REAL = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'physionet2012' / 'set-a.tar.xz'
real = pytest.mark.skipif(not REAL.is_file(), reason='../shared/data/physionet2012 is absent')


def stay(number, *rows, age=54, gender=0, height=-1, icu=4, weight=-1):
  head = ['Time,Parameter,Value', f'00:00,RecordID,{number}', f'00:00,Age,{age}', f'00:00,Gender,{gender}',
          f'00:00,Height,{height}', f'00:00,ICUType,{icu}', f'00:00,Weight,{weight}']
  return '\n'.join([*head, *rows]) + '\n'


STAYS = {
    11: stay(11, '00:07,HR,73', '00:07,MechVent,1', '01:30,Urine,180', '01:30,Urine,1300', '02:00,pH,735',
             '48:00,GCS,15', weight=80, height=175.3),
    12: stay(12, '00:00,Weight,70', '00:10,HR,0', '00:10,Temp,37.4', '00:10,Temp,37.4', age=90, gender=-1, icu=1),
    13: stay(13, weight=75),  # no time series
    14: stay(14, '03:15,Lactate,2.5', gender=1),
    15: stay(15, '03:15,Lactate,2.5'),  # no outcome
}
OUTCOMES = ('RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n'
            '11,6,1,5,-1,0\n12,16,8,8,2,1\n13,-1,-1,9,-1,0\n14,1,-1,3,-1,0\n99,1,1,1,1,1\n')


def pack(path, stays, mode='w:xz', extra=()):
  with tarfile.open(path, mode) as archive:
    for name, text in [(f'set-a/{k}.txt', v) for k, v in stays.items()] + list(extra):
      member = tarfile.TarInfo(name)
      member.size = len(text.encode())
      archive.addfile(member, io.BytesIO(text.encode()))
    link = tarfile.TarInfo('set-a/link.txt')
    link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
    archive.addfile(link)
  return path


def make(tmp_path, stays=STAYS, outcomes=OUTCOMES, **options):
  (tmp_path / 'Outcomes-a.txt').write_text(outcomes)
  return pack(tmp_path / 'set-a.tar.xz', stays, **options)


def events_of(cohort, subject):
  mine = cohort.patient == cohort.subject_id.tolist().index(subject)
  return {(round(float(h), 4), cohort.features[int(f)].aliases[0] if cohort.features[int(f)].aliases else ''):
          round(float(v), 3) for h, f, v in zip(cohort.hour[mine], cohort.feature[mine], cohort.value[mine])}


def test_every_trap_is_handled_and_counted(tmp_path):
  cohort = physionet2012.load(make(tmp_path))
  assert set(cohort.subject_id) == {'11', '12', '14'}
  assert events_of(cohort, '11') == {
      (0, 'Height'): 175.3, (0, 'ICUType'): 4, (0, 'Weight'): 80, (0.1167, 'HR'): 73, (0.1167, 'MechVent'): 1,
      (1.5, 'Urine'): 740, (48, 'GCS'): 15}
  assert events_of(cohort, '12') == {(0, 'ICUType'): 1, (0, 'Weight'): 70, (0.1667, 'Temp'): 37.4}
  order = [cohort.subject_id.tolist().index(s) for s in ('11', '12', '14')]
  assert cohort.label[order].tolist() == [0, 1, 0] and cohort.sex[order].tolist() == [0, -1, 1]
  assert cohort.age[order].tolist() == [54, 90, 54]
  counted = set(cohort.attrition)
  assert counted >= {
      ('read', 5, 'patients'), ('without time series', 1, 'patients'), ('without outcome', 1, 'patients'),
      ('outcome without a stay', 1, 'patients'), ('sex unknown', 1, 'patients'),
      ('code for missing: height', 2, 'values'), ('code for missing: weight', 2, 'values'),
      ('outside hard range: heart rate', 1, 'values'), ('outside hard range: arterial pH', 1, 'values'),
      ('conflicting values at one time, averaged', 1, 'values'), ('identical duplicate', 1, 'values'),
      ('kept', 3, 'patients'), ('kept', 12, 'values')}


def test_a_value_below_a_limit_keeps_its_side(tmp_path):
  cohort = physionet2012.load(make(tmp_path, STAYS | {14: stay(14, '03:15,Lactate,<0.5', '04:00,Lactate,0.7')}))
  of = cohort.censor[cohort.patient == cohort.subject_id.tolist().index('14')]
  assert events_of(cohort, '14')[(3.25, 'Lactate')] == 0.5 and sorted(of) == [-1, 0, 0]
  assert np.sum(cohort.censor != 0) == 1 and physionet2012.load(make(tmp_path)).censor is None



def test_archive_folder_and_compressions_agree(tmp_path):
  archive = physionet2012.load(make(tmp_path))
  folder = tmp_path / 'set-a'
  folder.mkdir()
  for k, text in STAYS.items():
    (folder / f'{k}.txt').write_text(text.replace('\n', '\r\n'))
  zipped = pack(tmp_path / 'x.tgz', dict(reversed(STAYS.items())), 'w:gz')
  for other in (physionet2012.load(folder), physionet2012.load(zipped, tmp_path / 'Outcomes-a.txt')):
    for field in ('subject_id', 'age', 'sex', 'label', 'patient', 'hour', 'feature', 'value'):
      np.testing.assert_array_equal(getattr(archive, field), getattr(other, field))


def test_several_sets_join_and_a_stay_in_two_is_refused(tmp_path):
  first = make(tmp_path)
  (tmp_path / 'Outcomes-b.txt').write_text('RecordID,In-hospital_death\n21,1\n')
  second = pack(tmp_path / 'set-b.tar.gz', {21: stay(21, '01:00,HR,80')}, 'w:gz')
  assert set(physionet2012.load([first, second]).subject_id) == {'11', '12', '14', '21'}
  assert set(physionet2012.load(tmp_path).subject_id) == {'11', '12', '14', '21'}  # the folder of both
  with pytest.raises(EagrlError, match='a stay occurs in two'):
    physionet2012.load([first, first])
  with pytest.raises(EagrlError, match='one outcomes file for each'):
    physionet2012.load([first, second], tmp_path / 'Outcomes-a.txt')


def test_nothing_is_unpacked_and_links_are_passed_over(tmp_path):
  inner = tmp_path / 'deep' / 'er'
  inner.mkdir(parents=True)
  path = make(inner, extra=[('../../escape.txt', stay('escape', '00:10,HR,70')), ('set-a/notes.md', 'x')])
  before = sorted(p.name for p in tmp_path.rglob('*'))
  physionet2012.load(path)
  assert sorted(p.name for p in tmp_path.rglob('*')) == before


@pytest.mark.parametrize(('change', 'message'), [
    ({'stays': {}}, 'no <stay>.txt found'),
    ({'stays': {11: stay(12, '00:10,HR,70')}}, 'does not begin with'),
    ({'stays': {11: 'Time,Value\n'}}, 'does not begin with'),
    ({'stays': {11: stay(11, '00:10,HR')}}, 'not HH:MM,parameter,value'),
    ({'stays': {11: stay(11, 'noon,HR,70')}}, 'not HH:MM,parameter,value'),
    ({'stays': {11: stay(11, '00:10,RecordID,12')}}, 'two RecordIDs'),
    ({'stays': {11: stay(11, '00:10,Lactat,2')}}, "unknown feature 'Lactat'; did you mean 'lactate'"),
    ({'stays': {11: STAYS[11], 14: STAYS[14]}}, 'all 2 patients are negative'),
    ({'outcomes': 'RecordID,Died\n11,1\n'}, "no column 'In-hospital_death'"),
    ({'outcomes': OUTCOMES + '11,6,1,5,-1,1\n'}, 'two different outcomes')])
def test_bad_sets_are_one_line(tmp_path, change, message):
  with pytest.raises(EagrlError, match=message) as caught:
    physionet2012.load(make(tmp_path, **change))
  assert '\n' not in str(caught.value)


def test_missing_and_damaged_files(tmp_path):
  path = make(tmp_path)
  path.write_bytes(path.read_bytes()[:200])
  with pytest.raises(EagrlError, match='not a complete tar archive'):
    physionet2012.load(path)
  with pytest.raises(EagrlError, match='no file or folder'):
    physionet2012.load(tmp_path / 'absent.tar.xz', tmp_path / 'Outcomes-a.txt')
  (tmp_path / 'Outcomes-a.txt').unlink()
  with pytest.raises(EagrlError, match=r'there is no file .*Outcomes-a\.txt'):
    physionet2012.load(path)


@real
def test_set_a():
  cohort = physionet2012.load(REAL)
  found = {(step, unit): count for step, count, unit in cohort.attrition}
  assert (found[('read', 'patients')], len(cohort), int(cohort.label.sum())) == (4000, 3997, 554)
  assert found[('without time series', 'patients')] == 3 and found[('sex unknown', 'patients')] == 3
  assert 3500 < found[('conflicting values at one time, averaged', 'values')] < 4000
  assert len(np.unique(cohort.feature)) == 39 and cohort.hour.max() == 48
  assert found[('read', 'rows')] == 1757980
