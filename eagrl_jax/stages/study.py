"""The arms of the method's evaluation, over seeds, one cell after another.

    <workdir>/seed_<s>/              a whole run: base, sft, EAG-RL (`eag`), the expert, the baselines
    <workdir>/seed_<s>/arms/<arm>/   its own `rl` stage from the run's stages before it, and its answers
    <workdir>/study.json, study.md   all cells so far

With `study.robustness` every seed's run also judges perturbed records (stages/robustness.py).

Cohort, split and test patients are those of the first seed throughout, so that arms and seeds can be paired. What is
finished is skipped, so a study goes on where it was stopped, and seeds, arms or rates can be added later.

With `study.learning_rates` every arm of reinforcement learning is trained at each of them too, and given the one whose
answers to validation patients have the highest AUROC, mean over seeds (evaluation/rates.py). Perturbed records and
transfers stay those of `rl.learning_rate`.
"""

from __future__ import annotations

import pathlib

from absl import logging
from ml_collections import ConfigDict

from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import cells, checks, disk, fields, graph, pipeline, sizes
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import policy as policy_lib
from eagrl_jax.stages.cells import CHANGES, own, run_folder
from eagrl_jax.stages.context import Context
from eagrl_jax.stages.study_table import gather, is_current, robustness_is_finished
from eagrl_jax.train import processes
from eagrl_jax.types import EagrlError


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
      if 'think' in c.arms:
        _measure_prose(config, workdir, seed)
      pipeline.run(own(config, seed), run_folder(workdir, seed))
      for cell in cells.beside_the_run(config):
        cells.run(config, workdir, seed, cell)
        gather(config, workdir, config.evaluate.bootstrap)
      if c.robustness:
        _judge_perturbed(config, workdir, seed)
    print('\n' + gather(config, workdir, config.study.resamples))
    logging.info('study: %s', workdir / 'study.md')


def _measure_prose(config: ConfigDict, workdir: pathlib.Path, seed: int) -> None:
  """Refuses prompts of `think`, several times as long as the run's, before anything is trained on the first policy."""
  if config.lm.checkpoint == 'tiny':  # its positions have no end
    return
  base = own(config, seed)
  base.target = 'base'
  pipeline.run(base, run_folder(workdir, seed))
  mine = own(config, seed, 'think')
  context = Context(mine, run_folder(workdir, seed), make_mesh(**mine.mesh.to_dict()))
  data, vocabulary = data_lib.load(context), policy_lib.tokenizer(context.folder('base'))
  try:
    data_lib.encoder(context, data, vocabulary, sizes.policy_shape(mine)).check(data.splits.test)
  except EagrlError as e:
    raise EagrlError(f"study.arms: 'think' asks in full prose. {e}; or leave think out") from e


def _judge_perturbed(config: ConfigDict, workdir: pathlib.Path, seed: int) -> None:
  """The robustness stage of a seed's run, again where it was finished before it kept its answers."""
  folder = run_folder(workdir, seed) / 'robustness'
  if not robustness_is_finished(folder, graph.stage_hashes(own(config, seed))):
    (folder / 'done.json').unlink(missing_ok=True)
  pipeline.run(own(config, seed, 'robustness'), run_folder(workdir, seed))


def _check(config: ConfigDict) -> None:
  c = config.study
  if processes.count() > 1:
    raise EagrlError('--distributed: a study runs in one process; run its arms as runs of their own instead')
  if c.resamples < 1:
    raise EagrlError(f'study.resamples={c.resamples} must be at least 1')
  if not c.seeds or len(set(c.seeds)) != len(c.seeds):
    raise EagrlError(f'study.seeds={tuple(c.seeds)}: give one or more different seeds')
  fields.all_numbers('study.seeds', c.seeds, whole=True)
  for seed in c.seeds:
    fields.seed('study.seeds', seed)
  for arm in c.arms:
    fields.one_of('study.arms', arm, tuple(CHANGES))
  if config.reward.kind == 'authors' and (weighed := [arm for arm in c.arms if 'rl.lam' in CHANGES[arm]]):
    raise EagrlError("reward.kind='authors' has no weight lam to leave the attention reward out with; use another kind,"
                     f' or take {", ".join(weighed)} out of study.arms')
  rates_of = (config.rl.learning_rate, *c.learning_rates)
  if len(set(rates_of)) < len(rates_of) or not all(isinstance(r, float) and 0 < r < 1 for r in c.learning_rates):
    raise EagrlError(f'study.learning_rates={tuple(c.learning_rates)}: give different rates between 0 and 1; '
                     f'rl.learning_rate={config.rl.learning_rate:g} is tried anyway')
  for arm in ('eag', *c.arms):
    checks.check(own(config, c.seeds[0], arm))


def _states(config: ConfigDict, workdir: pathlib.Path, seed: int) -> dict[str, str]:
  """What a study would do for a seed: arm -> 'done' or 'run'."""
  folder, hashes = run_folder(workdir, seed), graph.stage_hashes(own(config, seed))
  done = {'eag': is_current(folder / 'evaluate', hashes)}
  for cell in cells.beside_the_run(config):
    done[cell] = done.get(cell, True) and all(
        cells.finished_answers(config, workdir, seed, cell, of) for of in cells.asked_of(config, cell))
  if config.study.robustness:
    done['robustness'] = robustness_is_finished(folder / 'robustness', hashes)
  return {arm: 'done' if there else 'run' for arm, there in done.items()}
