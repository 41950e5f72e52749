"""Matrix product whose backward pass transposes its narrow operand.

The gradient of `y` in `x @ y` sums over rows, and one side of that product must be transposed in memory. Autodiff
takes the output's gradient; where that is the wider side (scores, an MLP's first half, logits), a CPU spends more
time on the copy than on the product.
"""

from __future__ import annotations

import functools

import jax
from jax import lax
from jax.typing import DTypeLike

from eagrl_jax.lm.precision import wide
from eagrl_jax.types import Array


def matmul(x: Array, y: Array, dtype: DTypeLike | None = None, exact: bool = False) -> Array:
  """`[..., M, C] @ [..., C, N] -> [..., M, N]`, summed in the wide dtype of `x`.

  Args:
    x: activations.
    y: with the leading axes of `x`, or a plain matrix `[C, N]`.
    dtype: of the result and hence of the gradient that comes back; None is the wide one.
    exact: float32 is multiplied as float32, also where a device would take bfloat16 (TPU) or TF32 (GPU) for it.
  """
  return _matmul(x, y, dtype or wide(x.dtype), exact)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _matmul(x: Array, y: Array, dtype: DTypeLike, exact: bool) -> Array:
  batch = tuple(range(y.ndim - 2))
  return _dot(x, y, ((x.ndim - 1,), (y.ndim - 2,)), batch, exact).astype(dtype)


def _forward(x: Array, y: Array, dtype: DTypeLike, exact: bool) -> tuple[Array, tuple[Array, Array]]:
  return _matmul(x, y, dtype, exact), (x, y)


def _backward(dtype: DTypeLike, exact: bool, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
  del dtype
  x, y = saved
  batch = tuple(range(y.ndim - 2))
  dx = _dot(g, y, ((g.ndim - 1,), (y.ndim - 1,)), batch, exact)
  rows = tuple(range(len(batch), x.ndim - 1))  # summed over: M, and for a plain matrix everything before it
  narrow = x.shape[-1] <= g.shape[-1]
  dy = _dot(x, g, (rows, rows), batch, exact) if narrow else _dot(g, x, (rows, rows), batch, exact).swapaxes(-1, -2)
  return dx.astype(x.dtype), dy.astype(y.dtype)


def _dot(a: Array, b: Array, contract: tuple[tuple[int, ...], tuple[int, ...]], batch: tuple[int, ...],
         exact: bool) -> Array:
  # Wide, so that partial sums of several devices are added before they are rounded.
  as_given = exact and all(x.dtype == wide(x.dtype) for x in (a, b))
  return lax.dot_general(a, b, (contract, (batch, batch)), precision='highest' if as_given else None,
                         preferred_element_type=wide(a.dtype))


_matmul.defvjp(_forward, _backward)
