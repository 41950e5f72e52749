"""The arms of the method's evaluation, over seeds, one cell after another.

    <workdir>/seed_<s>/              a whole run: base, sft, EAG-RL (`eag`), the expert, the baselines
    <workdir>/seed_<s>/arms/<arm>/   its own `rl` stage from the run's stages before it, and its answers
    <workdir>/study.json, study.md   all cells so far

With `study.robustness` every seed's run also judges perturbed records (stages/robustness.py).

Cohort, split and test patients are those of the first seed throughout, so that arms and seeds can be paired. What is
finished is skipped, so a study goes on where it was stopped, and seeds or arms can be added later.

With `study.learning_rates` every arm of reinforcement learning is trained at each of them too, and given the one whose
answers to validation patients have the highest AUROC, mean over seeds (evaluation/rates.py). Perturbed records and
transfers stay those of `rl.learning_rate`.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from eagrl_jax.evaluation import perturbed, rates
from eagrl_jax.evaluation import study as study_lib
from eagrl_jax.evaluation.files import read_columns
from eagrl_jax.stages import cells, checks, disk, fields, pipeline
from eagrl_jax.stages.cells import ASKED, CHANGES, own, run_folder
from eagrl_jax.train import processes
from eagrl_jax.types import EagrlError

NAMES = {'rl': 'eag'}  # arms of a run's evaluation that have another name here


def run(config: ConfigDict, workdir: pathlib.Path, dry_run: bool = False) -> None:
  """Runs what is missing of the study and writes its table after every cell.

  Raises:
    EagrlError: an unknown arm, no seed, several processes, or whatever a run raises.
  """
  c = config.study
  _check(config)
  if dry_run:
    for seed in c.seeds:
      print(f'seed {seed}: ' + ', '.join(f'{name} {state}' for name, state in _states(config, workdir, seed).items()))
    pipeline.describe(own(config, c.seeds[0]), run_folder(workdir, c.seeds[0]))
    return
  with disk.faults(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
  with disk.exclusive(workdir):
    for i, seed in enumerate(c.seeds):
      logging.info('study: seed %d (%d of %d)', seed, i + 1, len(c.seeds))
      pipeline.run(own(config, seed), run_folder(workdir, seed))
      for cell in _cells(config):
        cells.run(config, workdir, seed, cell)
        gather(config, workdir, config.evaluate.bootstrap)
      if c.robustness:
        pipeline.run(own(config, seed, 'robustness'), run_folder(workdir, seed))
    print('\n' + gather(config, workdir, config.study.resamples))
    logging.info('study: %s', workdir / 'study.md')


def gather(config: ConfigDict, workdir: pathlib.Path, resamples: int) -> str:
  """Writes study.json and study.md from every finished cell, and from what else was asked of the first seed's run.

  Args:
    resamples: of patients. No p is below 2 / (resamples + 1), nor by Holm below that times the number of arms.

  Returns:
    The content of study.md.
  """
  label = np.zeros(0, bool)
  probs: dict[str, dict[int, np.ndarray]] = {}
  extra: dict[str, list[dict]] = {}
  cohort: dict = {}
  for seed in config.study.seeds:
    folder = run_folder(workdir, seed)
    if not (folder / 'evaluate' / 'done.json').exists():
      continue
    summary = json.loads((folder / 'evaluate' / 'metrics.json').read_text())
    of, prob, outcome = _answered(
        folder / 'evaluate', 'arm', 'predicted_boolean_probability', 'boolean_value').values()
    for arm in dict.fromkeys(of.tolist()):
      _add(probs, extra, NAMES.get(arm, arm), seed, prob[of == arm], summary['arms'][arm])
    mine = outcome[of == of[0]]
    label = label if len(label) else mine
    if not np.array_equal(label, mine):
      raise EagrlError(f'{folder} judges other patients than the first seed: the folder is from another study; move it')
    cohort = {k: summary[k] for k in ('cohort', 'task', 'n_test', 'prevalence')}
    for cell in _cells(config):
      answers = cells.answers(workdir, seed, cell)
      if (answers / 'manifest.json').exists():
        found = _answered(answers, 'predicted_boolean_probability')['predicted_boolean_probability']
        _add(probs, extra, cell, seed, found, json.loads((answers / 'manifest.json').read_text()))
  tried = _rates(config, workdir, label, probs)
  chosen = {arm: arm for arm in cells.trained(config)} | {row['arm']: row['cell'] for row in tried if row['chosen']}
  probs, extra = _by_arm(config, probs, chosen), _by_arm(config, extra, chosen)
  rows = study_lib.table(label, probs, 'eag', resamples)
  order = ('base', *ASKED, 'sft', 'eag', *(a for a in config.study.arms if a not in ASKED))
  shown = (*(a for a in order if a in rows), *(a for a in rows if a not in order))
  arms = {a: rows[a] | _means(extra[a]) for a in shown}
  first = run_folder(workdir, config.study.seeds[0])
  read = lambda path: json.loads(path.read_text())
  judged = {seed: run_folder(workdir, seed) / 'robustness' for seed in config.study.seeds}
  changed = perturbed.gather({s: at for s, at in judged.items() if (at / 'done.json').exists()}, NAMES, resamples)
  claims = study_lib.claims(rows, perturbed.most_shuffled(changed['rows']) if changed else None, {
      path.parent.name: read(path) for path in sorted(first.glob('transfer/*/metrics.json'))})
  study = {**cohort, 'seeds': list(config.study.seeds), 'resamples': resamples, 'arms': arms, 'claims': claims,
           **({'rates': tried} if tried else {}), **({'perturbed': changed} if changed else {})}
  disk.write_json(workdir / 'study.json', study)
  text = '\n'.join([study_lib.markdown(study), *([rates.markdown(tried)] if tried else []),
                    *([perturbed.markdown(**changed)] if changed else [])])
  part = workdir / 'study.md.part'
  part.write_text(text)
  part.replace(workdir / 'study.md')
  return text


def _cells(config: ConfigDict) -> list[str]:
  """All cells of a seed beside its run, in the order in which they are made."""
  others = [cell for arm in config.study.arms for cell in cells.of_arm(config, arm)]
  return [*cells.of_arm(config, 'eag'), *others] if config.study.learning_rates else others


def _by_arm(config: ConfigDict, of: dict[str, Any], chosen: Mapping[str, str]) -> dict[str, Any]:
  """What is known of cells as what is known of arms: of those with several cells the chosen one's."""
  several = {cell for arm in chosen for cell in cells.of_arm(config, arm)}
  return {arm: v for arm, v in of.items() if arm not in several} | {
      arm: of[cell] for arm, cell in chosen.items() if cell in of}


def _rates(config: ConfigDict, workdir: pathlib.Path, label: np.ndarray, probs: dict) -> list[dict]:
  """`rates.table` of the arms whose cells are finished at every rate, for the seeds that have any."""
  known: dict[str, dict[int, np.ndarray]] = {}
  outcome = np.zeros(0, bool)
  for seed in config.study.seeds:
    for cell in (c for arm in cells.trained(config) for c in cells.of_arm(config, arm)):
      folder = cells.answers(workdir, seed, cell, 'validation')
      if config.study.learning_rates and (folder / 'manifest.json').exists():
        prob, outcome = _answered(folder, 'predicted_boolean_probability', 'boolean_value').values()
        known.setdefault(cell, {})[seed] = prob
  rows = []
  for arm in cells.trained(config):
    mine = cells.of_arm(config, arm)
    whole = len({tuple(sorted(of.get(cell, {}))) for of in (known, probs) for cell in mine}) == 1
    if whole and known.get(arm):
      rates_of = dict(zip(mine, (config.rl.learning_rate, *config.study.learning_rates)))
      rows += rates.table(arm, rates_of, outcome, known, label, probs)
  return rows


def _answered(folder: pathlib.Path, *columns: str) -> dict[str, np.ndarray]:
  """Columns of a finished arm's predictions."""
  found = read_columns(folder / 'predictions.parquet', *columns)
  if found is None:
    raise EagrlError(f'{folder}/predictions.parquet is gone; move {folder.name} away to make it again')
  return found


def _add(probs: dict, extra: dict, arm: str, seed: int, prob: np.ndarray, figures: dict) -> None:
  probs.setdefault(arm, {})[seed] = prob
  extra.setdefault(arm, []).append(figures)


def _means(figures: list[dict]) -> dict:
  """Parse rate and agreement with the expert, means over seeds; absent where an arm has none."""
  out = {}
  rates = [f['parse_rate'] for f in figures if f.get('parse_rate') is not None]
  if rates:
    out['parse_rate'] = float(np.mean(rates))
  agreed = [f['jaccard_at_k']['expert']['mean'] for f in figures if f.get('jaccard_at_k')]
  defined = [mean for mean in agreed if mean is not None]  # null where no patient has a list to agree on
  if defined:
    out['jaccard'] = float(np.mean(defined))
  return out


def _check(config: ConfigDict) -> None:
  c = config.study
  if processes.count() > 1:
    raise EagrlError('--distributed: a study runs in one process; run its arms as runs of their own instead')
  if c.resamples < 1:
    raise EagrlError(f'study.resamples={c.resamples} must be at least 1')
  if not c.seeds or len(set(c.seeds)) != len(c.seeds):
    raise EagrlError(f'study.seeds={tuple(c.seeds)}: give one or more different seeds')
  for seed in c.seeds:
    fields.seed('study.seeds', seed)
  for arm in c.arms:
    fields.one_of('study.arms', arm, tuple(CHANGES))
  if config.reward.kind == 'authors' and {'grpo', 'dapo', 'no_attention_reward'} & set(c.arms):
    raise EagrlError("reward.kind='authors' has no weight lam to leave the attention reward out with; use another kind,"
                     ' or take grpo, dapo and no_attention_reward out of study.arms')
  rates_of = (config.rl.learning_rate, *c.learning_rates)
  if len(set(rates_of)) < len(rates_of) or not all(isinstance(r, float) and 0 < r < 1 for r in c.learning_rates):
    raise EagrlError(f'study.learning_rates={tuple(c.learning_rates)}: give different rates between 0 and 1; '
                     f'rl.learning_rate={config.rl.learning_rate:g} is tried anyway')
  for arm in ('eag', *c.arms):
    checks.check(own(config, c.seeds[0], arm))


def _states(config: ConfigDict, workdir: pathlib.Path, seed: int) -> dict[str, str]:
  """What a study would do for a seed: arm -> 'done' or 'run'."""
  folder = run_folder(workdir, seed)
  done = {'eag': (folder / 'evaluate' / 'done.json').exists()}
  for cell in _cells(config):
    needed = ['', 'validation'] if config.study.learning_rates and cell not in ASKED else ['']
    needed = needed[cell == 'eag':]  # the run itself answered test patients
    done[cell] = done.get(cell, True) and all(
        (cells.answers(workdir, seed, cell, of) / 'manifest.json').exists() for of in needed)
  if config.study.robustness:
    done['robustness'] = (folder / 'robustness' / 'done.json').exists()
  return {arm: 'done' if there else 'run' for arm, there in done.items()}
