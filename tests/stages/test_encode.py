"""Patients to token batches and sampled answers back to arrays."""

import dataclasses
import types

import numpy as np
import pytest
import tokenizers
from ml_collections import ConfigDict

from eagrl_jax import rng
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.prompt import PromptConfig
from eagrl_jax.ehr.records import to_visits
from eagrl_jax.ehr.sources import synthetic
from eagrl_jax.ehr.sources.synthetic_features import DEFAULT_FEATURES
from eagrl_jax.lm import beginning
from eagrl_jax.lm.tokenizer import Tokenizer, train_tokenizer
from eagrl_jax.mesh import make_mesh
from eagrl_jax.rl.judge import Answers
from eagrl_jax.stages.encode import Encoder, Read, pad_answers, parse_rollout
from eagrl_jax.stages.sft import batches, final_answer
from eagrl_jax.types import EagrlError, Rollout

ANSWER = ('<Final subquestion> Now? </Final subquestion>\n<Important Features> lactate, sodium </Important Features>\n'
          '<Final answer> 0.75 </Final answer>')


@pytest.fixture(scope='module')
def encoder():
  cohort = synthetic.generate(synthetic.SyntheticConfig(n=12, features=DEFAULT_FEATURES), 0)
  visits = to_visits(cohort, 24, 2, 'mean')
  blind = Encoder(cohort, visits, None, PromptConfig(style='compact'), 32)
  texts = [blind.prompt(i).text + ANSWER for i in range(12)]
  tokenizer = train_tokenizer(texts, cohort.features.names, 900)
  return Encoder(cohort, visits, tokenizer, PromptConfig(style='compact'), 32)


TRIMMING = (  # as the chat templates of Llama 3 do
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n\n' }}{% endif %}")


@pytest.mark.parametrize('style', ['compact', 'full'])
def test_a_template_that_trims_its_message_keeps_the_features_tokens(encoder, style):
  plain = dataclasses.replace(encoder, config=PromptConfig(style=style))
  chat = lambda template: Tokenizer(encoder.tokenizer._fast, encoder.tokenizer._eos, template=template)
  trimmed = dataclasses.replace(plain, vocabulary=chat(TRIMMING))
  named = lambda e: [(f, e.tokenizer.decode([i for i, g in zip(*e.tokens(3)) if g == f]).strip())
                     for f in sorted(set(e.tokens(3)[1].tolist()) - {-1})]
  assert named(trimmed) == named(plain) and len(named(plain)) > 5
  with pytest.raises(EagrlError, match='rewrites the prompt'):
    dataclasses.replace(plain, vocabulary=chat('x')).tokens(3)


def test_every_feature_token_lies_in_its_own_line(encoder):
  batch = encoder.batch(np.arange(12), (0, 'x', 1))
  assert batch.tokens.shape[1] % 32 == 0 and batch.valid[:, -1].all()
  for row in range(12):
    text = encoder.prompt(row, rng.host(0, 'x', 1, row).permutation(len(encoder.cohort.features)))
    shown = {f: text.text[a:b] for f, a, b in text.spans}
    assert set(np.unique(batch.feature[row])) - {-1} == set(shown)
    for f, line in shown.items():
      tokens = batch.tokens[row][batch.feature[row] == f]
      assert encoder.tokenizer.decode(tokens.tolist()) == line
    assert encoder.tokenizer.decode(batch.tokens[row][batch.valid[row]].tolist()) == text.text


def test_a_prompt_begins_with_what_its_tokenizer_puts_before_a_text(encoder):
  """Without a chat template; no feature begins earlier for it, and the token counts."""
  fast = tokenizers.Tokenizer.from_str(encoder.tokenizer._fast.to_str())
  beginning.write(fast, '<|pad|>')
  for template, begin in ((None, [encoder.tokenizer.pad_id]), ('{{ messages[0].content }}', [])):
    begun = dataclasses.replace(encoder, vocabulary=Tokenizer(fast, '<|end|>', template=template))
    ids, feature = begun.tokens(3)
    plain, of = encoder.tokens(3)
    assert ids == [*begin, *plain] and feature.tolist() == [-1] * len(begin) + of.tolist()
    long = dataclasses.replace(begun, max_positions=len(plain))
    if begin:
      with pytest.raises(EagrlError, match=f'prompt of {len(plain) + 1}'):
        long.tokens(3)
    else:
      long.tokens(3)


def test_what_the_budget_leaves_out_is_not_shown(encoder):
  rows = np.array([3, 0, 7])
  everything = encoder.shown(rows)
  np.testing.assert_array_equal(everything, (~np.isnan(encoder.visits.values[rows])).any(1))
  short = dataclasses.replace(encoder, config=dataclasses.replace(encoder.config, max_characters=120))
  batch = short.batch(rows)
  some = short.shown(rows)
  assert (some.sum(1) < everything.sum(1)).all() and (some <= everything).all() and some.any(1).all()
  for shown, feature in zip(some, batch.feature):
    assert set(np.flatnonzero(shown)) == set(np.unique(feature)) - {-1}


def test_a_patients_order_depends_on_seed_and_patient_alone(encoder):
  whole = encoder.batch(np.arange(12), (3, 'x', 1))
  alone = encoder.batch(np.array([7]), (3, 'x', 1))
  assert np.array_equal(whole.tokens[7][whole.valid[7]], alone.tokens[0][alone.valid[0]])
  other = encoder.batch(np.array([7]), (4, 'x', 1))
  assert not np.array_equal(other.tokens[0][other.valid[0]], alone.tokens[0][alone.valid[0]])


def test_the_weighted_answer_begins_at_its_tag(encoder):
  t = encoder.tokenizer
  ids = [*t.encode(ANSWER), t.eos_id]
  assert t.decode(ids[final_answer(ids, t):-1]) == '<Final answer> 0.75 </Final answer>'
  plain = t.encode('nothing')
  assert final_answer(plain, t) == len(plain)


def test_the_answer_weighs_more_in_a_batch_of_trajectories(encoder):
  t = encoder.tokenizer
  ids = [*t.encode(ANSWER), t.eos_id]
  plain = t.encode('nothing')
  config = ConfigDict(dict(seed=0, prompt=dict(shuffle_features=False), sft=dict(answer_weight=5.0)))
  context = types.SimpleNamespace(config=config, mesh=make_mesh())
  batch = next(batches(context, encoder, {2: [ids, plain], 7: [ids]}, 2, 0))
  weight = dict(zip(np.asarray(batch.prompt.example).tolist(), np.asarray(batch.loss_mask)))
  begin = final_answer(ids, t)
  for row in (2, 7):
    assert set(weight[row][0, :begin]) == {1} and set(weight[row][0, begin:len(ids)]) == {5}
  assert set(weight[2][1, :len(plain)]) == {1}


def test_a_rollout_is_read_back(encoder):
  t = encoder.tokenizer
  tokens, valid = pad_answers([[[*t.encode(ANSWER), t.eos_id], t.encode('nothing to parse')]], t.pad_id)
  zeros = np.zeros(tokens.shape, np.float32)
  read = parse_rollout(Rollout(tokens, valid, zeros, zeros), t, encoder.cohort, max_named=4)
  names = encoder.cohort.features
  assert read.said.parsed.tolist() == [[True, False]] and read.said.prob[0, 0] == np.float32(0.75)
  assert read.said.named[0, 0].tolist() == [names.find('lactate'), names.find('sodium'), -1, -1]
  assert t.decode(tokens[0, 0][read.said.key_mask[0, 0]].tolist()).strip() == 'lactate, sodium'
  assert t.decode(tokens[0, 0][read.said.align_mask[0, 0]].tolist()).lstrip().startswith('<Important Features>')
  assert not read.said.key_mask[0, 1].any() and not read.said.align_mask[0, 1].any()


def test_answers_in_another_order_are_the_same_probability():
  r = np.random.default_rng(0)
  stated = r.choice(np.arange(100) / 100, (50, 8)).astype(np.float32)
  parsed = r.random(stated.shape) < 0.9
  def read(order):
    said = Answers(stated[:, order], parsed[:, order], None, None, None)
    return Read(said, [], np.zeros(stated.shape, bool)).probability(0.1387)
  first = read(np.arange(8))
  for _ in range(5):
    np.testing.assert_array_equal(read(r.permutation(8)), first)
  want = np.where(parsed, np.round(stated.astype(float), 2), 0.1387).mean(1)
  np.testing.assert_allclose(first, want, atol=1e-6)
  seven = Answers(np.full((1, 8), 0.7, np.float32), np.ones((1, 8), bool), None, None, None)
  assert Read(seven, [], np.zeros((1, 8), bool)).probability(0.1).tolist() == [0.7]


def test_names_that_several_tokens_spell_are_read():
  plain = train_tokenizer(['lactate'], (), 300)
  table = FeatureTable((FeatureSpec('白蛋白'), FeatureSpec('β-hCG')))
  text = '<Important Features> β-hCG, 白蛋白 </Important Features>'
  ids = plain.encode(text)
  assert any('\ufffd' in plain.piece(i) for i in ids)
  tokens, valid = pad_answers([[ids]], plain.pad_id)
  zeros = np.zeros(tokens.shape, np.float32)
  read = parse_rollout(Rollout(tokens, valid, zeros, zeros), plain, types.SimpleNamespace(features=table), max_named=4)
  assert read.text == [[text]] and read.said.named[0, 0].tolist() == [1, 0, -1, -1]
  assert plain.decode(tokens[0, 0][read.said.key_mask[0, 0]].tolist()).strip() == 'β-hCG, 白蛋白'
