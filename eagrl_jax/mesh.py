"""The device mesh and the one table that maps logical axes onto it.

A weight declares logical axes (`lm.model.declare`); this table says which mesh axes
carry each. Activations are placed (`constrain`) where they meet the vocabulary matrix and,
where rows go to the weights, at every product of a layer (`lm.project`); GSPMD derives the rest.
"""

from __future__ import annotations

import math

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from eagrl_jax.types import Array, EagrlError, Params

AXES = ('data', 'fsdp', 'tensor')

# Of two dimensions of an array that ask for the same mesh axis, the one named first here has it.
RULES: dict[str | None, str | tuple[str, ...] | None] = {
    'vocab': ('tensor', 'fsdp'),
    'batch': ('data', 'fsdp'),
    'rows': 'data',  # of a batch, where they go to a weight that stays: lm/project.py
    'drawn': ('tensor', 'fsdp'),  # the vocabulary where a token is drawn: of what its rows leave free
    'ensemble': ('data', 'fsdp'),
    'layers': None,
    'embed': 'fsdp',
    'heads': 'tensor',
    'kv_heads': 'tensor',
    'head_dim': None,
    'mlp': 'tensor',
    None: None,
}


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
  """Mesh over all devices; `data=-1` takes what `fsdp * tensor` leaves.

  Raises:
    EagrlError: the axes do not multiply to the number of devices.
  """
  n = jax.device_count()
  if data == -1 and min(fsdp, tensor) >= 1:
    data = n // (fsdp * tensor)
  if data * fsdp * tensor != n or min(data, fsdp, tensor) < 1:
    raise EagrlError(
        f'mesh: data={data} x fsdp={fsdp} x tensor={tensor} does not give the {n} devices present;'
        ' set --config.mesh.data=-1 and choose fsdp and tensor that divide the device count')
  return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def local_mesh(most: int | None = None) -> Mesh:
  """Data-parallel mesh over the devices of this process alone, or the first `most` of them."""
  devices = np.array(jax.local_devices()[:most]).reshape(-1, 1, 1)
  return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)


def sharding(mesh: Mesh, axes: tuple[str | None, ...]) -> NamedSharding:
  """Sharding of an array whose dimensions carry these logical axes."""
  return NamedSharding(mesh, PartitionSpec(*(RULES[a] for a in axes)))


def fitting(mesh: Mesh | AbstractMesh, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
  """Assigns each dimension the longest prefix of its mesh axes that is still free and divides it."""
  order = list(RULES)
  places: list[tuple[str, ...] | None] = [None] * len(axes)
  taken: set[str] = set()
  for i in sorted(range(len(axes)), key=lambda i: order.index(axes[i])):
    rule = RULES[axes[i]] or ()
    names: tuple[str, ...] = ()
    for name in (rule,) if isinstance(rule, str) else rule:
      if name in taken or shape[i] % math.prod(mesh.shape[n] for n in (*names, name)):
        break
      names += (name,)
    taken.update(names)
    places[i] = names or None
  return PartitionSpec(*places)


def constrain(x: Array, axes: tuple[str | None, ...], beside: tuple[str, int] | None = None) -> Array:
  """`x`, placed by its logical axes on the mesh of `jax.set_mesh`, and so is its gradient.

  Without a mesh, or with one device, `x` itself: the program is the same as without the call.

  Args:
    beside: name and size of an axis of what `x` is multiplied with or looked up in: the mesh axes that it takes are
      kept from `x`, which is whole along them.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size <= 1:
    return x
  if beside is None:
    return jax.lax.with_sharding_constraint(x, fitting(mesh, axes, x.shape))
  where = fitting(mesh, (*axes, beside[0]), (*x.shape, beside[1]))
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*where[:-1]))


def shards(axes: tuple[str | None, ...], shape: tuple[int, ...]) -> int:
  """Into how many pieces the mesh of `jax.set_mesh` cuts such an array; 1 without one."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size <= 1:
    return 1
  return math.prod(shape) // math.prod(NamedSharding(mesh, fitting(mesh, axes, shape)).shard_shape(shape))


def shard_batch(mesh: Mesh, tree: Params) -> Params:
  """Places the leading axis of every array over the data and fsdp axes.

  A leading axis that the devices do not divide is replicated: a last, short batch. Of a mesh over several processes
  each hands its own devices their rows; all of them hold the same batch.
  """
  n = mesh.shape['data'] * mesh.shape['fsdp']

  def place(x):
    axes = ('batch',) + (None,) * (x.ndim - 1) if x.shape and x.shape[0] % n == 0 else ()
    where = sharding(mesh, axes)
    if where.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
      return jax.device_put(x, where)
    # A plain device_put would compare the array across processes first.
    host = np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])

  return jax.tree.map(place, tree)
