"""The arms of the method's evaluation, over seeds, one cell after another.

    <workdir>/seed_<s>/              a whole run: base, sft, EAG-RL (`eag`), the expert, the baselines
    <workdir>/seed_<s>/arms/<arm>/   its own `rl` stage from the run's stages before it, and its answers
    <workdir>/study.json, study.md   all cells so far

With `study.robustness` every seed's run also judges perturbed records (stages/robustness.py).

Cohort, split and test patients are those of the first seed throughout, so that arms and seeds can be paired. What is
finished is skipped, so a study goes on where it was stopped, and seeds or arms can be added later.

Arms of reinforcement learning start from the same policy, with the same budget, and differ in what they name:
GRPO (arXiv 2402.03300) and DAPO (arXiv 2503.14476) as published, but for the optimiser and the sampling, which are the
config's; each ablation leaves one thing out; the controls follow salience that knows nothing of the patient. `direct`
is the base policy without reasoning: the number it would write at once. `think` is the base policy asked to think in
any form (`prompt.style=full`: policies from a checkpoint; the tiny one reads no instructions).
"""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging
from ml_collections import ConfigDict

from eagrl_jax.evaluation import agreement, perturbed, pseudonyms
from eagrl_jax.evaluation import study as study_lib
from eagrl_jax.evaluation.files import read_columns
from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import checks, disk, fields, finished, graph, inference, pipeline, reasoning
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import expert as expert_stage
from eagrl_jax.stages import policy as policy_lib
from eagrl_jax.stages.context import Context
from eagrl_jax.train import processes
from eagrl_jax.types import EagrlError

SHARED = ('prepare', 'expert', 'base', 'search', 'sft')  # stages that every arm of a seed starts from
ASKED = ('direct', 'think')  # arms without training: the base policy
NAMES = {'rl': 'eag'}  # arms of a run's evaluation that have another name here
PLAIN = {'rl.lam': 1.0, 'rl.c_align': 0.0, 'rl.attention_reward': 0.0, 'rl.advantage': 'grpo'}
CHANGES: dict[str, dict[str, object]] = {
    'direct': {},
    'think': {'prompt.reasoning': 'free'},
    'grpo': PLAIN | {'rl.loss': 'sequence_mean', 'rl.clip_min': 0.2, 'rl.clip_max': 0.2, 'rl.dynamic_sampling': False},
    'dapo': PLAIN | {'rl.loss': 'token_mean', 'rl.clip_min': 0.28, 'rl.clip_max': 0.28, 'rl.dynamic_sampling': True,
                     'rl.kl': 0.0},
    'no_stage1': {'rl.start': 'base'},
    'no_attention_reward': {'rl.lam': 1.0, 'rl.attention_reward': 0.0},
    'no_adaptive_clip': {'rl.clip_min': 0.2, 'rl.clip_max': 0.2},
    'no_alignment': {'rl.c_align': 0.0},
    'random_features': {'rl.align_control': 'random'},
    'prevalent_features': {'rl.align_control': 'prevalence'},
}


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
      for arm in c.arms:
        cell(config, workdir, seed, arm)
        gather(config, workdir, config.evaluate.bootstrap)
      if c.robustness:
        pipeline.run(own(config, seed, 'robustness'), run_folder(workdir, seed))
    print('\n' + gather(config, workdir, config.study.resamples))
    logging.info('study: %s', workdir / 'study.md')


def own(config: ConfigDict, seed: int, arm: str = 'eag') -> ConfigDict:
  """The config of one seed's run (`eag`, or `robustness` for the stage behind it), or of one arm's rl stage."""
  out = ConfigDict(config.to_dict())
  out.update(seed=seed, target={'eag': 'evaluate', 'robustness': 'robustness'}.get(arm, 'rl'))
  if config.data.seed is None and seed != config.study.seeds[0]:
    out.data.seed = config.study.seeds[0]
  if arm == 'dapo':
    out.rl.overlong_buffer = config.rl.max_new // 5  # DAPO: the last fifth
  out.update_from_flattened_dict(CHANGES.get(arm, {}))
  return out


def run_folder(workdir: pathlib.Path, seed: int) -> pathlib.Path:
  return workdir / f'seed_{seed}'


def cell(config: ConfigDict, workdir: pathlib.Path, seed: int, arm: str) -> None:
  """Trains and questions one arm of a finished run, unless that was done before."""
  run_at = run_folder(workdir, seed)
  folder = run_at / 'arms' / arm
  folder.mkdir(parents=True, exist_ok=True)
  for stage in SHARED:
    if not (folder / stage).exists():
      (folder / stage).symlink_to(pathlib.Path('../..') / stage)
  mine = own(config, seed, arm)
  if arm not in ASKED:
    logging.info('study: seed %d, %s', seed, arm)
    pipeline.run(mine, folder)
  hashes = graph.stage_hashes(mine)
  stage = 'base' if arm in ASKED else 'rl'
  made_from = {'policy': hashes[stage], 'expert': hashes['expert'], 'evaluate': hashes['evaluate']}
  mesh = make_mesh(**mine.mesh.to_dict())
  with jax.set_mesh(mesh):
    finished.publish(folder, 'answers', arm, made_from,
                     lambda out: ask(Context(mine, folder, mesh), stage, arm, run_at, out))


def ask(context: Context, stage: str, arm: str, run_at: pathlib.Path, folder: pathlib.Path) -> dict:
  """Writes the arm's predictions.parquet, patients in the order of the split, and its reasoning.jsonl.

  Args:
    run_at: the seed's run, whose pseudonyms the patients have here too.

  Returns:
    The arm's figures.
  """
  data = data_lib.load(context)
  rows = data.splits.test
  policy = policy_lib.load(context.folder(stage), context.mesh)
  encoder = data_lib.encoder(context, data, policy.tokenizer, policy.config)
  figures: dict[str, object] = {}
  if arm == 'direct':
    nothing = np.zeros(len(rows))
    silent = inference.Arm(nothing, nothing, nothing, [[] for _ in rows], nothing[:, None], [''] * len(rows),
                           {'seconds': 0.0, 'new_tokens': 0.0, 'with_compilation': False}, [[] for _ in rows])
    answers = inference.digits(context, arm, encoder, policy, rows, silent)
  else:
    answers = inference.answer(context, arm, encoder, policy, rows, data_lib.prevalence(data))
    present = data.measured[rows]
    figures['jaccard_at_k'] = agreement.named_agreement(
        answers.named, present, context.config.reward.top_k, expert=expert_stage.load_salience(context)[rows],
        truth=None, n=context.config.evaluate.bootstrap)
  label = data.cohort.label[rows].astype(bool)
  ids = pseudonyms.shown(data.cohort.subject_id[rows], run_at, context.config.evaluate.plain_ids)
  if arm != 'direct':
    reasoning.write(folder / 'reasoning.jsonl', ids, data.cohort.features.names, {arm: answers})
  pq.write_table(pa.table({
      'subject_id': ids, 'boolean_value': label, 'predicted_boolean_probability': answers.prob.astype(np.float64),
      'parsed': answers.parsed.astype(np.float64)}), folder / 'predictions.parquet')
  return {'parse_rate': float(answers.parsed.mean()), 'cost': answers.cost, **figures, **answers.extra}


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
    for arm in config.study.arms:
      answers = folder / 'arms' / arm / 'answers' / arm
      if (answers / 'manifest.json').exists():
        found = _answered(answers, 'predicted_boolean_probability')['predicted_boolean_probability']
        _add(probs, extra, arm, seed, found, json.loads((answers / 'manifest.json').read_text()))
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
           **({'perturbed': changed} if changed else {})}
  disk.write_json(workdir / 'study.json', study)
  text = study_lib.markdown(study) + ('\n' + perturbed.markdown(**changed) if changed else '')
  part = workdir / 'study.md.part'
  part.write_text(text)
  part.replace(workdir / 'study.md')
  return text


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
  for arm in ('eag', *c.arms):
    checks.check(own(config, c.seeds[0], arm))


def _states(config: ConfigDict, workdir: pathlib.Path, seed: int) -> dict[str, str]:
  """What a study would do for a seed: arm -> 'done' or 'run'."""
  folder = run_folder(workdir, seed)
  done = {'eag': (folder / 'evaluate' / 'done.json').exists()}
  done |= {arm: (folder / 'arms' / arm / 'answers' / arm / 'manifest.json').exists() for arm in config.study.arms}
  if config.study.robustness:
    done['robustness'] = (folder / 'robustness' / 'done.json').exists()
  return {arm: 'done' if there else 'run' for arm, there in done.items()}
