"""The device mesh and the one table that maps logical axes onto it.

A weight declares logical axes (`lm.model.declare`); this table says which mesh axis
carries each. Activations need only their batch axis placed, GSPMD derives the rest.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from eagrl_jax.types import EagrlError, Params

AXES = ('data', 'fsdp', 'tensor')

RULES: dict[str | None, str | tuple[str, ...] | None] = {
    'batch': ('data', 'fsdp'),
    'ensemble': ('data', 'fsdp'),
    'layers': None,
    'vocab': 'tensor',
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
