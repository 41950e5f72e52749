"""Writes tests/golden/aces: what ACES extracts of the made-up patients of tests/ehr/aces_fixture.py.

Needs `pip install es-aces==0.7.3`; the tests do not. Run from the repository root, with the `aces-cli` to use:

  python tests/golden/make_aces_golden.py path/to/aces-cli

`labels/` holds its label files, one a shard, `windows/` the same rows as `window_stats_dir` writes them, with trigger
and windows.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
sys.path.insert(0, str(HERE.parent / 'ehr'))
import aces_fixture  # noqa: E402

SHARDS = ('train/0', 'held_out/0')


def main(cli: str) -> None:
  target = HERE / 'aces'
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    aces_fixture.write(folder)
    (folder / 'death.yaml').write_text(aces_fixture.TASK)
    for shard in SHARDS:
      subprocess.run([
          cli, f'cohort_dir={folder}', 'cohort_name=death', 'data=sharded', 'data.standard=meds',
          f'data.root={folder}/set/data', f'data.shard={shard}', f'window_stats_dir={folder}/windows'], check=True)
    for kind, made in (('labels', folder / 'death'), ('windows', folder / 'windows' / 'death')):
      for shard in SHARDS:
        to = target / kind / f'{shard}.parquet'
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made / f'{shard}.parquet', to)


if __name__ == '__main__':
  main(sys.argv[1])
