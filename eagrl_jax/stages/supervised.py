"""The supervised loop that base and sft share: resume, step, log, checkpoint."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import jax
from absl import logging

from eagrl_jax.lm import lora
from eagrl_jax.stages import settings
from eagrl_jax.stages.context import Context
from eagrl_jax.stages.policy import Policy, release
from eagrl_jax.train import preemption
from eagrl_jax.train import state as state_lib
from eagrl_jax.train.checkpoint import Checkpoints
from eagrl_jax.train.metrics import LateMetrics, MetricWriter
from eagrl_jax.train.nonfinite import Watch
from eagrl_jax.train.optimizer import make_optimizer
from eagrl_jax.train.prefetch import prefetch
from eagrl_jax.train.progress import Progress
from eagrl_jax.train.supervised import SupervisedBatch, make_sft_step
from eagrl_jax.types import ArrayLike, Params


def fit(context: Context, stage: str, policy: Policy, stream: Callable[[int], Iterator[SupervisedBatch]],
        steps: int, micro_batch: Callable[[int], int]) -> Params:
  """Trains a policy on `stream(first step)` up to `steps` and returns its parameters; those given are freed.

  Continues from the newest checkpoint under `<stage>/checkpoints`. A batch is a function of
  its step, so a resumed run sees what an undisturbed one would.

  Args:
    micro_batch: step -> prompts a forward and backward pass.

  Raises:
    EagrlError: a step is not finite, see `config.nonfinite`.
    Preempted: the process was asked to end; a checkpoint of the step under way is on disk.
  """
  config, folder = context.config, context.folder(stage)
  _, frozen = lora.split(policy.params, policy.config)
  optimizer = make_optimizer(settings.optimizer(config, stage, steps))
  shardings = state_lib.state_shardings(policy.config, optimizer, context.mesh)

  @functools.cache
  def step_fn(micro: int):
    return make_sft_step(policy.config, optimizer, settings.supervised(config, stage, micro), shardings)

  with Checkpoints(folder / 'checkpoints') as checkpoints:
    found = checkpoints.restore(state_lib.abstract(policy.config, optimizer, context.mesh))
    if found:
      state, position, start = found
      logging.info('%s: resuming at step %d', stage, start)
    else:
      state, start = state_lib.from_params(policy.params, policy.config, optimizer, context.mesh), 0
      position = {}
    release(policy)
    late, examples = LateMetrics(), dict[int, ArrayLike]()
    watch = Watch(folder, config.nonfinite, start, position)
    with (MetricWriter(folder, start) as writer, Progress(stage, steps, start) as progress,
          contextlib.closing(prefetch(stream(start))) as batches):
      def report(row):
        if row:
          step, figures = row
          writer.write(step, watch.see(step, figures, examples.pop(step)))
          progress.update(loss=figures['loss'])
      preemption.defer()
      for step in range(start, steps):
        batch = next(batches)
        examples[step] = batch.prompt.example
        state, metrics = step_fn(micro_batch(step))(state, batch, frozen)
        report(late.push(step, metrics))
        stop = preemption.requested((state, metrics))
        if stop or ((step + 1) % config[stage].checkpoint_every == 0 and step + 1 < steps):
          report(late.flush())
          checkpoints.save(step + 1, state, {'step': step + 1} | watch.position())
        if stop:
          raise preemption.Preempted
      report(late.flush())
  return lora.join(jax.block_until_ready(state.params), frozen)
