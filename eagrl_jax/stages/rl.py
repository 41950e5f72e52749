"""Attention-aligned policy optimisation of the sft policy (or, with `rl.start`, of the base policy).

Each step:
1. Sample a group of answers to each of `rl.prompts` train patients, prompt prefilled once.
2. Read them on the host; joint reward, group advantage, entropy-aware upper clip. With `rl.resample`, further patients
   are asked while groups of equal rewards leave places.
3. `rl.epochs` passes over the batch, `rl.minibatches` updates each, with the alignment loss on the
   policy's attention.
4. With `rl.validate_every`, validation patients are asked in between, and `rl.keep` may leave the best policy.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from absl import logging

from eagrl_jax import mesh as mesh_lib
from eagrl_jax import rng
from eagrl_jax.lm import lora
from eagrl_jax.rl import alignment
from eagrl_jax.rl.judge import judge
from eagrl_jax.rl.reading import read_attention
from eagrl_jax.rl.refill import refill
from eagrl_jax.rl.rollouts import Generate, scores
from eagrl_jax.rl.update import RLBatch, make_update, over_updates, policy_steps
from eagrl_jax.stages import checks, settings
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import expert as expert_stage
from eagrl_jax.stages import policy as policy_lib
from eagrl_jax.stages import rollouts as rollouts_lib
from eagrl_jax.stages.best import Best
from eagrl_jax.stages.context import Context
from eagrl_jax.stages.encode import Encoder, parse_rollout
from eagrl_jax.train import preemption, processes
from eagrl_jax.train import state as state_lib
from eagrl_jax.train.checkpoint import Checkpoints
from eagrl_jax.train.metrics import MetricWriter
from eagrl_jax.train.nonfinite import Watch
from eagrl_jax.train.optimizer import make_optimizer
from eagrl_jax.train.progress import Progress
from eagrl_jax.types import Array, Params, PromptBatch, Rollout


def run(context: Context) -> None:
  c = context.config.rl
  data = data_lib.load(context)
  start_policy = policy_lib.load(context.folder(c.start), context.mesh)
  encoder = data_lib.encoder(context, data, start_policy.tokenizer, start_policy.config)
  salience = guidance(context, data)
  optimizer = make_optimizer(settings.optimizer(context.config, 'rl', c.steps * c.epochs * c.minibatches))
  shardings = state_lib.state_shardings(start_policy.config, optimizer, context.mesh)
  _, frozen = lora.split(start_policy.params, start_policy.config)
  update = functools.partial(
      make_update(start_policy.config, optimizer, settings.update(context.config), shardings), frozen=frozen)
  reference = make_reference(start_policy, c.micro_batch) if c.kl else None
  generate, key = rollouts_lib.choose(context, start_policy), rng.stage_key(context.config.seed, 'rl')
  with Checkpoints(context.folder('rl') / 'checkpoints') as checkpoints:
    found = checkpoints.restore(state_lib.abstract(start_policy.config, optimizer, context.mesh))
    if found:
      state, position, start = found
      logging.info('rl: resuming at step %d', start)
    else:
      state, start = state_lib.from_params(start_policy.params, start_policy.config, optimizer, context.mesh), 0
      position = {}
    if reference is None:
      policy_lib.release(start_policy)
    watch = Watch(context.folder('rl'), context.config.nonfinite, start, position)
    batch_size = len(draw(context, data.splits.train, 0))
    best = Best(context, encoder, data, generate, start_policy.config, batch_size, position)
    with MetricWriter(context.folder('rl'), start) as writer, Progress('rl', c.steps, start) as progress:
      preemption.defer()
      for step in range(start, c.steps):
        params = lora.join(state.params, frozen)
        validated = best.see(step, params) if best.due(step) else {}
        ask = functools.partial(scored, context, encoder, data, generate, salience, start_policy, params)
        rows = draw(context, data.splits.train, step)
        batch, figures = ask(rows, jax.random.fold_in(key, step), (step,))
        if c.resample and math.isfinite(figures['reward']):
          batch, figures, rows = fill(context, data.splits.train, ask, key, step, batch, figures, rows)
        if math.isfinite(figures['reward']):
          if reference is not None:
            batch = dataclasses.replace(batch, ref_logprobs=reference(batch.prompt, batch.rollout))
          batch = mesh_lib.shard_batch(context.mesh, batch)
          state, history = policy_steps(update, state, batch, c.epochs, c.minibatches)
          figures |= over_updates(history)
        writer.write(step, validated | watch.see(step, figures, rows))
        progress.update(reward=figures['reward'], jaccard=figures['jaccard'], entropy=figures.get('entropy', math.nan))
        stop = preemption.requested(state)
        # A validation takes long: what was trained is safe before it begins.
        if stop or best.due(step + 1) or ((step + 1) % c.checkpoint_every == 0 and step + 1 < c.steps):
          checkpoints.save(step + 1, state, {'step': step + 1} | watch.position() | best.position())
          best.saved()
        if stop:
          raise preemption.Preempted
      params = lora.join(state.params, frozen)
      if best.due(c.steps):
        writer.write(c.steps, best.see(c.steps, params))
  policy_lib.save(context.folder('rl'), dataclasses.replace(start_policy, params=best.chosen(params)))


def guidance(context: Context, data: data_lib.Data) -> np.ndarray:
  """The salience to agree with, `[N, F]`: the expert's, or a control that knows nothing of the patient."""
  salience, control = expert_stage.load_salience(context), context.config.rl.align_control
  if control == 'expert':
    return salience
  measured = data.measured
  if control == 'prevalence':
    return alignment.prevalence_control(salience, data.splits.train, measured)
  key = rng.stage_key(context.config.seed, 'random control')
  return np.asarray(alignment.random_control(key, np.arange(len(salience)), salience, measured))


def draw(context: Context, train: np.ndarray, step: int) -> np.ndarray:
  """Patients of a step: consecutive blocks of a permutation that is drawn anew every epoch.

  A cohort smaller than `rl.prompts` gives as many as fill whole micro-batches of every update.
  """
  n = checks.patients_a_step(context.config, len(train))
  per_epoch = len(train) // n
  epoch, i = divmod(step, per_epoch)
  order = rng.host(context.config.seed, 'rl patients', epoch).permutation(train)
  return order[i * n:(i + 1) * n]


def further(context: Context, train: np.ndarray, step: int, asked: np.ndarray, n: int) -> np.ndarray | None:
  """`n` patients who were not asked in this step yet; None when there are not so many."""
  rest = rng.host(context.config.seed, 'rl further patients', step).permutation(np.setdiff1d(train, asked))
  return rest[:n] if len(rest) >= n else None


def fill(context: Context, train: np.ndarray, ask: Callable[..., tuple[RLBatch, dict[str, float]]], key: Array,
         step: int, batch: RLBatch, figures: dict[str, float], rows: np.ndarray
         ) -> tuple[RLBatch, dict[str, float], np.ndarray]:
  """Asks further patients, `rl.resample` times at most, until every group of the batch counts.

  Returns:
    The batch; means over all that was asked, `rollouts` of them, but `groups_used` of the batch; all rows asked.
  """
  seen, n = [figures], len(rows)
  for i in range(1, context.config.rl.resample + 1):
    if figures['groups_used'] >= 1 or (more := further(context, train, step, rows, n)) is None:
      break
    added, at = ask(more, jax.random.fold_in(jax.random.fold_in(key, step), i), (step, i))
    batch = mesh_lib.shard_batch(context.mesh, refill(batch, added))
    rows = np.concatenate([rows, more])
    seen.append(at)
    figures = {name: float(np.mean([s[name] for s in seen])) for name in at}
    figures['groups_used'] = min(1.0, round(sum(s['groups_used'] for s in seen), 6))  # of float32 shares
  return batch, figures | {'rollouts': float(len(seen))}, rows


def scored(context: Context, encoder: Encoder, data: data_lib.Data, generate: Generate,
           salience: np.ndarray, policy: policy_lib.Policy, params: Params, rows: np.ndarray, key: Array,
           at: tuple[int, ...]) -> tuple[RLBatch, dict[str, float]]:
  """Asks patients `rows [B]` once; `at`, step and round, says which order their features come in."""
  order = (context.config.seed, 'rl order', *at) if context.config.prompt.shuffle_features else None
  prompt = mesh_lib.shard_batch(context.mesh, encoder.batch(rows, order))
  return score(context, encoder, data, prompt, generate(params, prompt, key), salience, policy, params)


def score(context: Context, encoder: Encoder, data: data_lib.Data, prompt: PromptBatch, rollout: Rollout,
          salience: np.ndarray, policy: policy_lib.Policy, params: Params) -> tuple[RLBatch, dict[str, float]]:
  """Reads and rewards a rollout that `params` wrote; the batch for the update and the step's figures."""
  rows, written = processes.local((prompt.example, rollout))
  rows = np.asarray(rows)
  answers = parse_rollout(written, encoder.tokenizer, encoder.cohort, max_named=4 * context.config.reward.top_k).said
  attention = None
  if context.config.rl.attention_reward:
    attention = read_attention(policy.config, settings.update(context.config), salience.shape[-1], params, prompt,
                               rollout, answers.align_mask, micro=context.config.rl.micro_batch)
  batch, figures = judge(settings.judge(context.config), prompt, rollout, answers, data.cohort.label[rows],
                         salience[rows], attention)
  return batch, {name: float(value) for name, value in figures.items()}


def make_reference(policy: policy_lib.Policy, micro: int):
  """`(prompt, rollout) -> [B, G, T]` log-probabilities of the starting policy, for KL; `micro` prompts a pass."""
  @jax.jit
  def logprobs(params, prompt, rollout):
    return scores(params, policy.config, prompt, rollout, micro, lambda logprobs, _: logprobs)

  return functools.partial(logprobs, policy.params)
