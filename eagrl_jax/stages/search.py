"""Finds reasoning worth learning from: tree search on train patients, guided by expert and label.

1. Draw `search.patients` train patients, as many of each outcome as there are.
2. One jitted search a batch of `search.trees` patients; its complete paths are kept, a file a batch.
3. Read the paths of all batches, select, save them as a table that a person can read.
4. Save one tree and the rewards for the report.
"""

from __future__ import annotations

import datasets
import jax
import numpy as np
from absl import logging

from eagrl_jax import rng
from eagrl_jax.lm.tokenizer import Tokenizer
from eagrl_jax.search import steps, trajectories
from eagrl_jax.search import tree as tree_lib
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import expert as expert_stage
from eagrl_jax.stages import parts, settings, trees
from eagrl_jax.stages import policy as policy_lib
from eagrl_jax.stages.context import Context
from eagrl_jax.stages.disk import write_json
from eagrl_jax.train import preemption, processes
from eagrl_jax.train.metrics import MetricWriter
from eagrl_jax.train.progress import Progress


def run(context: Context) -> None:
  config, c = context.config, context.config.search
  folder = context.folder('search')
  data = data_lib.load(context)
  policy = policy_lib.load(context.folder('base'), context.mesh)
  encoder = data_lib.encoder(context, data, policy.tokenizer, policy.config)
  grammar = trees.grammar(context, policy, data.cohort)
  salience = expert_stage.load_salience(context)
  goal = guided_label(data.cohort.label, expert_stage.load_prob(context), c.expert_weight)
  rows = patients(context, data)
  size = min(c.trees, len(rows))
  key = rng.stage_key(config.seed, 'search')
  kept = folder / parts.FOLDER
  read = lambda batch: [trajectories.Trajectory.from_json(row) for row in parts.read(kept, batch)]
  n_batches, start = -(-len(rows) // size), processes.first(lambda: parts.finished(kept, read))
  if start:
    logging.info('search: resuming at batch %d', start)

  done = min(start * size, len(rows))
  with Progress('search', len(rows), done) as progress, MetricWriter(folder, start) as writer:
    preemption.defer()
    for i in range(start, n_batches):
      part = rows[i * size:(i + 1) * size]
      full = np.resize(part, size)  # a last, short batch repeats its rows: same shape, no recompile
      question = trees.ask(context, encoder, full, salience, goal)
      result = trees.grow(context, policy, grammar, question, key)
      if i == 0 and processes.is_main():
        write_json(folder / 'tree.json', explain(result, policy.tokenizer, c.backup))
      real = jax.tree.map(lambda x, n=len(part): x[:n], result)
      batch = trajectories.read(real, part, data.cohort.label[part], question.top[:len(part)], policy.tokenizer)
      inner = real.prob[:, 1:] < 0  # without the root, which asks nothing
      figures = {'reward': float(np.mean([t.reward for t in batch])),
                 'best_reward': float(np.mean(best_rewards(batch))),
                 'nodes': float(real.tree.count.mean()), 'useful': float(real.useful[:, 1:][inner].mean())}
      writer.write(i, figures)
      processes.first(lambda: parts.write(kept, i, [vars(t) for t in batch]))
      progress.update(len(part), **figures)
      if preemption.requested():
        raise preemption.Preempted

  def write() -> None:
    found = [t for i in range(n_batches) for t in read(i)]
    chosen = trajectories.select(found, settings.selection(config))
    table = folder / 'trajectories'
    table.mkdir(exist_ok=True)
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(chosen.columns(data.cohort.features.names)).to_parquet(table / 'trajectories.parquet')
    write_json(folder / 'rewards.json', {'all': [t.reward for t in found],
                                         'selected': [t.reward for t in chosen.kept]})
    write_json(folder / 'summary.json', {'found': len(found), 'kept': len(chosen.kept),
                                         'patients': chosen.n_patients, 'dropped': chosen.dropped})
    logging.info('search: %d complete paths, %d kept of %d patients; dropped %s', len(found), len(chosen.kept),
                 chosen.n_patients, ', '.join(f'{n} {k}' for k, n in chosen.dropped.items() if n) or 'none')

  processes.first(write)


def guided_label(label: np.ndarray, expert: np.ndarray, weight: float) -> np.ndarray:
  """What a stated probability is judged by: the outcome mixed with the expert's probability. `[N], [N] -> [N]`.

  An outcome says who died, the expert how near a patient was; with some of both, the paths that
  are kept differ in degree and not only in side.
  """
  return ((1 - weight) * label + weight * expert).astype(np.float32)


def patients(context: Context, data: data_lib.Data) -> np.ndarray:
  """Train patients to search: half of each outcome where there are enough, in random order."""
  wanted = min(context.config.search.patients, len(data.splits.train))
  generator = rng.host(context.config.seed, 'search patients')
  order = generator.permutation(data.splits.train)
  positive, negative = (order[data.cohort.label[order] == y] for y in (1, 0))
  n_positive = min(len(positive), max(wanted // 2, wanted - len(negative)))
  return generator.permutation(np.concatenate([positive[:n_positive], negative[:wanted - n_positive]]))


def best_rewards(found: list[trajectories.Trajectory]) -> list[float]:
  """Each patient's best terminal reward."""
  best: dict[int, float] = {}
  for t in found:
    best[t.row] = max(best.get(t.row, -np.inf), t.reward)
  return list(best.values())


def explain(result: steps.SearchResult, tokenizer: Tokenizer, backup: str) -> dict:
  """The first tree of a batch for the report: nodes with text, visits, reward, and the value that UCT went by."""
  tree = jax.tree.map(lambda x: x[0], result.tree)
  count = int(tree.count)
  ends = [i for i in range(count) if tree.terminal[i]]
  at, best = max(ends, key=lambda i: (float(tree.reward[i]), -i), default=0), {0}
  while at > 0:
    best.add(int(at))
    at = int(tree.parent[at])
  nodes = []
  for i in range(count):
    visited = int(tree.visits[i]) > 0
    nodes.append({
        'id': i, 'parent': int(tree.parent[i]) if i else None, 'depth': int(tree.depth[i]),
        'visits': int(tree.visits[i]), 'value': float(tree_lib.value(tree, i, backup)) if visited else None,
        'reward': float(tree.reward[i]), 'terminal': bool(tree.terminal[i]), 'on_best_path': i in best,
        'text': tokenizer.decode(int(t) for t in result.tokens[0, i, :result.length[0, i]]
                                 if t != tokenizer.eos_id) if i else 'record'})
  return {'nodes': nodes}
