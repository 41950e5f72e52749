"""Matrix product whose backward pass transposes its narrow operand.

The gradient of `y` in `x @ y` sums over rows, and one side of that product must be transposed in memory. Autodiff
takes the output's gradient; where that is the wider side (scores, an MLP's first half, logits), a CPU spends more
time on the copy than on the product.
"""

from __future__ import annotations

import jax
from jax import lax

from eagrl_jax.lm.precision import wide
from eagrl_jax.types import Array


@jax.custom_vjp
def matmul(x: Array, y: Array) -> Array:
  """`[..., M, C] @ [..., C, N] -> [..., M, N]`, summed and returned in the wide dtype of `x`.

  Args:
    x: activations.
    y: with the leading axes of `x`, or a plain matrix `[C, N]`.
  """
  batch = tuple(range(y.ndim - 2))
  dims = (((x.ndim - 1,), (y.ndim - 2,)), (batch, batch))
  return lax.dot_general(x, y, dims, preferred_element_type=wide(x.dtype))


def _forward(x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
  return matmul(x, y), (x, y)


def _backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
  x, y = saved
  batch = tuple(range(y.ndim - 2))
  dx = lax.dot_general(g, y, (((g.ndim - 1,), (y.ndim - 1,)), (batch, batch)), preferred_element_type=x.dtype)
  rows = tuple(range(len(batch), x.ndim - 1))  # summed over: M, and for a plain matrix everything before it
  dims = ((rows, rows), (batch, batch))
  if x.shape[-1] <= g.shape[-1]:
    return dx, lax.dot_general(x, g, dims, preferred_element_type=y.dtype)
  return dx, lax.dot_general(g, x, dims, preferred_element_type=y.dtype).swapaxes(-1, -2)


matmul.defvjp(_forward, _backward)
