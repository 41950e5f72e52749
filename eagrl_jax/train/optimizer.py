"""AdamW with warm-up, a schedule, a global norm clip, and weight decay on matrices only."""

from __future__ import annotations

import dataclasses

import jax
import optax

from eagrl_jax.types import EagrlError, Params

SCHEDULES = ('constant', 'cosine', 'linear')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW and its schedule.

  Attributes:
    learning_rate: at the end of the warm-up.
    total_steps: length of the schedule, warm-up included; 'constant' does not read it.
    warmup_steps: linear, the first step already at learning_rate / warmup_steps.
    schedule: 'constant', 'cosine' or 'linear', the last two down to `end_fraction` of the learning rate.
    clip_norm: global norm to which gradients are cut; None = off.
  """

  learning_rate: float
  total_steps: int
  warmup_steps: int = 0
  schedule: str = 'constant'
  end_fraction: float = 0.0
  weight_decay: float = 0.0
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  clip_norm: float | None = 1.0

  def __post_init__(self):
    if self.schedule not in SCHEDULES:
      raise EagrlError(f'schedule={self.schedule!r} is unknown; choose one of {", ".join(SCHEDULES)}')
    if self.learning_rate <= 0:
      raise EagrlError(f'learning_rate={self.learning_rate} must be positive')
    for name, value in (('warmup', self.warmup_steps), ('weight_decay', self.weight_decay)):
      if value < 0:
        raise EagrlError(f'{name}={value} must not be negative')
    if self.schedule != 'constant' and self.warmup_steps >= self.total_steps:
      raise EagrlError(f'warmup={self.warmup_steps} must be below the {self.total_steps} steps of the schedule')
    if self.clip_norm is not None and self.clip_norm <= 0:
      raise EagrlError(f'clip_norm={self.clip_norm} must be positive, or None to switch it off')


def learning_rate(cfg: OptimizerConfig) -> optax.Schedule:
  """Step -> learning rate."""
  end = cfg.learning_rate * cfg.end_fraction
  rest = cfg.total_steps - cfg.warmup_steps
  if cfg.schedule == 'cosine':
    main = optax.cosine_decay_schedule(cfg.learning_rate, rest, cfg.end_fraction)
  elif cfg.schedule == 'linear':
    main = optax.linear_schedule(cfg.learning_rate, end, rest)
  else:
    main = optax.constant_schedule(cfg.learning_rate)
  if not cfg.warmup_steps:
    return main
  # Starts one step above 0: an update at rate 0 would be a wasted rollout batch.
  warmup = optax.linear_schedule(cfg.learning_rate / cfg.warmup_steps, cfg.learning_rate, cfg.warmup_steps - 1)
  return optax.join_schedules([warmup, main], [cfg.warmup_steps])


def decays(params: Params) -> Params:
  """True for the weights that decay: all but norm gains and biases, told by their names."""

  def matrix(path, _):
    name = str(getattr(path[-1], 'key', path[-1]))
    return not (name.endswith('norm') or name in ('bq', 'bk', 'bv'))

  return jax.tree_util.tree_map_with_path(matrix, params)


def make_optimizer(cfg: OptimizerConfig) -> optax.GradientTransformation:
  """The optax chain: clip, then AdamW."""
  adamw = optax.adamw(
      learning_rate(cfg), b1=cfg.b1, b2=cfg.b2, eps=cfg.eps, weight_decay=cfg.weight_decay, mask=decays
  )
  if cfg.clip_norm is None:
    return adamw
  return optax.chain(optax.clip_by_global_norm(cfg.clip_norm), adamw)
