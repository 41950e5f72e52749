"""The jitted search against a recursive search over Python objects, on toy trees with rewards drawn beforehand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagrl_jax.search import mcts
from eagrl_jax.search.mcts import Expansion, SearchConfig
from eagrl_jax.types import EagrlError

POOL = 4000  # codes of the complete C-ary tree: the children of x are C x + 1 ... C x + C


class Node:
  def __init__(self, code, depth, reward, terminal):
    self.code, self.depth, self.reward, self.terminal = code, depth, reward, terminal
    self.visits, self.best, self.total, self.children = 0, -math.inf, 0.0, None


class Oracle:
  """One tree, the plain way."""

  def __init__(self, rewards, terminal, exists, config):
    self.rewards, self.terminal, self.exists, self.config = rewards, terminal, exists, config
    self.nodes = [Node(0, 0, None, False)]
    self.paths = []
    for _ in range(config.n_rollouts):
      self.paths.append([self.nodes[0].code])
      self.visit(self.nodes[0])

  def expand(self, node):
    c, last = self.config.n_candidates, node.depth == self.config.max_depth
    node.children = []
    for code in [c * node.code + 1 + i for i in range(1 if last else c)]:
      if code == c * node.code + 1 or self.exists[code]:
        node.children.append(Node(code, node.depth + 1, self.rewards[code], last or self.terminal[code]))
    self.nodes += node.children

  def score(self, parent, child):
    log_n = math.log(parent.visits) if parent.visits else 0.0
    if not child.visits:
      return child.reward + self.config.exploration * math.sqrt(log_n)
    q = child.best if self.config.backup == 'max' else child.total / child.visits
    return q + self.config.exploration * math.sqrt(log_n / child.visits)

  def visit(self, node):
    """Returns the rewards on the path from this node to the terminal one."""
    if node.terminal:
      rest = []
    else:
      if node.children is None:
        self.expand(node)
      chosen = max(node.children, key=lambda child: self.score(node, child))
      self.paths[-1].append(chosen.code)
      rest = self.visit(chosen)
    if node.reward is not None:
      rest = [node.reward, *rest]
    value = sum(rest) / len(rest)
    node.visits, node.best, node.total = node.visits + 1, max(node.best, value), node.total + value
    return rest


def draw(seed, n_trees):
  rng = np.random.default_rng(seed)
  return (rng.uniform(-2, 1, (n_trees, POOL)).astype(np.float32), rng.uniform(size=(n_trees, POOL)) < .25,
          rng.uniform(size=(n_trees, POOL)) < .85)


def toy_expand(rewards, terminal, exists, payload, node, depth, path, active, key):
  """The payload is a node's code; the tables are [B, POOL]."""
  del depth, active, key
  code = jnp.take_along_axis(payload['code'], node[:, None], 1)
  # The path must end at the node itself, or be empty at the root.
  tail = jnp.max(jnp.where(path >= 0, jnp.take_along_axis(payload['code'], jnp.maximum(path, 0), 1), 0), 1)
  code = jnp.where((tail == code[:, 0])[:, None], code, POOL)
  c = payload['wide'].shape[2]
  child = c * code + 1 + jnp.arange(c, dtype=jnp.int32)[None, :]
  look = functools.partial(jnp.take_along_axis, indices=child, axis=1, mode='clip')
  wide = jnp.broadcast_to(child[:, :, None], (*child.shape, c)).astype(jnp.float32)
  return Expansion(look(rewards), look(terminal), look(exists), {'code': child, 'wide': wide})


@functools.partial(jax.jit, static_argnames='config')
def run(rewards, terminal, exists, example, key, config):
  n = example.shape[0]
  root = {'code': jnp.zeros(n, jnp.int32), 'wide': jnp.zeros((n, config.n_candidates))}
  return mcts.search(key, example, root, functools.partial(toy_expand, rewards, terminal, exists), config)


CASES = [
    SearchConfig(n_rollouts=10, n_candidates=3, max_depth=4),
    SearchConfig(n_rollouts=25, n_candidates=2, max_depth=5, backup='mean'),
    SearchConfig(n_rollouts=40, n_candidates=3, max_depth=1, exploration=.5),
    SearchConfig(n_rollouts=12, n_candidates=1, max_depth=3),
]


@pytest.mark.parametrize('config', CASES)
@pytest.mark.parametrize('full', [False, True])
def test_equals_recursive_oracle(config, full):
  n_trees = 5
  for seed in (0, 1):
    rewards, terminal, exists = draw(seed, n_trees)
    if full:  # the largest trees: nothing ends early, every candidate exists
      terminal, exists = terminal & False, exists | True
    tree, payload = run(rewards, terminal, exists, jnp.arange(n_trees), jax.random.key(0), config)
    for b in range(n_trees):
      oracle = Oracle(rewards[b], terminal[b], exists[b], config)
      count = len(oracle.nodes)
      assert int(tree.count[b]) == count <= config.n_nodes
      codes = np.asarray(payload['code'][b, :count])
      np.testing.assert_array_equal(codes, [n.code for n in oracle.nodes])
      np.testing.assert_array_equal(payload['wide'][b, :count], np.repeat(codes[:, None], config.n_candidates, 1))
      np.testing.assert_array_equal(tree.visits[b, :count], [n.visits for n in oracle.nodes])
      np.testing.assert_array_equal(tree.depth[b, :count], [n.depth for n in oracle.nodes])
      np.testing.assert_array_equal(tree.terminal[b, :count], [n.terminal for n in oracle.nodes])
      np.testing.assert_array_equal(tree.expanded[b, :count], [n.children is not None for n in oracle.nodes])
      np.testing.assert_allclose(tree.q_max[b, :count], [n.best for n in oracle.nodes], atol=1e-5)
      np.testing.assert_allclose(tree.q_sum[b, :count], [n.total for n in oracle.nodes], atol=1e-4)
      for i, node in enumerate(oracle.nodes):
        children = tree.children[b, i]
        got = codes[np.asarray(children[children >= 0])]
        np.testing.assert_array_equal(got, [n.code for n in node.children or []])
        np.testing.assert_array_equal(tree.parent[b, children[children >= 0]], i)
      assert int(tree.visits[b, 0]) == len(oracle.paths) == config.n_rollouts
      ends = {path[-1]: sum(p == path for p in oracle.paths) for path in oracle.paths}
      leaf = np.asarray(tree.terminal[b, :count]) & (np.asarray(tree.visits[b, :count]) > 0)
      assert {int(codes[i]): int(tree.visits[b, i]) for i in np.flatnonzero(leaf)} == ends


def test_node_budget_is_tight():
  """With every candidate present and exploration that spreads, trees of the full size do occur."""
  config = SearchConfig(n_rollouts=12, n_candidates=2, max_depth=3, exploration=50.0)
  rewards, terminal, exists = draw(3, 8)
  tree, _ = run(rewards, terminal & False, exists | True, jnp.arange(8), jax.random.key(0), config)
  assert config.n_nodes == 1 + 2 * (1 + 2 + 4) + 8
  assert int(tree.count.max()) == config.n_nodes


@functools.partial(jax.jit, static_argnames='config')
def run_random(example, key, config):
  """Rewards and ends drawn from the keys that the search hands out."""

  def expand(payload, node, depth, path, active, keys):
    draws = jax.vmap(lambda k: jax.random.uniform(k, (2, config.n_candidates)))(keys)
    return Expansion(draws[:, 0], draws[:, 1] < .3, draws[:, 1] >= 0, draws[:, 0])

  return mcts.search(key, example, jnp.zeros(example.shape[0]), expand, config)


def test_a_tree_does_not_depend_on_its_batch():
  config = SearchConfig(n_rollouts=8, n_candidates=3, max_depth=3)
  example = jnp.array([7, 3, 11, 5])
  tree, payload = run_random(example, jax.random.key(1), config)
  alone, alone_payload = run_random(example[2:3], jax.random.key(1), config)
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[2:3], y), (tree, payload), (alone, alone_payload))
  turned, _ = run_random(example[::-1], jax.random.key(1), config)
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[::-1], y), tree, turned)
  other, _ = run_random(example, jax.random.key(2), config)
  assert not np.array_equal(other.reward, tree.reward)
  assert not np.array_equal(tree.reward[0], tree.reward[1])


def test_jit_equals_no_jit():
  config = SearchConfig(n_rollouts=2, n_candidates=2, max_depth=1)
  jitted, _ = run_random(jnp.arange(1), jax.random.key(0), config)
  with jax.disable_jit():
    plain, _ = run_random(jnp.arange(1), jax.random.key(0), config)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), jitted, plain)


@pytest.mark.parametrize('bad', [{'n_rollouts': 0}, {'n_candidates': 0}, {'max_depth': 0}, {'backup': 'sum'}])
def test_bad_config_names_the_field(bad):
  with pytest.raises(EagrlError, match='search.' + next(iter(bad)).removeprefix('n_')):
    SearchConfig(**bad)
