"""The automaton against the tokenizer: it accepts what the tokenizer writes, and writes only the format."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from eagrl_jax.lm.tokenizer import Tokenizer
from eagrl_jax.search import grammar as g
from eagrl_jax.search import mentions
from eagrl_jax.search.grammar_compiler import GrammarConfig, compile_grammar
from eagrl_jax.types import EagrlError

KINDS = ('tiny', 'gpt2', 'qwen', 'llama2')
INNER = r'<Subquestion {i}> \S.*? ?</Subquestion {i}>\n<Answer {i}> \S.*? ?</Answer {i}>\n'
LAST = (r'<Final subquestion> (.+) </Final subquestion>\n<Important Features> (.+) </Important Features>\n'
        r'<Final answer> (0\.\d\d) </Final answer>')


allowed, step = jax.jit(g.allowed), jax.jit(g.step)


def states(grammar, depths):
  return g.start(grammar, jnp.asarray(depths))


@pytest.mark.parametrize('kind', KINDS)
def test_accepts_the_tokenizers_own_tokens(toy, kind):
  grammar, tok = toy.compiled(kind), toy.tokenizer(kind)
  tokens = [*tok.encode(toy.ANSWER, continues=True), tok.eos_id]
  depth, state = 0, states(grammar, [0])
  for token in tokens:
    if int(state.at[0]) == g.DONE:
      depth += 1
      state = states(grammar, [depth])
    options = allowed(grammar, state)
    assert bool(options.text[0]) or token in np.asarray(options.token[0])[np.asarray(options.mask[0])], tok.piece(token)
    state, written = step(grammar, state, jnp.array([token]))
    assert int(written[0]) == token
  assert depth == 2 and int(state.at[0]) == g.DONE
  np.testing.assert_array_equal(state.names[0], [0, 6, 7, -1])
  np.testing.assert_allclose(state.prob, [.75])


def test_sentencepiece_puts_a_space_before_a_text_and_none_before_what_continues_it(toy):
  tok = toy.tokenizer('llama2')
  assert tok.decode_with_offsets(tok.encode('lactate'))[0] == ' lactate'
  for before, text in (('x\n', 'lactate, pH'), ('Is the', ' lactate out'), ('the', ' '), ('a', '\n<Answer 1>'),
                       ('x', '')):
    ids, offsets = tok.encode_with_offsets(text, continues=True)
    assert [*tok.encode(before), *ids] == tok.encode(before + text)
    assert [text[a:b].replace('▁', ' ') for a, b in offsets] == [tok.piece(i) for i in ids]


def test_what_continues_a_text_is_found_behind_any_text_that_the_tokenizer_leaves_apart(toy):
  tok, text = toy.tokenizer('llama2'), 'lactate, pH'
  ids = tok.encode(text, continues=True)
  # Behind a special token this tokenizer puts a space, which an answer has nowhere.
  assert tok.decode_with_offsets(tok.encode('<eos>' + text)[1:])[0] == ' ' + text != tok.decode_with_offsets(ids)[0]

  def with_special(*tokens):
    fast = tokenizers.Tokenizer.from_str(tok._fast.to_str())
    fast.add_special_tokens([tokenizers.AddedToken(t, normalized=False) for t in tokens])
    return Tokenizer(fast, '<eos>')

  for apart in (('\n',), ('\n', '.')):
    assert with_special(*apart).encode(text, continues=True) == ids
  with pytest.raises(EagrlError, match='merges the beginning of an answer') as error:
    with_special('\n', '.', '1').encode(text, continues=True)
  assert 'lactate' not in str(error.value)


def walk(grammar, depths, seed, stop_rate):
  """Random allowed tokens until every row is done; `-> (token lists, final state)`."""
  rng = np.random.default_rng(seed)
  state, out = states(grammar, depths), [[] for _ in depths]
  stop, opens = np.asarray(grammar.stop), np.asarray(grammar.opens)
  for _ in range(grammar.step_tokens):
    live, options = np.asarray(state.at) != g.DONE, jax.tree.map(np.asarray, allowed(grammar, state))
    token = np.zeros(len(depths), np.int32)
    for r in np.flatnonzero(live):
      if options.text[r]:
        pool = opens if options.first[r] else stop if rng.uniform() < stop_rate else ~stop
        token[r] = rng.choice(np.flatnonzero(pool))
      else:
        token[r] = rng.choice(options.token[r][options.mask[r]])
    state, written = step(grammar, state, jnp.asarray(token))
    for r in np.flatnonzero(live):
      out[r].append(int(written[r]))
  assert np.all(np.asarray(state.at) == g.DONE)
  return out, state


@pytest.mark.parametrize('kind', KINDS)
def test_random_walks_keep_the_format(toy, kind):
  grammar, tok = toy.compiled(kind, question_tokens=6, answer_tokens=8), toy.tokenizer(kind)
  depths = [0] * 12 + [1] * 20 + [3] * 32
  rows, state = walk(grammar, depths, 0, .2)
  finals, counts = 0, set()
  for r, (depth, tokens) in enumerate(zip(depths, rows)):
    text = tok.decode(tokens)
    last = text.startswith('<Final')
    assert last or (depth < 3 and re.fullmatch(INNER.format(i=depth + 1), text)), text
    assert not (last and depth == 0)
    assert (float(state.prob[r]) >= 0) == last
    if last:
      finals += 1
      assert tokens.pop() == tok.eos_id
      text = tok.decode(tokens)
      question, names, number = re.fullmatch(LAST, text).groups()
      assert question == toy.FINAL
      assert tokens == tok.encode(text, continues=True)
      listed = [toy.NAMES.index(n) for n in names.split(', ')]
      assert 1 <= len(listed) <= 4 and len(set(listed)) == len(listed)
      np.testing.assert_array_equal(state.names[r], listed + [-1] * (4 - len(listed)))
      np.testing.assert_allclose(state.prob[r], float(number), atol=1e-6)
      counts.add(len(listed))
  assert 32 < finals < 52 and counts == {1, 2, 3, 4}  # depth 1 chose both ways


@pytest.mark.parametrize('kind', KINDS)
def test_a_text_ends_at_its_budget(toy, kind):
  grammar, tok = toy.compiled(kind, question_tokens=6, answer_tokens=8), toy.tokenizer(kind)
  rows, _ = walk(grammar, [0] * 8, 1, 0.)
  tags = '<Subquestion 1>', ' </Subquestion 1>\n', '<Answer 1>', ' </Answer 1>\n'
  fixed = sum(len(tok.encode(t, continues=True)) for t in tags)
  assert {len(tokens) for tokens in rows} <= {fixed + 14, fixed + 13, fixed + 12}
  assert max(map(len, rows)) == fixed + 14


def test_all_names_can_be_listed_when_the_list_is_long(toy):
  grammar, tok = toy.compiled('gpt2', max_features=20), toy.tokenizer('gpt2')
  state = states(grammar, [3])
  close = tok.encode(' </')[0]
  text = []
  while int(state.at[0]) != g.DONE:
    options = jax.tree.map(np.asarray, allowed(grammar, state))
    choices = options.token[0][options.mask[0]]
    token = next((t for t in choices if t != close), close)  # go on as long as possible
    state, written = step(grammar, state, jnp.array([token]))
    text.append(int(written[0]))
  assert sorted(np.asarray(state.names[0])[:10]) == list(range(10))
  assert np.all(np.asarray(state.names[0])[10:] == -1)
  assert len(text) <= grammar.step_tokens


def test_no_free_text_holds_a_token_that_ends_an_answer(toy):
  tok = toy.tokenizer('gpt2')
  word = tok.encode(' lactate')[0]  # one that would pass for text
  ends = Tokenizer(tok._fast, '<eos>', stop_ids=[word])
  config = GrammarConfig('Now?', max_depth=1)
  masks = [compile_grammar(words, ('lactate',), words.vocab_size, config).stop for words in (tok, ends)]
  assert np.flatnonzero(masks[0] != masks[1]).tolist() == [word] and masks[1][word]


def test_done_stays_done(toy):
  grammar = toy.compiled('tiny')
  state = states(grammar, [0]).replace(at=jnp.array([g.DONE]))
  after, _ = step(grammar, state, jnp.array([5]))
  jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.parametrize('names', [('a,b',), ('a', ''), ('x<y',), ('same', 'same')])
def test_bad_names(toy, names):
  with pytest.raises(EagrlError, match='features'):
    compile_grammar(toy.tokenizer('gpt2'), names, 420, GrammarConfig(toy.FINAL))


@pytest.mark.parametrize(('change', 'field'), [
    ({'max_features': 0}, 'reward.top_k=0'), ({'answer_tokens': 0}, 'search.answer_tokens=0'),
    ({'final_question': 'a\nb'}, 'GrammarConfig.final_question')])
def test_bad_config_names_the_field(change, field):
  with pytest.raises(EagrlError, match=field):
    GrammarConfig(**{'final_question': 'Why?', **change})


def mentioned(toy, text):
  """Names in a text by regular expression, longest first, whole words only."""
  found = set()
  for i in sorted(range(len(toy.NAMES)), key=lambda i: -len(toy.NAMES[i])):
    for spelling in {toy.NAMES[i], toy.NAMES[i].lower(), toy.NAMES[i][0].upper() + toy.NAMES[i][1:]}:
      left = r'(?<![^\W_])'
      right = r'(?![^\W_])'
      pattern = left + re.escape(spelling) + right
      if re.search(pattern, text):
        found.add(i)
        text = re.sub(pattern, '#', text)
  return found


@pytest.mark.parametrize('kind', KINDS)
def test_mentions(toy, kind):
  tok, grammar = toy.tokenizer(kind), toy.compiled(kind)
  rng = np.random.default_rng(2)
  words = [*toy.NAMES, *(n.lower() for n in toy.NAMES), 'Bilirubin', 'Urine output', 'value', 'urine', 'direct', 'PH',
           'phone', 'lactates', 'mean corpuscular', 'output', 'concentration', '3.8']
  texts = ['lactate', 'Lactate is high', ' direct bilirubin', ' bilirubin direct bilirubin', 'The', '']
  texts += [' '.join(rng.choice(words, 4)) + rng.choice(['', ',', '.', '?']) + ' then' for _ in range(40)]
  rows = [tok.encode(t, continues=True) for t in texts]
  width = max(map(len, rows)) + 2
  tokens = np.array([r + tok.encode(' pH', continues=True)[:1] * (width - len(r)) for r in rows])  # padding is not read
  found = mentions.find(grammar.mentions, jnp.asarray(tokens), jnp.array([len(r) for r in rows]))
  for text, row in zip(texts, np.asarray(found)):
    assert set(np.flatnonzero(row)) == mentioned(toy, text), text
