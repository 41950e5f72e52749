"""Products with a weight that several devices hold a piece of each: the smaller of rows and weight travels.

Training multiplies a weight with more rows than it has columns: it is gathered over `fsdp`, and rows stay. A token
step of decoding has one row an answer: gathering would send every layer's weights for each token. There each device
multiplies the rows of its whole `data` group with the piece it holds, and the sums come back.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
from jax import lax

from eagrl_jax.lm.precision import wide
from eagrl_jax.mesh import constrain, fitting
from eagrl_jax.types import Array


def project(x: Array, w: Array, axes: tuple[str, ...], product: Callable[[Array, Array], Array]) -> Array:
  """`product(x, w)`, the contraction of the last axis of `x [B, ..., C]` with the first of `w [C, ...]`.

  Args:
    x: rows of the batch, B over data and fsdp.
    w: in the dtype of `x`.
    axes: logical axes of `w`, 'embed' the first or the last of them.
    product: how it is multiplied where the weight travels, or nothing does.
  """
  if not rows_travel(x.shape, w.shape, axes):
    return product(x, w)
  between = (None,) * (x.ndim - 2)
  first, *rest = axes
  x = constrain(x, ('rows', *between, first))
  # Sums of several devices are added before they are rounded.
  y = lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=wide(x.dtype))
  if rest[-1] == 'embed':
    y = constrain(y, ('rows', *between, *rest))
  return constrain(y, ('batch', *between, *(None if axis == 'embed' else axis for axis in rest))).astype(x.dtype)


def rows_travel(x: tuple[int, ...], w: tuple[int, ...], axes: tuple[str, ...]) -> bool:
  """Whether rows of this shape are fewer numbers than the weight that they meet, on the mesh of `jax.set_mesh`.

  Of the r rows of a data group C come and the products go, r (C + OUT); of the weight, C OUT / tensor would come.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size <= 1 or not any('fsdp' in (names or ()) for names in fitting(mesh, axes, w)):
    return False
  rows, out = math.prod(x[:-1]) // mesh.shape['data'], math.prod(w[1:])
  return rows * (w[0] + out) * mesh.shape['tensor'] < w[0] * out
