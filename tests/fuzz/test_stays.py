"""PhysioNet's text and archives, and the cells and XML of a workbook."""

from __future__ import annotations

import datetime
import functools
import io
import tarfile
import zipfile

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from material import csv, damaged, files, mostly, refused_or_sound

from eagrl_jax.ehr.sources import physionet2012, tjh

CLOCK = mostly('00:00', '00:07', '12:30', '47:59', '99:99', '1', '00:00:00', '-1:00')
PARAMETER = mostly('Age', 'Gender', 'Weight', 'HR', 'SysABP', 'DiasABP', 'MAP', 'GCS', 'RecordID', 'hr')
ENTRY = mostly('1', '80', '120', '7.4', '-1', '0', '<3')
GOOD = 'Time,Parameter,Value\n00:00,RecordID,132540\n00:00,Age,50\n00:07,HR,80\n'
OUTCOMES = 'RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n132539,6,1,5,-1,0\n132540,6,1,5,-1,1\n'
NAMES = st.sampled_from(['RecordID', ' RecordID', 'In-hospital_death', 'In-hospital_death ', 'Length_of_stay',
                         ' Length_of_stay', 'SOFA', '', '\xff', 'é'])


@st.composite
def outcome_file(draw):
  header = draw(st.one_of(st.just(['RecordID', 'Length_of_stay', 'In-hospital_death']), st.lists(NAMES, max_size=4)))
  line = st.tuples(*[mostly('132539', '132540', '0', '1', '5', '-1', '')] * len(header))
  text = ''.join(','.join(row) + '\n' for row in [header, *draw(st.lists(line, max_size=4))])
  return text.encode(draw(st.sampled_from(['utf8', 'latin-1'])), 'replace')


@given(csv(8, Time=CLOCK, Parameter=PARAMETER, Value=ENTRY), st.one_of(st.just(OUTCOMES.encode()), outcome_file()),
       st.integers(0, 9))
def test_a_stay_that_is_nearly_right(stay, outcomes, whole):
  stay = stay.replace('\n', '\n00:00,RecordID,132539\n', 1) if whole else stay
  with files(**{'132539__txt': stay, '132540__txt': GOOD, 'Outcomes-a__txt': outcomes}) as at:
    refused_or_sound(lambda: physionet2012.load(at, at / 'Outcomes-a.txt'))


@functools.cache
def archive(mode: str, form: int) -> bytes:
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode=f'w:{mode}', format=form) as tar:
    for name in ('132539', '132540'):
      body = GOOD.replace('132540', name).encode()
      member = tarfile.TarInfo(f'set-a/{name}.txt')
      member.size, member.pax_headers = len(body), {'comment': 'x', 'mtime': '1.5'}
      tar.addfile(member, io.BytesIO(body))
  return out.getvalue()


@given(st.data(), st.sampled_from(['', '', '', 'gz', 'bz2', 'xz']),
       st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]))
def test_an_archive_with_damaged_bytes(data, mode, form):
  whole = archive(mode, form)
  raw = bytearray(whole)
  if not mode:  # with a header's checksum set right again, so that its fields are read
    at = 512 * data.draw(st.integers(0, 5))
    for _ in range(data.draw(st.integers(0, 3))):
      raw[at + data.draw(st.integers(100, 511))] = data.draw(st.sampled_from(b'\0 01579gLKxSs/\xff\x80'))
    raw[at + 148:at + 156] = b' ' * 8
    raw[at + 148:at + 156] = b'%06o\0 ' % sum(raw[at:at + 512])
  with files(a__tar=damaged(data, bytes(raw)) if mode or data.draw(st.integers(0, 3)) == 0 else bytes(raw),
             o__txt=OUTCOMES) as at:
    refused_or_sound(lambda: physionet2012.load(at / 'a.tar', at / 'o.txt'))


HEAD = ['PATIENT_ID', 'RE_DATE', 'age', 'gender', 'Admission time', 'Discharge time', 'outcome', 'ESR',
        '2019-nCoV nucleic acid detection', 'PH value', 'White blood cell count', 'hematocrit']
TIMES = st.sampled_from([datetime.datetime(2020, 2, d, 10) for d in range(1, 6)])
WHEN = st.one_of(*[TIMES] * 4, st.sampled_from([
    '2020-02-01 10:00:00', '2020-02-01T10:00+08:00', '2020-02-01T10:00Z', 'x', None, 5, 43831.5,
    datetime.date(2020, 1, 1), datetime.time(5)]))
NUMBER = st.one_of(st.sampled_from([None, 6.5, 7.4, 12, '<5', '5', 'x', True, -1, 1e300, '#N/A', '1e400']),
                   st.floats(allow_nan=False, allow_infinity=False))
ROW = st.tuples(st.one_of(st.integers(1, 3), st.sampled_from([None, 1.0, '1', 'x'])), WHEN,
                st.one_of(*[st.just(50)] * 5, NUMBER), st.sampled_from([1, 1, 1, 2, None, 'm']), WHEN,
                st.one_of(*[st.just(datetime.datetime(2020, 2, 9))] * 3, WHEN),
                st.sampled_from([0, 0, 1, 1, None, 'x', 2]), NUMBER, NUMBER, NUMBER, NUMBER, NUMBER)


@pytest.mark.filterwarnings('ignore::UserWarning')  # openpyxl tells of what it leaves out
@given(st.lists(ROW, max_size=5), st.booleans(), st.one_of(st.just(HEAD), st.permutations(HEAD)))
def test_a_workbook_of_any_cells(rows, kept, header):
  book = openpyxl.Workbook(write_only=True)
  sheet = book.create_sheet()
  for row in [header, *rows]:
    sheet.append(list(row))
  out = io.BytesIO()
  book.save(out)
  with files(a__xlsx=out.getvalue()) as at:
    refused_or_sound(lambda: tjh.load(at / 'a.xlsx', keep_after_discharge=kept))


@functools.cache
def parts() -> dict[str, bytes]:
  book = openpyxl.Workbook()
  book.active.append(HEAD)
  for i in range(2):
    first, last = datetime.datetime(2020, 2, 1 + i, 10), datetime.datetime(2020, 2, 9)
    book.active.append([i + 1, first, 60, 1, None, last, i, 5 + i])
  out = io.BytesIO()
  book.save(out)
  with zipfile.ZipFile(out) as packed:
    return {name: packed.read(name) for name in packed.namelist()}


XML = st.sampled_from([
    b'r="XFD1048576"', b'r="A99999999999"', b'r=""', b't="s"', b't="e"', b't="d"', b't="b"', b's="99"', b'<v>-1</v>',
    b'<v>99999</v>', b'<v>1e999</v>', b'<v>x</v>', b'<v></v>', b'ref="A1:XFD1048576"',
    b'<!DOCTYPE a [<!ENTITY b "c">]>', b'&b;', b'&#0;', b'</row>', b'<row r="1048576">', b'<mergeCell ref="A1:B9"/>'])


@pytest.mark.filterwarnings('ignore::UserWarning')
@given(st.data())
def test_a_workbook_of_any_xml(data):
  changed = dict(parts())
  for _ in range(data.draw(st.integers(1, 3))):
    name = data.draw(st.sampled_from(['xl/worksheets/sheet1.xml', 'xl/worksheets/sheet1.xml', *sorted(changed)]))
    raw = bytearray(changed[name])
    at = raw.find(data.draw(st.sampled_from([b' r="', b' t="', b'<v>', b'ref="', b'<row', b's="', b'<'])),
                  data.draw(st.integers(0, len(raw))))
    end = at + data.draw(st.integers(0, 12))
    if at >= 0:
      changed[name] = bytes(raw[:at] + b' ' * (at > 0) + data.draw(XML) + raw[end:])
    else:
      changed[name] = damaged(data, bytes(raw) or b'x')
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as packed:
    for name, body in changed.items():
      packed.writestr(name, body)
  with files(a__xlsx=out.getvalue()) as at_:
    refused_or_sound(lambda: tjh.load(at_ / 'a.xlsx'))
