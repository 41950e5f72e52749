"""The field to change where a stage will not fit, by the moment that takes most and what it holds then."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from eagrl_jax.lm.config import LMConfig
from eagrl_jax.stages.memory import Moment

Fields = dict[str, tuple[str, ...]]  # part -> those that shrink it, the first of them that still can
WHOLE: Fields = {'weights': ('mesh.fsdp', 'lm.lora_rank', 'lm.compute_dtype')}
TRAINED: Fields = WHOLE | {'optimiser': ('mesh.fsdp', 'lm.lora_rank')}
DIFFERENTIATED: Fields = TRAINED | {'gradients': ('mesh.fsdp', 'lm.lora_rank')}
REFERENCE: Fields = {'reference': ('rl.kl', 'mesh.fsdp', 'lm.lora_rank')}


def _update(micro: str) -> Fields:
  return DIFFERENTIATED | {'activations': (micro, 'lm.remat', 'mesh.fsdp')}


def _read(*fields: str) -> Fields:
  """Of a loop that reads copied weights for so many prompts, answers to each, and tokens; logits have the first two."""
  return {'copy': ('mesh.fsdp', 'lm.lora_rank'), 'KV': fields, 'activations': fields[:2]}


SEARCHED: Fields = WHOLE | _read('search.trees', 'search.candidates')
FIXES: dict[tuple[str, str], Fields] = {  # by stage and moment
    ('base', 'base.short_micro_batch'): _update('base.short_micro_batch'),
    ('base', 'base.micro_batch'): _update('base.micro_batch'),
    ('search', 'search'): SEARCHED,
    ('sft', 'update'): _update('sft.micro_batch'),
    ('rl', 'update'): _update('rl.micro_batch') | REFERENCE,
    ('rl', 'rollout'): TRAINED | REFERENCE | _read('rl.prompts', 'rl.group', 'rl.max_new'),
    ('evaluate', 'rollout'): WHOLE | _read('evaluate.batch', 'evaluate.samples', 'evaluate.max_new'),
    ('evaluate', 'search'): SEARCHED,
}


def advice(c: ConfigDict, lm: LMConfig, mesh: Mesh, moment: Moment) -> str:
  """What to change: of the largest part, the first field that can still give."""
  for part in sorted(filter(moment.parts.get, moment.parts), key=lambda name: -moment.parts[name]):
    for field in FIXES[moment.stage, moment.what][part]:
      if found := change(c, lm, mesh, moment, field):
        return f'{part} weigh most: set ' + ' '.join(f'--config.{name}={value}' for name, value in found.items())
  return 'every field that would help is at its smallest; use more or larger devices'


def change(c: ConfigDict, lm: LMConfig, mesh: Mesh, moment: Moment, field: str) -> dict[str, Any]:
  """Fields and the values that `field` suggests, none where it has nothing left to give."""
  section, name = field.split('.')
  now = c[section][name]
  if field == 'lm.remat':
    return {} if now == 'full' else {field: 'full' if now == 'dots' else 'dots'}
  if field == 'lm.lora_rank':
    # Weights that are not trained are kept in the compute dtype; those that nothing trains here shrink by that alone.
    kept = {} if 'optimiser' in moment.parts else {'lm.compute_dtype': 'bfloat16'}
    return {} if now or c.lm.checkpoint == 'tiny' else {field: 16} | kept
  if field == 'lm.compute_dtype':  # without adapters weights stay float32, and sampling adds a copy
    return {} if now == 'bfloat16' or not c.lm.lora_rank else {field: 'bfloat16'}
  if field == 'rl.kl':
    return {field: 0.0}
  if field == 'mesh.fsdp':
    data, fsdp = mesh.shape['data'], mesh.shape['fsdp']
    given = {} if c.mesh.data == -1 else {'mesh.data': data // 2}
    return {} if data % 2 or lm.d_model % (2 * fsdp) else {field: 2 * fsdp} | given
  return {field: less} if (less := _less(c, mesh, field, now)) else {}


def _less(c: ConfigDict, mesh: Mesh, field: str, now: int) -> int:
  """Half of a number, or the next below, that goes with the devices and with the other fields; 0 for none."""
  ways, micro = mesh.shape['data'] * mesh.shape['fsdp'], field.endswith('micro_batch')
  unit = {'rl.prompts': c.rl.minibatches * c.rl.micro_batch, 'search.trees': ways, 'evaluate.batch': ways}
  least = 2 if field in ('rl.group', 'search.candidates') else 1
  fits = lambda n: n % (ways if micro else unit.get(field, 1)) == 0 and (now % n == 0 or not micro)
  return next((n for n in range(now // 2, least - 1, -1) if fits(n)), 0)
