"""A run that trains adapters on a checkpoint: the same stages, small checkpoints, both exports."""

import json
import shutil

import huggingface_hub.constants
import jax
import numpy as np
import pytest
import yaml

from eagrl_jax.lm import hf_io, lora
from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import checks, export, pipeline, policy
from eagrl_jax.stages.context import Context
from eagrl_jax.types import EagrlError


@pytest.fixture(scope='module')
def start(finished, tmp_path_factory):
  """The `tiny` policy of a finished run as a Hugging Face folder."""
  folder = tmp_path_factory.mktemp('start') / 'small-model'
  base = policy.load(finished / 'base', make_mesh())
  hf_io.save_hf(folder, base.params, base.config, base.tokenizer)
  return folder


def with_adapters(config, start):
  config.lm.update(checkpoint=str(start), lora_rank=4, lora_alpha=8.0, lora_targets=('q_proj', 'o_proj', 'up_proj'))
  config.base.update(short_steps=0)
  config.export.adapter = True
  return config


def test_only_adapters_are_trained_and_exported(start, finished, micro_config, tmp_path):
  config = with_adapters(micro_config(target='rl'), start)
  for stage in ('prepare', 'expert', 'evaluate'):
    shutil.copytree(finished / stage, tmp_path / stage)
  pipeline.run(config, tmp_path)
  export.run(Context(config, tmp_path, make_mesh()))
  before, _, _ = hf_io.load_hf(start)
  trained = {}
  for stage in policy.POLICIES:
    found = policy.load(tmp_path / stage, make_mesh())
    assert found.config.lora is not None and found.config.lora.targets == ('q_proj', 'o_proj', 'up_proj')
    trained[stage], frozen = lora.split(found.params, found.config)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(frozen), before)
  for a, b in zip(jax.tree.leaves(trained['base']), jax.tree.leaves(trained['sft']), strict=True):
    assert np.abs(a - b).max() > 0
  step = next(p for p in sorted((tmp_path / 'rl' / 'checkpoints').iterdir()) if p.name.isdigit())
  stored = sum(f.stat().st_size for f in step.rglob('*') if f.is_file())
  assert stored < sum(x.nbytes for x in jax.tree.leaves(before))  # adapters and their moments, not the model
  folder = tmp_path / 'export' / 'rl'
  adapter = json.loads((folder / 'adapter_config.json').read_text())
  assert (adapter['r'], adapter['base_model_name_or_path']) == (4, 'small-model')
  card = (folder / 'README.md').read_text()
  assert 'library_name: peft' in card and 'Start: small-model' in card and str(start) not in card


def in_the_hubs_cache(folder, name):
  at = folder / f'models--{name.replace("/", "--")}'
  (at / 'refs').mkdir(parents=True)
  (at / 'refs' / 'main').write_text('abc')
  (at / 'snapshots' / 'abc').mkdir(parents=True)
  (at / 'snapshots' / 'abc' / 'config.json').write_text('{}')


@pytest.mark.parametrize('adapter', [True, False])
def test_a_card_names_the_model_on_the_hub_it_stands_on(adapter, start, finished, micro_config, tmp_path, monkeypatch):
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
  in_the_hubs_cache(tmp_path, 'Qwen/Qwen2.5-0.5B')
  config = micro_config()
  config.export.adapter = adapter
  for checkpoint, base, name in (
      ('Qwen/Qwen2.5-0.5B', 'Qwen/Qwen2.5-0.5B', 'Qwen/Qwen2.5-0.5B'), (str(start), None, 'small-model'),
      ('models/small-model', None, 'models/small-model'), ('/gone/small-model', None, 'small-model'),
      ('gone/small.gguf', None, 'small.gguf'), ('tiny', None, 'trained')):
    config.lm.checkpoint = checkpoint
    card = export.model_card(Context(config, finished, make_mesh()))
    front = yaml.safe_load(card.split('---')[1])
    assert front.pop('base_model', None) == base and front['library_name'] == ('peft' if adapter else 'transformers')
    assert f'Start: {name}' in card and 'gone' not in card and str(start.parent) not in card


def test_adapters_need_a_checkpoint_and_an_export_of_them_needs_adapters(micro_config):
  config = micro_config()
  config.lm.lora_rank = 4
  with pytest.raises(EagrlError, match=r'lm\.lora_rank=4.*lm\.checkpoint'):
    checks.check(config)
  config.lm.lora_rank = 0
  config.export.adapter = True
  with pytest.raises(EagrlError, match=r'export\.adapter'):
    checks.check(config)
