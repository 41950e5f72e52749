"""Which results in a run's folder are of its present config, and of the stages that lie beside them.

A run with other settings leaves what was made before in place until the turn of its stage, or for good where `target`
stops short of it.
"""

from __future__ import annotations

from pathlib import Path

from eagrl_jax.evaluation.files import read_json

HASHES = 'stages.json'  # stage -> the hash that config.json gives it


def outdated(workdir: Path) -> set[str]:
  """Stages, and transfers as `transfer/<name>`, that were made with other settings or from stages made anew since.

  What bears no mark of a run is taken as it is. In a folder from before `HASHES` was written, only what was made from
  stages made anew since is told.
  """
  present = read_json(workdir / HASHES) or {}
  marks = {folder.name: read_json(folder / 'done.json') or read_json(folder / 'started.json')
           for folder in workdir.iterdir() if folder.is_dir()}
  here = {name: mark['hash'] for name, mark in marks.items() if isinstance(mark, dict) and 'hash' in mark}
  anew = lambda made_from: any(here.get(name, digest) != digest for name, digest in made_from.items())
  out = {name for name, digest in here.items() if present.get(name, digest) != digest
         or anew(marks[name].get('inputs') or {})}  # a stage under way has none yet
  for path in workdir.glob('transfer/[!.]*/manifest.json'):
    made_from = read_json(path)['made_from']['run']
    if anew(made_from) or out & made_from.keys():
      out.add(f'transfer/{path.parent.name}')
  return out
