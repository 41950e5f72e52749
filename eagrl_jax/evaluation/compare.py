"""Several runs side by side: headline arms, what their settings differ in, learning curves, paired differences.

The folders are the only input. Differences are paired where two runs judged the same patients: each folder's salt and
split say who is behind its pseudonyms. Nothing about a single patient is shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from eagrl_jax.evaluation import bootstrap, drawing, learning, provenance, pseudonyms, report
from eagrl_jax.evaluation.files import flat, read_columns, read_json, read_lines
from eagrl_jax.evaluation.formats import aligned, interval, interval_text, range_text
from eagrl_jax.types import EagrlError

METRICS = ('auroc', 'auprc')
HEADLINE = ('base', 'sft', 'rl', 'expert')
_NO_PREDICTIONS: tuple[np.ndarray, bool, np.ndarray, dict] = np.empty(0, str), False, np.empty(0), {}


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run left behind; whatever is not there is empty."""

  name: str
  former: bool  # its evaluation is `provenance.outdated`, and so left out
  result: Mapping[str, Any]
  settings: Mapping[str, str]  # dotted field -> text
  versions: Mapping[str, str]
  logs: Mapping[str, Sequence[Mapping]]  # stage -> rows
  ids: np.ndarray  # [n] of the test patients, sorted
  named: bool  # whether they are the source's ids, not pseudonyms
  label: np.ndarray  # [n]
  prob: Mapping[str, np.ndarray]  # arm -> [n]


def read(folders: Sequence[Path]) -> list[Run]:
  """Reads runs; those of one folder name are told apart by their number.

  Raises:
    EagrlError: fewer than two, or one that is no run's folder.
  """
  if len(folders) < 2:
    raise EagrlError('compare: give the folders of at least two runs')
  runs: list[Run] = []
  for folder in map(Path, folders):
    if not (folder / 'config.json').exists():
      raise EagrlError(f'compare: {folder.name or folder} holds no config.json; give the folder of a run')
    names = [f.resolve().name for f in map(Path, folders)]
    name = folder.resolve().name
    name = f'{len(runs) + 1}: {name}' if names.count(name) > 1 else name
    outdated = provenance.outdated(folder)
    former = 'evaluate' in outdated
    runs.append(Run(name, former, {} if former else read_json(folder / 'evaluate/metrics.json') or {},
                    dict(flat(read_json(folder / 'config.json'), share=True)),
                    dict(flat(read_json(folder / 'environment.json') or {}, share=True)),
                    {stage: [] if stage in outdated else read_lines(folder / stage / 'metrics.jsonl')
                     for stage in report.STAGES},
                    *(_NO_PREDICTIONS if former else _predictions(folder))))
  return runs


def _predictions(folder: Path) -> tuple[np.ndarray, bool, np.ndarray, dict[str, np.ndarray]]:
  """Ids, whether they are the source's, labels and every arm's probability in one order of patients; empty without."""
  table = read_columns(folder / 'evaluate/predictions.parquet', 'subject_id', 'arm', 'boolean_value',
                       'predicted_boolean_probability')
  if table is None:
    return _NO_PREDICTIONS
  ids, arm, label, prob = table.values()
  behind = pseudonyms.undone(folder, ids)
  ids = ids if behind is None else behind
  found: dict[str, np.ndarray] = {}
  shared = np.unique(ids)
  labels = np.zeros(len(shared))
  for name in dict.fromkeys(arm.tolist()):
    mine = arm == name
    order = np.argsort(ids[mine], kind='stable')
    if not np.array_equal(ids[mine][order], shared):
      raise EagrlError('evaluate/predictions.parquet does not hold every patient once in each arm; '
                       'run the evaluate stage again')
    found[name], labels = prob[mine][order].astype(float), label[mine][order].astype(float)
  return shared, behind is not None, labels, found


def unpaired(a: Run, b: Run) -> str:
  """Why two runs cannot be paired; '' where they can."""
  for run in (a, b):
    if run.former:
      return f'{run.name} was evaluated with other settings or an earlier policy; run its evaluate stage again'
  if not len(a.ids) or not len(b.ids):
    return 'no predictions in one of them'
  if a.result.get('task') != b.result.get('task'):
    return 'their tasks differ'
  if not np.array_equal(a.ids, b.ids):
    same = len(np.intersect1d(a.ids, b.ids))
    hidden = '' if a.named and b.named else \
        f'; pseudonyms of two folders tell nothing: compare needs prepare/ and {pseudonyms.FILE} in both'
    return f'their test patients differ ({same:,} of {len(a.ids):,} and {len(b.ids):,} are the same){hidden}'
  return '' if np.array_equal(a.label, b.label) else 'their outcomes differ'


def paired(runs: Sequence[Run], n: int = 1000) -> list[dict]:
  """Every later run against the first: {'run', 'reason'} or a row an arm that both have, with its differences."""
  first = runs[0]
  rows: list[dict[str, Any]] = []
  for run in runs[1:]:
    reason = unpaired(run, first)
    if reason:
      rows.append({'run': run.name, 'reason': reason})
    for arm in dict.fromkeys([*HEADLINE, *first.prob]):
      if reason or arm not in first.prob or arm not in run.prob:
        continue
      gap = bootstrap.paired_difference(first.label, run.prob[arm], first.prob[arm], n)
      rows.append({'run': run.name, 'reason': '', 'arm': arm, **{m: interval(gap[m]) for m in METRICS},
                   'p': gap['auroc']['p']})
  return rows


def arms(runs: Sequence[Run]) -> list[dict]:
  """A row an arm: for each run its AUROC and AUPRC as intervals, None where the run has no such arm."""
  tables = [{row['name']: row for row in report.arm_rows(run.result)} for run in runs]
  names = dict.fromkeys([*HEADLINE, *(name for table in tables for name in table)])
  rows: list[dict[str, Any]] = [
      {'name': name, 'gloss': report.ARMS.get(name, ''),
       'cells': [{m: table[name][m] if name in table else None for m in METRICS} for table in tables]}
      for name in names]
  return [row for row in rows if any(cell['auroc'] for cell in row['cells'])]


def differences(tables: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
  """Fields whose text is not the same in all runs, with each run's text."""
  fields = dict.fromkeys(field for table in tables for field in table)
  rows = [(field, [table.get(field, 'not there') for table in tables]) for field in fields]
  return [row for row in rows if len(set(row[1])) > 1]


def table(runs: Sequence[Run]) -> str:
  """Headline arms of every run, then the paired differences, as text for a terminal."""
  rows = [('run', 'arm', 'test patients', 'AUROC (95% CI)', 'AUPRC (95% CI)')]
  rows += [(run.name, row['name'], f'{run.result.get("n_test", 0):,}',
            *(interval_text(row['cells'][i][m]) for m in METRICS))
           for i, run in enumerate(runs) for row in arms(runs) if row['name'] in HEADLINE and row['cells'][i]['auroc']]
  lines = [aligned(rows), '']
  found = paired(runs)
  gaps = [('run', 'arm', 'AUROC', 'AUPRC')]
  gaps += [(row['run'], row['arm'], *(range_text(row[m]) for m in METRICS))
           for row in found if not row['reason'] and row['arm'] in HEADLINE]
  if len(gaps) > 1:
    lines += [f'minus {runs[0].name}, paired by patient', aligned(gaps)]
  lines += [f'{row["run"]} and {runs[0].name} are not paired: {row["reason"]}' for row in found if row['reason']]
  return '\n'.join(lines)


def write(runs: Sequence[Run], out: Path) -> Path:
  """One self-contained HTML file.

  Raises:
    EagrlError: it cannot be written.
  """
  curves = [(stage, [Markup(svg) for _, svg in learning.overlaid({run.name: run.logs[stage] for run in runs}, stage)])
            for stage in report.STAGES]
  page = report.render(
      'compare.html.j2',
      runs=[{'name': run.name, 'token': drawing.run_token(i), 'former': run.former, 'result': run.result}
            for i, run in enumerate(runs)],
      arms=arms(runs), paired=paired(runs), curves=[(stage, svgs) for stage, svgs in curves if svgs],
      config=differences([run.settings for run in runs]), versions=differences([run.versions for run in runs]))
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding='utf-8')
  except OSError as error:
    raise EagrlError(f'--out={out} cannot be written: {error.strerror}; choose another file') from error
  return out
