"""Ways to get a probability out of a policy: what each computes, what it may see, what it costs."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagrl_jax.lm import forward, logprobs
from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import checks, digits, inference, pipeline, policy, trees
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import expert as expert_stage
from eagrl_jax.stages.context import Context
from eagrl_jax.types import EagrlError


@pytest.fixture(scope='module')
def asked(finished, micro_config):
  """Context, data, policy and encoder of the finished run, on its mesh: what it compiled is not compiled again."""
  config = micro_config()
  context = Context(config, finished, make_mesh())
  data = data_lib.load(context)
  trained = policy.load(finished / 'sft', context.mesh)
  with jax.set_mesh(context.mesh):
    yield context, data, trained, data_lib.encoder(context, data, trained.tokenizer)


def test_all_ways_are_arms_with_their_cost_and_paired_to_the_expert(finished, micro_config, tmp_path):
  workdir = tmp_path / 'w'
  shutil.copytree(finished, workdir)
  config = micro_config()
  config.evaluate.inference = ('samples', 'greedy', 'digits', 'search')
  pipeline.run(config, workdir)
  result, before = (json.loads((w / 'evaluate/metrics.json').read_text()) for w in (workdir, finished))
  ways = [f'{name}_{kind}' for name in ('base', 'rl') for kind in ('greedy', 'digits', 'search')]
  assert set(result['arms']) == {*before['arms'], *ways}
  for name in ('base', 'sft', 'rl', *ways):
    cost = result['arms'][name]['cost']
    assert cost['seconds'] > 0 and cost['new_tokens'] > 0
  for name in ('base', 'sft', 'rl', 'expert', 'boosting'):  # what stood there stands there as it was
    assert result['arms'][name]['auroc'] == before['arms'][name]['auroc']
  pairs = {(row['a'], row['b']) for row in result['paired']}
  assert pairs >= {(way, other) for way in ways for other in (way.split('_')[0], 'expert')}
  expected, greedy = result['arms']['rl_digits'], result['arms']['rl_greedy']
  assert 0 < expected['number_mass'] <= 1 and 0 <= expected['forced_rate'] <= 1 and expected['parse_rate'] == 1
  assert expected['cost']['seconds'] > greedy['cost']['seconds']
  assert greedy['cost']['new_tokens'] <= config.evaluate.max_new
  assert result['arms']['rl']['cost']['new_tokens'] <= config.evaluate.samples * config.evaluate.max_new
  assert 'rl_search' in (workdir / 'report.html').read_text()


def test_numbers_have_the_probability_of_their_tokens(asked):
  """Against one plain forward pass of the whole text for each token of each number."""
  _, data, trained, encoder = asked
  prompts = [encoder.tokens(int(row))[0] for row in data.splits.test[:2]]
  width = max(map(len, prompts)) + 3  # room for what stands before a number's last token
  tokens, valid = np.zeros((2, width), np.int32), np.zeros((2, width), bool)
  for i, ids in enumerate(prompts):
    tokens[i, width - len(ids):], valid[i, width - len(ids):] = ids, True
  got = digits.number_logprobs(trained.params, trained.config, tokens, valid,
                                  *digits.number_tokens(trained.tokenizer))

  @jax.jit
  def after(tokens, valid):
    hidden, _ = forward.prefill(trained.params, trained.config, tokens, valid)
    return jax.nn.log_softmax(logprobs.logits(trained.params, trained.config, hidden))

  for i in (0, 9, 34, 98):
    ids, total = trained.tokenizer.encode(f' 0.{i + 1:02d}'), np.zeros(2)
    for j, token in enumerate(ids):
      longer = np.concatenate([tokens[:, j:], np.tile(np.array(ids[:j], np.int32), (2, 1))], 1)
      real = np.concatenate([valid[:, j:], np.ones((2, j), bool)], 1)
      total += np.asarray(after(jnp.asarray(longer), jnp.asarray(real)))[:, token]
    np.testing.assert_allclose(got[:, i], total, atol=1e-4)
  assert np.exp(np.asarray(got)).sum(1).max() <= 1 + 1e-5


@dataclasses.dataclass
class Words:
  """A tokenizer of whole pieces, as some checkpoints have them for numbers."""

  pieces: list
  stop_ids: tuple[int, ...] = (0, 4)

  def encode(self, text, *, continues=False):
    assert continues, "what is written stands behind a prompt"
    return [self.pieces.index(text)] if text in self.pieces else [self.pieces.index(c) for c in text]

  def decode_with_offsets(self, ids):
    pieces = [self.pieces[i] for i in ids]
    ends = np.cumsum([len(p) for p in pieces], dtype=int)
    return ''.join(pieces), np.stack([ends - [len(p) for p in pieces], ends], 1)


def test_numbers_of_one_token_have_no_beginning():
  words = Words([f' {x:.2f}' for x in digits.VALUES])
  parents, parent, last = digits.number_tokens(words)
  assert parents.tolist() == [[-1]] and set(parent) == {0} and last.tolist() == list(range(99))


def test_a_numbers_place_is_behind_the_last_tag():
  words = Words(['<eos>', '<Final answer>', '<Final answer', '> 0', '<turn>', 'x', *'\n<Final answer>'])
  encode = lambda text: [words.pieces.index(c) for c in text]
  assert digits.up_to_number(words, [5, 1, 5, 1, 5, 0]) == ([5, 1, 5, 1], False)
  assert digits.up_to_number(words, [5, 2, 3, 5, 4]) == ([5, 2, *encode('>')], False)  # a token that spans the end
  for end in words.stop_ids:
    assert digits.up_to_number(words, [5, 5, end]) == ([5, 5, *encode('\n<Final answer>')], True)


def test_the_expected_number_is_weighted_by_its_probability(asked, monkeypatch):
  context, data, trained, encoder = asked
  rows = data.splits.test[:3]
  mass = np.zeros((3, 99))
  mass[0, [29, 49]], mass[1, 89], mass[2] = 0.1, 0.5, 1 / 198
  monkeypatch.setattr(digits, 'number_logprobs', lambda *_: np.log(np.maximum(mass, 1e-30)))
  written = inference.Arm(np.zeros(3), np.zeros(3), np.ones(3), [[], [1], []], np.zeros((3, 20)), ['', '', ''],
                          {'seconds': 1.0, 'new_tokens': 7.0, 'with_compilation': False}, [[5], [5], [5]])
  arm = inference.digits(context, 'x', encoder, trained, rows, written)
  np.testing.assert_allclose(arm.prob, [0.4, 0.9, 0.5], atol=1e-9)
  assert arm.extra == {'number_mass': pytest.approx((0.2 + 0.5 + 0.5) / 3), 'forced_rate': 1.0}
  assert arm.parsed.all() and not arm.refused.any() and arm.named == written.named
  assert arm.cost['seconds'] > 1 and arm.cost['new_tokens'] == 7


def test_greedy_answers_do_not_depend_on_the_seed(asked):
  context, data, trained, encoder = asked
  config = context.config.copy_and_resolve_references()
  config.seed = 7
  other = dataclasses.replace(context, config=config)
  rows = data.splits.test[:16]  # a shape that is compiled already
  one, two = (inference.answer(c, 'x', encoder, trained, rows, 0.3, greedy=True) for c in (context, other))
  drawn = [inference.answer(c, 'x', encoder, trained, rows, 0.3) for c in (context, other)]
  assert one.text == two.text and drawn[0].text != drawn[1].text


def test_a_search_at_test_time_follows_the_expert_and_never_the_outcome(asked):
  context, data, trained, encoder = asked
  rows = data.splits.test[:6]
  salience = expert_stage.load_salience(context)
  level = lambda p: np.full(len(data.cohort), p)
  find = lambda encoder, prob: inference.search(context, 'x', encoder, trained, rows, prob, salience)
  turned = dataclasses.replace(encoder, cohort=dataclasses.replace(data.cohort, label=1 - data.cohort.label))
  low, same, high = find(encoder, level(0.05)), find(turned, level(0.05)), find(encoder, level(0.95))
  assert np.array_equal(low.prob, same.prob) and low.text == same.text
  assert low.prob.mean() < high.prob.mean()
  assert all('<Final answer>' in text for text in low.text) and low.cost['new_tokens'] > 0
  for named, text in zip(low.named, low.text):
    assert all(data.cohort.features.names[f] in text for f in named)


def test_an_interrupted_way_goes_on_from_its_last_batch(asked, tmp_path, monkeypatch):
  """Each of the four, without asking again what was answered, and with the same result bit by bit."""
  context, data, trained, encoder = asked
  rows = data.splits.test[:24]  # two batches, of 16 and 8; four at a time are searched
  goal = np.full(len(data.cohort), 0.3), expert_stage.load_salience(context)
  greedy = inference.answer(context, 'g', encoder, trained, rows, 0.3, greedy=True)
  ways = {
      'samples': lambda kept: inference.answer(context, 'x', encoder, trained, rows, 0.3, kept=kept),
      'greedy': lambda kept: inference.answer(context, 'x', encoder, trained, rows, 0.3, kept=kept, greedy=True),
      'digits': lambda kept: inference.digits(context, 'x', encoder, trained, rows, greedy, kept),
      'search': lambda kept: inference.search(context, 'x', encoder, trained, rows, *goal, kept)}
  asked_again = []
  for owner, name in ((inference, 'sample'), (digits, 'number_logprobs'), (trees, 'grow')):
    real = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, real=real: asked_again.append(1) or real(*args))
  for way, run in ways.items():
    undisturbed, kept = run(None), tmp_path / way
    assert same(undisturbed, run(kept))
    last = max((kept / 'x').iterdir(), key=lambda path: int(path.stem))
    if way == 'search':  # of another version: not understood
      last.write_text(last.read_text().replace('"visits"', '"visited"'))
    else:
      last.unlink()
    asked_again.clear()
    assert same(undisturbed, run(kept)) and len(asked_again) == 1


def same(one, two):
  """Two arms, what was measured of their seconds aside."""
  a, b = ({k: v for k, v in vars(arm).items() if k != 'cost'} for arm in (one, two))
  np.testing.assert_equal(a, b)
  return one.cost['new_tokens'] == two.cost['new_tokens'] and one.attention.dtype == two.attention.dtype


def test_compilation_is_left_out_of_the_seconds_where_it_can_be(monkeypatch):
  now, meter = [0.0], inference.Meter()
  monkeypatch.setattr(inference.time, 'perf_counter', lambda: now[0])

  def batch(shape, seconds, tokens, patients):
    now[0] = seconds
    return inference.Batch(list(range(patients)), **meter(shape, 0.0, tokens))

  done = [batch((4, 128), 9.0, 40, 4)]
  assert inference.cost(done) == {'seconds': 9 / 4, 'new_tokens': 10.0, 'with_compilation': True}
  done.append(batch((4, 128), 2.0, 10, 1))  # one real row of four: the work is that of four
  assert inference.cost(done) == {'seconds': 0.5, 'new_tokens': 10.0, 'with_compilation': False}
  done.append(batch((4, 256), 8.0, 40, 4))
  assert inference.cost(done)['seconds'] == 0.5


@pytest.mark.parametrize(('fields', 'words'), [
    ({'inference': ('samples', 'beam')}, ("evaluate.inference='beam'", 'greedy')),
    ({'inference': ('greedy',)}, ('evaluate.inference', "keep 'samples'")),
    ({'inference_policies': ('rll',)}, ('evaluate.inference_policies', 'sft')),
])
def test_ways_that_do_not_exist_are_refused(micro_config, fields, words):
  config = micro_config()
  config.evaluate.update(fields)
  with pytest.raises(EagrlError) as e:
    checks.check(config)
  assert all(word in str(e.value) for word in words)
