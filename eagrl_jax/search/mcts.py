"""Monte Carlo tree search over a batch of independent trees, jittable, without host calls.

Every tree walks at its own pace: it descends by UCT, backs up and starts its next rollout
when it meets a terminal node, and stops at a node that needs expansion. When all have
stopped, one batched `expand` serves every tree that waits. A tree's result is therefore
the same whichever trees share its batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from eagrl_jax import rng
from eagrl_jax.search import tree as tree_lib
from eagrl_jax.search.tree import Tree
from eagrl_jax.types import Array, EagrlError, Params


@dataclasses.dataclass(frozen=True)
class SearchConfig:
  """Size and rules of a search; hashable, a jit static.

  Attributes:
    n_rollouts: backups through each root.
    n_candidates: C, children of an expanded node.
    max_depth: a node at this depth has one child and that is terminal, so a path has up to max_depth + 1 steps.
    exploration: w of UCT.
    backup: 'max' or 'mean'.
  """

  n_rollouts: int = 10
  n_candidates: int = 3
  max_depth: int = 5
  exploration: float = 1.0
  backup: str = 'max'

  def __post_init__(self):
    sizes = (('rollouts', self.n_rollouts), ('candidates', self.n_candidates), ('max_depth', self.max_depth))
    for field, value in sizes:
      if value < 1:
        raise EagrlError(f'search.{field}={value} must be at least 1')
    if self.exploration < 0:
      raise EagrlError(f'search.exploration={self.exploration} must not be negative')
    if self.backup not in ('max', 'mean'):
      raise EagrlError(f"search.backup={self.backup!r}: choose 'max' or 'mean'")

  @property
  def n_nodes(self) -> int:
    """M: the most nodes that a tree can grow to.

    A rollout expands at most one node a depth, and depth d has at most C^d nodes, so
    min(rollouts, C^d) expansions happen at depth d: each adds C nodes above max_depth, one at it.
    """
    expansions = [min(self.n_rollouts, self.n_candidates**d) for d in range(self.max_depth + 1)]
    return 1 + self.n_candidates * sum(expansions[:-1]) + expansions[-1]


@struct.dataclass
class Expansion:
  """C candidate children of one node of each tree."""

  reward: Array  # [B, C] float32
  terminal: Array  # [B, C] bool
  exists: Array  # [B, C] bool; candidate 0 always exists
  payload: Params  # pytree of [B, C, ...]


# (payload [B, M, ...], node [B], depth [B], path [B, max_depth] from depth 1 on with -1 padding,
#  active [B] (rows whose result is used), key [B]) -> Expansion
Expand = Callable[[Params, Array, Array, Array, Array, Array], Expansion]


def search(key: Array, example: Array, root: Params, expand: Expand, config: SearchConfig) -> tuple[Tree, Params]:
  """Runs `config.n_rollouts` rollouts in each of B trees. Call it under jit.

  Args:
    key: typed key; node n of the tree of example e is expanded with fold_in(fold_in(key, e), n).
    example: `[B]` int32 ids.
    root: the root's payload, pytree of `[B, ...]`.
    expand: makes the candidates of one node of each tree. At `max_depth` all but candidate 0 are
      dropped and that one is terminal, whatever `expand` says.
    config: static.

  Returns:
    The trees, and the payload of every node, pytree of `[B, M, ...]`.
  """
  n_trees, n_nodes = example.shape[0], config.n_nodes
  tree_keys = rng.example_keys(key, example)
  trees = tree_lib.batched(n_trees, n_nodes, config.n_candidates)
  payload = jax.tree.map(lambda x: jnp.zeros((n_trees, n_nodes, *x.shape[1:]), x.dtype).at[:, 0].set(x), root)
  scores = jax.vmap(functools.partial(tree_lib.uct_scores, weight=config.exploration, backup=config.backup))
  backup = jax.vmap(functools.partial(tree_lib.backup, n_levels=config.max_depth + 2))
  pick = jax.vmap(lambda column, node: column[node])

  def walks(carry):
    trees, at, rollouts = carry
    return (rollouts < config.n_rollouts) & (pick(trees.terminal, at) | pick(trees.expanded, at))

  def walk(carry):
    trees, at, rollouts = carry
    moving, ended = walks(carry), pick(trees.terminal, at)
    finish = moving & ended
    trees = backup(trees, jnp.where(finish, at, tree_lib.NONE))
    child = jax.vmap(lambda c, i, s: c[i, jnp.argmax(s)])(trees.children, at, scores(trees, at))
    at = jnp.where(finish, 0, jnp.where(moving, child, at))
    return trees, at, rollouts + finish

  def waits(carry):
    return jnp.any(carry[2] < config.n_rollouts)

  def grow(carry):
    trees, at, rollouts, payload = carry
    active, depth = rollouts < config.n_rollouts, pick(trees.depth, at)
    path = jax.vmap(functools.partial(tree_lib.path_to, n_levels=config.max_depth))(trees, at)
    out = expand(payload, at, depth, path, active, jax.vmap(jax.random.fold_in)(tree_keys, at))
    last = (depth >= config.max_depth)[:, None]
    first = (jnp.arange(config.n_candidates) == 0)[None, :]
    exists = active[:, None] & jnp.where(last, first, out.exists | first)
    trees, slot = jax.vmap(tree_lib.add_children)(trees, at, out.reward, out.terminal | last, exists)
    payload = jax.tree.map(lambda x, rows: jax.vmap(tree_lib.write_rows)(x, slot, rows), payload, out.payload)
    trees, at, rollouts = lax.while_loop(lambda c: jnp.any(walks(c)), walk, (trees, at, rollouts))
    return trees, at, rollouts, payload

  start = jnp.zeros(n_trees, jnp.int32)
  trees, _, _, payload = lax.while_loop(waits, grow, (trees, start, start, payload))
  return trees, payload
