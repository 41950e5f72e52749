"""What the base stage is taught: true flags of the record that the prompt shows, and nothing of the outcome."""

import dataclasses
import itertools
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from eagrl_jax.ehr import warmup
from eagrl_jax.ehr.prompt import PromptConfig
from eagrl_jax.ehr.records import to_visits
from eagrl_jax.ehr.sources import synthetic
from eagrl_jax.ehr.sources.synthetic_features import DEFAULT_FEATURES
from eagrl_jax.lm.tokenizer import train_tokenizer
from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import lessons
from eagrl_jax.stages.encode import Encoder


@pytest.fixture(scope='module')
def taught():
  cohort = synthetic.generate(synthetic.SyntheticConfig(n=24, features=DEFAULT_FEATURES), 0)
  visits = to_visits(cohort, 24, 2, 'mean')
  blind = Encoder(cohort, visits, None, PromptConfig(style='compact', max_values=2), 32)
  tokenizer = train_tokenizer([blind.prompt(i).text for i in range(24)], cohort.features.names, 900)
  encoder = Encoder(cohort, visits, tokenizer, blind.config, 32)
  config = ConfigDict(dict(seed=0, prompt=dict(shuffle_features=True), base=dict(
      short_steps=2, short_batch=6, short_features=3, steps=2, batch=4, answers=1, scattered=0.5, read_weight=3.0)))
  return types.SimpleNamespace(config=config, mesh=make_mesh()), encoder


def findings(text):
  told = text.removeprefix('<Findings> ').split('out of range: ')[-1].removesuffix(' </Findings>').split(', ')
  return dict(m.rsplit(' ', 1) for m in told)


def lines(text, names):
  """Flag of every feature line of a compact prompt."""
  body = [line[1:] for line in text.splitlines() if line.startswith(' ')]
  name = lambda line: next(n for n in sorted(names, key=len, reverse=True) if line.startswith(n + ' '))
  return {name(line): line.removeprefix(name(line)).split()[0] for line in body}


def test_answers_tell_no_trend_that_the_prompt_does_not_show(taught):
  _, encoder = taught
  told = {}
  for shown in (1, 2):
    mine = dataclasses.replace(encoder, config=dataclasses.replace(encoder.config, max_values=shown))
    told[shown] = ' '.join(e.text for row in range(24) for e in lessons.exercises(
        mine, row, mine.values(row), np.random.default_rng(row), 2))
  trends = ('rising', 'falling', 'steady')
  assert all(word in told[2] for word in trends) and not any(word in told[1] for word in trends)


def test_findings_tell_the_flags_that_the_prompt_shows(taught):
  context, encoder = taught
  names, t = encoder.cohort.features.names, encoder.tokenizer
  stream, most = lessons.batches(context, encoder, np.arange(24), 0), 0
  for step, batch in enumerate(itertools.islice(stream, 4)):
    for b in range(batch.tokens.shape[0]):
      shown = lines(t.decode(batch.prompt.tokens[b][batch.prompt.valid[b]].tolist()), names)
      drill = 0 if step < 2 else 1
      told = findings(t.decode(np.asarray(batch.tokens[b, drill][batch.valid[b, drill]]).tolist()))
      assert told.items() <= shown.items()
      if step < 2:
        assert 2 <= len(shown) <= 3
      else:
        assert len(told) == min(16, len(shown))
        most = max(most, len(shown))
  assert most > 3


def test_shapes_stay_and_a_step_is_a_function_of_its_number(taught):
  context, encoder = taught
  first = list(itertools.islice(lessons.batches(context, encoder, np.arange(24), 0), 4))
  again = list(itertools.islice(lessons.batches(context, encoder, np.arange(24), 1), 3))
  for a, b in zip(first[1:], again):
    assert np.array_equal(a.tokens, b.tokens) and np.array_equal(a.prompt.tokens, b.prompt.tokens)
  assert first[0].tokens.shape == first[1].tokens.shape and first[2].tokens.shape == first[3].tokens.shape
  assert first[0].tokens.shape[:2] == (6, 1) and first[2].tokens.shape[:2] == (4, 4)


def test_only_a_share_of_whole_records_is_scattered(taught):
  context, encoder = taught
  chosen = np.arange(4)
  records = lessons.whole_records(encoder, chosen, np.random.default_rng(0), context.config.base)
  same = [np.array_equal(r, encoder.values(i), equal_nan=True) for i, r in enumerate(records)]
  assert same == [False, False, True, True]


def test_weights_follow_the_characters(taught):
  _, encoder = taught
  t = encoder.tokenizer
  exercise = warmup.compose([('<Findings>', False), (' lactate', False), (' HH', True), (' </Findings>', False)],
                            given=len('<Findings>'), ends=True)
  tokens, valid, weight = lessons.collate([[exercise]], t, 16, 3.0)
  said = {w: ''.join(t.piece(i) for i in tokens[valid & (weight == w)]) for w in (0, 1, 3)}
  assert said == {0: '<Findings>', 1: f' lactate </Findings>{t.piece(t.eos_id)}', 3: ' HH'}
  assert not weight[~valid].any()
