"""New nodes a second of the tree search, against Python objects that call `generate` once an expansion.

    python -m benchmarks.search

4 trees, 16 rollouts, 4 siblings an expansion, prompts of 512 tokens, steps of 32 free tokens, depth 6, a decoder of 4
layers. Ours decodes a step's own words (tags, the question whether it was useful) beside the 32 tokens; the peer writes
32 and nothing else. The peer's `generate` computes prompt and path anew for every expansion, as published code does,
its siblings in one call or one by one. Random weights, so no step ends early. Needs the `peers` extra, or --no_peer.
Goal: 20 x.

Two more cases set the same search beside itself: steps of twice the length, and paths of a third of the depth.
`roofline` is for the same tokens, every row alive at every step, its free tokens alone meeting the head.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import random
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from eagrl_jax.lm import model
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.tokenizer import train_tokenizer
from eagrl_jax.search import steps
from eagrl_jax.search.decode import StepConfig
from eagrl_jax.search.grammar_compiler import GrammarConfig, compile_grammar
from eagrl_jax.search.mcts import SearchConfig
from eagrl_jax.types import PromptBatch

SHAPE = LMConfig(vocab_size=49_152, d_model=256, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=64, d_ff=1024)
FINAL = 'Now we can answer the question: will the patient die?'
FORMAT = ('<Subquestion {0}> Is the lactate high? </Subquestion {0}>\n<Answer {0}> Yes, it is. No. </Answer {0}>\n'
          '<Useful> Is this sub-question useful? Yes\n<Final subquestion> {1} </Final subquestion>\n'
          '<Important Features> lactate, SpO2 </Important Features>\n<Final answer> 0.123456789 </Final answer>')
NAMES = ('lactate', 'creatinine', 'platelets', 'heart rate', 'SpO2')


@dataclasses.dataclass(frozen=True)
class Work:
  trees: int
  rollouts: int
  siblings: int
  prompt: int
  step: int  # free tokens of a step
  depth: int


def terminal_reward(prob: jax.Array, named: jax.Array, arguments: dict) -> jax.Array:
  """Stands in for label and expert."""
  del named
  return jnp.where(arguments['label'][:, None] == 1, prob, 1 - prob)


def ours(cfg: LMConfig, work: Work, reps: int) -> tuple[float, int, float]:
  """Seconds of a search, its new nodes, and the tokens that a new node has."""
  tokenizer = train_tokenizer([FORMAT.format(i, FINAL) for i in range(1, work.depth + 1)], NAMES, 2048)
  grammar = compile_grammar(tokenizer, NAMES, cfg.vocab_size, GrammarConfig(
      final_question=FINAL, max_depth=work.depth, max_features=3,
      question_tokens=work.step // 2, answer_tokens=work.step - work.step // 2))
  params = jax.jit(lambda k: model.init(cfg, k))(jax.random.key(0))
  rng = np.random.default_rng(0)
  tokens = rng.integers(4, 500, (work.trees, work.prompt))
  prompt = PromptBatch(tokens, np.ones(tokens.shape, bool), np.full(tokens.shape, -1), np.arange(work.trees))
  salience = rng.dirichlet(np.ones(len(NAMES)), work.trees).astype(np.float32)
  search = functools.partial(
      steps.run, params, cfg, jax.tree.map(jnp.asarray, grammar), prompt, salience, terminal_reward,
      {'label': rng.integers(0, 2, work.trees).astype(np.float32)}, jax.random.key(1),
      SearchConfig(n_rollouts=work.rollouts, n_candidates=work.siblings, max_depth=work.depth, exploration=1.4),
      StepConfig())
  result = jax.device_get(search())
  nodes = int(result.tree.count.sum()) - work.trees
  return measure.seconds(lambda: jax.block_until_ready(search()), reps), nodes, float(result.length.sum()) / nodes


def roofline(cfg: LMConfig, work: Work, nodes: int, length: float, flops: float, bandwidth: float) -> float:
  """New nodes a second if prompts ran at the matmul rate and each token step at the slower of its FLOPs and its bytes.

  Args:
    length: tokens of a node.
  """
  rows, layers = work.trees * work.siblings, measure.matmul_flops(cfg)
  head = min(work.step / length, 1) * cfg.vocab_size * cfg.d_model
  cached = 2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * work.trees * work.prompt
  read = jnp.dtype(cfg.compute_dtype).itemsize * (layers / 2 + head + cached)
  step = max(read / bandwidth, rows * (layers + 2 * head) / flops)
  return nodes / (work.trees * work.prompt * layers / flops + nodes * length / rows * step)


class Node:
  """A step of the peer's tree."""

  def __init__(self, ids: list[int], parent: Node | None):
    self.ids, self.parent = ids, parent
    self.children: list[Node] = []
    self.visits, self.total = 0, 0.0

  def path(self) -> list[int]:
    return (self.parent.path() if self.parent else []) + self.ids

  def depth(self) -> int:
    return self.parent.depth() + 1 if self.parent else 0

  def uct(self) -> float:
    if not self.visits:
      return math.inf
    return self.total / self.visits + 1.4 * math.sqrt(math.log(self.parent.visits) / self.visits)


def peer(cfg: LMConfig, work: Work, together: bool) -> tuple[float, int]:
  """Seconds of the peer's search after one call that warms up, and its new nodes."""
  import torch
  lm = measure.hugging_face(cfg)

  @torch.no_grad()
  def generate(path, n):
    ids = torch.tensor([path])
    out = lm.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0,
                      max_new_tokens=work.step, min_new_tokens=work.step, num_return_sequences=n, pad_token_id=0)
    return [row[len(path):].tolist() for row in out]

  def search():
    draw, made = random.Random(0), 0
    for _ in range(work.trees):
      root = Node([draw.randrange(4, 500) for _ in range(work.prompt)], None)
      for _ in range(work.rollouts):
        node = root
        while node.children:
          node = max(node.children, key=Node.uct)
        if node.depth() < work.depth:
          k = work.siblings
          texts = generate(node.path(), k) if together else [generate(node.path(), 1)[0] for _ in range(k)]
          node.children = [Node(ids, node) for ids in texts]
          made += len(texts)
          node = draw.choice(node.children)
        value = sum(node.ids) % 97 / 97  # stands in for the expert's verdict
        while node is not None:
          node.visits, node.total, node = node.visits + 1, node.total + value, node.parent
    return made

  generate([5] * work.prompt, work.siblings)
  begun = time.perf_counter()
  made = search()
  return time.perf_counter() - begun, made


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--shape', choices=(*measure.SHAPES, 'peer'), default='peer', help='peer: 4 layers of width 256')
  parser.add_argument('--compute_dtype', choices=['float32', 'bfloat16'], default='float32')
  parser.add_argument('--vocab', type=int, help='words of both decoders; the shape says otherwise')
  parser.add_argument('--trees', type=int, default=4)
  parser.add_argument('--rollouts', type=int, default=16)
  parser.add_argument('--siblings', type=int, default=4)
  parser.add_argument('--prompt', type=int, default=512)
  parser.add_argument('--step', type=int, default=32)
  parser.add_argument('--depth', type=int, default=6)
  parser.add_argument('--reps', type=int, default=3)
  parser.add_argument('--no_peer', action='store_true')
  parser.add_argument('--no_growth', action='store_true', help='leave out the search beside itself')
  a = parser.parse_args()
  if not a.no_peer:
    measure.check_peer(parser, a.compute_dtype)
  cfg = dataclasses.replace(SHAPE if a.shape == 'peer' else measure.SHAPES[a.shape], compute_dtype=a.compute_dtype)
  cfg = dataclasses.replace(cfg, vocab_size=a.vocab or cfg.vocab_size)
  work = Work(a.trees, a.rollouts, a.siblings, a.prompt, a.step, a.depth)
  name = (f'search {a.trees} trees x {a.rollouts} rollouts x {a.siblings} siblings x {a.step} tokens, depth {a.depth}, '
          f'{cfg.vocab_size} words')
  flops, bandwidth, source = measure.peaks(cfg.compute_dtype)
  seconds, nodes, length = ours(cfg, work, a.reps)
  rate, more = nodes / seconds, {'new_nodes': nodes, 'tokens_a_node': length}
  most = roofline(cfg, work, nodes, length, flops, bandwidth)
  peak = {'peak_tflops': flops / 1e12, 'peak_gb_s': bandwidth / 1e9, 'peak': source}
  if a.no_peer:
    measure.report(name, 'new nodes/s', rate, None, None, most, **more, **peak)
  else:
    for together, how in ((True, 'siblings in one call'), (False, 'sibling by sibling')):
      elapsed, made = peer(cfg, work, together)
      peers = f'Python objects, generate, {how}'
      measure.report(name, 'new nodes/s', rate, made / elapsed, peers, most, **more, **peak)
  if not a.no_growth:
    for change, what in (({'step': 2 * a.step}, 'steps of twice the length'), ({'depth': 2}, 'paths of up to 2 steps')):
      other_seconds, other_nodes, other_length = ours(cfg, dataclasses.replace(work, **change), a.reps)
      measure.report(f'{name}: a node', 's', seconds / nodes, other_seconds / other_nodes, f'ours with {what}',
                     1 / most, new_nodes=[nodes, other_nodes], tokens_a_node=[length, other_length], **peak)


if __name__ == '__main__':
  main()
