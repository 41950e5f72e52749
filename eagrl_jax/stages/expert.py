"""Trains the expert and writes what the language model learns from it.

1. Train the ConCare ensemble on train patients, early stop on validation.
2. Predict all patients; salience from three sources, with its stability between members.
3. Save parameters, predictions and salience; log validation AUROC (the test set is for `evaluate`).
4. The leakage audit without the outcomes of test patients, audit.json: before policies spend hours on what is no
   physiology.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from eagrl_jax import rng
from eagrl_jax.ehr import channels
from eagrl_jax.evaluation.metrics import auroc
from eagrl_jax.expert import salience
from eagrl_jax.expert import stability as stability_lib
from eagrl_jax.expert import train as expert_train
from eagrl_jax.mesh import local_mesh
from eagrl_jax.stages import beside, settings
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages.context import Context
from eagrl_jax.stages.disk import write_json
from eagrl_jax.train import preemption
from eagrl_jax.train.checkpoint import Checkpoints, load_params, save_params
from eagrl_jax.train.metrics import MetricWriter
from eagrl_jax.train.progress import Progress
from eagrl_jax.types import EagrlError, ExpertBatch, Params, made_again


def run(context: Context) -> None:
  mesh = mesh_for(context)
  with jax.set_mesh(mesh):
    train_and_read(dataclasses.replace(context, mesh=mesh))


def mesh_for(context: Context) -> Mesh:
  """The run's mesh where the members fill it, else one device, on which they then all live."""
  over = context.mesh.shape['data'] * context.mesh.shape['fsdp']
  return local_mesh(1) if context.config.expert.members % over else context.mesh


def train_and_read(context: Context) -> None:
  c, top_k = context.config.expert, context.config.reward.top_k
  folder = context.folder('expert')
  data = data_lib.load(context)
  config = settings.expert(context.config)
  key = rng.stage_key(context.config.seed, 'expert')
  train, valid = take(data.expert, data.splits.train), take(data.expert, data.splits.valid)
  with Checkpoints(folder / 'checkpoints') as checkpoints:
    found = checkpoints.restore(expert_train.abstract(key, config, train, context.mesh))
    state, _, start = found or (None, None, 0)
    if start:
      logging.info('expert: resuming after epoch %d', start)
    with Progress('expert', c.epochs, start) as progress, MetricWriter(folder, start + 1) as writer:
      def report(epoch: int, figures: dict[str, np.ndarray], state: expert_train.TrainState) -> None:
        means = {name: float(np.mean(value)) for name, value in figures.items()}
        writer.write(epoch, means)
        progress.update(1, **means)
        stop = preemption.requested()
        if stop or (epoch % c.checkpoint_every == 0 and epoch < c.epochs):
          checkpoints.save(epoch, state, {'epoch': epoch})
        if stop:
          raise preemption.Preempted
      preemption.defer()
      params, _ = expert_train.train_ensemble(key, config, train, valid, report, context.mesh, state)
      preemption.allow()
  save_params(folder / 'members', params)

  prob = expert_train.predict(params, config.model, data.expert)  # [E, N]
  np.save(folder / 'prob.npy', prob)
  rows, stability = data.splits.valid, {}
  for source in salience.SOURCES:
    per_member = salience.member_salience(params, config.model, data.expert, source,
                                          channel_feature=channels.owners(data.cohort.features))
    stability[source] = stability_lib.stability(per_member[:, rows], top_k)
    np.save(folder / f'salience_{source}.npy', salience.ensemble_salience(per_member))
  figures = {'valid_auroc': auroc(data.cohort.label[rows], prob.mean(0)[rows]), 'top_k': top_k,
             'stability': stability}
  write_json(folder / 'summary.json', figures)
  overlap = stability[c.salience]
  logging.info('expert: validation AUROC %.3f; %s top-%d overlap between members %.2f (chance %.2f)',
               figures['valid_auroc'], c.salience, top_k, overlap['jaccard'], overlap['chance'])
  audit = beside.audit(context, data, {'expert': prob.mean(0)[rows]}, 'valid')
  write_json(folder / 'audit.json', audit)
  for check in audit:
    if check['warning']:
      logging.warning('leakage audit, scores of %d validation patients: %s: %.3g, %s', len(rows), check['name'],
                      check['value'], check['warning'])


def take(batch: ExpertBatch, rows: np.ndarray | slice) -> ExpertBatch:
  return jax.tree.map(lambda x: x[rows], batch)


def load_members(context: Context, data: data_lib.Data) -> Params:
  """Parameters of the finished ensemble, stacked, on the mesh of `jax.set_mesh`; `data` gives the shape alone."""
  like = expert_train.abstract(rng.stage_key(context.config.seed, 'expert'), settings.expert(context.config),
                               take(data.expert, slice(1))).best_params
  return load_params(context.folder('expert') / 'members', like, 'expert')


def load_salience(context: Context) -> np.ndarray:
  """Salience of the configured source, `[N, F]`."""
  return _read(context, f'salience_{context.config.expert.salience}.npy')


def load_prob(context: Context) -> np.ndarray:
  """The ensemble's probability, `[N]`."""
  return _read(context, 'prob.npy').mean(0)


def _read(context: Context, name: str) -> np.ndarray:
  try:
    return np.load(context.folder('expert') / name)
  except (FileNotFoundError, ValueError, EOFError) as e:  # of a file cut short NumPy raises either of the others
    raise EagrlError(f'expert: {name} is missing or damaged; {made_again("expert")}') from e
