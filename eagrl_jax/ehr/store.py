"""A cohort in a folder: MEDS-like events and labels as parquet, specs and counts as JSON.

    events.parquet    subject_id, time (hours since the first record), code, numeric_value, unit, where there are any
                      values below or above a limit censor (-1, 1, else 0)
    labels.parquet    subject_id, boolean_value, age, sex, where it is known stay_end (hours); the order of rows is the
                      order of patients
    features.json     the feature table
    truth.parquet     risk and salience, only of a synthetic cohort
    rejects.parquet   what was read and is not used: as events.parquet, with the reason; nothing reads it
    manifest.json     name, task, counts, attrition, whether times are hours or whole days, the oracle's AUROC of a
                      synthetic cohort, SHA-256 of the content; written last
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from eagrl_jax.ehr.features import MOST_DECIMALS, FeatureSpec, FeatureTable
from eagrl_jax.ehr.records import Cohort, Truth
from eagrl_jax.types import EagrlError

_FORMAT = 1
_ROWS = 2**20  # of a row group
_NUMBER = (int, float)
_LARGEST = 1e30  # of a number in a spec: float32 holds it
_SHAPES: dict[str, tuple[type | tuple[type, ...], ...]] = {
    'accepted_units': (str, _NUMBER, _NUMBER), 'rescale': (_NUMBER,) * 4, 'levels': (_NUMBER, str)}
_ITEMS: dict[str, tuple[type | tuple[type, ...], str]] = {
    'aliases': (str, 'texts'), 'sentinels': (_NUMBER, 'numbers')}
_SHOWN = {'accepted_units': '[unit, scale, offset]', 'rescale': '[from, to, scale, offset]', 'levels': '[value, word]'}


def fingerprint(cohort: Cohort) -> str:
  """SHA-256 over everything a model or a prompt can see, and the outcomes."""
  digest = hashlib.sha256()
  head = [cohort.name, cohort.task, cohort.setting, cohort.features.to_json(), cohort.subject_id.astype(str).tolist()]
  digest.update(json.dumps(head, ensure_ascii=False).encode())
  arrays = [(cohort.age, '<f4'), (cohort.sex, 'i1'), (cohort.label, 'i1'), (cohort.patient, '<i4'),
            (cohort.hour, '<f4'), (cohort.feature, '<i2'), (cohort.value, '<f4')]
  if cohort.truth is not None:
    arrays += [(cohort.truth.salience, '<f4'), (cohort.truth.risk, '<f4')]
  if cohort.stay_end is not None:
    arrays.append((cohort.stay_end, '<f4'))
  if cohort.censor is not None and cohort.censor.any():
    arrays.append((cohort.censor, 'i1'))
  for array, dtype in arrays:
    digest.update(np.ascontiguousarray(array, dtype).reshape(-1).data)
  return digest.hexdigest()


def recorded_sha256(folder: str | Path) -> str:
  """`fingerprint` of the cohort that `save` wrote there, as `load` has checked it."""
  return json.loads((Path(folder) / 'manifest.json').read_text(encoding='utf-8'))['sha256']


def save(cohort: Cohort, folder: str | Path) -> None:
  """Writes a cohort; what the folder held before is replaced, and unusable until the last file is written."""
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'manifest.json').unlink(missing_ok=True)
  (folder / 'truth.parquet').unlink(missing_ok=True)
  (folder / 'rejects.parquet').unlink(missing_ok=True)
  ids = pa.array(cohort.subject_id.astype(str).tolist(), pa.string())
  _save_events(folder / 'events.parquet', cohort, ids)
  labels = {'subject_id': ids, 'boolean_value': pa.array(cohort.label.astype(bool)),
            'age': pa.array(cohort.age), 'sex': pa.array(cohort.sex)}
  if cohort.stay_end is not None:
    labels['stay_end'] = pa.array(cohort.stay_end, pa.float32())
  pq.write_table(pa.table(labels), folder / 'labels.parquet')
  _write_json(folder / 'features.json', cohort.features.to_json())
  if cohort.truth is not None:
    flat = pa.array(cohort.truth.salience.reshape(-1))
    pq.write_table(pa.table({
        'risk': pa.array(cohort.truth.risk),
        'salience': pa.FixedSizeListArray.from_arrays(flat, len(cohort.features))}), folder / 'truth.parquet')
  if cohort.rejects is not None:
    _save_rejects(folder / 'rejects.parquet', cohort)
  _write_json(folder / 'manifest.json', {
      'format': _FORMAT, 'name': cohort.name, 'task': cohort.task, 'setting': cohort.setting,
      'patients': len(cohort), 'positives': int(cohort.label.sum()), 'events': len(cohort.value),
      'features': len(cohort.features), 'synthetic': cohort.truth is not None,
      'time_resolution': 'day' if np.all(cohort.hour % 24 == 0) else 'hour',
      'rejects': 0 if cohort.rejects is None else len(cohort.rejects), 'oracle_auroc': _oracle_auroc(cohort),
      'attrition': [list(step) for step in cohort.attrition], 'sha256': fingerprint(cohort)})


def _save_events(path: Path, cohort: Cohort, ids: pa.Array) -> None:
  """Some rows at a time: all of their units as text would take more memory than the cohort."""
  with pq.ParquetWriter(path, _events(cohort, ids, slice(0)).schema) as writer:
    for start in range(0, len(cohort.value), _ROWS):
      writer.write_table(_events(cohort, ids, slice(start, start + _ROWS)))


def _events(cohort: Cohort, ids: pa.Array, rows: slice) -> pa.Table:
  code, unit = (pa.array([getattr(s, k) for s in cohort.features], pa.string()) for k in ('name', 'unit'))
  feature = pa.array(cohort.feature[rows])
  events = {
      'subject_id': pa.DictionaryArray.from_arrays(pa.array(cohort.patient[rows]), ids),
      'time': pa.array(cohort.hour[rows]), 'code': pa.DictionaryArray.from_arrays(feature, code),
      'numeric_value': pa.array(cohort.value[rows]),
      'unit': pa.DictionaryArray.from_arrays(feature, unit).dictionary_decode()}
  if cohort.censor is not None and cohort.censor.any():
    events['censor'] = pa.array(cohort.censor[rows], pa.int8())
  return pa.table(events)


def _save_rejects(path: Path, cohort: Cohort) -> None:
  rejects = cohort.rejects
  assert rejects is not None
  unit = {s.name: s.unit for s in cohort.features}
  code = rejects.feature.astype(object).tolist()
  pq.write_table(pa.table({
      'subject_id': pa.array(rejects.subject_id.astype(object).tolist(), pa.string()),
      'time': pa.array(rejects.hour, pa.float32()), 'code': pa.array(code, pa.string()),
      'numeric_value': pa.array(rejects.value, pa.float32()),
      'unit': pa.array([unit.get(name, '') for name in code], pa.string()),
      'reason': pa.array(rejects.reason.astype(object).tolist(), pa.string())}), path)


def _oracle_auroc(cohort: Cohort) -> float | None:
  """Of the true risk, over all patients: the most that any model can reach; None of real patients or one outcome."""
  if cohort.truth is None or len(np.unique(cohort.label)) < 2:
    return None
  from sklearn.metrics import roc_auc_score  # a third of the start-up, which a mistyped flag should not wait for
  return float(roc_auc_score(cohort.label, cohort.truth.risk))


def _write_json(path: Path, content: object) -> None:
  path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding='utf-8')


def load(folder: str | Path) -> Cohort:
  """Reads what `save` wrote, array for array.

  Raises:
    EagrlError: files missing, damaged, or not those that the manifest describes.
  """
  folder = Path(folder)
  try:
    manifest = json.loads((folder / 'manifest.json').read_text(encoding='utf-8'))
    features = FeatureTable.from_json(json.loads((folder / 'features.json').read_text(encoding='utf-8')))
    labels = pq.read_table(folder / 'labels.parquet')
    read = ('subject_id', 'time', 'code', 'numeric_value', 'censor')
    there = pq.read_schema(folder / 'events.parquet').names
    events = pq.read_table(folder / 'events.parquet', columns=[name for name in read if name in there])
    ids = labels['subject_id'].to_numpy(zero_copy_only=False).astype(str)
    truth = None
    if manifest['synthetic']:
      table = pq.read_table(folder / 'truth.parquet')
      salience = table['salience'].combine_chunks().flatten().to_numpy(zero_copy_only=False)
      truth = Truth(salience.reshape(len(ids), len(features)), table['risk'].to_numpy())
    cohort = Cohort(
        name=manifest['name'], task=manifest['task'], setting=manifest['setting'], features=features, subject_id=ids,
        age=labels['age'].to_numpy(), sex=labels['sex'].to_numpy(),
        label=labels['boolean_value'].to_numpy(zero_copy_only=False).astype(np.int8),
        patient=_codes(events['subject_id'], ids, np.int32), hour=events['time'].to_numpy(),
        feature=_codes(events['code'], features.names, np.int16), value=events['numeric_value'].to_numpy(),
        attrition=tuple((step, count, unit) for step, count, unit in manifest['attrition']), truth=truth,
        stay_end=labels['stay_end'].to_numpy() if 'stay_end' in labels.column_names else None,
        censor=events['censor'].to_numpy() if 'censor' in events.column_names else None)
    stored = manifest['sha256']
  except (OSError, KeyError, ValueError, TypeError, AttributeError, pa.ArrowException):
    raise EagrlError(f'cohort: {folder.name} is missing, unfinished or damaged; delete that folder and '
                     'run again') from None
  if fingerprint(cohort) != stored:
    raise EagrlError(f'cohort: the files in {folder.name} are not those its manifest describes; put them back, or '
                     'delete that folder and run again')
  return cohort


def _codes(column: pa.ChunkedArray, names: tuple[str, ...] | np.ndarray, dtype: type) -> np.ndarray:
  """Position in `names` of every entry."""
  encoded = column.unify_dictionaries().combine_chunks()
  position = {name: i for i, name in enumerate(names)}
  local: np.ndarray = np.array([position[name] for name in encoded.dictionary.to_pylist()], dtype)
  return local[encoded.indices.to_numpy()]


def read_features(path: str | Path) -> FeatureTable:
  """Reads a table of feature specs written by hand: a YAML or JSON list of mappings with FeatureSpec's fields.

  Raises:
    EagrlError: no such file, not a list, unknown or missing fields, ranges upside down, a scale of 0.
  """
  path, fields = Path(path), {f.name: f for f in dataclasses.fields(FeatureSpec)}
  try:
    rows = yaml.safe_load(path.read_text(encoding='utf-8'))
  except (OSError, UnicodeDecodeError):
    raise EagrlError(f'features: cannot read {path.name}; give a YAML or JSON file') from None
  except yaml.YAMLError as error:
    mark = getattr(error, 'problem_mark', None)
    raise EagrlError(f'features: {path.name} is not YAML or JSON'
                     + (f', see line {mark.line + 1}' if mark else '')) from None
  except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError):  # a 13th month, depth
    raise EagrlError(f'features: {path.name} holds an entry that YAML or JSON cannot mean; correct it') from None
  if not isinstance(rows, list) or not rows or not all(
      isinstance(r, dict) and isinstance(r.get('name'), str | int) and str(r['name']).strip() for r in rows):
    raise EagrlError(f'features: {path.name} must be a list of entries that each have a name')
  for row in rows:
    name = row['name'] = str(row['name']).strip()
    for field, entry in row.items():
      if field not in fields:
        near = difflib.get_close_matches(str(field), fields, n=1, cutoff=0.0)[0]
        raise EagrlError(f'features: {name!r} has the unknown field {field!r}; did you mean {near!r}?')
      number = field in ('ref_low', 'ref_high', 'hard_low', 'hard_high')
      wants = (int, float, type(None)) if number else type(fields[field].default)
      if field != 'name' and not _is(entry, list if wants is tuple else wants):
        raise EagrlError(f'features: {name!r}: {field} has the wrong type')
    for low, high in (('ref_low', 'ref_high'), ('hard_low', 'hard_high')):
      if row.get(low) is not None and row.get(high) is not None and row[low] > row[high]:
        raise EagrlError(f'features: {name!r}: {low} is above {high}; swap them')
    for field, shape in _SHAPES.items():
      for entry in row.get(field, ()):
        if not isinstance(entry, list) or len(entry) != len(shape) or not all(map(_is, entry, shape)):
          raise EagrlError(f'features: {name!r}: an entry of {field} must be {_SHOWN[field]}')
        if field != 'levels' and not entry[-2]:
          raise EagrlError(f'features: {name!r}: a scale of {field} is 0, which turns every value into the offset; '
                           'give value in unit = scale * value + offset')
    for field, (kind, shown) in _ITEMS.items():
      if not all(_is(entry, kind) for entry in row.get(field, ())):
        raise EagrlError(f'features: {name!r}: entries of {field} must be {shown}')
    if not 0 <= row.get('decimals', 0) <= MOST_DECIMALS:
      raise EagrlError(f'features: {name!r}: decimals must be 0 to {MOST_DECIMALS}')
    if any(c in name for c in ',;<>\n'):
      raise EagrlError(f'features: {name!r} holds one of , ; < >, which answers use as marks; rename it')
    if row.get('kind', 'numeric') not in ('numeric', 'ordinal'):
      raise EagrlError(f'features: {name!r}: kind must be numeric or ordinal')
    if row.get('repeats', 'mean') not in ('mean', 'last'):
      raise EagrlError(f'features: {name!r}: repeats must be mean or last')
    if row.get('encoding', 'number') not in ('number', 'one_hot'):
      raise EagrlError(f'features: {name!r}: encoding must be number or one_hot')
    if row.get('encoding') == 'one_hot' and not row.get('levels'):
      raise EagrlError(f'features: {name!r}: encoding one_hot makes a channel a level; give its levels')
    numbers = [level for level, _ in row.get('levels', ())]
    if row.get('encoding') == 'one_hot' and any(b <= a for a, b in itertools.pairwise(numbers)):
      raise EagrlError(f'features: {name!r}: encoding one_hot needs levels in rising order, each number once')
  return FeatureTable.from_json(rows)


def _is(entry: object, kind: type | tuple[type, ...]) -> bool:
  """Whether an entry is of this kind; a truth value is no number, and a number is one that float32 holds."""
  if isinstance(entry, bool) or not isinstance(entry, int | float):
    return isinstance(entry, kind) and (kind is bool or not isinstance(entry, bool))
  return isinstance(entry, kind) and -_LARGEST <= entry <= _LARGEST
