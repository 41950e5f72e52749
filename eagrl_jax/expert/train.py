"""Training an ensemble of experts: all members in one jitted program, early stopping inside it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, SingleDeviceSharding

from eagrl_jax.expert import ensemble
from eagrl_jax.expert.concare import ConCare, ConCareConfig
from eagrl_jax.mesh import sharding
from eagrl_jax.types import Array, ArrayLike, EagrlError, ExpertBatch, Params

SELECT_ON = ('loss', 'auroc')


@dataclasses.dataclass(frozen=True)
class ExpertTrainConfig:
  """How the ensemble is trained; hashable, a jit static.

  Attributes:
    model: the expert's shape.
    members: E, the number of seeds.
    batch: patients a step; every step of an epoch takes the same number, at most this.
    epochs: the most epochs; `patience` usually ends training first.
    patience: epochs without a better validation score after which a member is frozen.
    learning_rate, weight_decay: of AdamW.
    select_on: validation score whose best epoch is kept: 'loss' (BCE without DeCov) or 'auroc'.
    chunk: patients at once in validation.
    prefixes: train on the outcome as predicted after every visit, not only after the last one. Validation,
      prediction and salience read the last visit either way.
  """

  model: ConCareConfig = ConCareConfig()
  members: int = 5
  batch: int = 16
  epochs: int = 60
  patience: int = 20
  learning_rate: float = 1e-3
  weight_decay: float = 1e-2
  select_on: str = 'loss'
  chunk: int = 64
  prefixes: bool = False

  def __post_init__(self):
    if self.select_on not in SELECT_ON:
      raise EagrlError(f'expert.select_on: {self.select_on!r} is unknown; choose one of {SELECT_ON}')
    for name in ('members', 'batch', 'epochs', 'patience', 'chunk'):
      if getattr(self, name) < 1:
        raise EagrlError(f'expert.{name}={getattr(self, name)} must be at least 1')
    if self.learning_rate <= 0:
      raise EagrlError(f'expert.learning_rate={self.learning_rate} must be positive')
    if self.weight_decay < 0:
      raise EagrlError(f'expert.weight_decay={self.weight_decay} must not be negative')


@struct.dataclass
class TrainState:
  """All members; every leaf has a leading axis E."""

  params: Params
  opt_state: Any
  epoch: Array  # [E] int32, epochs done
  best_params: Params
  best_score: Array  # [E]
  best_epoch: Array  # [E] int32, counted from 1; 0 before the first


def auroc(score: Array, label: ArrayLike, valid: Array) -> Array:
  """Area under the ROC curve with ties counted half, by ranks; .5 when a class is absent.

  Args:
    score, label, valid: [N]; entries that are not valid do not count.
  """
  ordered = jnp.sort(jnp.where(valid, score, jnp.inf))
  rank = 0.5 * (jnp.searchsorted(ordered, score) + jnp.searchsorted(ordered, score, side='right') + 1)
  positive = (valid & (label > 0.5)).astype(jnp.float32)
  p = jnp.sum(positive)
  pairs = p * (jnp.sum(valid) - p)
  return jnp.where(pairs > 0, (jnp.sum(positive * rank) - p * (p + 1) / 2) / jnp.maximum(pairs, 1), 0.5)


def train_ensemble(key: Array, cfg: ExpertTrainConfig, train: ExpertBatch, valid: ExpertBatch,
                   progress: Callable[[int, dict[str, np.ndarray], TrainState], None] | None = None,
                   mesh: Mesh | None = None, state: TrainState | None = None
                   ) -> tuple[Params, dict[str, np.ndarray]]:
  """Trains E members, each with its own initialisation, batch order and early stopping.

  A member's result depends on `key` and its number only, not on E. What an epoch draws is a function of (key,
  member, epoch), so training on from a state gives what never stopping would have given.

  Args:
    train, valid: numpy arrays, all rows; both classes present in `train`.
    progress: called after each epoch with (epoch from 1, {'loss', 'valid_loss', 'valid_auroc': [E]}, the state, which
      the next epoch donates).
    mesh: shards the member axis over data and fsdp when E is divisible; None leaves it on one device.
    state: where to go on; None starts afresh.
  Returns:
    best parameters `[E, …]`; history of the epochs run here with 'loss', 'valid_loss', 'valid_auroc' [epochs, E],
    and 'best_epoch' [E].
  Raises:
    EagrlError: empty split, non-finite input or a single class in `train`; a member that is NaN after every epoch.
  """
  _check(train, 'train')
  _check(valid, 'valid')
  if np.ptp(train.label) == 0:
    raise EagrlError('expert: the training split has one outcome class; use a larger or stratified split')
  keys = _member_keys(key, cfg)
  if state is None:
    state = _init(keys, cfg, jax.tree.map(lambda x: x[:1], train))
  place = _place(cfg, mesh)
  rows = valid.label.shape[0]
  real = np.arange(-(-rows // cfg.chunk) * cfg.chunk) < rows
  train, valid, real = jax.device_put((train, ensemble.pad_rows(valid, len(real)), real))

  history: list[dict[str, np.ndarray]] = []
  while (epoch := int(state.epoch[0])) < cfg.epochs and np.any(epoch - np.asarray(state.best_epoch) < cfg.patience):
    # Moves nothing: it names the placement in the same words at every call, otherwise the second one compiles again.
    state, metrics = _epoch(jax.device_put(state, place), keys, cfg, train, valid, real)
    history.append(jax.device_get(metrics))
    if progress is not None:
      progress(epoch + 1, history[-1], state)
  columns = {k: np.stack([h[k] for h in history]) for k in history[0]} if history else {}
  best_epoch = np.asarray(state.best_epoch)
  if not best_epoch.all():
    lost = int(np.sum(best_epoch == 0))
    raise EagrlError(f'expert.learning_rate={cfg.learning_rate}: {lost} of {cfg.members} members are NaN from the '
                     'first epoch on; lower it')
  return state.best_params, columns | {'best_epoch': best_epoch}


def abstract(key: Array, cfg: ExpertTrainConfig, batch: ExpertBatch, mesh: Mesh | None = None) -> TrainState:
  """Shapes, types and places of the state on this machine, as a checkpoint of any machine is restored into."""
  shapes = jax.eval_shape(lambda k: _init(_member_keys(k, cfg), cfg, jax.tree.map(lambda x: x[:1], batch)), key)
  place = _place(cfg, mesh)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)


def _place(cfg: ExpertTrainConfig, mesh: Mesh | None) -> Any:
  """Where members live: shared out over data and fsdp, or all on one device."""
  if mesh is not None and cfg.members % (mesh.shape['data'] * mesh.shape['fsdp']) == 0:
    return sharding(mesh, ('ensemble',))
  return SingleDeviceSharding(jax.devices()[0])


def _member_keys(key: Array, cfg: ExpertTrainConfig) -> Array:
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(cfg.members))


def predict(params: Params, cfg: ConCareConfig, batch: ExpertBatch, chunk: int = 64) -> np.ndarray:
  """Probability of the outcome by each member. `params [E, …]`, N patients `-> [E, N]` float32."""
  return ensemble.map_chunks(lambda b: _probability(params, cfg, b), batch, chunk)


@functools.partial(jax.jit, static_argnums=1)
def _probability(params: Params, cfg: ConCareConfig, batch: ExpertBatch) -> Array:
  return jax.vmap(lambda p: jax.nn.sigmoid(ensemble.member_logits(p, cfg, batch)[0]))(params)


def _check(batch: ExpertBatch, name: str) -> None:
  if batch.label.shape[0] == 0:
    raise EagrlError(f'expert: the {name} split is empty; change the split sizes')
  for field in ('values', 'observed', 'hours', 'static', 'label'):
    if not np.all(np.isfinite(getattr(batch, field))):
      raise EagrlError(f'expert: {field} of the {name} split has missing or infinite entries; impute before training')


def _optimizer(cfg: ExpertTrainConfig) -> optax.GradientTransformation:
  return optax.adamw(cfg.learning_rate, weight_decay=cfg.weight_decay)


@functools.partial(jax.jit, static_argnums=1)
def _init(keys: Array, cfg: ExpertTrainConfig, example: ExpertBatch) -> TrainState:
  params = ensemble.init_members(keys, cfg.model, example)
  zeros = jnp.zeros(len(keys), jnp.int32)
  return TrainState(params=params, opt_state=jax.vmap(_optimizer(cfg).init)(params), epoch=zeros,
                    best_params=jax.tree.map(jnp.copy, params), best_score=jnp.full(len(keys), -jnp.inf, jnp.float32),
                    best_epoch=zeros)


@functools.partial(jax.jit, static_argnums=2, donate_argnums=0)
def _epoch(state: TrainState, keys: Array, cfg: ExpertTrainConfig, train: ExpertBatch, valid: ExpertBatch,
           real: Array) -> tuple[TrainState, dict[str, Array]]:
  """One epoch of every member; `real` [rows of valid] is False on padding."""
  return jax.vmap(lambda member, key: _member_epoch(member, key, cfg, train, valid, real))(state, keys)


def _member_epoch(state: TrainState, key: Array, cfg: ExpertTrainConfig, train: ExpertBatch, valid: ExpertBatch,
                  real: Array) -> tuple[TrainState, dict[str, Array]]:
  model, optimizer = ensemble.expert(cfg.model, train), _optimizer(cfg)
  order_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.epoch))

  def loss_fn(params, rows, key):
    batch = jax.tree.map(lambda x: x[rows], train)
    if cfg.prefixes:
      return _prefix_loss(params, model, batch, key)
    logit, _, penalty = ensemble.apply(model, params, batch, deterministic=False, rngs={'dropout': key})
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logit, batch.label)) + cfg.model.decov * penalty

  def step(carry, now):
    params, opt_state = carry
    loss, grads = jax.value_and_grad(loss_fn)(params, now[0], jax.random.fold_in(dropout_key, now[1]))
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss

  # Equal batches: the order wraps round, so a few rows of a short last batch are seen twice.
  n = train.label.shape[0]
  steps = -(-n // cfg.batch)
  size = -(-n // steps)
  order = jax.random.permutation(order_key, n)[jnp.arange(steps * size) % n].reshape(steps, size)
  (params, opt_state), losses = jax.lax.scan(step, (state.params, state.opt_state), (order, jnp.arange(steps)))

  chunks = jax.tree.map(lambda x: x.reshape(-1, cfg.chunk, *x.shape[1:]), valid)
  logit = jax.lax.map(lambda chunk: ensemble.member_logits(params, cfg.model, chunk)[0], chunks).reshape(-1)
  valid_loss = jnp.sum(optax.sigmoid_binary_cross_entropy(logit, valid.label) * real) / jnp.sum(real)
  finite = jnp.isfinite(valid_loss)
  valid_auroc = jnp.where(finite, auroc(logit, valid.label, real), jnp.nan)
  score = jnp.where(finite, -valid_loss if cfg.select_on == 'loss' else valid_auroc, -jnp.inf)

  # A member out of patience keeps what it has, so it does not depend on how long the others go on.
  better = (score > state.best_score) & (state.epoch - state.best_epoch < cfg.patience)
  keep = lambda new, old: jnp.where(better, new, old)
  state = TrainState(
      params=params, opt_state=opt_state, epoch=state.epoch + 1,
      best_params=jax.tree.map(keep, params, state.best_params), best_score=keep(score, state.best_score),
      best_epoch=keep(state.epoch + 1, state.best_epoch))
  return state, {'loss': jnp.mean(losses), 'valid_loss': valid_loss, 'valid_auroc': valid_auroc}


def _prefix_loss(params: Params, model: ConCare, batch: ExpertBatch, key: Array) -> Array:
  """The training loss of every prefix, each visit of each patient weighing the same."""
  tokens = ensemble.apply(model, params, batch, method=ConCare.encode_prefixes)  # [T, B, F, H]

  def one(now):
    tokens, real, t = now
    logit, _, penalty = ensemble.apply(model, params, tokens, batch.static, real, deterministic=False,
                                       rngs={'dropout': jax.random.fold_in(key, t)}, method=ConCare.readout)
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logit, batch.label) * real), penalty * jnp.sum(real)

  # One prefix after another: all at once would not fit the caches.
  bce, penalty = jax.lax.map(one, (tokens, batch.valid.T, jnp.arange(len(tokens))))
  return (jnp.sum(bce) + model.cfg.decov * jnp.sum(penalty)) / jnp.maximum(jnp.sum(batch.valid), 1)
