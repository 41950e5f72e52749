"""The kernels' wrappers against plain attention: splash in interpreter mode, and as a TPU would compile it."""

from __future__ import annotations

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import lm_reference as ref
import numpy as np
import pytest

from eagrl_jax.lm import flash, forward, model
from eagrl_jax.types import EagrlError

B, S, N, K, H = 2, 40, 4, 2, 64
CFG = dataclasses.replace(ref.CFG, n_heads=N, n_kv_heads=K, head_dim=H)
VALID = jnp.arange(S)[None] >= jnp.array([0, 13])[:, None]


def inputs(dtype='float32'):
  r = np.random.default_rng(0)
  return tuple(jnp.asarray(r.normal(size=(B, S, heads, H)), dtype) for heads in (N, K, K))


def real(x):
  return jnp.where(VALID[:, :, None, None], x, 0)


def plain(q, k, v):
  return flash.attend_prompt(q, k, v, VALID, dataclasses.replace(CFG, attention='xla'))


def test_splash_equals_plain_attention_and_so_do_its_gradients():
  splash = functools.partial(flash._splash, valid=VALID, interpret=True)
  weight = jnp.asarray(np.random.default_rng(1).normal(size=(B, S, N, H)), jnp.float32)
  both = lambda fn: jax.jit(jax.value_and_grad(lambda *x: jnp.sum(weight * real(fn(*x))), argnums=(0, 1, 2)))
  (got, got_grads), (want, want_grads) = both(splash)(*inputs()), both(plain)(*inputs())
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for a, b in zip(got_grads, want_grads):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_turned_rows_equal_plain_attention():
  """What cuDNN is given: padding last, causal, lengths. Computed here by the same function without cuDNN."""
  q, k, v = inputs()
  length = VALID.sum(-1)
  turned = (flash._turn(x, S - length) for x in (q, k, v))
  out = jax.nn.dot_product_attention(*turned, is_causal=True, query_seq_lengths=length, key_value_seq_lengths=length,
                                     implementation='xla')
  np.testing.assert_allclose(real(flash._turn(out, length - S)), real(plain(q, k, v)), atol=1e-5)


def test_a_turn_and_its_gradient_equal_those_of_the_gather_without_its_scatter():
  x, by = inputs('bfloat16')[0], jnp.array([0, 13])
  weight = inputs('bfloat16')[1].repeat(N // K, 2)
  at = ((jnp.arange(S)[None] + by[:, None]) % S)[:, :, None, None]
  gather = lambda x, by: jnp.take_along_axis(x, at, axis=1)
  both = lambda turn: jax.jit(jax.value_and_grad(lambda x: jnp.vdot(weight, turn(x, by))))
  scatters = lambda turn: 'scatter' in str(jax.make_jaxpr(both(turn))(x))
  assert scatters(gather) and not scatters(flash._turn)
  for got, want in zip(both(flash._turn)(x), both(gather)(x)):
    np.testing.assert_array_equal(got, want)
  np.testing.assert_array_equal(flash._turn(flash._turn(x, by), -by), x)


def test_the_tpu_compiles_splash():
  cfg = dataclasses.replace(CFG, attention='splash', compute_dtype='bfloat16')
  tokens = jax.ShapeDtypeStruct((B, 256), jnp.int32)
  loss = lambda p, t: jnp.sum(forward.prefill(p, cfg, t, t >= 0)[0].astype(jnp.float32))
  text = jax.jit(jax.grad(loss)).trace(model.abstract(cfg), tokens).lower(lowering_platforms=('tpu',)).as_text()
  assert text.count('tpu_custom_call') >= 3  # forward, and dq and dkv of the backward pass


def test_the_gpu_compiles_cudnn(monkeypatch):
  detected = pytest.importorskip('jax._src.cudnn.fused_attention_stablehlo')
  monkeypatch.setattr(detected, 'check_cudnn_version', lambda: 91000)
  monkeypatch.setattr(detected, 'check_compute_capability', lambda *_: True)
  cfg = dataclasses.replace(CFG, attention='cudnn', compute_dtype='bfloat16')
  tokens = jax.ShapeDtypeStruct((B, 256), jnp.int32)
  loss = lambda p, t: jnp.sum(forward.prefill(p, cfg, t, t >= 0)[0].astype(jnp.float32))
  text = jax.jit(jax.grad(loss)).trace(model.abstract(cfg), tokens).lower(lowering_platforms=('cuda',)).as_text()
  assert 'fmhaSoftmaxBackward' in text and 'PADDING_CAUSAL' in text


@pytest.mark.parametrize(('backend', 'dtype', 'head', 'kernel'), [
    ('gpu', 'bfloat16', 128, 'cudnn'), ('gpu', 'float32', 128, 'xla'), ('gpu', 'bfloat16', 256, 'xla'),
    ('tpu', 'float32', 128, 'splash'), ('tpu', 'bfloat16', 80, 'xla'), ('cpu', 'bfloat16', 64, 'xla')])
def test_the_device_chooses(backend, dtype, head, kernel):
  q = jax.ShapeDtypeStruct((2, 8, 4, head), jnp.dtype(dtype))
  assert flash.choose(CFG, q, q, backend) == kernel
  assert flash.choose(dataclasses.replace(CFG, attention='xla'), q, q, backend) == 'xla'


@pytest.mark.parametrize(('version', 'capability', 'kernel'), [
    ('PJRT C API\ncuda 12080', '9.0', 'cudnn'), ('cuda 12080', '8.0', 'cudnn'), ('cuda 12080', '10.0', 'cudnn'),
    ('cuda 12080', '7.5', 'xla'), ('PJRT C API\nrocm 60300', 'gfx90a', 'xla')])
def test_a_gpu_without_flash_attention_in_cudnn_takes_plain_attention(version, capability, kernel, monkeypatch):
  device = types.SimpleNamespace(client=types.SimpleNamespace(platform_version=version), compute_capability=capability)
  monkeypatch.setattr(flash.jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(flash.jax, 'local_devices', lambda: [device])
  q = jax.ShapeDtypeStruct((2, 8, 4, 64), jnp.bfloat16)
  assert flash.choose(CFG, q, q) == kernel
  if kernel == 'xla':
    with pytest.raises(EagrlError, match='not a GPU for which cuDNN has no flash attention'):
      flash.check('cudnn', 'bfloat16', flash.backend())


@pytest.mark.parametrize(('attention', 'dtype', 'backend', 'words'), [
    ('cudnn', 'bfloat16', 'cpu', 'needs a GPU'), ('cudnn', 'float32', 'gpu', "not a gpu and 'float32'"),
    ('cudnn', 'bfloat16', 'tpu', 'needs a GPU'), ('splash', 'bfloat16', 'gpu', 'needs a TPU')])
def test_a_kernel_that_the_device_does_not_have_is_refused(attention, dtype, backend, words):
  with pytest.raises(EagrlError, match=f"lm.attention='{attention}' .*{words}"):
    flash.check(attention, dtype, backend)


@pytest.mark.parametrize(('attention', 'dtype', 'backend'), [
    ('cudnn', 'bfloat16', 'gpu'), ('splash', 'float32', 'tpu'), ('auto', 'float32', 'cpu'), ('xla', 'bfloat16', 'gpu')])
def test_a_kernel_that_the_device_has_is_not(attention, dtype, backend):
  flash.check(attention, dtype, backend)


def test_an_unknown_kernel_is_refused():
  with pytest.raises(EagrlError, match=r"lm\.attention='flash' is unknown"):
    dataclasses.replace(CFG, attention='flash')
