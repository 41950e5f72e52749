"""Causal self-attention of whole prompts by the accelerator's own kernel: cuDNN on a GPU, splash on a TPU.

Prompts are where the long `[S, S]` maps are. Answers attend to a prompt that their group shares: `attention.causal`
reads its keys once for all of them, which no kernel does, and hands out the rows that the alignment loss needs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from eagrl_jax.lm import attention
from eagrl_jax.lm.cache import heads_first
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.precision import widen
from eagrl_jax.mesh import RULES, constrain
from eagrl_jax.types import Array, EagrlError

SPLASH_BLOCK = 128  # its tiles; a prompt is padded to a multiple
CUDNN_LEAST_CAPABILITY = 8  # Ampere
CUDNN_MAX_HEAD = 128  # of its backward pass on every GPU that has one


def attend_prompt(q: Array, k: Array, v: Array, valid: Array, cfg: LMConfig) -> Array:
  """Each position of a left-padded prompt attends to itself and to the valid ones before it.

  Args:
    q: `[B, S, N, H]`, rotated. k, v: `[B, S, K, H]`.
    valid: `[B, S]`, False on the left padding.

  Returns:
    `[B, S, N, H]`; rows of padding hold finite values that nothing reads.
  """
  kernel = choose(cfg, q, k)
  if kernel == 'cudnn':
    return _cudnn(q, k, v, valid)
  if kernel == 'splash':
    return _splash(q, k, v, valid, interpret=False)
  k, v = heads_first(k), heads_first(v)
  return attention.causal(q[:, None], k[:, None], v[:, None], valid[:, None])[0][:, 0]


def backend() -> str:
  """JAX's name of the backend, or of a GPU for which cuDNN has no such kernel, another: AMD's, and before Ampere."""
  name, device = jax.default_backend(), jax.local_devices()[0]
  if name == 'gpu' and ('cuda' not in device.client.platform_version or
                        int(device.compute_capability.partition('.')[0]) < CUDNN_LEAST_CAPABILITY):
    return 'GPU for which cuDNN has no flash attention'
  return name


def check(attention: str, compute_dtype: str, backend: str) -> None:
  """Refuses a kernel that was asked for and that the backend, one of `backend()`, does not have.

  Raises:
    EagrlError: names `lm.attention` and what it needs.
  """
  if attention == 'cudnn' and (backend, compute_dtype) != ('gpu', 'bfloat16'):
    raise EagrlError(f"lm.attention='cudnn' needs a GPU and lm.compute_dtype='bfloat16', not a {backend} and "
                     f'{compute_dtype!r}; set --config.lm.attention=auto')
  if attention == 'splash' and backend != 'tpu':
    raise EagrlError(f"lm.attention='splash' needs a TPU, not a {backend}; set --config.lm.attention=auto")


def choose(cfg: LMConfig, q: Array, k: Array, on: str | None = None) -> str:
  """The kernel for these shapes: `cfg.attention`, or with 'auto' the one that `backend()` has and that takes them.

  cuDNN computes in 16 bits only. Either kernel wants queries, keys and values cut alike: key-value heads must divide
  over the mesh that is set. A splash kernel runs whole on its device: the batch must, too.

  Raises:
    EagrlError: a kernel was asked for that these shapes do not fit.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if cfg.attention == 'auto':
    on, head = on or backend(), q.shape[-1]
    if on == 'gpu' and q.dtype.itemsize == 2 and head <= CUDNN_MAX_HEAD and head % 8 == 0:
      kernel = 'cudnn'
    elif on == 'tpu' and head % 64 == 0:
      kernel = 'splash'
    else:
      return 'xla'
    return 'xla' if misfit(kernel, mesh, k.shape[2], q.shape[0]) else kernel
  if reason := misfit(cfg.attention, mesh, k.shape[2], q.shape[0]):
    raise EagrlError(reason)
  return cfg.attention


def misfit(kernel: str, mesh: Mesh | AbstractMesh, kv_heads: int, batch: int = 0) -> str:
  """Why a kernel cannot be cut over this mesh, '' where it can; `batch` 0 says nothing of rows."""
  if kernel not in ('cudnn', 'splash') or mesh.size <= 1:
    return ''
  if kv_heads % mesh.shape['tensor']:
    return (f'lm.attention={kernel!r} needs mesh.tensor={mesh.shape["tensor"]} to divide the {kv_heads} key-value '
            'heads; set --config.lm.attention=auto, or a mesh.tensor that does')
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  if kernel == 'splash' and batch % ways:
    return (f"lm.attention='splash' needs mesh.data x mesh.fsdp = {ways} to divide the {batch} prompts of a batch; set "
            '--config.lm.attention=auto')
  return ''


def _cudnn(q: Array, k: Array, v: Array, valid: Array) -> Array:
  """It knows lengths, not left padding: rows are turned so that padding comes last, and back."""
  length = constrain(valid.sum(-1, dtype=jnp.int32), ('batch',))
  pad = valid.shape[1] - length
  turned = (_turn(constrain(x, ('batch', None, 'heads', None)), pad) for x in (q, k, v))
  out = jax.nn.dot_product_attention(*turned, is_causal=True, query_seq_lengths=length, key_value_seq_lengths=length,
                                     implementation='cudnn')
  return _turn(out, -pad)


@jax.custom_vjp
def _turn(x: Array, by: Array) -> Array:
  """Rotates each row of `x [B, S, ...]` to the left by `by [B]` positions.

  Its gradient turns back; that of a gather would be a scatter.
  """
  s = x.shape[1]
  at = (jnp.arange(s)[None] + by[:, None]) % s
  return jnp.take_along_axis(x, at.reshape(*at.shape, *(1,) * (x.ndim - 2)), axis=1)


_turn.defvjp(lambda x, by: (_turn(x, by), by), lambda by, g: (_turn(g, -by), None))


def _splash(q: Array, k: Array, v: Array, valid: Array, interpret: bool) -> Array:
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels  # a slow import
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  s = q.shape[1]
  extra = -s % SPLASH_BLOCK
  q = (widen(q) * q.shape[-1] ** -0.5).astype(q.dtype)
  q, k, v = (jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (extra, 0), (0, 0))) for x in (q, k, v))
  segment = jnp.pad(valid, ((0, 0), (extra, 0))).astype(jnp.int32)  # padding sees padding only

  def local(q, k, v, segment):
    mask = masks.MultiHeadMask([masks.CausalMask((s + extra, s + extra))] * q.shape[1])
    kernel = kernels.make_splash_mha_single_device(mask, interpret=interpret)
    return jax.vmap(lambda q, k, v, ids: kernel(q, k, v, kernels.SegmentIds(ids, ids)))(q, k, v, segment)

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size > 1:
    heads = PartitionSpec(RULES['batch'], RULES['heads'])
    local = jax.shard_map(local, in_specs=(heads, heads, heads, PartitionSpec(RULES['batch'])), out_specs=heads,
                          check_vma=False)
  return local(q, k, v, segment)[:, :, extra:].swapaxes(1, 2)
