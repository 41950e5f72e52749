"""What a run makes of the checkpoint that it starts from."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from eagrl_jax.ehr.records import to_visits
from eagrl_jax.ehr.sources import synthetic
from eagrl_jax.ehr.sources.synthetic_features import DEFAULT_FEATURES
from eagrl_jax.lm import hf_io, model
from eagrl_jax.lm.config import LMConfig, Mistral
from eagrl_jax.lm.tokenizer import Tokenizer, train_tokenizer
from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import base, checks, lengths, pipeline, policy, study
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages.context import Context
from eagrl_jax.types import EagrlError

LM = LMConfig(vocab_size=300, d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=8)


@pytest.fixture(scope='module')
def tokenizer():
  return train_tokenizer(['a lactate of 3.8'], ['lactate'], 300)


@pytest.fixture
def patients():
  cohort = synthetic.generate(synthetic.SyntheticConfig(n=6, features=DEFAULT_FEATURES), 0)
  splits = types.SimpleNamespace(train=np.arange(2), valid=np.arange(2, 4), test=np.arange(4, 6))
  return types.SimpleNamespace(cohort=cohort, visits=to_visits(cohort, 24, 2, 'mean'), splits=splits)


def checkpoint(folder, tokenizer, **shape):
  lm = dataclasses.replace(LM, vocab_size=tokenizer.vocab_size, **shape)
  hf_io.save_hf(folder, jax.tree.map(lambda s: np.zeros(s.shape, np.float32), model.declare(lm)), lm, tokenizer)
  return str(folder)


def test_whoever_writes_answers_stops_at_every_end(tokenizer):
  several = Tokenizer(tokenizer._fast, '<|end|>', '<|pad|>', stop_ids=[7])
  asked = policy.sampling(policy.Policy({}, LM, several), 2, 4, 1.0)
  assert asked.stop_ids == (tokenizer.eos_id, 7) and asked.pad_id == tokenizer.pad_id


@pytest.mark.parametrize('fits', [True, False])
def test_the_longest_prompt_must_leave_room(fits, tokenizer, patients, micro_config, tmp_path, monkeypatch):
  """Of all patients, before the weights are read."""
  context = Context(micro_config(), tmp_path, make_mesh())
  encoder = data_lib.encoder(context, patients, tokenizer)
  longest = max(len(encoder.tokens(row)[0]) for row in range(6))
  room = longest + lengths.answer(context.config)
  context.config.lm.checkpoint = checkpoint(tmp_path / 'model', tokenizer, max_positions=room if fits else room - 1)
  monkeypatch.setattr(policy, 'load_pretrained', lambda *_: 'loaded')
  if fits:
    assert base.initial_policy(context, patients) == 'loaded'
    return
  with pytest.raises(EagrlError, match=rf'made for {room - 1} positions.* prompt of {longest}; lower prompt\.max') as e:
    base.initial_policy(context, patients)
  assert '\n' not in str(e.value)


def test_a_prompt_that_grew_is_refused_where_it_is_made(tokenizer, patients, micro_config, tmp_path):
  """New patients, shuffled features, values that stand in for a record's own."""
  context = Context(micro_config(), tmp_path, make_mesh())
  encoder = data_lib.encoder(context, patients, tokenizer, dataclasses.replace(LM, max_positions=200))
  assert encoder.max_answer == lengths.answer(context.config) < 200
  for make in (lambda: encoder.batch(np.arange(6)), lambda: encoder.check(np.arange(6))):
    with pytest.raises(EagrlError, match='made for 200 positions'):
      make()


def test_prose_that_is_too_long_ends_a_study_before_it_trains(tokenizer, patients, micro_config, tmp_path, monkeypatch):
  config, ran = micro_config(target='study'), []
  config.study.update(seeds=(0,), arms=('think',))
  encoder = data_lib.encoder(Context(config, tmp_path, make_mesh()), patients, tokenizer)
  room = max(len(encoder.tokens(row)[0]) for row in range(6)) + lengths.answer(config)
  config.lm.checkpoint = checkpoint(tmp_path / 'model', tokenizer, max_positions=room)  # the run's own prompts fit
  monkeypatch.setattr(pipeline, 'run', lambda c, _: ran.append(c.target))
  monkeypatch.setattr(data_lib, 'load', lambda _: patients)
  monkeypatch.setattr(policy, 'tokenizer', lambda _: tokenizer)
  with pytest.raises(EagrlError, match=rf"study\.arms: 'think'.* made for {room} positions.* or leave think out$"):
    study.run(config, tmp_path / 'w')
  assert ran == ['base']


def test_an_answer_alone_that_is_too_long_is_refused_before_anything_is_read(tokenizer, micro_config, tmp_path, capsys):
  config = micro_config()
  config.lm.checkpoint = checkpoint(tmp_path / 'model', tokenizer, max_positions=lengths.answer(config))
  checks.check(config)
  pipeline.describe(config, tmp_path / 'w', device_bytes=2**30)
  assert f'made for {lengths.answer(config)} positions' in capsys.readouterr().out
  config.evaluate.max_new = lengths.answer(config) + 1
  with pytest.raises(EagrlError, match=r'positions, and an answer takes up to \d+; lower .*evaluate\.max_new'):
    checks.check(config)


def test_a_policy_that_was_saved_before_positions_were_known_is_read(tokenizer, tmp_path):
  mesh = make_mesh()
  policy.save(tmp_path, policy.Policy(model.init(LM, jax.random.key(0)), LM, tokenizer))
  file = tmp_path / 'policy' / 'lm.json'
  shape = json.loads(file.read_text())
  assert (shape.pop('max_positions'), shape.pop('mistral')) == (0, None)
  file.write_text(json.dumps(shape))
  assert policy.load(tmp_path, mesh).config == LM


def test_a_mistral_stays_one_from_its_checkpoint_to_the_export(tokenizer, micro_config, tmp_path):
  config, mesh, said = micro_config(), make_mesh(), Mistral(64, 128)
  config.lm.checkpoint = checkpoint(tmp_path / 'model', tokenizer, max_positions=64, mistral=said)
  policy.save(tmp_path, policy.load_pretrained(config, mesh, jax.random.key(0)))
  read = policy.load(tmp_path, mesh)
  assert (read.config.max_positions, read.config.mistral) == (64, said)
  hf_io.save_hf(tmp_path / 'export', read.params, read.config, read.tokenizer)
  before, after = (json.loads((tmp_path / name / 'config.json').read_text()) for name in ('model', 'export'))
  assert after == before and after['model_type'] == 'mistral' and after['sliding_window'] == 64


def test_a_padding_token_without_a_row_is_no_other_model(tokenizer, micro_config, tmp_path):
  tokenizer.save(tmp_path / 'words')
  words = Tokenizer.load(tmp_path / 'words')
  words._fast.add_special_tokens(['[PAD]'])
  padded = Tokenizer(words._fast, '<|end|>', '[PAD]')
  config = micro_config()
  folder = tmp_path / 'model'
  config.lm.checkpoint = checkpoint(folder, tokenizer)
  padded.save(folder)
  shape, words = policy.read_head(config)
  assert padded.pad_id == shape.vocab_size and words.pad_id == tokenizer.eos_id
  read = policy.load_pretrained(config, make_mesh(), jax.random.key(0))
  assert read.tokenizer.pad_id == tokenizer.eos_id and read.config.vocab_size == tokenizer.vocab_size
