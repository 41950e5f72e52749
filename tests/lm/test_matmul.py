"""The product and its gradients against plain einsum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagrl_jax.lm.matmul import matmul

CASES = {'narrow': ((2, 3, 5, 4), (2, 3, 4, 7)), 'wide': ((2, 3, 5, 7), (2, 3, 7, 4)),
         'plain narrow': ((2, 5, 4), (4, 7)), 'plain wide': ((2, 5, 7), (7, 4))}


def case(name, dtype):
  rng = np.random.default_rng(0)
  x, y = (jnp.asarray(rng.normal(size=shape), dtype) for shape in CASES[name])
  return x, y, jnp.asarray(rng.normal(size=(*x.shape[:-1], y.shape[-1])), jnp.float32)


def plain(x, y):
  return jnp.einsum('...mc,...cn->...mn', x, y, preferred_element_type=jnp.float32)


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 1e-6), ('bfloat16', 0.0)])
def test_value_and_gradients(name, dtype, tolerance):
  """In bfloat16 both round a float32 sum once: equal to the last bit of it, which the order of the sum may move."""
  x, y, probe = case(name, dtype)
  both = [jax.grad(lambda x, y, f=f: jnp.sum(f(x, y) * probe), argnums=(0, 1))(x, y) for f in (matmul, plain)]
  np.testing.assert_allclose(matmul(x, y), plain(x, y), atol=1e-5)
  for got, want in zip(*both):
    assert got.dtype == want.dtype == dtype
    bit = 0 if dtype == 'float32' else 2**-7
    np.testing.assert_allclose(got.astype(np.float32), want.astype(np.float32), rtol=bit, atol=tolerance + 10 * 1e-6)


def test_the_result_can_be_narrow():
  x, y, _ = case('plain narrow', 'bfloat16')
  assert matmul(x, y, jnp.bfloat16).dtype == jnp.bfloat16
