"""Refuses a config that cannot work, before any data is read or anything is compiled."""

from __future__ import annotations

import re

from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from eagrl_jax.ehr import splits, tasks
from eagrl_jax.ehr.sources import csv_text, mimic4_stays, outcomes_csv
from eagrl_jax.evaluation import perturb
from eagrl_jax.expert.salience import SOURCES as SALIENCE_SOURCES
from eagrl_jax.lm import flash
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.mesh import make_mesh
from eagrl_jax.rl import advantages, alignment
from eagrl_jax.rl.update import check_taps
from eagrl_jax.stages import fields, lengths, settings, sizes
from eagrl_jax.stages.policy import POLICIES
from eagrl_jax.train import nonfinite
from eagrl_jax.types import EagrlError

# Outcomes that a source has of itself; the others bring labels, of anything.
OUTCOMES = {'synthetic': ('mortality',), 'tjh': ('mortality',), 'physionet2012': ('mortality',),
            'mimic4': ('mortality', 'readmission')}
SOURCES = ('synthetic', 'tjh', 'physionet2012', 'mimic4', 'meds', 'yaib', 'csv', 'wide_csv')
FEATURE_FILES = ('meds', 'yaib', 'csv', 'wide_csv')  # the sources that `data.features` is for
INFERENCE = ('samples', 'greedy', 'digits', 'search')  # see `stages.inference`
EXPORT_DTYPES = ('float32', 'bfloat16')
CONTROLS = ('expert', 'random', 'prevalence')
CHECKPOINT_RATE = 2e-4  # what adapters take; whole checkpoints take less
KEEP = ('last', 'auroc', 'auprc', 'log_loss')  # see `stages.best`


def check(config: ConfigDict) -> None:
  """Builds every frozen config once, and asks of the other fields what no such config asks.

  Raises:
    EagrlError: the first thing that is wrong, with the field and the fix.
  """
  c = config
  fields.finite(c)
  fields.seed('seed', c.seed)
  nonfinite.check(c.nonfinite)
  _check_data(c)
  settings.prompt(c)
  fields.at_least(1, c, 'prompt.bucket')
  _check_expert(c)
  shape = _check_lm(c)
  settings.reward(c)
  _check_base(c)
  _check_search(c)
  _check_sft(c)
  _check_rl(c, shape)
  _check_evaluate(c)
  if shape is not None:
    lengths.check(shape.max_positions, 0, lengths.answer(c))  # prompts are measured once there are patients
  check_robustness(c)
  fields.one_of('export.policy', c.export.policy, POLICIES)
  fields.one_of('export.dtype', c.export.dtype, EXPORT_DTYPES)
  if settings.lora(c) is None and c.export.adapter:
    raise EagrlError('export.adapter=True exports adapters alone: set lm.lora_rank above 0 to train them')
  check_shards(c, make_mesh(**c.mesh.to_dict()), shape)


def _check_task(data: ConfigDict, words: bool = True) -> None:
  """What a source predicts, and whether there are words for it."""
  if not re.fullmatch('[a-z][a-z0-9_]*', data.task):
    raise EagrlError(f'data.task={data.task!r}: give a name of small letters, digits and _')
  if data.source in OUTCOMES:
    fields.one_of('data.task', data.task, OUTCOMES[data.source])
  if words:
    tasks.find(data.task, data.question, data.quantity)


def _check_data(c: ConfigDict) -> None:
  data = c.data
  if data.seed is not None:
    fields.seed('data.seed', data.seed)
  splits.parse_protocol(data.protocol)
  if data.protocol and data.splits:
    raise EagrlError('data.protocol and data.splits both say who is tested; leave one empty')
  _check_source(data)
  fields.one_of('data.aggregate', data.aggregate, ('mean', 'last'))
  fields.at_least(1, c, 'data.max_visits')
  if data.bin_hours <= 0 or data.window_hours < 0:
    raise EagrlError(f'data.bin_hours={data.bin_hours} must be positive and data.window_hours={data.window_hours} '
                     'not negative (0 = the whole record)')
  if data.test <= 0 or (data.test >= 1 and data.test != int(data.test)):
    raise EagrlError(f'data.test={data.test}: give a whole number of patients, or a share below 1')
  if not 0 < data.valid_fraction < 1:
    raise EagrlError(f'data.valid_fraction={data.valid_fraction} must lie between 0 and 1')


def _check_source(data: ConfigDict, words: bool = True) -> None:
  """What `data` says of where patients come from, of a run and of a transfer, which asks the run's own question."""
  fields.one_of('data.source', data.source, SOURCES)
  _check_task(data, words)
  fields.one_of('data.index', data.index, mimic4_stays.INDICES)
  settings.synthetic(data)
  _check_csv(data)
  _check_files(data)


def _check_csv(data: ConfigDict) -> None:
  outcomes_csv.parse_sex_codes(data.sex_codes)
  fields.one_of('data.decimal', data.decimal, ('.', ','))
  if data.decimal == data.delimiter:
    raise EagrlError(f'data.decimal={data.decimal!r} also separates the columns; set --config.data.delimiter=')
  fields.one_of('data.time_unit', data.time_unit, tuple(csv_text.HOURS))
  fields.one_of('data.ranges', data.get('ranges', 'reference'), ('reference', 'usual'))


def _check_files(data: ConfigDict) -> None:
  if data.source == 'synthetic':
    for name in ('path', 'outcomes'):
      if data.get(name):
        raise EagrlError(f'data.{name}={data[name]!r}: the synthetic source reads no file; leave it empty, or '
                         'choose a variant that reads it, such as configs/rl.py:csv')
  else:
    fields.existing('data.path', data.path)
    if data.source in ('csv', 'wide_csv', 'meds'):
      fields.existing('data.outcomes', data.outcomes)
  if data.get('features') and data.source not in FEATURE_FILES:
    raise EagrlError(f'data.features={data.features!r} is read with {", ".join(FEATURE_FILES)}; {data.source} has '
                     'features of its own, leave it empty')
  for name in ('splits', 'features'):
    if data.get(name):
      fields.existing(f'data.{name}', data[name])


def patients_a_step(c: ConfigDict, train: int) -> int:
  """How many of so many train patients a step of rl takes: as many as fill whole micro-batches of every update."""
  share = c.rl.minibatches * c.rl.micro_batch
  n = min(c.rl.prompts, train) // share * share
  if not n:
    raise EagrlError(f'rl.minibatches={c.rl.minibatches} updates of rl.micro_batch={c.rl.micro_batch} prompts need '
                     f'more than the {train} train patients; lower both')
  return n


def doubtful_rates(c: ConfigDict) -> str:
  """What to say where a checkpoint would be trained at rates of a small policy from scratch; '' where nothing is."""
  high = [f'{name}.learning_rate={c[name].learning_rate:g}' for name in ('base', 'sft', 'rl')
          if c[name].learning_rate > CHECKPOINT_RATE]
  if c.lm.checkpoint == 'tiny' or not high:
    return ''
  return (f'{", ".join(high)}: rates for a small policy from scratch, where checkpoints usually take '
          f'{CHECKPOINT_RATE:g} at most; configs/rl.py:pretrained has 1e-4, 5e-5 and 1e-5')


def _check_expert(c: ConfigDict) -> None:
  settings.expert(c)
  fields.at_least(1, c, 'expert.checkpoint_every')
  fields.one_of('expert.salience', c.expert.salience, SALIENCE_SOURCES)


def _check_lm(c: ConfigDict) -> LMConfig | None:
  """The policy's shape; None for a hub name."""
  lm = c.lm
  fields.one_of('lm.compute_dtype', lm.compute_dtype, ('float32', 'bfloat16'))
  settings.tiny(c)
  flash.check(lm.attention, lm.compute_dtype, flash.backend())
  if lm.checkpoint.endswith('.gguf') or not lm.checkpoint:
    fields.existing('lm.checkpoint', lm.checkpoint)
  if lm.lora_rank and lm.checkpoint == 'tiny':
    raise EagrlError(f'lm.lora_rank={lm.lora_rank}: the tiny policy has no trained weights for adapters to stand on; '
                     'give --config.lm.checkpoint, or set lm.lora_rank=0')
  return sizes.policy_shape(c)  # reads a checkpoint's header: a broken one is refused before the expert is trained


def _check_base(c: ConfigDict) -> None:
  base = c.base
  fields.at_least(1, c, 'base.batch', 'base.answers', 'base.short_batch', 'base.checkpoint_every')
  fields.at_least(0, c, 'base.short_steps', 'base.steps')
  if base.read_weight <= 0:
    raise EagrlError(f'base.read_weight={base.read_weight} must be positive; 1 weighs all tokens alike')
  if base.short_features < 2:
    raise EagrlError(f'base.short_features={base.short_features}: among one feature there is nothing to look up; '
                     'use 2 or more')
  if not 0 <= base.scattered <= 1:
    raise EagrlError(f'base.scattered={base.scattered} is a share of the prompts: choose 0 to 1')
  fields.divides('base.short_micro_batch', base.short_micro_batch, base.short_batch)
  fields.divides('base.micro_batch', base.micro_batch, base.batch)
  settings.supervised(c, 'base', base.micro_batch)
  settings.optimizer(c, 'base', max(base.short_steps + base.steps, 1))


def _check_search(c: ConfigDict) -> None:
  settings.search(c)
  settings.step(c)
  settings.grammar(c)
  settings.selection(c)
  fields.at_least(1, c, 'search.patients', 'search.trees')
  if not 0 <= c.search.expert_weight <= 1:
    raise EagrlError(f'search.expert_weight={c.search.expert_weight} must lie in [0, 1]; 0 = the outcome alone')


def _check_sft(c: ConfigDict) -> None:
  sft = c.sft
  fields.at_least(1, c, 'sft.batch', 'sft.epochs', 'sft.checkpoint_every')
  if sft.answer_weight <= 0:
    raise EagrlError(f'sft.answer_weight={sft.answer_weight} must be positive; 1 weighs all tokens alike')
  fields.divides('sft.micro_batch', sft.micro_batch, sft.batch)
  settings.supervised(c, 'sft', sft.micro_batch)
  settings.optimizer(c, 'sft', sft.epochs)


def _check_rl(c: ConfigDict, shape: LMConfig | None) -> None:
  rl = c.rl
  fields.all_numbers('rl.align_layers', rl.align_layers, whole=True)
  fields.all_numbers('rl.align_heads', rl.align_heads, whole=True)
  fields.one_of('rl.advantage', rl.advantage, advantages.KINDS)
  fields.one_of('rl.align', rl.align, alignment.KINDS)
  fields.one_of('rl.align_control', rl.align_control, CONTROLS)
  fields.one_of('rl.start', rl.start, ('base', 'sft'))
  if rl.group < 2:
    raise EagrlError(f'rl.group={rl.group}: an answer is judged against its group; set --config.rl.group=2 or more')
  fields.at_least(1, c, 'rl.prompts', 'rl.steps', 'rl.epochs', 'rl.minibatches', 'rl.max_new', 'rl.checkpoint_every',
                  'rl.rollouts_refresh')
  if rl.rollouts != 'own' and not re.fullmatch(r'https?://[\w.:\[\]-]+(/[\w.-]+)*/v1/?', rl.rollouts):
    raise EagrlError(f"rl.rollouts={rl.rollouts!r} is neither 'own' nor the address of a vLLM server, such as "
                     'http://localhost:8000/v1')
  if rl.rollouts_timeout <= 0:
    raise EagrlError(f'rl.rollouts_timeout={rl.rollouts_timeout} must be positive')
  if rl.temperature <= 0:
    raise EagrlError(f'rl.temperature={rl.temperature}: greedy answers of a group are all equal; use 1.0')
  if rl.temperature != 1:
    logging.warning('rl.temperature=%g: answers are drawn at it, but the ratios of the update are of probabilities at '
                    '1, another distribution; 1.0 makes them the same', rl.temperature)
  if rl.lam is not None and not 0 <= rl.lam <= 1:
    raise EagrlError(f'rl.lam={rl.lam} must lie in [0, 1]')
  if rl.attention_reward < 0:
    raise EagrlError(f'rl.attention_reward={rl.attention_reward} must not be negative; 0 = off')
  fields.at_least(0, c, 'rl.resample')
  if rl.resample and not rl.dynamic_sampling:
    raise EagrlError(f'rl.resample={rl.resample} fills the places of groups that rl.dynamic_sampling leaves out: set '
                     '--config.rl.dynamic_sampling=True, or rl.resample=0')
  _check_validation(c)
  if not 0 <= rl.overlong_buffer <= rl.max_new:
    raise EagrlError(f'rl.overlong_buffer={rl.overlong_buffer} must lie in 0..{rl.max_new} (rl.max_new); 0 = off')
  if rl.prompts % rl.minibatches:
    raise EagrlError(f'rl.minibatches={rl.minibatches} must divide rl.prompts={rl.prompts}')
  fields.divides('rl.micro_batch', rl.micro_batch, rl.prompts // rl.minibatches)
  settings.judge(c)
  update = settings.update(c)
  if shape is not None:
    check_taps(update, shape)
  settings.optimizer(c, 'rl', rl.steps * rl.epochs * rl.minibatches)


def _check_validation(c: ConfigDict) -> None:
  rl = c.rl
  fields.at_least(0, c, 'rl.validate_every', 'rl.validate_patients')
  if rl.validate_every and rl.validate_patients == 1:
    raise EagrlError('rl.validate_patients=1: an AUROC needs patients of both outcomes; give some hundred, or 0 = all')
  fields.one_of('rl.keep', rl.keep, KEEP)
  if rl.keep != 'last' and not rl.validate_every:
    raise EagrlError(f'rl.keep={rl.keep!r} is told by validation patients; have them asked with '
                     f'--config.rl.validate_every={max(1, rl.steps // 8)}, or set rl.keep=last')
  if rl.validate_every and rl.rollouts != 'own' and rl.rollouts_refresh > 1:
    raise EagrlError(f'rl.rollouts_refresh={rl.rollouts_refresh}: validation patients would be answered by weights of '
                     'steps before; set it to 1, or rl.validate_every=0')


def _check_evaluate(c: ConfigDict) -> None:
  ev = c.evaluate
  fields.at_least(1, c, 'evaluate.batch', 'evaluate.samples', 'evaluate.max_new', 'evaluate.bootstrap')
  fields.at_least(0, c, 'evaluate.cases', 'evaluate.temperature')
  if ev.samples > 1 and not ev.temperature:
    raise EagrlError(f'evaluate.temperature={ev.temperature}: {ev.samples} greedy answers are all the same; set '
                     '--config.evaluate.samples=1, or a temperature above 0')
  if not 0 < ev.threshold < 1:
    raise EagrlError(f'evaluate.threshold={ev.threshold} must lie between 0 and 1')
  for kind in ev.inference:
    fields.one_of('evaluate.inference', kind, INFERENCE)
  if 'samples' not in ev.inference:
    raise EagrlError(f'evaluate.inference={tuple(ev.inference)}: the arms base, sft and rl are the mean of samples; '
                     "keep 'samples' in it")
  for name in ev.inference_policies:
    fields.one_of('evaluate.inference_policies', name, POLICIES)


def check_transfer(config: ConfigDict) -> None:
  """Refuses a config of `configs/transfer.py` that cannot work.

  Raises:
    EagrlError: the first thing that is wrong.
  """
  fields.seed('seed', config.seed)
  _check_source(config.data, words=False)
  if config.transfer.patients < 0:
    raise EagrlError(f'transfer.patients={config.transfer.patients} must not be negative; 0 = all')
  fields.folder_name('transfer.name', config.transfer.name)


def check_robustness(config: ConfigDict) -> None:
  """Refuses a robustness section that cannot work.

  Raises:
    EagrlError: names the field.
  """
  c = config.robustness
  for kind, chosen in c.levels.items():
    fields.all_numbers(f'robustness.levels.{kind}', chosen)
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
  fields.existing('predict.path', c.path)
  if c.statics:
    fields.existing('predict.statics', c.statics)
  if c.source:
    fields.one_of('predict.source', c.source, tuple(s for s in SOURCES if s != 'synthetic'))
  if c.features:
    fields.existing('predict.features', c.features)
  fields.one_of('predict.policy', c.policy, POLICIES)
  fields.folder_name('predict.name', c.name)
  outcomes_csv.parse_sex_codes(c.sex_codes, 'predict.sex_codes')
  fields.one_of('predict.time_unit', c.time_unit or 'hours', tuple(csv_text.HOURS))


def check_shards(c: ConfigDict, mesh: Mesh, shape: LMConfig | None) -> None:
  """Refuses a mesh over which weights, or a kernel that was asked for, cannot be cut; warns of rows too few for all.

  Key-value heads may be replicated, and so is a batch that the devices do not divide: the result is the same.
  """
  if shape is not None:
    if reason := flash.misfit(shape.attention, mesh, shape.n_kv_heads):
      raise EagrlError(reason)
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
