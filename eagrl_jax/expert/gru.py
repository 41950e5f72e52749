"""The GRU of one channel, with a backward pass of its own; callers map it over channels.

Differentiating a scan adds every step's outer products to the weights' gradients in turn, which costs more
than the products. Here the backward scan only keeps each step's gradients of the gates; one matmul over all
patients and visits makes the weights' gradients from them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from eagrl_jax.types import Array


class Weights(NamedTuple):
  """Gates in the order reset, update, candidate. Of the recurrent biases only the candidate's is not redundant."""

  inputs: Array  # [3, I, H]
  bias: Array  # [3, H]
  recurrent: tuple[Array, ...]  # 3 of [H, H]: a slice inside the scan would be copied at every step
  recurrent_bias: Array  # [H]


class Gates(NamedTuple):
  """What a step computes on its way, each [B, H]."""

  reset: Array
  update: Array
  candidate: Array
  recurrent: Array  # the candidate's share of the old state, before the reset


def _gates(w: Weights, x: Array, h: Array | None) -> Gates:
  """`x [I, B]`, `h [B, H]`, None for a state of zeros."""
  # The input's product has width 1 or 2: inside the scan it fuses with the gates, outside it is memory traffic.
  gate = lambda i: w.bias[i][None] + sum(x[j][:, None] * w.inputs[i, j][None] for j in range(x.shape[0]))
  recur = lambda i: 0.0 if h is None else h @ w.recurrent[i]
  reset, update = jax.nn.sigmoid(gate(0) + recur(0)), jax.nn.sigmoid(gate(1) + recur(1))
  recurrent = jnp.broadcast_to(recur(2) + w.recurrent_bias[None], reset.shape)
  return Gates(reset, update, jnp.tanh(gate(2) + reset * recurrent), recurrent)


def _put(buffer: Array, value: Array, t: Array | int) -> Array:
  return lax.dynamic_update_index_in_dim(buffer, value, t, 1)


def _at(buffer: Array, t: Array) -> Array:
  return lax.dynamic_index_in_dim(buffer, t, 1, keepdims=False)


@jax.custom_vjp
def run(w: Weights, x: Array, valid: Array) -> Array:
  """States `[B, T, H]` of `x [T, I, B]`; where `valid [T, B]` is not set the state before is repeated."""
  return _forward(w, x, valid)[0]


def _forward(w: Weights, x: Array, valid: Array):
  n_t, _, b = x.shape

  def step(carry, now):
    h, states = carry
    x, valid, t = now
    g = _gates(w, x, h)
    h = jnp.where(valid[:, None], (1 - g.update) * g.candidate + g.update * h, h)
    return (h, _put(states, h, t)), g

  first = _gates(w, x[0], None)
  h = jnp.where(valid[0][:, None], (1 - first.update) * first.candidate, 0)
  states = _put(jnp.zeros((b, n_t, h.shape[-1])), h, 0)
  (_, states), rest = lax.scan(step, (h, states), (x[1:], valid[1:], jnp.arange(1, n_t)))
  return states, (w, x, valid, states, first, rest)


def _pull(dh: Array, h: Array, g: Gates, valid: Array) -> tuple[tuple[Array, ...], Array]:
  """Gradients of the three gates' sums and of the candidate's recurrent share; what passes straight to h."""
  real = valid[:, None]
  d = jnp.where(real, dh, 0)
  update = d * (h - g.candidate) * g.update * (1 - g.update)
  candidate = d * (1 - g.update) * (1 - g.candidate**2)
  reset = candidate * g.recurrent * g.reset * (1 - g.reset)
  return (reset, update, candidate, candidate * g.reset), jnp.where(real, d * g.update, dh)


def _backward(saved, grad: Array):
  w, x, valid, states, first, rest = saved
  n_t = x.shape[0]

  def step(carry, now):
    dh, kept = carry
    g, valid, t = now
    d, dh = _pull(dh + _at(grad, t), _at(states, t - 1), g, valid)
    dh += sum(jnp.einsum('bg,hg->bh', y, m) for y, m in zip((d[0], d[1], d[3]), w.recurrent, strict=True))
    return (dh, tuple(_put(k, y, t - 1) for k, y in zip(kept, d, strict=True))), None

  # Slot t - 1 holds the gradients of step t, beside the state that this step started from; the last slot stays 0.
  zeros = jnp.zeros_like(states)
  (dh, kept), _ = lax.scan(step, (jnp.zeros_like(states[:, 0]), (zeros,) * 4), (rest, valid[1:], jnp.arange(1, n_t)),
                           reverse=True)
  start, _ = _pull(dh + grad[:, 0], jnp.zeros_like(dh), first, valid[0])
  # One product for the input's weights and the bias, an input that is always 1; the first visit's comes to the last
  # slot and meets zeros.
  with_one = jnp.concatenate([x, jnp.ones((n_t, 1, x.shape[2]))], 1)
  into = [jnp.einsum('tib,bth->ih', jnp.roll(with_one, -1, 0), k) + with_one[0] @ s
          for k, s in zip(kept, start, strict=True)]
  gates = jnp.stack(into[:3])
  dw = Weights(gates[:, :-1], gates[:, -1], tuple(jnp.einsum('bth,btg->hg', states, kept[i]) for i in (0, 1, 3)),
               into[3][-1])
  dx_later = sum((jnp.einsum('bth,ih->tib', kept[i], w.inputs[i]) for i in range(3)), jnp.zeros_like(x))
  dx_first = sum((jnp.einsum('bh,ih->ib', start[i], w.inputs[i]) for i in range(3)), jnp.zeros_like(x[0]))
  return dw, jnp.concatenate([dx_first[None], dx_later[:-1]]), None


run.defvjp(_forward, _backward)
