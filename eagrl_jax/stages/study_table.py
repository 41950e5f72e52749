"""study.json and study.md from what is finished of a study.

Only what was made from the present config counts: a seed's evaluation, a cell's answers or perturbed records that are
still to be made again are left out until they are.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from eagrl_jax.evaluation import elsewhere, perturbed, rates
from eagrl_jax.evaluation import study as study_lib
from eagrl_jax.evaluation.files import read_columns, read_json
from eagrl_jax.stages import cells, disk, graph
from eagrl_jax.stages.cells import ASKED, own, run_folder
from eagrl_jax.types import EagrlError

NAMES = {'rl': 'eag'}  # arms of a run's evaluation that have another name here
PROB = 'predicted_boolean_probability'
BySeed = dict[str, dict[int, np.ndarray]]  # arm or cell -> seed -> [N]


def gather(config: ConfigDict, workdir: pathlib.Path, resamples: int) -> str:
  """Writes study.json and study.md from every finished cell, all seeds' perturbed records and transfers.

  Args:
    resamples: of patients. No p is below 2 / (resamples + 1), nor by Holm below that times the number of arms.

  Returns:
    The content of study.md.
  """
  known = {seed: graph.stage_hashes(own(config, seed)) for seed in config.study.seeds}
  label = np.zeros(0, bool)
  probs: BySeed = {}
  figures: dict[str, dict[int, dict]] = {}
  cohort: dict = {}
  for seed in config.study.seeds:
    folder = run_folder(workdir, seed)
    if not is_current(folder / 'evaluate', known[seed]):
      continue
    summary = read_json(folder / 'evaluate' / 'metrics.json')
    of, prob, outcome = answered(folder / 'evaluate', 'arm', PROB, 'boolean_value').values()
    for arm in dict.fromkeys(of.tolist()):
      probs.setdefault(NAMES.get(arm, arm), {})[seed] = prob[of == arm]
      figures.setdefault(NAMES.get(arm, arm), {})[seed] = summary['arms'][arm]
    mine = outcome[of == of[0]]
    label = label if len(label) else mine
    if not np.array_equal(label, mine):
      raise EagrlError(f'{folder} judges other patients than the first seed: the folder is from another study; move it')
    cohort = {k: summary[k] for k in ('cohort', 'task', 'n_test', 'prevalence')}
    for cell in cells.beside_the_run(config):
      if manifest := cells.finished_answers(config, workdir, seed, cell, known=_source(known[seed])):
        probs.setdefault(cell, {})[seed] = answered(cells.answers(workdir, seed, cell), PROB)[PROB]
        figures.setdefault(cell, {})[seed] = manifest
  if not probs:
    raise EagrlError(f'--workdir={workdir}: no seed was evaluated as the config and its source files are now; run the '
                     'study again')
  tried = _rates(config, workdir, label, probs, known)
  validated = _validated(config, workdir, known) if config.rl.validate_every else {}
  if config.study.learning_rates:
    probs, figures = (_of_chosen(config, of, tried) for of in (probs, figures))
  rows = study_lib.table(label, probs, 'eag', resamples)
  order = ('base', *ASKED, 'sft', 'eag', *(a for a in config.study.arms if a not in ASKED))
  shown = (*(a for a in order if a in rows), *(a for a in rows if a not in order))
  arms = {a: rows[a] | _means([*figures[a].values()]) for a in shown}
  changed = perturbed.gather({seed: at for seed in config.study.seeds if robustness_is_finished(
      at := run_folder(workdir, seed) / 'robustness', known[seed])}, NAMES, resamples)
  others = elsewhere.gather(_transfers(workdir, known), NAMES, resamples)
  claims = study_lib.claims(rows, perturbed.all_shuffled(changed['rows']) if changed else None, others,
                            study_lib.rarer(label))
  study = {**cohort, 'seeds': list(config.study.seeds), 'resamples': resamples, 'arms': arms, 'claims': claims,
           **({'rates': tried} if config.study.learning_rates else {}),
           **({'validated': validated} if validated else {}), **({'perturbed': changed} if changed else {}),
           **({'elsewhere': others} if others else {})}
  text = '\n'.join([study_lib.markdown(study),
                    *([rates.markdown(tried, 'eag')] if config.study.learning_rates else []),
                    *([study_lib.kept(validated)] if validated else []),
                    *([perturbed.markdown(**changed)] if changed else []),
                    *([elsewhere.markdown(others)] if others else [])])
  disk.write_json(workdir / 'study.json', study)
  disk.write_text(workdir / 'study.md', text)
  return text


def _validated(config: ConfigDict, workdir: pathlib.Path, known: Mapping[int, Mapping[str, str]]
               ) -> dict[str, dict[int, dict]]:
  """Cell -> seed -> what its rl stage says of validation patients."""
  out: dict[str, dict[int, dict]] = {}
  for cell in dict.fromkeys(('eag', *cells.beside_the_run(config))):
    for seed in config.study.seeds:
      run = run_folder(workdir, seed)
      folder = (run if cell == 'eag' else run / 'arms' / cell) / 'rl'
      hashes = known[seed] if cell == 'eag' else graph.stage_hashes(own(config, seed, cell), _source(known[seed]))
      if is_current(folder, hashes) and (summary := read_json(folder / 'summary.json')):
        out.setdefault(cell, {})[seed] = summary
  return out


def is_current(folder: pathlib.Path, hashes: Mapping[str, str]) -> bool:
  """Whether the stage of this folder is finished as the config of `hashes` has it."""
  return disk.read_hash(folder / 'done.json') == hashes[folder.name]


def robustness_is_finished(folder: pathlib.Path, hashes: Mapping[str, str]) -> bool:
  """The same of perturbed records; what was judged before they kept their answers is not."""
  return is_current(folder, hashes) and (folder / 'predictions.parquet').exists()


def answered(folder: pathlib.Path, *columns: str) -> dict[str, np.ndarray]:
  """Columns of a finished arm's predictions.

  Raises:
    EagrlError: they are gone.
  """
  found = read_columns(folder / 'predictions.parquet', *columns)
  if found is None:
    raise EagrlError(f'{folder}/predictions.parquet is gone; move {folder.name} away to make it again')
  return found


def _source(hashes: Mapping[str, str]) -> dict[str, str]:
  """What a seed's cells have in common with its run for certain, and what takes long to hash."""
  return {'prepare': hashes['prepare']}


def _transfers(workdir: pathlib.Path, known: Mapping[int, Mapping[str, str]]) -> dict[str, dict[int, pathlib.Path]]:
  """Name -> seed -> folder of the transfers of the seeds' present policies and experts.

  What was judged before transfers kept their answers is not among them.
  """
  out: dict[str, dict[int, pathlib.Path]] = {}
  for seed, hashes in known.items():
    for folder in sorted(path.parent for path in run_folder(workdir, seed).glob('transfer/[!.]*/manifest.json')):
      made_from = read_json(folder / 'manifest.json')['made_from']['run']
      present = all(hashes[stage] == digest for stage, digest in made_from.items())
      if present and (folder / 'predictions.parquet').exists():
        out.setdefault(folder.name, {})[seed] = folder
  return out


def _rates(config: ConfigDict, workdir: pathlib.Path, label: np.ndarray, probs: BySeed,
           known: Mapping[int, Mapping[str, str]]) -> list[dict]:
  """`rates.table` of all arms over the seeds that have every arm at every rate; none before there is one.

  So no arm is compared at its best rate with another that has not been tried at all of them.
  """
  valid: BySeed = {}
  outcome: np.ndarray | None = None
  arms = cells.trained(config)
  for seed in config.study.seeds if config.study.learning_rates else ():
    for cell in (c for arm in arms for c in cells.of_arm(config, arm)):
      if cells.finished_answers(config, workdir, seed, cell, 'validation', _source(known[seed])):
        folder = cells.answers(workdir, seed, cell, 'validation')
        prob, found = answered(folder, PROB, 'boolean_value').values()
        outcome = found if outcome is None else outcome
        if not np.array_equal(found, outcome):
          raise EagrlError(f'{folder} judges other patients than another cell; move it away to make it again')
        valid.setdefault(cell, {})[seed] = prob
  every = [cell for arm in arms for cell in cells.of_arm(config, arm)]
  whole = [seed for seed in config.study.seeds if all(seed in of.get(c, {}) for of in (valid, probs) for c in every)]
  if outcome is None or not whole:
    return []
  chosen_by, told = ({c: {s: of[c][s] for s in whole} for c in every} for of in (valid, probs))
  tried = (config.rl.learning_rate, *config.study.learning_rates)
  return [row for arm in arms for row in rates.table(
      arm, dict(zip(cells.of_arm(config, arm), tried)), outcome, chosen_by, label, told)]


def _of_chosen(config: ConfigDict, of: dict[str, dict], tried: list[dict]) -> dict[str, dict]:
  """What is known of cells as what is known of arms: at the chosen rate and of its seeds, or at `rl.learning_rate`."""
  chosen = {row['arm']: row for row in tried if row['chosen']}
  several = {cell for arm in cells.trained(config) for cell in cells.of_arm(config, arm)}
  out = {arm: by for arm, by in of.items() if arm not in several}
  for arm in cells.trained(config):
    if arm in chosen:
      out[arm] = {seed: of[chosen[arm]['cell']][seed] for seed in chosen[arm]['seeds']}
    elif arm in of:
      out[arm] = of[arm]
  return out


def _means(figures: list[Mapping]) -> dict:
  """Parsed and refused answers, agreement with the expert, early score: means over seeds, absent where none is."""
  out = {}
  for rate in ('parse_rate', 'refusal_rate'):
    known = [f[rate] for f in figures if f.get(rate) is not None]
    if known:
      out[rate] = float(np.mean(known))
  agreed = [f['jaccard_at_k']['expert']['mean'] for f in figures if f.get('jaccard_at_k')]
  defined = [mean for mean in agreed if mean is not None]  # null where no patient has a list to agree on
  if defined:
    out['jaccard'] = float(np.mean(defined))
  scored = [f['early_score']['point'] for f in figures if f.get('early_score')]
  early = [point for point in scored if point is not None]
  if early and len(early) == len(figures):  # some seeds' alone would be another mean than the arms beside it have
    out['early_score'] = float(np.mean(early))
  return out
