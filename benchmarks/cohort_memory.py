"""How much memory a cohort of MIMIC-IV takes to make: the demo many times over, read in a process of its own.

    nice python -m benchmarks.cohort_memory --copies 100
    nice python -m benchmarks.cohort_memory --copies 100 --of prepare --bin_hours 1 --window_hours 0
    nice python -m benchmarks.cohort_memory --copies 650 --only_used --bin_hours 1 --window_hours 0

Every copy has ids of its own; 650 have as many patients as the whole database. The tables are written anew as csv.gz,
which needs 6.5 MB of disk a copy, the database's temporary files not counted, and takes longer than to read them. The
peak is that of the process's resident memory, as the kernel counts it. Goal: 2 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import duckdb

from benchmarks import measure
from eagrl_jax.ehr.sources import mimic4_features

ROOT = pathlib.Path(__file__).parents[1]
DEMO = ROOT.parent / 'shared' / 'data' / 'mimic_iv_demo'
TABLES = ('hosp/patients', 'hosp/admissions', 'hosp/labevents', 'icu/icustays', 'icu/chartevents')
IDS = ('subject_id', 'hadm_id', 'stay_id')
APART = 100_000_000  # between the ids of two copies: above any of the demo
LIMIT = 2e9  # bytes
LOAD = '''
import sys
from eagrl_jax.ehr.sources import bounded, mimic4
path, aggregate, *hours = sys.argv[1:]
grid = bounded.Grid(float(hours[0]), aggregate, float(hours[1]))
cohort = mimic4.load(path, task='mortality', index='icu', grid=grid)
print(len(cohort), len(cohort.value))
'''


def repeat(demo: pathlib.Path, folder: pathlib.Path, copies: int, only_used: bool) -> int:
  """Writes the tables that the source reads, each so many times over; how many rows those of events have."""
  rows = 0
  used = ', '.join(repr(str(item.itemid)) for item in (*mimic4_features.CHART, *mimic4_features.LAB))
  with duckdb.connect(config={'memory_limit': '1GB', 'threads': 1}) as db:
    for table in TABLES:
      source = f"read_csv('{demo / table}.csv.gz', header=true, all_varchar=true, delim=',', quote='\"', escape='\"')"
      where = f'WHERE itemid IN ({used})' if only_used and table.endswith('events') else ''
      db.execute(f'CREATE OR REPLACE TABLE once AS SELECT * FROM {source} {where}')
      have = {row[0] for row in db.execute('DESCRIBE once').fetchall()}
      anew = ', '.join(f'CAST({name} AS BIGINT) + {APART} * copy AS {name}' for name in IDS if name in have)
      (folder / table).parent.mkdir(parents=True, exist_ok=True)
      # Copy by copy, as the released tables are: rows of one patient lie together.
      written = db.execute(f'COPY (SELECT once.* REPLACE ({anew}) FROM range({copies}) r(copy), once) TO '
                           f"'{folder / table}.csv.gz' (HEADER, COMPRESSION gzip)").fetchone()
      rows += int(written[0]) if written and table.endswith('events') else 0
  return rows


def run(command: list[str]) -> tuple[int, float, str]:
  """Most bytes that a process held, its seconds, and what it said."""
  begun = time.perf_counter()
  with tempfile.TemporaryFile('w+') as said:
    process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    said.seek(0)
    text = said.read()
  if process.returncode:
    sys.exit(text)
  return usage.ru_maxrss * (1 if sys.platform == 'darwin' else 1024), time.perf_counter() - begun, text


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--demo', type=pathlib.Path, default=DEMO)
  parser.add_argument('--copies', type=int, default=100)
  parser.add_argument('--of', choices=['source', 'prepare'], default='source',
                      help='the source by itself, or the stage as the command line runs it')
  parser.add_argument('--only_used', action='store_true', help='leave out the rows of other items, of which there are '
                      'more')
  parser.add_argument('--bin_hours', type=float, default=6.0)
  parser.add_argument('--window_hours', type=float, default=48.0, help='0 = the last days of every stay')
  parser.add_argument('--aggregate', choices=['mean', 'last'], default='last')
  a = parser.parse_args()
  with tempfile.TemporaryDirectory(prefix='cohort_memory-') as name:
    # In a process of its own: what this one has ever held counts for those that it starts.
    write = 'import pathlib, sys; from benchmarks import cohort_memory as c; ' \
            'print(c.repeat(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]), bool(sys.argv[4])))'
    only = 'yes' * a.only_used
    rows = int(run([sys.executable, '-c', write, str(a.demo.resolve()), name, str(a.copies), only])[2].split()[-1])
    workdir = pathlib.Path(name) / 'run'
    if a.of == 'source':
      held, seconds, text = run([sys.executable, '-c', LOAD, name, a.aggregate, str(a.bin_hours), str(a.window_hours)])
      patients, values = map(int, text.split()[-2:])
    else:
      held, seconds, _ = run([
          sys.executable, '-m', 'eagrl_jax.main', '--config=configs/rl.py:mimic4', '--config.target=prepare',
          f'--config.data.path={name}', f'--config.data.bin_hours={a.bin_hours}', f'--workdir={workdir}',
          f'--config.data.window_hours={a.window_hours}', f'--config.data.aggregate={a.aggregate}'])
      manifest = json.loads((workdir / 'prepare' / 'manifest.json').read_text())
      patients, values = manifest['patients'], manifest['events']
  case = f'{a.of}, {a.aggregate} of {a.bin_hours:g} h, ' + (f'{a.window_hours:g} h' if a.window_hours else 'last days')
  measure.report(f'peak memory, MIMIC-IV demo x {a.copies}, {case}', 'bytes', float(held), LIMIT, 'the goal', None,
                 rows=rows, patients=patients, values=values, seconds=seconds)


if __name__ == '__main__':
  main()
