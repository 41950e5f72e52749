"""UCT and backup against the golden values of ALGORITHM.md §4 and hand-computed paths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagrl_jax.search import tree as tree_lib


def grown():
  """root -> 1, 2; 1 -> 3, 4; rewards .2, .6, .9, -.5; node 3 is terminal."""
  tree = tree_lib.empty(6, 2)
  yes = jnp.array([True, True])
  tree, slot = tree_lib.add_children(tree, 0, jnp.array([.2, .6]), jnp.array([False, False]), yes)
  np.testing.assert_array_equal(slot, [1, 2])
  tree, slot = tree_lib.add_children(tree, 1, jnp.array([.9, -.5]), jnp.array([True, False]), yes)
  np.testing.assert_array_equal(slot, [3, 4])
  return tree


def test_uct_golden():
  tree = tree_lib.empty(4, 2)
  tree, _ = tree_lib.add_children(tree, 0, jnp.array([0., .55]), jnp.zeros(2, bool), jnp.ones(2, bool))
  tree = tree.replace(visits=jnp.array([10, 3, 0, 0]), q_max=tree.q_max.at[1].set(.7), q_sum=tree.q_sum.at[1].set(1.2))
  np.testing.assert_allclose(tree_lib.uct_scores(tree, 0, 1.0, 'max'), [1.576087, 2.067427], atol=1e-6)
  np.testing.assert_allclose(tree_lib.uct_scores(tree, 0, 1.0, 'mean')[0], .4 + .876087, atol=1e-6)
  np.testing.assert_allclose(tree_lib.uct_scores(tree, 0, 2.0, 'max')[1], .55 + 2 * 1.517427, atol=1e-6)


def test_unvisited_parent_scores_are_the_rewards():
  np.testing.assert_allclose(tree_lib.uct_scores(grown(), 0, 1.0, 'max'), [.2, .6], atol=1e-7)


def test_missing_child_is_never_chosen():
  tree = tree_lib.empty(4, 3)
  tree, slot = tree_lib.add_children(
      tree, 0, jnp.array([-9., 5., 5.]), jnp.zeros(3, bool), jnp.array([True, False, False]))
  np.testing.assert_array_equal(slot, [1, 4, 4])
  np.testing.assert_array_equal(tree_lib.uct_scores(tree, 0, 1.0, 'max'), [-9., -np.inf, -np.inf])
  assert int(tree.count) == 2


def test_backup_means_the_rest_of_the_path():
  tree = tree_lib.backup(grown(), jnp.int32(3), 4)
  np.testing.assert_array_equal(tree.visits, [1, 1, 0, 1, 0, 0])
  np.testing.assert_allclose(tree.q_max[jnp.array([0, 1, 3])], [.55, .55, .9], atol=1e-6)
  tree = tree_lib.backup(tree, jnp.int32(4), 4)
  np.testing.assert_array_equal(tree.visits, [2, 2, 0, 1, 1, 0])
  np.testing.assert_allclose(tree.q_max[1], .55, atol=1e-6)  # (.2 - .5) / 2 is lower
  np.testing.assert_allclose(tree.q_sum[1], .55 - .15, atol=1e-6)
  np.testing.assert_allclose(tree.q_max[4], -.5, atol=1e-6)


def test_backup_of_no_leaf_changes_nothing():
  before = grown()
  after = tree_lib.backup(before, jnp.int32(tree_lib.NONE), 4)
  jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.parametrize('node, path', [(0, [-1, -1, -1]), (2, [2, -1, -1]), (4, [1, 4, -1])])
def test_path_to(node, path):
  np.testing.assert_array_equal(tree_lib.path_to(grown(), jnp.int32(node), 3), path)
