"""How the policy in training does on validation patients, and the best one so far: `rl.validate_every`, `rl.keep`.

Before the first step, every `rl.validate_every` steps and behind the last one the same validation patients are asked,
with the same draws each time, by the program that writes the rollouts, and each gives `rl.group` answers; nothing is
compiled for it but prompts of a width that training has not met. In row s of rl/metrics.jsonl `validation_auroc` and
its like are of the policy after s steps, as is `reward`. With `rl.keep` auroc, auprc or log_loss the stage leaves the
policy that is best by it, the first of equal ones, which may be the one that it began with. As the best of several
figures of few patients it is too good. Test patients have no part in it.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from eagrl_jax import mesh as mesh_lib
from eagrl_jax import rng
from eagrl_jax.evaluation import metrics
from eagrl_jax.lm import lora
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.rl.rollouts import Generate
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import disk
from eagrl_jax.stages.context import Context
from eagrl_jax.stages.encode import Encoder, parse_rollout
from eagrl_jax.train import checkpoint, checksums, preemption, processes
from eagrl_jax.train.progress import Progress
from eagrl_jax.types import Array, EagrlError, Params

KEPT_BY = {'auroc': 1, 'auprc': 1, 'log_loss': -1}  # 1: more is better


@dataclasses.dataclass(frozen=True)
class Asked:
  """Whom the policy is asked about, and how."""

  rows: np.ndarray  # [n]
  label: np.ndarray  # [n] 0 or 1, both of them
  batch: int  # patients at a time
  key: Array  # of every validation


def patients(context: Context, data: data_lib.Data, batch: int) -> Asked:
  """`rl.validate_patients` of the validation patients, 0 = all, outcomes as frequent as among all of them."""
  config, valid = context.config, data.splits.valid
  label = data.cohort.label[valid].astype(int)
  n = min(config.rl.validate_patients or len(valid), len(valid))
  order = rng.host(config.seed, 'rl validation patients').permutation(len(valid))
  positive, negative = (order[label[order] == value] for value in (1, 0))
  share = int(np.clip(round(n * label.mean()), 1, n - 1))  # with one outcome there is no AUROC
  chosen = np.sort(np.concatenate([positive[:share], negative[:n - share]]))
  return Asked(valid[chosen], label[chosen], batch, rng.stage_key(config.seed, 'rl validation'))


def ask(context: Context, encoder: Encoder, generate: Generate, params: Params, asked: Asked, unparsed: float
        ) -> dict[str, float]:
  """The figures of one validation.

  Args:
    unparsed: the score of an answer that states no probability.

  Raises:
    Preempted: the process was asked to end.
  """
  prob, parsed = [], []
  with Progress('rl validation', len(asked.rows)) as progress:
    for start in range(0, len(asked.rows), asked.batch):
      part = asked.rows[start:start + asked.batch]
      prompt = mesh_lib.shard_batch(context.mesh, encoder.batch(np.resize(part, asked.batch)))
      written = jax.tree.map(np.asarray, processes.local(generate(params, prompt, asked.key)))
      read = parse_rollout(written, encoder.tokenizer, encoder.cohort, max_named=1)
      prob.append(read.probability(unparsed)[:len(part)])
      parsed.append(read.said.parsed[:len(part)])
      progress.update(len(part))
      if preemption.requested():
        raise preemption.Preempted
  score = np.concatenate(prob)
  return {**{f'validation_{by}': float(metrics.METRICS[by](asked.label, score)) for by in KEPT_BY},
          'validation_parse_rate': float(np.concatenate(parsed).mean())}


class Best:
  """Validates in turn; unless `rl.keep=last` keeps the trained weights of the best step under `rl/best`.

  Args:
    position: as a checkpoint kept it, see `position`; weights of later steps, of work that was lost, go.

  Raises:
    EagrlError: the weights of the best step that it names are gone or damaged.
  """

  def __init__(self, context: Context, encoder: Encoder, data: data_lib.Data, generate: Generate, cfg: LMConfig,
               batch: int, position: Mapping[str, Any]):
    c = context.config.rl
    self._every, self._last, self._keep = c.validate_every, c.steps, c.keep != 'last'
    self._by = c.keep if self._keep else 'auroc'
    self._cfg, self._stage = cfg, context.folder('rl')
    self._folder = self._stage / disk.BEST
    self._step, self._best = position.get('best_step', -1), position.get('best')
    self._saved = [self._step]  # the best step of each of the two newest checkpoints, as far as known
    if self._every:
      self._asked = patients(context, data, batch)
      self._ask = functools.partial(ask, context, encoder, generate, asked=self._asked,
                                    unparsed=data_lib.prevalence(data))
      self._drop(lambda step: step > self._step)
      if self._keep and 0 <= self._step < self._last:
        self._check(self._folder / str(self._step))

  def position(self) -> dict[str, Any]:
    """What a checkpoint keeps, so that a resumed run knows its best step."""
    return {'best_step': self._step, 'best': self._best} if self._every else {}

  def due(self, step: int) -> bool:
    """Whether the policy after `step` steps is validated."""
    return bool(self._every) and (step % self._every == 0 or step == self._last)

  def see(self, step: int, params: Params) -> dict[str, float]:
    """The validation figures of the policy after `step` steps."""
    figures = self._ask(params=params)
    logging.info('rl: after %d steps AUROC %.3f on %d validation patients', step, figures['validation_auroc'],
                 len(self._asked.rows))
    value = figures[f'validation_{self._by}']
    if self._best is None or KEPT_BY[self._by] * (value - self._best) > 0:
      self._step, self._best = step, value
      if self._keep and step != self._last:
        checkpoint.save_params(self._folder / str(step), lora.split(params, self._cfg)[0])
        self._drop(lambda old: self._saved[-1] < old < step)
    return figures

  def saved(self) -> None:
    """A checkpoint was written: weights that neither of the two newest would go back to go."""
    self._saved = [self._saved[-1], self._step]
    self._drop(lambda step: step < self._saved[0])

  def chosen(self, params: Params) -> Params:
    """The policy to leave, of `params`, those of the last step; says which it is in `<stage>/summary.json`."""
    if not self._every:
      return params
    kept = self._step if self._keep else self._last
    logging.info('rl: the policy after %d of %d steps is kept; the best on validation patients, %s %.3f, was that '
                 'after %d', kept, self._last, self._by, self._best, self._step)
    summary = {'kept_step': kept, 'steps': self._last, 'best_step': self._step, 'by': self._by, 'best': self._best,
               'patients': len(self._asked.rows), 'positive': int(self._asked.label.sum())}
    processes.first(lambda: disk.write_json(self._stage / 'summary.json', summary))
    if kept == self._last:
      return params
    trained, frozen = lora.split(params, self._cfg)
    return lora.join(checkpoint.load_params(self._folder / str(kept), trained, 'rl'), frozen)

  def _check(self, folder: pathlib.Path) -> None:
    if processes.first(lambda: not folder.is_dir() or bool(checksums.broken(folder))):
      raise EagrlError(f'{folder}, the best policy so far, is missing or damaged; put it back, or move {self._stage} '
                       'away and run the same command: the stage begins anew')

  def _drop(self, which: Callable[[int], bool]) -> None:
    def work() -> None:
      for path in self._folder.glob('*/'):
        if not path.name.isdigit() or which(int(path.name)):  # Orbax leaves other names where it is cut short
          shutil.rmtree(path)

    processes.first(work)
