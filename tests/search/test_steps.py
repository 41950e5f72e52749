"""The search over a tiny random policy: format, keys and values, rewards, random keys, compilation."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.forward import forward_shared
from eagrl_jax.lm.logprobs import logits
from eagrl_jax.lm.model import init
from eagrl_jax.search import grammar as g
from eagrl_jax.search import steps
from eagrl_jax.search.decode import StepConfig, choose
from eagrl_jax.search.mcts import SearchConfig
from eagrl_jax.types import EagrlError, PromptBatch

SEARCH = SearchConfig(n_rollouts=4, n_candidates=3, max_depth=2)
STEP = StepConfig(alpha=.3, salience_weight=.7)
STATIC = ('cfg', 'terminal_reward', 'config', 'step_config')
grow = jax.jit(steps.grow, static_argnames=STATIC)


def terminal_reward(prob, named, args):
  """Likelihood of the label plus a tenth for each listed feature of even id."""
  even = jnp.sum((named >= 0) & (named % 2 == 0), -1)
  return jnp.where(args['label'][:, None] == 1, prob, 1 - prob) + .1 * even


def make_prompt(rng, vocab, example, slots=11):
  n = len(example)
  length = rng.integers(4, slots + 1, n)
  length[0] = slots
  valid = np.arange(slots)[None, :] >= slots - length[:, None]
  tokens = np.where(valid, rng.integers(0, vocab, (n, slots)), 0).astype(np.int32)
  return PromptBatch(tokens, valid, np.full((n, slots), -1, np.int32), np.array(example, np.int32))


def search_toy(kind, toy):
  """One finished search with everything that its nodes keep."""
  grammar = toy.compiled(kind, max_depth=2, max_features=3, question_tokens=5, answer_tokens=7)
  cfg = LMConfig(vocab_size=grammar.stop.shape[0], d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48)
  # Loud layers over quiet embeddings: a policy whose next token depends on everything that it has read.
  start = init(cfg, jax.random.key(0))
  layers = {name: (30 if name in ('wo', 'w_down') else 1.5) * x for name, x in start['layers'].items()}
  params = start | {'embed': start['embed'] / 3, 'final_norm': 3 * start['final_norm'], 'layers': layers}
  rng = np.random.default_rng(0)
  prompt = make_prompt(rng, cfg.vocab_size, [4, 9, 2])
  salience = rng.dirichlet(np.ones(len(toy.NAMES)), 3).astype(np.float32)
  args = {'label': np.array([1, 0, 1], np.float32)}
  call = functools.partial(grow, params, cfg, grammar, terminal_reward=terminal_reward, config=SEARCH, step_config=STEP,
                           key=jax.random.key(5))
  tree, nodes = call(prompt=prompt, salience=salience, terminal_args=args)
  return types.SimpleNamespace(
      tok=toy.tokenizer(kind), grammar=grammar, cfg=cfg, params=params, prompt=prompt, salience=salience, args=args,
      call=call, tree=jax.tree.map(np.asarray, tree), nodes=jax.tree.map(np.asarray, nodes), toy=toy)


@pytest.fixture(scope='module')
def tiny_grown(toy):
  return search_toy('tiny', toy)


@pytest.fixture(scope='module')
def qwen_grown(toy):
  return search_toy('qwen', toy)


@pytest.fixture(scope='module', params=['tiny', 'qwen'])
def grown(request):
  return request.getfixturevalue(f'{request.param}_grown')


def each_node(run):
  """(tree, node, own tokens, tokens of the path up to and including the node)."""
  for b in range(len(run.tree.count)):
    for m in range(1, run.tree.count[b]):
      path, at = [], m
      while at > 0:
        path.insert(0, run.nodes.tokens[b, at, :run.nodes.length[b, at]])
        at = run.tree.parent[b, at]
      yield b, m, list(path[-1]), list(np.concatenate(path))


def test_every_node_is_a_step_of_the_format(grown):
  ends = 0
  for b, m, tokens, _ in each_node(grown):
    depth, text = grown.tree.depth[b, m], grown.tok.decode(tokens)
    if grown.tree.terminal[b, m]:
      ends += 1
      assert depth > 1 and tokens[-1] == grown.tok.eos_id
      match = re.fullmatch(
          rf'<Final subquestion> {re.escape(grown.toy.FINAL)} </Final subquestion>\n<Important Features> (.+) '
          r'</Important Features>\n<Final answer> (0\.\d\d) </Final answer>', grown.tok.decode(tokens[:-1]))
      ids = [grown.toy.NAMES.index(n) for n in match[1].split(', ')]
      np.testing.assert_array_equal(grown.nodes.named[b, m], (ids + [-1] * 3)[:3])
      np.testing.assert_allclose(grown.nodes.prob[b, m], float(match[2]), atol=1e-6)
    else:
      assert re.fullmatch(rf'<Subquestion {depth}> \S.*? ?</Subquestion {depth}>\n<Answer {depth}> \S.*? ?'
                          rf'</Answer {depth}>\n', text), text
      assert depth <= SEARCH.max_depth and grown.nodes.prob[b, m] == -1 and np.all(grown.nodes.named[b, m] == -1)
  assert ends >= 3
  np.testing.assert_array_equal(grown.tree.visits[:, 0], SEARCH.n_rollouts)
  assert np.unique(grown.nodes.tokens[:, 1:4], axis=1).shape[1] == 3  # siblings differ


@pytest.fixture(scope='module')
def full_forward(grown):
  """States of a plain forward pass over prompt + path, for every node: `{(b, m): [tokens + 1, D]}`."""
  forward = jax.jit(forward_shared, static_argnames='cfg')
  found = list(each_node(grown))
  width = max(len(path) for *_, path in found) + 1  # one more column: the state after the last token
  states = {}
  for b in range(len(grown.tree.count)):
    mine = [(m, path) for tree, m, _, path in found if tree == b]
    answers = np.zeros((1, SEARCH.n_nodes, width), np.int32)
    for i, (_, path) in enumerate(mine):
      answers[0, i, :len(path)] = path
    out = forward(grown.params, cfg=grown.cfg, prompt_tokens=grown.prompt.tokens[b:b + 1],
                  prompt_valid=grown.prompt.valid[b:b + 1], answer_tokens=answers,
                  answer_valid=np.ones_like(answers, bool))
    states |= {(b, m): np.asarray(out.hidden[0, i, :len(path) + 1]) for i, (m, path) in enumerate(mine)}
  return states


def test_tree_keys_equal_a_full_forward(grown, full_forward):
  head = functools.partial(logits, grown.params, grown.cfg)
  assert len(full_forward) == grown.tree.count.sum() - 3
  nodes = list(full_forward)
  stored = head(np.stack([grown.nodes.hidden[n] for n in nodes]))
  plain = head(np.stack([full_forward[n][-1] for n in nodes]))
  assert float(jnp.std(plain)) > .5
  np.testing.assert_allclose(stored, plain, atol=1e-4)


def find_run(tokens, run):
  return next(i for i in range(len(tokens)) if tokens[i:i + len(run)] == run)


def test_rewards_recomputed_on_the_host(grown, full_forward):
  forward = jax.jit(forward_shared, static_argnames='cfg')
  useful = list(np.asarray(grown.grammar.useful))
  said = 0
  for b, m, tokens, path in each_node(grown):
    if grown.tree.terminal[b, m]:
      named = [n for n in grown.nodes.named[b, m] if n >= 0]
      p = grown.nodes.prob[b, m]
      expected = (p if grown.args['label'][b] else 1 - p) + .1 * sum(n % 2 == 0 for n in named)
      np.testing.assert_allclose(grown.tree.reward[b, m], expected, atol=1e-6)
      continue
    i = grown.tree.depth[b, m]
    line, opening, closing = (grown.tok.encode(t) for t in (
        f' </Subquestion {i}>\n', f'<Answer {i}>', f' </Answer {i}>\n'))
    asked = find_run(tokens, line) + len(line)
    first, last = asked + len(opening), len(tokens) - len(closing)
    assert tokens[asked:first] == opening and tokens[last:] == closing
    scores = jax.nn.log_softmax(logits(grown.params, grown.cfg, full_forward[b, m]))
    before = len(path) - len(tokens)
    free = [t for t in range(first, last) if tokens[t] != closing[0]]
    confidence = np.exp(np.mean([scores[before + t, tokens[t]] for t in free]))
    np.testing.assert_allclose(grown.nodes.confidence[b, m], confidence, rtol=1e-3)

    question = np.array(path[:before + asked] + useful + [0], np.int32)[None, None]
    question = np.pad(question, ((0, 0), (0, 0), (0, 256 - question.shape[2])))  # one shape, one compile
    out = forward(grown.params, cfg=grown.cfg, prompt_tokens=grown.prompt.tokens[b:b + 1],
                  prompt_valid=grown.prompt.valid[b:b + 1], answer_tokens=question,
                  answer_valid=np.ones_like(question, bool))
    x = np.asarray(logits(grown.params, grown.cfg, out.hidden[0, 0, before + asked + len(useful)]), np.float64)
    yes, no = np.exp(x[grown.grammar.yes]), np.exp(x[grown.grammar.no])
    np.testing.assert_allclose(grown.nodes.useful[b, m], yes / (yes + no), atol=1e-4)

    mass = grown.salience[b][grown.nodes.mentioned[b, m]].sum()
    said += mass > 0
    expected = .3 * yes / (yes + no) + .7 * (.7 * mass + .3 * confidence)
    np.testing.assert_allclose(grown.tree.reward[b, m], expected, atol=1e-3)
  assert said > 0 or grown.tok is grown.toy.tokenizer('qwen')  # whole-name tokens are drawn now and then


def test_second_batch_compiles_nothing_and_patients_are_independent(tiny_grown):
  """The second batch holds one patient of the first in another row, among strangers."""
  first, rng = tiny_grown, np.random.default_rng(1)
  run = functools.partial(steps.run, first.params, first.cfg, first.grammar, terminal_reward=terminal_reward,
                          config=SEARCH, step_config=STEP)
  out = run(prompt=first.prompt, salience=first.salience, terminal_args=first.args, key=jax.random.key(5))
  np.testing.assert_array_equal(out.tokens, first.nodes.tokens)
  size = steps.run._cache_size()
  strangers = make_prompt(rng, first.cfg.vocab_size, [1, 0, 8])
  prompt = jax.tree.map(lambda x, y: np.concatenate([x[:2], y[1:2]]), strangers, first.prompt)
  salience = np.concatenate([first.salience[:2], first.salience[1:2]])
  other = run(prompt=prompt, salience=salience, terminal_args={'label': np.array([0, 1, 0], np.float32)},
              key=jax.random.key(5))
  assert steps.run._cache_size() == size
  np.testing.assert_array_equal(other.tokens[2], first.nodes.tokens[1])
  np.testing.assert_array_equal(other.tree.visits[2], first.tree.visits[1])
  np.testing.assert_allclose(other.tree.reward[2], first.tree.reward[1], atol=1e-4)
  assert not np.array_equal(other.tokens[0], first.nodes.tokens[0])
  moved = run(prompt=first.prompt, salience=first.salience, terminal_args=first.args, key=jax.random.key(6))
  assert not np.array_equal(moved.tokens, out.tokens)


def test_depths_must_agree(tiny_grown):
  grown = tiny_grown
  with pytest.raises(EagrlError, match='max_depth=3'):
    steps.run(grown.params, grown.cfg, grown.grammar, grown.prompt, grown.salience, terminal_reward, grown.args,
              jax.random.key(0), SearchConfig(max_depth=3), STEP)


def test_choices_follow_the_policy_at_the_segments_temperature(toy):
  """With the identity as embedding the hidden state is the logits; a grid of uniforms gives frequencies."""
  grammar, tok = toy.compiled('gpt2'), toy.tokenizer('gpt2')
  v, n = grammar.stop.shape[0], 500
  cfg = LMConfig(vocab_size=v, d_model=v, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=2, d_ff=4)
  row = np.random.default_rng(0).normal(size=v).astype(np.float32)
  draw = jax.jit(functools.partial(choose, {'embed': jnp.eye(v)}, cfg, grammar, StepConfig()))
  grid = (jnp.arange(n) + .5) / n
  hidden = jnp.broadcast_to(jnp.asarray(row), (n, v))
  step = jax.jit(g.step)

  state = g.start(grammar, jnp.ones(n, jnp.int32))  # '<' is forced; then another sub-question or the final one
  state, token = step(grammar, state, draw(state, hidden, grid)[0])
  assert set(np.asarray(token)) == {tok.encode('<')[0]}
  options = {tok.encode(text)[1] for text in ('<Subquestion 2>', '<Final subquestion>')}
  token, logp = draw(state, hidden, grid)
  weight = {t: np.exp(row[t] / 1.2) for t in options}
  for t in options:
    np.testing.assert_allclose(np.mean(np.asarray(token) == t), weight[t] / sum(weight.values()), atol=2 / n)
  np.testing.assert_allclose(logp, row[np.asarray(token)] - np.log(np.exp(row).sum()), atol=1e-4)

  state = g.start(grammar, jnp.zeros(n, jnp.int32))
  while int(grammar.kind[state.at[0]]) == g.EDGE:
    state, _ = step(grammar, state, draw(state, hidden, grid)[0])
  token, _ = draw(state, hidden, grid)
  weight = np.where(grammar.opens, np.exp(row / 1.2), 0)
  order = np.argsort(-weight)
  nucleus = order[:np.searchsorted(np.cumsum(weight[order]) / weight.sum(), .8) + 1][:64]
  share = np.bincount(np.asarray(token), minlength=v) / n
  np.testing.assert_allclose(share[nucleus], weight[nucleus] / weight[nucleus].sum(), atol=2 / n)


@pytest.mark.parametrize('bad', [{'question_temperature': 0.}, {'top_p': 0.}, {'alpha': 1.5}])
def test_bad_config_names_the_field(bad):
  with pytest.raises(EagrlError, match=f'search.{next(iter(bad))}'):
    StepConfig(**bad)
