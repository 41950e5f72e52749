"""Kernels on eight devices, each with its rows and heads, in a process of its own with eight fake devices.

Splash runs in its interpreter. cuDNN's partitioner is the real one, and a plain function stands in for the kernel.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import jax
import pytest


def test_eight_devices_equal_plain_attention():
  env = os.environ | {
      'JAX_NUM_CPU_DEVICES': '8', 'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir or '', 'PYTHONPATH': os.pathsep.join(sys.path)}
  done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.split() == ['splash', 'cudnn', 'refused']


def check() -> None:
  import jax.numpy as jnp
  import numpy as np

  from eagrl_jax import mesh as mesh_lib
  from eagrl_jax.lm import flash
  from eagrl_jax.lm.config import LMConfig
  from eagrl_jax.types import EagrlError

  r = np.random.default_rng(0)
  q, k, v = (jnp.asarray(r.normal(size=(4, 24, heads, 64)), jnp.float32) for heads in (4, 2, 2))
  valid = jnp.arange(24)[None] >= jnp.array([0, 3, 9, 1])[:, None]
  cfg = LMConfig(vocab_size=8, d_model=8, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=64, d_ff=8, attention='xla')
  keep = lambda x: jnp.where(valid[:, :, None, None], x, 0)
  place = lambda x, *axes: jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)))
  want = flash.attend_prompt(q, k, v, valid, cfg)
  mesh = mesh_lib.make_mesh(2, 2, 2)
  rows, heads = mesh_lib.RULES['batch'], mesh_lib.RULES['heads']
  with jax.set_mesh(mesh):
    arguments = (*(place(x, rows, None, heads) for x in (q, k, v)), place(valid, rows))
    got = jax.jit(lambda *x: flash._splash(*x, interpret=True))(*arguments)
  assert got.addressable_shards[0].data.size * 8 == got.size
  np.testing.assert_allclose(keep(got), keep(want), atol=1e-5)
  print('splash')

  stand_in_for_cudnn()
  q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))

  # Rows are turned and turned back: against the attention of the padded rows as they are.
  np.testing.assert_allclose(keep(np.float32(flash._cudnn(q, k, v, valid))), keep(want), atol=3e-2)

  loss = lambda *x: jnp.sum(keep(flash._cudnn(*x).astype(jnp.float32)) ** 2)
  both = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
  want = both(q, k, v, valid)
  with jax.set_mesh(mesh):
    # Keys come whole, as from a projection that is not cut: `_cudnn` itself says where they go.
    got = both(place(q, rows, None, heads), place(k), place(v, rows), place(valid, rows))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=1e-2, atol=1e-3), got, want)
  print('cudnn')

  shape = lambda b, n: jax.ShapeDtypeStruct((b, 24, n, 64), jnp.bfloat16)
  ask = lambda name, b, n, backend='tpu': flash.choose(
      dataclasses.replace(cfg, attention=name), shape(b, 4), shape(b, n), backend)
  with jax.set_mesh(mesh):
    for backend, kernel in (('gpu', 'cudnn'), ('tpu', 'splash')):
      assert [ask('auto', 4, n, backend) for n in (2, 1)] == [kernel, 'xla']
      with pytest.raises(EagrlError, match=f"lm.attention='{kernel}' needs mesh.tensor=2 to divide the 1 key-value"):
        ask(kernel, 4, 1, backend)
      assert ask('auto', 6, 2, backend) == ('xla' if kernel == 'splash' else kernel)
    with pytest.raises(EagrlError, match='needs mesh.data x mesh.fsdp = 4 to divide the 6 prompts'):
      ask('splash', 6, 2)
    # What `choose` keeps away: jax's own partitioner refuses it in its words.
    with pytest.raises(Exception, match='same sharding'):
      both(q, k[:, :, :1], v[:, :, :1], valid)
  print('refused')


def stand_in_for_cudnn() -> None:
  """The kernel and its gradient, as a CPU computes them."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn
  from jax._src.interpreters import mlir

  def attend(q, k, v, length):
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, query_seq_lengths=length,
                                        key_value_seq_lengths=length, implementation='xla')

  def forward(q, k, v, bias, length, *rest, is_training, **_):
    out = attend(q, k, v, length)
    return [out, jnp.zeros(out.shape[:1] + out.shape[2:0:-1], jnp.float32)][:1 + is_training]

  def backward(q, k, v, bias, length, *rest, **_):
    return list(jax.vjp(lambda *x: attend(*x, length), q, k, v)[1](rest[-1]))

  import jax.numpy as jnp
  rules = (cudnn._dot_product_attention_fwd_p, forward), (cudnn._dot_product_attention_bwd_p, backward)
  for primitive, rule in rules:
    mlir.register_lowering(primitive, mlir.lower_fun(rule, multiple_results=True), platform='cpu')
  cudnn.check_cudnn_version = lambda: 91000
  cudnn.check_compute_capability = lambda *_: True


if __name__ == '__main__':
  check()
