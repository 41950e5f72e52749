"""The arms of a study: what each changes, and one of them trained and asked.

Arms of reinforcement learning start from the same policy, with the same budget, and differ in what they name:
GRPO (arXiv 2402.03300) and DAPO (arXiv 2503.14476) as published, but for the optimiser and the sampling, which are the
config's, and for the rollouts with which DAPO fills a step, four more at most; each ablation leaves one thing out
(without the attention reward that of the prediction has the whole weight, so KL and alignment have less beside it);
the controls follow salience that knows nothing of the patient. `no_attention` leaves all of attention out and keeps the
optimiser's part; `grpo_dr`, `grpo_tokens`, `grpo_clip` and `grpo_dynamic` are GRPO with one of those parts: what a
difference between GRPO and EAG-RL is owed to (none is in `study.arms` of the defaults). `direct`
is the base policy without reasoning: the number it would write at once. `think` is the base policy asked in full prose
to think in any form; the tiny policy reads no instructions, so its answers there are not to be read.

A cell is an arm of a seed, `grpo`, or with one of `study.learning_rates` instead of `rl.learning_rate`, `grpo@0.0002`.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging
from ml_collections import ConfigDict

from eagrl_jax.evaluation import agreement, pseudonyms
from eagrl_jax.evaluation.files import read_json
from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import early, finished, graph, inference, parts, pipeline, reasoning
from eagrl_jax.stages import expert as expert_stage
from eagrl_jax.stages import policy as policy_lib
from eagrl_jax.stages.context import Context

SHARED = ('prepare', 'expert', 'base', 'search', 'sft')  # stages that every arm of a seed starts from
ASKED = ('direct', 'think')  # arms without training: the base policy
PLAIN = {'rl.lam': 1.0, 'rl.c_align': 0.0, 'rl.attention_reward': 0.0, 'rl.advantage': 'grpo'}
GRPO = PLAIN | {'rl.loss': 'sequence_mean', 'rl.clip_min': 0.2, 'rl.clip_max': 0.2, 'rl.dynamic_sampling': False,
                'rl.resample': 0}
CHANGES: dict[str, dict[str, object]] = {
    'direct': {},
    'think': {'prompt.reasoning': 'free', 'prompt.style': 'full'},
    'grpo': GRPO,
    'dapo': PLAIN | {'rl.loss': 'token_mean', 'rl.clip_min': 0.28, 'rl.clip_max': 0.28, 'rl.dynamic_sampling': True,
                     'rl.resample': 4, 'rl.kl': 0.0},
    'no_stage1': {'rl.start': 'base'},
    'no_attention_reward': {'rl.lam': 1.0, 'rl.attention_reward': 0.0},
    'no_adaptive_clip': {'rl.clip_min': 0.2, 'rl.clip_max': 0.2},
    'no_alignment': {'rl.c_align': 0.0},
    'no_attention': {'rl.lam': 1.0, 'rl.attention_reward': 0.0, 'rl.c_align': 0.0},
    **{arm: {field: value for field, value in GRPO.items() if field not in eags} for arm, eags in {
        'grpo_dr': ('rl.advantage',), 'grpo_tokens': ('rl.loss',), 'grpo_clip': ('rl.clip_min', 'rl.clip_max'),
        'grpo_dynamic': ('rl.dynamic_sampling',)}.items()},
    'random_features': {'rl.align_control': 'random'},
    'prevalent_features': {'rl.align_control': 'prevalence'},
}


def trained(config: ConfigDict) -> list[str]:
  """The arms of reinforcement learning, EAG-RL first."""
  return ['eag', *(arm for arm in config.study.arms if arm not in ASKED)]


def at_rate(arm: str, rate: float) -> str:
  """The cell of an arm trained at another rate."""
  return f'{arm}@{float(rate)!r}'


def of_arm(config: ConfigDict, arm: str) -> list[str]:
  """The cells of an arm: its own and, of reinforcement learning, one for each further rate."""
  return [arm, *(at_rate(arm, rate) for rate in config.study.learning_rates if arm not in ASKED)]


def own(config: ConfigDict, seed: int, cell: str = 'eag') -> ConfigDict:
  """The config of one seed's run (`eag`, or `robustness` for the stage behind it), or of one cell's rl stage."""
  arm, _, rate = cell.partition('@')
  out = ConfigDict(config.to_dict())
  out.update(seed=seed, target={'eag': 'evaluate', 'robustness': 'robustness'}.get(cell, 'rl'))
  if config.data.seed is None and seed != config.study.seeds[0]:
    out.data.seed = config.study.seeds[0]
  if arm == 'dapo':
    # DAPO, section 3.4: a quarter of the expected longest answer is added to it, and costs reward.
    out.rl.overlong_buffer = max(1, config.rl.max_new // 4)
    out.rl.max_new = config.rl.max_new + out.rl.overlong_buffer
  if rate:
    out.rl.learning_rate = float(rate)
  out.update_from_flattened_dict(CHANGES.get(arm, {}))
  return out


def run_folder(workdir: pathlib.Path, seed: int) -> pathlib.Path:
  return workdir / f'seed_{seed}'


def beside_the_run(config: ConfigDict) -> list[str]:
  """All cells of a seed beside its run, in the order in which they are made."""
  arms = (*(['eag'] if config.study.learning_rates else []), *config.study.arms)
  return [cell for arm in arms for cell in of_arm(config, arm)]


def asked_of(config: ConfigDict, cell: str) -> list[str]:
  """Whom a cell answers: '' for test patients, and 'validation' for those by whom rates are chosen."""
  chosen_by = ['validation'] if config.study.learning_rates and cell not in ASKED else []
  return chosen_by if cell == 'eag' else ['', *chosen_by]  # the run itself answered test patients


def answers(workdir: pathlib.Path, seed: int, cell: str, of: str = '') -> pathlib.Path:
  """Where a cell's answers are; `of` as in `asked_of`."""
  return run_folder(workdir, seed) / 'arms' / cell / 'answers' / (of or cell)


def made_from(config: ConfigDict, workdir: pathlib.Path, seed: int, cell: str,
              known: Mapping[str, str] | None = None) -> dict[str, str]:
  """All that a cell's answers depend on, the pseudonyms of its patients included.

  Args:
    known: as of `graph.stage_hashes`.
  """
  hashes = graph.stage_hashes(own(config, seed, cell), known)
  policy = hashes['base' if cell in ASKED else 'rl']
  key = '' if config.evaluate.plain_ids else pseudonyms.mark(run_folder(workdir, seed))
  return {'policy': policy, 'expert': hashes['expert'], 'evaluate': hashes['evaluate'], 'id_salt_sha256': key}


def finished_answers(config: ConfigDict, workdir: pathlib.Path, seed: int, cell: str, of: str = '',
                     known: Mapping[str, str] | None = None) -> dict | None:
  """The manifest of a cell's answers, None where there are none that the present config would give."""
  manifest = read_json(answers(workdir, seed, cell, of) / 'manifest.json')
  return manifest if manifest and manifest['made_from'] == made_from(config, workdir, seed, cell, known) else None


def run(config: ConfigDict, workdir: pathlib.Path, seed: int, cell: str) -> None:
  """Trains and questions one cell of a finished run, unless that was done before.

  With `study.learning_rates` the trained ones also answer validation patients, by which the rate is chosen; of `eag`,
  which the run itself trained and judged, nothing else is left to do.
  """
  run_at, arm = run_folder(workdir, seed), cell.partition('@')[0]
  folder = run_at / 'arms' / cell
  folder.mkdir(parents=True, exist_ok=True)
  for stage in (*SHARED, *(['rl'] if cell == 'eag' else [])):
    if not (folder / stage).exists():
      (folder / stage).symlink_to(pathlib.Path('../..') / stage)
  mine = own(config, seed, cell)
  if arm not in ASKED and cell != 'eag':
    logging.info('study: seed %d, %s', seed, cell)
    pipeline.run(mine, folder)
  if not config.evaluate.plain_ids:
    pseudonyms.salt(run_at)  # a run of before there were salts has none, and answers are known by it
  stage, source = 'base' if arm in ASKED else 'rl', made_from(config, workdir, seed, cell)
  mesh = make_mesh(**mine.mesh.to_dict())
  with jax.set_mesh(mesh):
    context = Context(mine, folder, mesh)
    for of in asked_of(config, cell):
      write = functools.partial(ask, context, stage, arm, run_at, of)
      finished.publish(folder, 'answers', of or cell, source, write)


def ask(context: Context, stage: str, arm: str, run_at: pathlib.Path, of: str, folder: pathlib.Path) -> dict:
  """Writes the arm's predictions.parquet, patients in the order of the split, and its reasoning.jsonl.

  Args:
    run_at: the seed's run, whose pseudonyms the patients have here too.
    of: '' for test patients, 'validation' for those.

  Returns:
    The arm's figures.
  """
  data = data_lib.load(context)
  rows = data.splits.valid if of else data.splits.test
  policy = policy_lib.load(context.folder(stage), context.mesh)
  encoder = data_lib.encoder(context, data, policy.tokenizer, policy.config)
  kept = folder / parts.FOLDER
  figures: dict[str, object] = {}
  if arm == 'direct':
    nothing = np.zeros(len(rows))
    silent = inference.Arm(nothing, nothing, nothing, [[] for _ in rows], nothing[:, None], [''] * len(rows),
                           {'seconds': 0.0, 'new_tokens': 0.0, 'with_compilation': False}, [[] for _ in rows])
    answers = inference.digits(context, arm, encoder, policy, rows, silent, kept)
  else:
    answers = inference.answer(context, arm, encoder, policy, rows, data_lib.prevalence(data), kept=kept)
    figures['jaccard_at_k'] = agreement.named_agreement(
        answers.named, encoder.shown(rows), context.config.reward.top_k,
        expert=expert_stage.load_salience(context)[rows], truth=None, n=context.config.evaluate.bootstrap)
  if ahead := early.of(context, data, data, rows):
    figures |= ahead.entry(answers.prob)
  label = data.cohort.label[rows].astype(bool)
  ids = pseudonyms.shown(data.cohort.subject_id[rows], run_at, context.config.evaluate.plain_ids)
  if arm != 'direct':
    reasoning.write(folder / 'reasoning.jsonl', ids, data.cohort.features.names, {arm: answers})
  pq.write_table(pa.table({
      'subject_id': ids, 'boolean_value': label, 'predicted_boolean_probability': answers.prob.astype(np.float64),
      'parsed': answers.parsed.astype(np.float64)}), folder / 'predictions.parquet')
  return {'parse_rate': float(answers.parsed.mean()), 'refusal_rate': float(answers.refused.mean()),
          'cost': answers.cost, **figures, **answers.extra}
