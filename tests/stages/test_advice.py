"""The advice of a dry run: applied to the config, it makes the moment that it is given for smaller."""

from __future__ import annotations

import dataclasses
import functools
import json

import pytest
from ml_collections import ConfigDict

from eagrl_jax.lm.config import LMConfig
from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import advice, memory, programs, settings, sizes
from eagrl_jax.stages.memory import Moment

LM = LMConfig(vocab_size=256, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64)
WIDE = dataclasses.replace(LM, vocab_size=2048, d_model=256, head_dim=64)  # beside it adapters are small
SIZES = programs.Sizes(256, 20, 32)


@pytest.fixture
def config(micro_config):
  """Every number can be halved."""
  c = micro_config()
  c.lm.checkpoint = 'some/model'
  c.search.candidates = 4
  c.rl.update(prompts=16, group=4, minibatches=1)
  return c


def changed(c: ConfigDict, **fields) -> ConfigDict:
  c = c.copy_and_resolve_references()
  c.update_from_flattened_dict(fields)
  return c


def counted(c: ConfigDict, stage: str, what: str, part: str) -> int:
  """Bytes of a part that needs no program."""
  lm, mesh = settings.shaped(WIDE, c), make_mesh()
  if part == 'copy':
    return memory.used_bytes(lm, mesh)
  if part == 'gradients':
    return memory.trained_bytes(lm, mesh)
  if part == 'KV':
    return (memory.search_kv(c, lm, mesh, SIZES) if what == 'search' else
            memory.rollout_kv(c, lm, mesh, SIZES, stage))
  return memory.held_by(c, lm, mesh, stage)[part]


@functools.cache
def moment(stage: str, what: str, flat: str) -> Moment:
  """By the config as JSON, so that a program is compiled once."""
  c = ConfigDict(json.loads(flat))
  return memory.moment(c, settings.shaped(LM, c), make_mesh(), SIZES, stage, what)


def both(c: ConfigDict, stage: str, what: str, part: str, field: str) -> tuple[ConfigDict, ConfigDict]:
  """The config in which a field is named, and the one that it asks for."""
  if part == 'copy':
    c = changed(c, **{'lm.compute_dtype': 'bfloat16'})
  if field == 'lm.compute_dtype':
    c = changed(c, **{'lm.lora_rank': 4})
  parts = dict.fromkeys(advice.FIXES[stage, what], 1)
  found = advice.change(c, LM, make_mesh(), Moment(stage, what, parts), field)
  assert field in found
  return c, changed(c, **found)


ALL = [(*key, part, field) for key, parts in advice.FIXES.items() for part, fields in parts.items() for field in fields
       if field != 'mesh.fsdp']  # of several devices: tests/multi_device/test_memory_sharded.py


@pytest.mark.parametrize(('stage', 'what', 'part', 'field'), [x for x in ALL if x[2] != 'activations'])
def test_a_field_that_is_named_makes_its_part_smaller(stage, what, part, field, config):
  before, after = both(config, stage, what, part, field)
  if field == 'rl.kl':
    assert part in memory.held_by(before, WIDE, make_mesh(), stage)
    assert part not in memory.held_by(after, WIDE, make_mesh(), stage)
  elif (part, field) == ('weights', 'lm.lora_rank') and 'optimiser' in advice.FIXES[stage, what]:
    held = lambda c: sum(memory.held_by(c, settings.shaped(WIDE, c), make_mesh(), stage).values())
    assert held(after) < held(before)  # their moments and gradients go
  else:
    assert counted(after, stage, what, part) < counted(before, stage, what, part)


@pytest.mark.parametrize(('stage', 'what', 'field'), [
    ('sft', 'update', 'sft.micro_batch'), ('sft', 'update', 'lm.remat'), ('rl', 'update', 'rl.micro_batch'),
    ('rl', 'rollout', 'rl.prompts'), ('rl', 'rollout', 'rl.group'), ('search', 'search', 'search.trees'),
    ('search', 'search', 'search.candidates'), ('evaluate', 'rollout', 'evaluate.batch')])
def test_a_field_that_is_named_makes_the_whole_moment_smaller(stage, what, field, config):
  """Those of base are the step of sft, with the micro-batch that `sizes.taught` gives a lesson by its field."""
  assert field in advice.FIXES[stage, what]['activations']
  configs = both(config, stage, what, 'activations', field)
  before, after = (moment(stage, what, c.to_json_best_effort()).total for c in configs)
  assert after < before


def test_where_weights_weigh_most_no_smaller_batch_is_advised(config):
  """Gradients and their sum over parts are as large as the weights, whatever the micro-batch."""
  lm = dataclasses.replace(WIDE, n_layers=8)
  tiny = dataclasses.replace(SIZES, prompt=16)
  found = [memory.moment(changed(config, **{'rl.max_new': 4, 'rl.micro_batch': micro}), lm, make_mesh(), tiny, 'rl',
                         'update') for micro in (2, 1)]
  assert found[1].total > 0.95 * found[0].total and found[0].parts['gradients'] > found[0].parts['activations']
  assert 'lm.lora_rank' in advice.advice(config, lm, make_mesh(), found[0])


def test_every_part_of_every_moment_has_its_fields(config):
  config.evaluate.inference = ('samples', 'search')
  taught = [dataclasses.replace(SIZES, lessons={field: lesson}) for field, lesson in sizes.taught(config, 256).items()]
  kinds = {(stage, what) for s in taught for stage in memory.STAGES for what in memory.things(config, s, stage)}
  assert kinds == advice.FIXES.keys()
  for stage, what in (('sft', 'update'), ('rl', 'update'), ('rl', 'rollout'), ('search', 'search')):
    assert advice.FIXES[stage, what].keys() == moment(stage, what, config.to_json_best_effort()).parts.keys()
  assert advice.FIXES['evaluate', 'search'] == advice.FIXES['search', 'search']


@pytest.mark.parametrize(('what', 'parts', 'change', 'words'), [
    ('update', {'activations': 9, 'weights': 1}, {}, 'set --config.rl.micro_batch=1'),
    ('update', {'activations': 9, 'weights': 1}, {'rl.micro_batch': 1}, 'lm.remat=dots'),
    ('update', {'activations': 9, 'weights': 1}, {'rl.micro_batch': 1, 'lm.remat': 'dots'}, 'lm.remat=full'),
    ('rollout', {'activations': 9, 'weights': 1}, {}, 'set --config.rl.prompts=8'),
    ('rollout', {'activations': 9, 'weights': 1}, {'rl.prompts': 2}, 'set --config.rl.group=2'),
    ('rollout', {'activations': 9, 'KV': 8}, {'rl.prompts': 2, 'rl.group': 2}, 'set --config.rl.max_new=24'),
    ('update', {'reference': 9, 'weights': 1}, {}, 'set --config.rl.kl=0.0'),
    ('update', {'optimiser': 9, 'weights': 8}, {}, 'set --config.lm.lora_rank=16'),
    ('update', {'weights': 9, 'optimiser': 8}, {'lm.lora_rank': 4}, 'set --config.lm.compute_dtype=bfloat16'),
    ('update', {'weights': 9, 'optimiser': 8}, {'lm.checkpoint': 'tiny'}, 'larger devices'),
    ('update', {'weights': 9}, {'lm.compute_dtype': 'bfloat16', 'lm.lora_rank': 4}, 'larger devices'),
])
def test_it_is_the_first_field_of_the_largest_part_that_can_give(what, parts, change, words, config):
  said = advice.advice(changed(config, **change), LM, make_mesh(1, 1, 1), Moment('rl', what, parts))
  assert words in said


@pytest.mark.parametrize('stage', ['search', 'evaluate'])
def test_weights_that_nothing_trains_shrink_by_adapters_in_bfloat16_alone(stage, config):
  what = {'search': 'search', 'evaluate': 'rollout'}[stage]
  said = advice.advice(config, LM, make_mesh(1, 1, 1), Moment(stage, what, {'weights': 9, 'activations': 1}))
  assert said.endswith('set --config.lm.lora_rank=16 --config.lm.compute_dtype=bfloat16')


def test_evaluation_is_not_told_to_recompute_what_it_does_not_differentiate(config):
  moment = Moment('evaluate', 'rollout', {'activations': 9, 'weights': 1})
  assert 'set --config.evaluate.batch=8' in advice.advice(config, LM, make_mesh(1, 1, 1), moment)
