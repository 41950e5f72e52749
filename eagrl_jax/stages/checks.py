"""Refuses a config that cannot work, before any data is read or anything is compiled."""

from __future__ import annotations

import math
import os
import re

from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from eagrl_jax.ehr import splits, tasks
from eagrl_jax.ehr.sources import mimic4_stays, outcomes_csv
from eagrl_jax.evaluation import perturb
from eagrl_jax.expert.salience import SOURCES as SALIENCE_SOURCES
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.mesh import make_mesh
from eagrl_jax.rl import advantages, alignment
from eagrl_jax.rl.update import check_taps
from eagrl_jax.stages import settings, sizes
from eagrl_jax.stages.policy import POLICIES
from eagrl_jax.train import nonfinite
from eagrl_jax.types import EagrlError

# Outcomes that a source has of itself; the others bring labels, of anything.
OUTCOMES = {'synthetic': ('mortality',), 'tjh': ('mortality',), 'physionet2012': ('mortality',),
            'mimic4': ('mortality', 'readmission')}
SOURCES = ('synthetic', 'tjh', 'physionet2012', 'mimic4', 'meds', 'yaib', 'csv', 'wide_csv')
INFERENCE = ('samples', 'greedy', 'digits', 'search')  # see `stages.inference`
EXPORT_DTYPES = ('float32', 'bfloat16')
CONTROLS = ('expert', 'random', 'prevalence')


def check(config: ConfigDict) -> None:
  """Builds every frozen config once: each names the field and the fix when it refuses.

  Raises:
    EagrlError: the first thing that is wrong.
  """
  c = config
  for section, fields in c.items():
    for field, value in fields.items() if isinstance(fields, ConfigDict) else ():
      if isinstance(value, float) and not math.isfinite(value):
        raise EagrlError(f'{section}.{field}={value} is no finite number')
  if c.expert.heads < 1 or c.search.max_depth < 1:
    raise EagrlError(f'expert.heads={c.expert.heads} and search.max_depth={c.search.max_depth} must be at least 1')
  one_of('data.source', c.data.source, SOURCES)
  _check_task(c.data)
  one_of('data.index', c.data.index, mimic4_stays.INDICES)
  one_of('data.aggregate', c.data.aggregate, ('mean', 'last'))
  if c.data.bin_hours <= 0 or c.data.window_hours < 0:
    raise EagrlError(f'data.bin_hours={c.data.bin_hours} must be positive and data.window_hours={c.data.window_hours} '
                     'not negative (0 = the whole record)')
  if c.data.test >= 1 and c.data.test != int(c.data.test):
    raise EagrlError(f'data.test={c.data.test}: give a whole number of patients, or a share below 1')
  splits.parse_protocol(c.data.protocol)
  if c.data.protocol and c.data.splits:
    raise EagrlError('data.protocol and data.splits both say who is tested; leave one empty')
  _check_csv(c.data)
  one_of('expert.salience', c.expert.salience, SALIENCE_SOURCES)
  one_of('rl.advantage', c.rl.advantage, advantages.KINDS)
  one_of('rl.align', c.rl.align, alignment.KINDS)
  one_of('rl.align_control', c.rl.align_control, CONTROLS)
  one_of('rl.start', c.rl.start, ('base', 'sft'))
  one_of('export.policy', c.export.policy, POLICIES)
  one_of('export.dtype', c.export.dtype, EXPORT_DTYPES)
  _check_files(c.data)
  if c.lm.checkpoint.endswith('.gguf') or not c.lm.checkpoint:
    _file('lm.checkpoint', c.lm.checkpoint)
  one_of('lm.compute_dtype', c.lm.compute_dtype, ('float32', 'bfloat16'))
  if c.lm.lora_rank and c.lm.checkpoint == 'tiny':
    raise EagrlError(f'lm.lora_rank={c.lm.lora_rank}: the tiny policy has no trained weights for adapters to stand on; '
                     'give --config.lm.checkpoint, or set lm.lora_rank=0')
  if settings.lora(c) is None and c.export.adapter:
    raise EagrlError('export.adapter=True exports adapters alone: set lm.lora_rank above 0 to train them')
  shape = sizes.policy_shape(c)  # reads a checkpoint's header: a broken one is refused before the expert is trained
  if shape is not None:
    check_taps(settings.update(c), shape)
  if c.rl.group < 2:
    raise EagrlError(f'rl.group={c.rl.group}: an answer is judged against its group; set --config.rl.group=2 or more')
  for name in ('expert.checkpoint_every', 'base.batch', 'base.answers', 'base.short_batch', 'base.checkpoint_every',
               'search.patients', 'search.trees', 'search.top_k', 'sft.batch', 'sft.epochs', 'sft.checkpoint_every',
               'rl.prompts', 'rl.steps', 'rl.epochs', 'rl.minibatches', 'rl.max_new', 'rl.checkpoint_every',
               'evaluate.batch', 'evaluate.samples', 'evaluate.max_new', 'evaluate.bootstrap', 'prompt.bucket',
               'prompt.max_values', 'data.max_visits'):
    section, field = name.split('.')
    if c[section][field] < 1:
      raise EagrlError(f'{name}={c[section][field]} must be at least 1')
  for name, weight in (('sft.answer_weight', c.sft.answer_weight), ('base.read_weight', c.base.read_weight)):
    if weight <= 0:
      raise EagrlError(f'{name}={weight} must be positive; 1 weighs all tokens alike')
  if not 0 <= c.search.expert_weight <= 1:
    raise EagrlError(f'search.expert_weight={c.search.expert_weight} must lie in [0, 1]; 0 = the outcome alone')
  if c.evaluate.samples > 1 and c.evaluate.temperature <= 0:
    raise EagrlError(f'evaluate.temperature={c.evaluate.temperature}: {c.evaluate.samples} greedy answers are all the '
                     'same; set --config.evaluate.samples=1, or a temperature above 0')
  if not 0 < c.evaluate.threshold < 1:
    raise EagrlError(f'evaluate.threshold={c.evaluate.threshold} must lie between 0 and 1')
  for kind in c.evaluate.inference:
    one_of('evaluate.inference', kind, INFERENCE)
  if 'samples' not in c.evaluate.inference:
    raise EagrlError(f'evaluate.inference={tuple(c.evaluate.inference)}: the arms base, sft and rl are the mean of '
                     "samples; keep 'samples' in it")
  for name in c.evaluate.inference_policies:
    one_of('evaluate.inference_policies', name, POLICIES)
  if c.rl.rollouts != 'own' and not re.fullmatch(r'https?://[\w.:\[\]-]+(/[\w.-]+)*/v1/?', c.rl.rollouts):
    raise EagrlError(f"rl.rollouts={c.rl.rollouts!r} is neither 'own' nor the address of a vLLM server, such as "
                     'http://localhost:8000/v1')
  if c.rl.rollouts_refresh < 1 or c.rl.rollouts_timeout <= 0:
    raise EagrlError(f'rl.rollouts_refresh={c.rl.rollouts_refresh} must be at least 1 and rl.rollouts_timeout='
                     f'{c.rl.rollouts_timeout} positive')
  if c.rl.temperature <= 0:
    raise EagrlError(f'rl.temperature={c.rl.temperature}: greedy answers of a group are all equal; use 1.0')
  if c.rl.lam is not None and not 0 <= c.rl.lam <= 1:
    raise EagrlError(f'rl.lam={c.rl.lam} must lie in [0, 1]')
  if c.rl.attention_reward < 0:
    raise EagrlError(f'rl.attention_reward={c.rl.attention_reward} must not be negative; 0 = off')
  if not 0 <= c.rl.overlong_buffer <= c.rl.max_new:
    raise EagrlError(f'rl.overlong_buffer={c.rl.overlong_buffer} must lie in 0..{c.rl.max_new} (rl.max_new); 0 = off')
  _divides('base', c.base.micro_batch, c.base.batch)
  _divides('sft', c.sft.micro_batch, c.sft.batch)
  if c.rl.prompts % c.rl.minibatches:
    raise EagrlError(f'rl.minibatches={c.rl.minibatches} must divide rl.prompts={c.rl.prompts}')
  _divides('rl', c.rl.micro_batch, c.rl.prompts // c.rl.minibatches)
  check_robustness(c)
  nonfinite.check(c.nonfinite)
  settings.prompt(c)
  settings.expert(c)
  settings.reward(c)
  settings.search(c)
  settings.step(c)
  settings.judge(c)
  settings.update(c)
  if c.base.short_features < 2:
    raise EagrlError(f'base.short_features={c.base.short_features}: among one feature there is nothing to look up; '
                     'use 2 or more')
  if c.base.short_steps < 0 or c.base.steps < 0:
    raise EagrlError('base.short_steps and base.steps must not be negative')
  if not 0 <= c.base.scattered <= 1:
    raise EagrlError(f'base.scattered={c.base.scattered} is a share of the prompts: choose 0 to 1')
  _divides('base', c.base.short_micro_batch, c.base.short_batch, 'short_micro_batch')
  updates = c.rl.steps * c.rl.epochs * c.rl.minibatches
  for stage, steps in (('base', c.base.short_steps + c.base.steps), ('sft', 100 * c.sft.epochs), ('rl', updates)):
    if steps:
      try:
        settings.optimizer(c[stage], steps)
      except EagrlError as e:
        raise EagrlError(f'{stage}.{e}') from e
  check_shards(c, make_mesh(**c.mesh.to_dict()), shape)


def _check_task(data: ConfigDict, words: bool = True) -> None:
  """What a source predicts, and whether there are words for it."""
  if not re.fullmatch('[a-z][a-z0-9_]*', data.task):
    raise EagrlError(f'data.task={data.task!r}: give a name of small letters, digits and _')
  if data.source in OUTCOMES:
    one_of('data.task', data.task, OUTCOMES[data.source])
  if words:
    tasks.find(data.task, data.question, data.quantity)


def _check_csv(data: ConfigDict) -> None:
  outcomes_csv.parse_sex_codes(data.sex_codes)
  one_of('data.decimal', data.decimal, ('.', ','))
  if data.decimal == data.delimiter:
    raise EagrlError(f'data.decimal={data.decimal!r} also separates the columns; set --config.data.delimiter=')


def _check_files(data: ConfigDict) -> None:
  if data.source != 'synthetic':
    _file('data.path', data.path)
    if data.source in ('csv', 'wide_csv', 'meds'):
      _file('data.outcomes', data.outcomes)
  for name in ('splits', 'features'):
    if data.get(name):
      _file(f'data.{name}', data[name])


def check_transfer(config: ConfigDict) -> None:
  """Refuses a config of `configs/transfer.py` that cannot work.

  Raises:
    EagrlError: the first thing that is wrong.
  """
  one_of('data.source', config.data.source, SOURCES)
  _check_task(config.data, words=False)  # it is the run's question that is asked
  one_of('data.index', config.data.index, mimic4_stays.INDICES)
  _check_csv(config.data)
  _check_files(config.data)
  if config.transfer.patients < 0:
    raise EagrlError(f'transfer.patients={config.transfer.patients} must not be negative; 0 = all')
  _name('transfer.name', config.transfer.name)


def check_robustness(config: ConfigDict) -> None:
  """Refuses a robustness section that cannot work.

  Raises:
    EagrlError: names the field.
  """
  c = config.robustness
  perturb.check(tuple(c.kinds), c.levels.to_dict())
  if c.patients < 0 or c.samples < 1:
    raise EagrlError(f'robustness.patients={c.patients} must not be negative (0 = every test patient) and '
                     f'robustness.samples={c.samples} at least 1')


def check_predict(config: ConfigDict) -> None:
  """Refuses a config of `configs/predict.py` that cannot work.

  Raises:
    EagrlError: the first thing that is wrong.
  """
  c = config.predict
  _file('predict.path', c.path)
  if c.statics:
    _file('predict.statics', c.statics)
  if c.source:
    one_of('predict.source', c.source, tuple(s for s in SOURCES if s != 'synthetic'))
  if c.features:
    _file('predict.features', c.features)
  one_of('predict.policy', c.policy, POLICIES)
  _name('predict.name', c.name)
  outcomes_csv.parse_sex_codes(c.sex_codes)


def _name(field: str, name: str) -> None:
  if name and not re.fullmatch(r'\w[\w.-]*', name):
    raise EagrlError(f'{field}={name!r} names a folder: use letters, digits, dots and dashes')


def check_shards(c: ConfigDict, mesh: Mesh, shape: LMConfig | None) -> None:
  """Refuses a mesh whose axes would leave weights whole on every device; warns of rows that are too few for all.

  Key-value heads may be replicated, and so is a batch that the devices do not divide: the result is the same.
  """
  if shape is not None:
    parts = (('lm.n_heads', shape.n_heads, 'tensor'), ('lm.d_ff', shape.d_ff, 'tensor'),
             ('lm.d_model', shape.d_model, 'fsdp'))
    for name, size, axis in parts:
      if size % mesh.shape[axis]:
        raise EagrlError(f'{name}={size} cannot be shared out over mesh.{axis}={mesh.shape[axis]}; change one so that '
                         'it divides')
  devices = mesh.shape['data'] * mesh.shape['fsdp']
  for name in ('base.short_micro_batch', 'base.micro_batch', 'sft.micro_batch', 'search.trees', 'rl.micro_batch',
               'evaluate.batch'):
    section, field = name.split('.')
    if c[section][field] % devices:
      logging.warning('%s=%d leaves some of mesh.data x mesh.fsdp = %d devices without work of their own; a multiple '
                      'of %d uses them all', name, c[section][field], devices, devices)


def one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
  if value not in allowed:
    raise EagrlError(f'{field}={value!r} is unknown; choose one of {", ".join(allowed)}')


def _file(field: str, path: str) -> None:
  if not path or not os.path.exists(path):
    raise EagrlError(f'{field}={path!r}: no such file or folder; set --config.{field}=')


def _divides(stage: str, micro: int, batch: int, field: str = 'micro_batch') -> None:
  if micro < 1 or batch % micro:
    raise EagrlError(f'{stage}.{field}={micro} must divide the {batch} prompts of an update')
