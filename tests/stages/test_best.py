"""`rl.validate_every` and `rl.keep`: validation patients are asked in between, and may choose the policy."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from eagrl_jax.lm import lora, model
from eagrl_jax.lm.config import LoraConfig
from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import best, checks, graph, pipeline, policy
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages.context import Context
from eagrl_jax.types import EagrlError, Rollout


def config_of(micro_config, **rl):
  """Steps that move the weights whatever the rewards."""
  config = micro_config(target='rl')
  config.rl.update(align_rows='all', dynamic_sampling=False, warmup=0, **rl)
  return config


def begin(finished, folder):
  for done in graph.NAMES[:graph.NAMES.index('rl')]:
    shutil.copytree(finished / done, folder / done)
  return folder


def weights(folder):
  return jax.tree.leaves(jax.device_get(policy.load(folder, make_mesh()).params))


def rows_of(folder):
  return [json.loads(line) for line in (folder / 'rl' / 'metrics.jsonl').read_text().splitlines()]


def same(one, other):
  return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


class Said:
  """Stands where the policy is asked: AUROCs as given, and the weights that were asked."""

  def __init__(self, monkeypatch, *aurocs):
    self.asked, self.aurocs = [], list(aurocs)
    monkeypatch.setattr(best, 'ask', self)

  def __call__(self, *_, params, **__):
    if (auroc := self.aurocs.pop(0)) is None:
      raise RuntimeError('cut off')
    self.asked.append(jax.tree.leaves(jax.device_get(params)))
    return {'validation_auroc': auroc, 'validation_log_loss': auroc}


@pytest.fixture(scope='module')
def plain(finished, micro_config, tmp_path_factory):
  """A run of four steps that asks nobody."""
  workdir = begin(finished, tmp_path_factory.mktemp('plain'))
  pipeline.run(config_of(micro_config, steps=4), workdir)
  return workdir


def test_asking_changes_nothing_of_the_training(plain, finished, micro_config, tmp_path):
  pipeline.run(config_of(micro_config, steps=4, validate_every=3, validate_patients=0), begin(finished, tmp_path))
  assert same(weights(plain / 'rl'), weights(tmp_path / 'rl'))
  rows, before = rows_of(tmp_path), rows_of(plain)
  assert [row['step'] for row in rows if 'validation_auroc' in row] == [0, 3, 4]
  assert all(0 <= row['validation_auroc'] <= 1 and 0 <= row['validation_parse_rate'] <= 1
             for row in rows if 'validation_auroc' in row)
  assert [{k: v for k, v in row.items() if not k.startswith('validation')} for row in rows[:4]] == before
  assert not (plain / 'rl' / 'summary.json').exists() and len(before) == 4
  summary = json.loads((tmp_path / 'rl' / 'summary.json').read_text())
  assert summary['kept_step'] == 4 and summary['patients'] == 9 and 0 < summary['positive'] < 9


@pytest.mark.parametrize(('by', 'said', 'kept'), [
    ('auroc', (.5, .7, .6, .7, .6), 1), ('auroc', (.5, .5, .5, .5, .6), 4), ('log_loss', (.6, .7, .5, .5, .6), 2)])
def test_the_first_of_the_best_is_kept(by, said, kept, finished, micro_config, tmp_path, monkeypatch):
  seen = Said(monkeypatch, *said)
  pipeline.run(config_of(micro_config, steps=4, validate_every=1, keep=by), begin(finished, tmp_path))
  left = weights(tmp_path / 'rl')
  assert [same(left, asked) for asked in seen.asked] == [step == kept for step in range(5)]
  assert json.loads((tmp_path / 'rl' / 'summary.json').read_text())['kept_step'] == kept
  assert not (tmp_path / 'rl' / 'best').exists()


# The first process is cut off where None stands; a checkpoint is written before each validation.
@pytest.mark.parametrize(('spoilt', 'after', 'kept'), [
    (False, (.4, .4), 2),
    (True, (.7, .4, .4), 2),  # goes on from the checkpoint before, loses its best and finds it again
    (True, (.4, .4, .4), 1)])  # and finds it no more so good: whatever lay there must not be taken
def test_a_run_that_was_cut_off_knows_its_best(spoilt, after, kept, finished, micro_config, tmp_path, monkeypatch):
  config = config_of(micro_config, steps=4, validate_every=1, keep='auroc', checkpoint_every=9)
  begin(finished, tmp_path)
  first = Said(monkeypatch, .5, .6, .7, None)
  with pytest.raises(RuntimeError, match='cut off'):
    pipeline.run(config, tmp_path)
  weights_of_best = tmp_path / 'rl' / 'best'
  assert sorted(path.name for path in weights_of_best.iterdir()) == ['1', '2']
  if spoilt:
    for file in (tmp_path / 'rl/checkpoints/3/state').rglob('*'):
      if file.is_file():
        file.write_bytes(file.read_bytes()[1:])
  else:
    weights_of_best.rename(tmp_path / 'away')
    with pytest.raises(EagrlError, match=r'rl/best/2, the best policy so far, is missing .* move .*/rl away'):
      pipeline.run(config, tmp_path)
    (tmp_path / 'away').rename(weights_of_best)
  second = Said(monkeypatch, *after)
  pipeline.run(config, tmp_path)
  left, asked = weights(tmp_path / 'rl'), dict(enumerate(first.asked)) | dict(enumerate(second.asked, 3 - spoilt))
  assert [same(left, asked[step]) for step in range(5)] == [step == kept for step in range(5)]
  assert not weights_of_best.exists()


@pytest.fixture(scope='module')
def world(finished, micro_config):
  """The finished run's patients, and the encoder of its policy."""
  context = Context(micro_config(), finished, make_mesh())
  data, tokenizer = data_lib.load(context), policy.load(finished / 'sft', context.mesh).tokenizer
  return context, data, data_lib.encoder(context, data, tokenizer)


@pytest.mark.parametrize(('n', 'positive'), [(2, 1), (6, None), (0, None), (99, None)])
def test_whom_it_asks(n, positive, world):
  context, data, _ = world
  context.config.rl.validate_patients = n
  asked, again = (best.patients(context, data, 4) for _ in range(2))
  valid = data.splits.valid
  np.testing.assert_array_equal(asked.rows, again.rows)
  assert len(set(asked.rows)) == len(asked.rows) == min(n or len(valid), len(valid)) and set(asked.rows) <= set(valid)
  np.testing.assert_array_equal(asked.label, data.cohort.label[asked.rows])
  share = data.cohort.label[valid].mean()
  assert asked.label.sum() == (positive or round(len(asked.rows) * share)) and len(set(asked.label)) == 2


def test_the_figures_are_those_of_the_answers(world):
  """A policy that writes the row number of its patient, or nothing."""
  context, data, encoder = world
  context.config.rl.validate_patients = 0
  asked, words, keys = best.patients(context, data, 4), encoder.tokenizer, set()
  stated = lambda row, g: f'<Final answer> 0.{row % 7 + 1}{g} </Final answer>' if row % 3 else 'Who knows.'

  def generate(params, prompt, key):
    assert params == 'the weights' and len(prompt.example) == 4
    keys.add(tuple(jax.random.key_data(key).tolist()))
    ids = [[words.encode(stated(int(row), g)) for g in range(2)] for row in np.asarray(prompt.example)]
    valid = np.array([[[i < len(one) for i in range(40)] for one in group] for group in ids])
    tokens = np.array([[[*one, *[words.pad_id] * (40 - len(one))] for one in group] for group in ids], np.int32)
    return Rollout(tokens, valid, np.zeros(tokens.shape), np.zeros(tokens.shape))

  got = best.ask(context, encoder, generate, 'the weights', asked, unparsed=0.45)
  score = [np.mean([(row % 7 + 1) / 10 + g / 100 for g in range(2)]) if row % 3 else 0.45 for row in asked.rows]
  assert got['validation_auroc'] == pytest.approx(roc_auc_score(asked.label, score))
  assert got['validation_auprc'] == pytest.approx(average_precision_score(asked.label, score))
  assert got['validation_log_loss'] == pytest.approx(log_loss(asked.label, score))
  assert got['validation_parse_rate'] == pytest.approx(np.mean(asked.rows % 3 > 0)) and len(keys) == 1


def test_of_adapters_nothing_else_is_kept(world, micro_config, tmp_path, monkeypatch):
  begun, data, encoder = world
  context = Context(config_of(micro_config, steps=3, validate_every=1, keep='auroc'), tmp_path, begun.mesh)
  plain = policy.load(begun.workdir / 'sft', begun.mesh).config
  lm = dataclasses.replace(plain, lora=LoraConfig(2, 4.0, ('q_proj',)))
  Said(monkeypatch, .7, .8, .6, .6)
  seen = best.Best(context, encoder, data, None, lm, 4, {})
  after = [model.init(lm, jax.random.key(step)) for step in range(4)]
  after = [lora.join(lora.split(params, lm)[0], lora.split(after[0], lm)[1]) for params in after]
  for step, params in enumerate(after):
    seen.see(step, params)
  kept = [path.name for path in (tmp_path / 'rl/best').iterdir()]
  assert kept == ['1']  # no checkpoint would go back to that of step 0
  monkeypatch.setattr(best.checkpoint, 'load_params', lambda folder, like, stage, real=best.checkpoint.load_params: (
      kept.append(sorted(like['layers'])), real(folder, like, stage))[1])
  left = seen.chosen(after[-1])
  assert kept[-1] == ['wq_a', 'wq_b'] and same(jax.tree.leaves(left), jax.tree.leaves(after[1]))
  assert not same(jax.tree.leaves(left), jax.tree.leaves(after[-1]))


def test_every_figure_to_keep_by_is_known_to_the_checks():
  assert checks.KEEP == ('last', *best.KEPT_BY)


@pytest.mark.parametrize(('rl', 'said'), [
    ({'keep': 'log_loss'}, r'rl\.keep=.log_loss. .*rl\.validate_every=1'),
    ({'keep': 'worst'}, r'rl\.keep'), ({'validate_every': -1}, r'rl\.validate_every'),
    ({'validate_every': 1, 'validate_patients': 1}, r'rl\.validate_patients=1'),
    ({'validate_every': 1, 'rollouts': 'http://localhost:1/v1', 'rollouts_refresh': 2}, r'rl\.rollouts_refresh=2')])
def test_what_cannot_work_is_refused(rl, said, micro_config):
  config = micro_config()
  config.rl.update(rl)
  with pytest.raises(EagrlError, match=said):
    checks.check(config)
