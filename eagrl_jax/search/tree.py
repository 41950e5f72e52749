"""Search trees as arrays, and the two formulas of the search: UCT and backup.

Functions here treat ONE tree, arrays `[M, ...]`; the search maps them over the batch.
Node 0 is the root; it carries no reward. Source: ALGORITHM.md §4, after arXiv 2508.13579.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from eagrl_jax.types import Array

NONE = -1  # no node, no sibling


class Tree(struct.PyTreeNode):
  """B trees of up to M nodes; slots from `count` on are empty."""

  parent: Array  # [B, M] int32, -1 at the root
  sibling: Array  # [B, M] int32, which of its parent's candidates a node is
  depth: Array  # [B, M] int32, 0 at the root
  visits: Array  # [B, M] int32, backups that passed through
  q_max: Array  # [B, M] float32, largest backed-up value, -inf before the first visit
  q_sum: Array  # [B, M] float32
  reward: Array  # [B, M] float32, 0 at the root
  terminal: Array  # [B, M] bool
  expanded: Array  # [B, M] bool
  children: Array  # [B, M, C] int32, -1 where there is none
  count: Array  # [B] int32


def empty(n_nodes: int, n_candidates: int) -> Tree:
  """One tree that holds its root only (no leading batch axis)."""
  ints, floats, bools = jnp.zeros(n_nodes, jnp.int32), jnp.zeros(n_nodes), jnp.zeros(n_nodes, bool)
  return Tree(parent=ints + NONE, sibling=ints + NONE, depth=ints, visits=ints, q_max=floats - jnp.inf, q_sum=floats,
              reward=floats, terminal=bools, expanded=bools,
              children=jnp.full((n_nodes, n_candidates), NONE, jnp.int32), count=jnp.int32(1))


def value(tree: Tree, node: Array | int, backup: str) -> Array:
  """Q of visited nodes, in the shape of `node`: the values backed up through each, by `backup` 'max' or 'mean'."""
  return tree.q_max[node] if backup == 'max' else tree.q_sum[node] / jnp.maximum(tree.visits[node], 1)


def uct_scores(tree: Tree, node: Array, weight: float, backup: str) -> Array:
  """Score of each child of `node`, `[C]`; -inf where there is no child.

  Visited: Q + w sqrt(ln N_parent / N_child). Unvisited: r + w sqrt(ln N_parent). ln 0 counts as 0.

  Args:
    backup: as in `value`.
  """
  child = tree.children[node]
  visits = tree.visits[child]
  log_parent = jnp.log(jnp.maximum(tree.visits[node], 1).astype(jnp.float32))
  score = jnp.where(visits > 0, value(tree, child, backup), tree.reward[child])
  score = score + weight * jnp.sqrt(log_parent / jnp.maximum(visits, 1))
  return jnp.where(child >= 0, score, -jnp.inf)


def backup(tree: Tree, leaf: Array, n_levels: int) -> Tree:
  """Adds one visit to every node from `leaf` up to the root.

  A node's value is the mean of the rewards on the rest of the path, its own included
  (gamma 1). The root has no reward, so its value is the mean over the path below it.

  Args:
    n_levels: at least the number of nodes of the longest path.
  """

  def step(_, carry):
    tree, node, total, length = carry
    here = jnp.maximum(node, 0)
    total = total + tree.reward[here]
    length = length + (node > 0)
    value = total / jnp.maximum(length, 1)
    at = jnp.where(node >= 0, here, tree.visits.shape[0])  # out of range: dropped
    tree = tree.replace(
        visits=tree.visits.at[at].add(1, mode='drop'), q_sum=tree.q_sum.at[at].add(value, mode='drop'),
        q_max=tree.q_max.at[at].max(value, mode='drop'))
    return tree, jnp.where(node >= 0, tree.parent[here], NONE), total, length

  return lax.fori_loop(0, n_levels, step, (tree, leaf, jnp.float32(0), jnp.int32(0)))[0]


def path_to(tree: Tree, node: Array, n_levels: int) -> Array:
  """Nodes from depth 1 down to `node`, `[n_levels]`, -1 from its depth on."""

  def step(_, carry):
    path, node = carry
    at = jnp.where(node > 0, tree.depth[node] - 1, n_levels)
    return path.at[at].set(node, mode='drop'), jnp.where(node > 0, tree.parent[node], 0)

  return lax.fori_loop(0, n_levels, step, (jnp.full(n_levels, NONE, jnp.int32), node))[0]


def add_children(tree: Tree, node: Array, reward: Array, terminal: Array, exists: Array) -> tuple[Tree, Array]:
  """Appends the existing candidates of `node` as its children.

  Args:
    reward, terminal, exists: `[C]`. With no existing candidate the tree is unchanged.

  Returns:
    The tree, and each candidate's slot `[C]`, M where it does not exist.
  """
  n_nodes, n = tree.parent.shape[0], exists.shape[0]
  slot = jnp.where(exists, tree.count + jnp.cumsum(exists) - 1, n_nodes).astype(jnp.int32)
  at = jnp.where(exists.any(), node, n_nodes)

  def put(column, value):
    return column.at[slot].set(value, mode='drop')

  return tree.replace(
      parent=put(tree.parent, node), sibling=put(tree.sibling, jnp.arange(n)), reward=put(tree.reward, reward),
      depth=put(tree.depth, tree.depth[node] + 1), terminal=put(tree.terminal, terminal),
      expanded=tree.expanded.at[at].set(True, mode='drop'),
      children=tree.children.at[at].set(jnp.where(exists, slot, NONE), mode='drop'),
      count=tree.count + exists.sum(dtype=jnp.int32)), slot


def write_rows(buffer: Array, slot: Array, rows: Array) -> Array:
  """Puts `rows [C, ...]` into `buffer [M, ...]` at `slot [C]`; a slot of M or more is dropped."""
  return buffer.at[slot].set(rows.astype(buffer.dtype), mode='drop')


def batched(n_trees: int, n_nodes: int, n_candidates: int) -> Tree:
  """`n_trees` fresh trees."""
  return jax.tree.map(lambda x: jnp.broadcast_to(x, (n_trees, *x.shape)), empty(n_nodes, n_candidates))
