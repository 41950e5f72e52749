"""PhysioNet/CinC Challenge 2012: first 48 hours of adult ICU stays (doi 10.13026/7ff7-7r27, ODC-By 1.0).

One text file a stay, `Time,Parameter,Value`, in a folder or an archive, which is read in memory and
never unpacked. Scores, length of stay and survival time stand in the outcomes file only and are
outcomes, not inputs.
"""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from eagrl_jax.ehr import validation
from eagrl_jax.ehr.records import Cohort, hashed_order
from eagrl_jax.ehr.sources import headers
from eagrl_jax.ehr.sources.physionet2012_features import FEATURES
from eagrl_jax.types import EagrlError

_HEADER = b'Time,Parameter,Value'
_HOURS = 48  # that a set shows of a stay
_LARGEST = 4 << 20  # bytes of one stay; real ones are below 50 kB
_STATIC = ('RecordID', 'Age', 'Gender')
_DESCRIPTORS = (*_STATIC, 'Height', 'ICUType')  # and the first Weight: written at 00:00 of every stay
_LABEL, _STAY = 'In-hospital_death', 'Length_of_stay'  # in days, -1 unknown


@np.errstate(over='ignore')  # what float32 cannot hold becomes infinite, and is counted as not finite
def load(path: str | Path | Sequence[str | Path], outcomes: str | Path | Sequence[str | Path] | None = None, *,
         labelled: bool = True) -> Cohort:
  """Reads one set or several.

  Args:
    path: a tar archive (any compression), a folder of stays, a folder of several of these by names `set-<x>…`, or
      several of all of them.
    outcomes: an outcomes file for each; by default `Outcomes-<x>.txt` beside `set-<x>`.
    labelled: False reads new patients: no outcomes file is needed or read, and labels are 0.

  Returns:
    A validated cohort. Hours count from 00:00, when every stay's descriptors are written.

  Raises:
    EagrlError: unreadable files, a stay in two sets, contradictory outcomes, more than 1 % of the rows after 48 hours.
  """
  given = [path] if isinstance(path, str | Path) else path
  paths = [one for p in given for one in _sets(Path(p))]
  if not labelled:
    files = []
  elif outcomes is None:
    files = [file for p in given for file in outcomes_beside(p)]
  else:
    files = [Path(outcomes)] if isinstance(outcomes, str | Path) else [Path(p) for p in outcomes]
  if not paths or (labelled and len(files) != len(paths)):
    raise EagrlError('data.outcomes: give one outcomes file for each set')
  label, days = _outcomes(files)
  stays = [(name, body) for p in paths for name, body in (_folder(p) if p.is_dir() else _archive(p))]
  names = np.array([name for name, _ in stays], str)
  if len(np.unique(names)) != len(names):
    raise EagrlError('data.path: a stay occurs in two of the sets; give each set once')
  if not stays:
    raise EagrlError('data.path: no <stay>.txt found in the set; give the challenge archive or its folder')

  stay, hour, parameter, number = _parse(stays)
  bare = _bare_stays(stay, hour, parameter, len(names))
  known = np.array([name in label or not labelled for name in names])
  feature = _feature_ids(parameter)
  late = hour > _HOURS
  if late.sum() > validation.OUTSIDE * len(stay):
    raise EagrlError(f'data.path: {late.sum()} of {len(stay)} rows lie after the {_HOURS} hours of the set; check its '
                     'times, or leave those rows out')
  event = (feature >= 0) & ~np.isnan(number.value) & ~late
  gender = _static(stay, parameter, number.value, 'Gender', len(names))
  age = _static(stay, parameter, number.value, 'Age', len(names))
  steps = (('read', len(names), 'patients'), ('read', len(stay), 'rows'),
           ('without time series', int(bare.sum()), 'patients'),
           *((('without outcome', int((~known & ~bare).sum()), 'patients'),
              ('outcome without a stay', len(label.keys() - set(names.tolist())), 'patients')) if labelled else ()),
           ('assay limit written as < or >', number.censored, 'values'), ('text', number.text, 'values'),
           *([(f'after {_HOURS} hours', int(late.sum()), 'rows')] if late.any() else []),
           ('sex unknown', int((known & ~bare & ~np.isin(gender, (0, 1))).sum()), 'patients'))
  cohort = Cohort(
      name='physionet2012', task='mortality', setting='adults in the first 48 hours of an intensive care stay',
      features=FEATURES, subject_id=names, age=np.where(age >= 0, age, np.nan).astype(np.float32),
      sex=np.where(np.isin(gender, (0, 1)), gender, -1).astype(np.int8),
      label=np.array([label.get(name, 0) for name in names], np.int8), patient=stay[event].astype(np.int32),
      hour=hour[event].astype(np.float32), feature=feature[event].astype(np.int16),
      value=number.value[event].astype(np.float32), attrition=steps, censor=number.censor[event],
      stay_end=np.array([24 * days.get(name, np.nan) for name in names], np.float32) if days else None)
  order = hashed_order(names, cohort.name)
  cohort = validation.validate(cohort.take(order[(known & ~bare)[order]]), judge_features=labelled)
  validation.check(cohort, labelled)
  return cohort


def outcomes_beside(path: str | Path) -> list[Path]:
  """The outcomes files that are read where none is named: `Outcomes-<x>.txt` beside each `set-<x>`."""
  return [p.parent / f'Outcomes-{p.name.removeprefix("set-").split(".")[0]}.txt' for p in _sets(Path(path))]


def _folder(path: Path) -> Iterator[tuple[str, bytes]]:
  for file in sorted(path.glob('*.txt')):
    if not file.name.startswith('Outcomes'):
      yield file.stem, file.read_bytes()


def _archive(path: Path) -> Iterator[tuple[str, bytes]]:
  """Regular files of a tar archive; links and other entries are passed over."""
  if not path.is_file():
    raise EagrlError(f'data.path: there is no file or folder {path.name}')
  try:
    with tarfile.open(path) as archive:
      for member in archive:
        name = PurePosixPath(member.name)
        if not member.isfile() or name.suffix != '.txt' or name.name.startswith('Outcomes'):
          continue
        if member.size > _LARGEST:
          raise EagrlError(f'data.path: a file in {path.name} is too large for one stay; get the archive again')
        content = archive.extractfile(member)
        if content is not None:
          yield name.stem, content.read()
  except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError):
    raise EagrlError(f'data.path: {path.name} is not a complete tar archive; get it again') from None


def _sets(path: Path) -> list[Path]:
  """The sets in a folder of sets; any other path is one itself."""
  inside = sorted(p for p in path.glob('set-*') if p.is_dir() or '.tar' in p.suffixes) if path.is_dir() else []
  return inside or [path]


def _parse(stays: list[tuple[str, bytes]]) -> tuple[np.ndarray, np.ndarray, pa.Array, validation.Numbers]:
  """All stays at once: stay number, hour, parameter and value of every row."""
  bodies = []
  for name, content in stays:
    header, _, body = content.partition(b'\n')
    first = body.partition(b'\n')[0].strip()
    if header.strip() != _HEADER or first != f'00:00,RecordID,{name}'.encode() or b'"' in body:
      raise EagrlError('data.path: a stay does not begin with "Time,Parameter,Value" and its RecordID; '
                       'give the files of the challenge')
    bodies.append(body if body.endswith(b'\n') else body + b'\n')
  try:
    table = pacsv.read_csv(
        io.BytesIO(b''.join(bodies)), pacsv.ReadOptions(column_names=['time', 'parameter', 'value']),
        convert_options=pacsv.ConvertOptions(column_types={
            'time': pa.string(), 'parameter': pa.dictionary(pa.int32(), pa.string()), 'value': pa.string()},
            strings_can_be_null=True))
    clock = pc.cast(pc.split_pattern(table['time'], ':'), pa.list_(pa.int32()))
    minutes = [pc.list_element(clock, i).to_numpy() for i in (0, 1)]
  except pa.ArrowException:
    raise EagrlError('data.path: a stay has a row that is not HH:MM,parameter,value; get the set again') from None
  parameter = table['parameter'].unify_dictionaries().combine_chunks()
  starts = _is(parameter, 'RecordID')
  if starts.sum() != len(stays):
    raise EagrlError('data.path: a stay has two RecordIDs; get the set again')
  value = validation.parse_numbers(table['value'].combine_chunks())
  return np.cumsum(starts) - 1, minutes[0] + minutes[1] / 60, parameter, value


def _is(parameter: pa.DictionaryArray, *names: str) -> np.ndarray:
  wanted = np.isin(np.array(parameter.dictionary.to_pylist(), str), names)
  return np.append(wanted, False)[parameter.indices.fill_null(-1).to_numpy()]


def _bare_stays(stay: np.ndarray, hour: np.ndarray, parameter: pa.DictionaryArray, n: int) -> np.ndarray:
  """Stays with nothing but the descriptors of 00:00."""
  descriptor = _is(parameter, *_DESCRIPTORS) | (_is(parameter, 'Weight') & (hour == 0))
  return np.bincount(stay[~descriptor], minlength=n) == 0


def _feature_ids(parameter: pa.DictionaryArray) -> np.ndarray:
  """Feature id of every row, -1 for static facts and rows without a name. An unknown parameter is an error."""
  ids = [-1 if name in _STATIC else FEATURES.require(name, 'data.path') for name in parameter.dictionary.to_pylist()]
  return np.array([*ids, -1], np.int64)[parameter.indices.fill_null(-1).to_numpy()]


def _static(stay: np.ndarray, parameter: pa.DictionaryArray, value: np.ndarray, name: str, n: int) -> np.ndarray:
  out = np.full(n, -1.0)
  rows = np.flatnonzero(_is(parameter, name) & ~np.isnan(value))
  out[stay[rows]] = value[rows]
  return out


def _outcomes(files: list[Path]) -> tuple[dict[str, int], dict[str, float]]:
  """Of every stay the outcome and, where it is known, the days that it lasted in hospital from 00:00 on."""
  label: dict[str, int] = {}
  days: dict[str, float] = {}
  for file in files:
    if not file.is_file():
      raise EagrlError(f'data.outcomes: there is no file {file}; with --config.data.outcomes= (empty) it is looked for '
                       'beside the set')
    try:
      table = pacsv.read_csv(file, convert_options=pacsv.ConvertOptions(
          column_types={'RecordID': pa.string(), _LABEL: pa.float64(), _STAY: pa.float64()}))
      columns = {name.strip(): name for name in table.column_names}
    except (pa.ArrowException, UnicodeDecodeError):
      raise EagrlError(f'data.outcomes: {file.name} is not the comma-separated outcomes file') from None
    twice = [name for name in ('RecordID', _LABEL, _STAY) if table.column_names.count(columns.get(name)) > 1]
    if twice:
      raise EagrlError(f'data.outcomes: {file.name} has two columns {twice[0]!r}; keep one')
    for name in ('RecordID', _LABEL):
      if name not in columns:
        raise EagrlError(f'data.outcomes: {file.name} {headers.lacking(name, columns, ("RecordID", _LABEL))}')
    lasted = table[columns[_STAY]].to_pylist() if _STAY in columns else [None] * len(table)
    for stay, died, length in zip(table[columns['RecordID']].to_pylist(), table[columns[_LABEL]].to_pylist(), lasted):
      if died not in (0, 1):
        continue
      if isinstance(length, int | float) and length >= 0:  # of a header with spaces the kind of the column is guessed
        days[str(stay).strip()] = length
      if label.setdefault(str(stay).strip(), int(died)) != died:
        raise EagrlError('data.outcomes: a stay has two different outcomes; keep one')
  return label, days
