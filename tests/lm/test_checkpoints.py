"""Safetensors and GGUF in and out, and what is said of broken ones."""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import math
import pathlib
import weakref

import gguf
import huggingface_hub.constants
import jax
import lm_reference as ref
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from safetensors import numpy as safetensors_numpy

from eagrl_jax import mesh as mesh_lib
from eagrl_jax.lm import bpe, checkpoint_config, gguf_io, hf_io, layout, model
from eagrl_jax.lm.config import Mistral, RopeScaling
from eagrl_jax.lm.tokenizer import Tokenizer, train_tokenizer
from eagrl_jax.types import EagrlError

CONFIGS = {
    'llama': ref.CFG,
    'llama3': dataclasses.replace(ref.CFG, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192), rope_theta=5e5,
                                  tie_embeddings=False, max_positions=131_072),
    'mistral': dataclasses.replace(ref.CFG, mistral=Mistral(4096, 32_768), max_positions=4096),
    'qwen2': dataclasses.replace(ref.CFG, qkv_bias=True, rope_theta=5e5),
    'qwen3': dataclasses.replace(ref.CFG, qk_norm=True),
}


@pytest.fixture(scope='module')
def tokenizer():
  return train_tokenizer(['a lactate of 3.8'], ['lactate'], 300)


def random_params(cfg):
  r = np.random.default_rng(0)
  return jax.tree.map(lambda s: r.normal(size=s.shape).astype(np.float32), model.declare(cfg))


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_an_exported_policy_without_a_limit_states_one():
  plain = dataclasses.replace(ref.CFG, qk_norm=False, qkv_bias=False, mistral=None)
  stated = lambda n: checkpoint_config.to_hf(checkpoint_config.bounded(dataclasses.replace(plain, max_positions=n)))
  assert [stated(n)['max_position_embeddings'] for n in (0, 100)] == [32_768, 100]


@pytest.mark.parametrize('name', list(CONFIGS))
def test_load_inverts_save(name, tokenizer, tmp_path):
  cfg = CONFIGS[name]
  params = random_params(cfg)
  hf_io.save_hf(tmp_path, params, cfg, tokenizer)
  loaded, loaded_cfg, loaded_tokenizer = hf_io.load_hf(tmp_path)
  assert loaded_cfg == cfg
  assert_same(loaded, params)
  assert loaded_tokenizer.encode('lactate 3') == tokenizer.encode('lactate 3')


@pytest.mark.parametrize('name', ['qwen2', 'llama3'])
def test_both_schemas_of_the_rotary_settings_are_written(name):
  cfg = CONFIGS[name]
  written = checkpoint_config.to_hf(cfg)
  newer = written.pop('rope_parameters')  # of transformers 5, which 4 does not know
  scaling = {'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
             'original_max_position_embeddings': 8192} if cfg.rope_scaling else {}
  assert written['rope_theta'] == 5e5 and written.get('rope_scaling', {}) == scaling
  assert newer == {'rope_type': 'default', 'rope_theta': 5e5} | scaling
  assert written['transformers_version'] == '5.0.0'  # an older or unknown one: 4.57 warns of a wrong tokenizer
  assert checkpoint_config.from_hf(written) == cfg


@pytest.mark.parametrize(('name', 'factor'), [('qwen2', None), ('llama3', 8.0), ('llama3', 32.0)])
def test_transformers_reads_the_pair_as_we_do(name, factor, tmp_path):
  transformers = pytest.importorskip('transformers')
  config = checkpoint_config.to_hf(CONFIGS[name])
  if factor:  # a pair that disagrees, as after a correction by hand
    config['rope_scaling'] = config['rope_scaling'] | {'factor': factor}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  theirs, ours = transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters, checkpoint_config.from_hf(config)
  assert theirs['rope_theta'] == ours.rope_theta == 5e5
  assert theirs.get('factor') == factor == (ours.rope_scaling and ours.rope_scaling.factor)


@pytest.mark.parametrize(('kind', 'change', 'positions'), [
    ('llama', {}, 0), ('llama', {'max_position_embeddings': 131_072}, 131_072),
    ('mistral', {'max_position_embeddings': 32_768, 'sliding_window': 4096}, 4096),
    ('mistral', {'max_position_embeddings': 32_768, 'sliding_window': None}, 32_768),
    ('mistral', {'max_position_embeddings': 32_768}, 4096), ('mistral', {'sliding_window': 100}, 100),
    ('qwen2', {'max_position_embeddings': 32_768, 'sliding_window': 4096, 'use_sliding_window': False}, 32_768),
    ('qwen2', {'max_position_embeddings': 32_768, 'sliding_window': 4096, 'use_sliding_window': True}, 4096)])
def test_a_window_caps_the_positions(kind, change, positions, tmp_path):
  config = checkpoint_config.to_hf(dataclasses.replace(ref.CFG, qkv_bias=kind == 'qwen2')) | {'model_type': kind}
  read = checkpoint_config.from_hf(config | change)
  assert read.max_positions == positions
  written = checkpoint_config.to_hf(read)
  assert checkpoint_config.from_hf(written) == read
  if kind == 'mistral':  # says again what it said, or what its library takes it to have said
    said = {'sliding_window': 4096} | change
    assert {name: written.get(name, 'absent') for name in said} == said
  else:
    assert written.get('max_position_embeddings', 0) == positions and 'sliding_window' not in written


@pytest.mark.parametrize('window', [4096, None])
def test_a_mistral_is_exported_as_one(window, tokenizer, tmp_path):
  transformers = pytest.importorskip('transformers')
  cfg = dataclasses.replace(ref.CFG, mistral=Mistral(window, 32_768), max_positions=window or 32_768)
  hf_io.save_hf(tmp_path, random_params(cfg), cfg, tokenizer)
  theirs = transformers.AutoConfig.from_pretrained(tmp_path)
  assert (type(theirs), theirs.architectures) == (transformers.MistralConfig, ['MistralForCausalLM'])
  assert (theirs.sliding_window, theirs.max_position_embeddings) == (window, 32_768)


def test_the_ends_of_an_answer_are_exported(tokenizer, tmp_path):
  several = Tokenizer(tokenizer._fast, '<|end|>', '<|pad|>', ' lactate', None, [5, 7])
  for name, words, eos, bos in (('one', tokenizer, tokenizer.eos_id, None),
                                ('more', several, [tokenizer.eos_id, 5, 7], several.bos_id)):
    hf_io.save_hf(tmp_path / name, random_params(ref.CFG), ref.CFG, words)
    for file in ('config.json', 'generation_config.json'):
      written = json.loads((tmp_path / name / file).read_text())
      assert (written['eos_token_id'], written.get('bos_token_id'), written['pad_token_id']) == (eos, bos, words.pad_id)
    assert hf_io.load_hf(tmp_path / name)[2].stop_ids == words.stop_ids
  config = json.loads((tmp_path / 'one' / 'config.json').read_text())
  assert config['bos_token_id'] is None  # left out, it would be transformers' default for a llama


@pytest.mark.parametrize('kind', ['safetensors', 'gguf'])
def test_weights_go_to_their_devices_one_at_a_time(kind, monkeypatch, tokenizer, tmp_path):
  cfg, mesh = dataclasses.replace(ref.CFG, tie_embeddings=False), mesh_lib.make_mesh()
  params = random_params(cfg)
  if kind == 'gguf':
    write_gguf(tmp_path / 'm.gguf', cfg, params)
    load = functools.partial(gguf_io.load_gguf, tmp_path / 'm.gguf', mesh=mesh)
  else:
    hf_io.save_hf(tmp_path, params, cfg, tokenizer)
    load = functools.partial(hf_io.load_hf, tmp_path, mesh=mesh)
  alive: list[weakref.ref] = []
  assemble = layout.assemble

  def watched(read, name, index):
    gc.collect()
    assert not any(x() is not None for x in alive), 'an earlier tensor is still on the host'
    x = memory = read(name, index)
    while isinstance(memory.base, np.ndarray):  # a view would be gone before what it looks at
      memory = memory.base
    if not isinstance(memory, np.memmap):  # gains of a GGUF file, which is mapped and not held
      alive.append(weakref.ref(memory))
    return x

  monkeypatch.setattr(layout, 'assemble', lambda cfg, read, *rest: assemble(
      cfg, functools.partial(watched, read), *rest))
  loaded, _, _ = load()
  gains = len([name for name, _ in layout.leaves(cfg) if name.endswith('norm')])
  assert len(alive) == len(layout.leaves(cfg)) - (gains if kind == 'gguf' else 0)
  assert_same(jax.device_get(loaded), params)
  for x, where in zip(jax.tree.leaves(loaded), jax.tree.leaves(model.param_shardings(cfg, mesh))):
    assert x.sharding == where and x.dtype == np.float32


def test_saved_in_shards_and_in_another_dtype(tokenizer, tmp_path):
  params = random_params(ref.CFG)
  hf_io.save_hf(tmp_path, params, ref.CFG, tokenizer, 'bfloat16', shard_bytes=4000)
  files = sorted(tmp_path.glob('*.safetensors'))
  index = json.loads((tmp_path / hf_io.INDEX).read_text())
  assert len(files) > 2 and set(index['weight_map'].values()) == {f.name for f in files}
  stored = [x for f in files for x in safetensors_numpy.load_file(f).values()]
  assert index['metadata']['total_size'] == sum(x.nbytes for x in stored)
  assert json.loads((tmp_path / 'config.json').read_text())['dtype'] == 'bfloat16'
  loaded, *_ = hf_io.load_hf(tmp_path)
  assert_same(loaded, jax.tree.map(lambda a: a.astype(ml_dtypes.bfloat16).astype(np.float32), params))


def test_shards_and_bfloat16(tokenizer, tmp_path):
  params = jax.tree.map(lambda a: a.astype(ml_dtypes.bfloat16), random_params(ref.CFG))
  hf_io.save_hf(tmp_path, params, ref.CFG, tokenizer)
  tensors = safetensors_numpy.load_file(tmp_path / hf_io.WEIGHTS)
  (tmp_path / hf_io.WEIGHTS).unlink()
  names = sorted(tensors)
  shards = {'a.safetensors': names[::2], 'b.safetensors': names[1::2]}
  for file, keys in shards.items():
    safetensors_numpy.save_file({k: tensors[k] for k in keys}, tmp_path / file)
  index = {'weight_map': {k: file for file, keys in shards.items() for k in keys}}
  (tmp_path / hf_io.INDEX).write_text(json.dumps(index))
  loaded, *_ = hf_io.load_hf(tmp_path)
  assert loaded['embed'].dtype == np.float32
  assert_same(loaded, jax.tree.map(lambda a: a.astype(np.float32), params))
  (tmp_path / 'b.safetensors').unlink()
  with pytest.raises(EagrlError, match=r'b\.safetensors'):
    hf_io.load_hf(tmp_path)


def test_a_head_that_is_stored_is_used_though_the_config_ties_it(tokenizer, tmp_path, caplog):
  caplog.set_level('INFO')
  cfg = dataclasses.replace(ref.CFG, tie_embeddings=False)
  params = random_params(cfg)
  for name, tied, head in (('own', cfg, params['lm_head']), ('copy', ref.CFG, params['embed'].T)):
    hf_io.save_hf(tmp_path / name, params | {'lm_head': head}, cfg, tokenizer)
    edit(tmp_path / name / 'config.json', tie_word_embeddings=True)
    caplog.clear()
    loaded, shape, _ = hf_io.load_hf(tmp_path / name)
    assert shape == hf_io.read_head(tmp_path / name)[0] == hf_io.inspect(tmp_path / name) == tied
    assert [r.getMessage() for r in caplog.records] == [
        'own: tie_word_embeddings is true, but a head of its own is stored, and used'] * (tied == cfg)
    assert_same(loaded, {k: x for k, x in params.items() if k != 'lm_head' or tied == cfg})


def test_a_hub_name_has_a_shape_once_it_was_downloaded_whole(tokenizer, tmp_path, monkeypatch):
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
  assert hf_io.inspect('me/tiny') is None
  (tmp_path / 'models--me--tiny' / 'refs').mkdir(parents=True)
  (tmp_path / 'models--me--tiny' / 'refs' / 'main').write_text('abc')
  snapshot = tmp_path / 'models--me--tiny' / 'snapshots' / 'abc'
  hf_io.save_hf(snapshot, random_params(ref.CFG), ref.CFG, tokenizer)
  assert hf_io.inspect('me/tiny') == ref.CFG
  weights = (snapshot / hf_io.WEIGHTS).read_bytes()
  (snapshot / hf_io.WEIGHTS).unlink()
  assert hf_io.inspect('me/tiny') is None  # the download was broken off
  (snapshot / hf_io.WEIGHTS).write_bytes(weights)
  edit(snapshot / 'config.json', model_type='gpt2')
  with pytest.raises(EagrlError, match='gpt2'):
    hf_io.inspect('me/tiny/')
  for name in ('me/a--b', 'a-', 'größe/modell', 'x' * 100):  # of a shape that the hub refuses
    assert hf_io.inspect(name) is None


def test_of_a_file_and_an_index_the_file_is_read(tokenizer, tmp_path):
  """As transformers does; an index beside it is often of other weights, or of shards that were not copied."""
  params = random_params(ref.CFG)
  hf_io.save_hf(tmp_path, params, ref.CFG, tokenizer)
  (tmp_path / hf_io.INDEX).write_text('{"weight_map": {"model.norm.weight": "absent.safetensors"}}')
  assert_same(hf_io.load_hf(tmp_path)[0], params)


def test_a_folder_that_was_used_before_keeps_no_weights_of_then(tokenizer, tmp_path):
  params, files = random_params(ref.CFG), lambda: sorted(p.name for p in tmp_path.glob('model*'))
  (tmp_path / 'notes.txt').touch()
  for size in (10**9, 9000, 20_000, 10**9):
    hf_io.save_hf(tmp_path, params, ref.CFG, tokenizer, shard_bytes=size)
    if size == 10**9:
      assert files() == [hf_io.WEIGHTS]
    else:
      where = json.loads((tmp_path / hf_io.INDEX).read_text())['weight_map']
      assert files() == sorted({*where.values(), hf_io.INDEX}) and len(files()) > 2
    assert_same(hf_io.load_hf(tmp_path)[0], params)
  assert (tmp_path / 'notes.txt').exists()


def edit(file, **changes):
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def drop_weight(folder):
  tensors = safetensors_numpy.load_file(folder / hf_io.WEIGHTS)
  del tensors['model.layers.1.mlp.up_proj.weight']
  safetensors_numpy.save_file(tensors, folder / hf_io.WEIGHTS)


def add_weight(folder):
  tensors = safetensors_numpy.load_file(folder / hf_io.WEIGHTS)
  safetensors_numpy.save_file(tensors | {'model.extra': np.zeros(3, np.float32)}, folder / hf_io.WEIGHTS)


BROKEN = {
    'gpt2': (lambda d: edit(d / 'config.json', model_type='gpt2'), 'model_type'),
    'no rms_norm_eps': (lambda d: edit(d / 'config.json', rms_norm_eps=None) or remove_key(d, 'rms_norm_eps'),
                        'rms_norm_eps'),
    'gelu': (lambda d: edit(d / 'config.json', hidden_act='gelu'), 'hidden_act'),
    'yarn': (lambda d: edit(d / 'config.json', rope_parameters={'rope_type': 'yarn'}), 'yarn'),
    'no window': (lambda d: edit(d / 'config.json', model_type='mistral', sliding_window=-1), 'sliding_window=-1'),
    'bias': (lambda d: edit(d / 'config.json', attention_bias=True), 'attention_bias'),
    'width': (lambda d: edit(d / 'config.json', intermediate_size=41), 'mlp.*shape'),
    'untied': (lambda d: edit(d / 'config.json', tie_word_embeddings=False), 'lm_head'),
    'no config': (lambda d: (d / 'config.json').unlink(), 'config.json'),
    'bad config': (lambda d: (d / 'config.json').write_text('{'), 'config.json'),
    'no weights': (lambda d: (d / hf_io.WEIGHTS).unlink(), 'safetensors'),
    'old weights': (lambda d: (d / hf_io.WEIGHTS).rename(d / 'pytorch_model.bin'), r'save_pretrained\(NEW\)'),
    'cut weights': (lambda d: (d / hf_io.WEIGHTS).write_bytes((d / hf_io.WEIGHTS).read_bytes()[:500]), 'safetensors'),
    'weight missing': (drop_weight, r'layers\.1\.mlp\.up_proj'),
    'weight unknown': (add_weight, r'model\.extra'),
    'no tokenizer': (lambda d: (d / 'tokenizer.json').unlink(), 'tokenizer'),
}


def remove_key(folder, key):
  config = json.loads((folder / 'config.json').read_text())
  del config[key]
  (folder / 'config.json').write_text(json.dumps(config))


@pytest.mark.parametrize('case', list(BROKEN))
def test_a_broken_checkpoint_is_named_in_one_line(case, tokenizer, tmp_path):
  hf_io.save_hf(tmp_path, random_params(ref.CFG), ref.CFG, tokenizer)
  damage, message = BROKEN[case]
  damage(tmp_path)
  with pytest.raises(EagrlError, match=message) as error:
    hf_io.load_hf(tmp_path)
  assert '\n' not in str(error.value)


def test_a_path_that_is_no_directory_never_reaches_the_hub(tmp_path):
  with pytest.raises(EagrlError, match='is not a directory'):
    hf_io.load_hf(tmp_path / 'absent')


def test_what_is_downloaded_is_what_is_read(monkeypatch, tokenizer, tmp_path):
  """The hub's own filter, on the files of a repository that holds its weights twice."""
  files = ['config.json', 'generation_config.json', 'model-00001-of-00002.safetensors', 'model.safetensors.index.json',
           'tokenizer.json', 'tokenizer.model', 'tokenizer_config.json', 'chat_template.jinja', 'vocab.json',
           'merges.txt']
  others = ['consolidated.safetensors', 'consolidated.00.pth', 'original/params.json', 'original/tokenizer.model',
            'pytorch_model.bin', 'README.md', 'model.gguf']
  hf_io.save_hf(tmp_path, random_params(ref.CFG), ref.CFG, tokenizer)
  asked = {}

  def snapshot_download(name, **patterns):
    asked[name] = list(huggingface_hub.utils.filter_repo_objects(files + others, **patterns))
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
  assert hf_io.load_hf('some/model')[1] == ref.CFG
  assert asked == {'some/model': files}


VOCAB = [*bpe.byte_characters(), 'ab', 'Ġa', '<|im_end|>']


def byte_level(w, pre, added=(), template=True):
  w.add_tokenizer_model('gpt2')
  w.add_tokenizer_pre(pre)
  w.add_token_list([*VOCAB, *(token for token, _ in added)])
  w.add_token_types([1] * (len(VOCAB) - 1) + [3, *(kind for _, kind in added)])
  w.add_token_merges(['a b', 'Ġ a'])
  w.add_eos_token_id(len(VOCAB) - 1)
  w.add_eot_token_id(VOCAB.index('ab'))
  if template:
    w.add_chat_template('{{ messages[0].content }}<|im_end|>')


def write_gguf(path, cfg, params, arch='llama', pre='smollm', drop=(), extra=None, words=None):
  """Writes a file as llama.cpp's converter does, its q/k permutation included."""
  w = gguf.GGUFWriter(path, arch)
  w.add_block_count(cfg.n_layers)
  w.add_embedding_length(cfg.d_model)
  w.add_feed_forward_length(cfg.d_ff)
  w.add_head_count(cfg.n_heads)
  w.add_head_count_kv(cfg.n_kv_heads)
  w.add_key_length(cfg.head_dim)
  w.add_rope_freq_base(cfg.rope_theta)
  w.add_layer_norm_rms_eps(cfg.norm_eps)
  if cfg.max_positions:
    w.add_context_length(cfg.max_positions)
  (words or byte_level)(w, pre)

  def permute(matrix, heads):  # the pair (i, i + H/2) of half-split rows becomes neighbours
    out = np.empty_like(matrix)
    size = len(matrix) // heads
    for head in range(heads):
      for i in range(size // 2):
        out[head * size + 2 * i] = matrix[head * size + i]
        out[head * size + 2 * i + 1] = matrix[head * size + i + size // 2]
    return out

  def put(name, value):
    if name not in drop:
      w.add_tensor(name, np.ascontiguousarray(value))

  put('token_embd.weight', params['embed'])
  put('output_norm.weight', params['final_norm'])
  if not cfg.tie_embeddings:
    put('output.weight', params['lm_head'].T)
  for i in range(cfg.n_layers):
    for name, suffix in gguf_io.LAYER.items():
      if name not in params['layers']:
        continue
      x = params['layers'][name][i]
      if name == 'wo':
        x = x.reshape(-1, cfg.d_model).T
      elif name[0] == 'w':
        x = x.reshape(x.shape[0], -1).T
      elif name[0] == 'b':
        x = x.reshape(-1)
      if arch == 'llama' and name in ('wq', 'wk', 'bq', 'bk'):
        x = permute(x, cfg.n_heads if name[1] == 'q' else cfg.n_kv_heads)
      put(f'blk.{i}.{suffix}', x)
  for name, value in (extra or {}).items():
    put(name, value)
  w.write_header_to_file()
  w.write_kv_data_to_file()
  w.write_tensors_to_file()
  w.close()


@pytest.mark.parametrize(('name', 'arch', 'pre'), [('llama', 'llama', 'smollm'), ('llama3', 'llama', 'llama-bpe'),
                                                   ('qwen2', 'llama', 'smollm'),  # attention biases
                                                   ('qwen2', 'qwen2', 'qwen2'), ('qwen3', 'qwen3', 'qwen2')])
def test_gguf_gives_back_the_weights(name, arch, pre, tmp_path):
  cfg = CONFIGS[name]
  params = random_params(cfg)
  extra = None
  if cfg.rope_scaling:
    bare = dataclasses.replace(cfg, rope_scaling=None)
    extra = {gguf_io.ROPE_FACTORS: gguf_io.rope.frequencies(bare) / gguf_io.rope.frequencies(cfg)}
  write_gguf(tmp_path / 'm.gguf', cfg, params, arch, pre, extra=extra)
  loaded, loaded_cfg, tokenizer = gguf_io.load_gguf(tmp_path / 'm.gguf')
  assert dataclasses.replace(loaded_cfg, norm_eps=cfg.norm_eps) == cfg
  head, words = gguf_io.read_head(tmp_path / 'm.gguf')
  assert head == loaded_cfg and words.encode('ab a1') == tokenizer.encode('ab a1')
  assert_same(loaded, params)
  assert [tokenizer.piece(i) for i in tokenizer.encode('ab a1µ<|im_end|>')] == ['ab', ' a', '1', '\ufffd', '\ufffd',
                                                                                 '<|im_end|>']
  assert tokenizer.decode(tokenizer.encode('ab a1µ')) == 'ab a1µ'
  assert tokenizer.apply_chat('x') == 'x<|im_end|>' and tokenizer.piece(tokenizer.eos_id) == '<|im_end|>'
  assert [tokenizer.piece(i) for i in tokenizer.stop_ids] == ['<|im_end|>', 'ab']


def test_a_gguf_of_tekken_splits_words_where_their_case_changes(tmp_path):
  write_gguf(tmp_path / 'm.gguf', ref.CFG, random_params(ref.CFG), pre='tekken')
  _, _, tokenizer = gguf_io.load_gguf(tmp_path / 'm.gguf')
  assert tokenizer._fast.pre_tokenizer.pre_tokenize_str('pHValue 42')[:2] == [('p', (0, 1)), ('HValue', (1, 7))]
  assert [tokenizer.piece(i) for i in tokenizer.encode('ab aB')] == ['ab', ' a', 'B']


SENTENCEPIECE = json.loads((pathlib.Path(__file__).parents[1] / 'golden' / 'sentencepiece.json').read_text('utf-8'))


def sentencepiece_words(w, _, **changes):
  golden = SENTENCEPIECE | changes
  w.add_tokenizer_model('llama')
  w.add_token_list(golden['pieces'])
  w.add_token_scores(golden['scores'])
  w.add_token_types(golden['types'])
  w.add_unk_token_id(golden['unknown'])
  w.add_bos_token_id(golden['bos'])
  w.add_eos_token_id(golden['eos'])
  if 'puts_space' in golden:
    kind = gguf.GGUFValueType.BOOL if isinstance(golden['puts_space'], bool) else gguf.GGUFValueType.STRING
    w.add_key_value('tokenizer.ggml.add_space_prefix', golden['puts_space'], kind)


def test_a_gguf_of_sentencepiece_tokenizes_as_sentencepiece(tmp_path):
  golden = SENTENCEPIECE
  write_gguf(tmp_path / 'm.gguf', ref.CFG, random_params(ref.CFG), words=sentencepiece_words)
  _, _, tokenizer = gguf_io.load_gguf(tmp_path / 'm.gguf')
  assert [tokenizer.encode(text) for text in golden['texts']] == golden['ids']
  for text, ids in zip(golden['texts'], golden['ids']):
    assert tokenizer.decode(ids) == text.replace('▁', ' ')
    assert tokenizer.decode_with_offsets(tokenizer.encode(text, continues=True))[0] == text.replace('▁', ' ')
  assert tokenizer.encode('lactate</s>')[-1] == tokenizer.eos_id == golden['eos'] and tokenizer.bos_id == golden['bos']
  tokenizer.save(tmp_path / 'saved')
  assert Tokenizer.load(tmp_path / 'saved').encode(golden['texts'][-1]) == golden['ids'][-1]
  # Some converters write one score for all: then pieces were learnt in their order.
  write_gguf(tmp_path / 'm.gguf', ref.CFG, random_params(ref.CFG),
             words=functools.partial(sentencepiece_words, scores=[-1000.0] * len(golden['pieces'])))
  _, _, unscored = gguf_io.load_gguf(tmp_path / 'm.gguf')
  assert [unscored.encode(text) for text in golden['texts']] == golden['ids']
  write_gguf(tmp_path / 'm.gguf', ref.CFG, random_params(ref.CFG),
             words=functools.partial(sentencepiece_words, puts_space=False))
  _, _, plain = gguf_io.load_gguf(tmp_path / 'm.gguf')
  for text in golden['texts']:
    assert plain.encode(text) == tokenizer.encode(text, continues=True) == plain.encode(text, continues=True)
    assert plain.decode(plain.encode(text)) == text.replace('▁', ' ')


def begins(w, pre, model='gpt2', **fields):
  golden = SENTENCEPIECE
  if model == 'gpt2':
    byte_level(w, pre, template=False)
    w.add_bos_token_id(VOCAB.index('ab'))
  else:
    sentencepiece_words(w, pre)
  for name, value in fields.items():
    w.add_bool(f'tokenizer.ggml.{name}', value)
  return golden['bos'] if model == 'llama' else VOCAB.index('ab')


@pytest.mark.parametrize(('model', 'pre', 'fields', 'begun'), [
    ('llama', '', {}, True), ('llama', '', {'add_bos_token': False}, False), ('gpt2', 'llama-bpe', {}, True),
    ('gpt2', 'tekken', {}, True), ('gpt2', 'qwen2', {}, False), ('gpt2', 'smollm', {'add_bos_token': True}, True),
    ('gpt2', 'llama-bpe', {'add_bos_token': False}, False)])
def test_a_prompt_begins_as_llama_cpp_begins_it(model, pre, fields, begun, tmp_path):
  told = []
  write_gguf(tmp_path / 'm.gguf', ref.CFG, random_params(ref.CFG), pre=pre,
             words=lambda w, pre: told.append(begins(w, pre, model, **fields)))
  words = gguf_io.read_head(tmp_path / 'm.gguf')[1]
  assert words.begin_ids == told * begun
  words.save(tmp_path / 'saved')
  assert Tokenizer.load(tmp_path / 'saved').begin_ids == words.begin_ids


def test_an_answer_ends_where_llama_cpp_ends_it_and_a_users_token_is_text(tmp_path):
  added = ['<|endoftext|>', '<|eot_id|>', '<think>', '<|fim_pad|>', '<|im_start|>', '</s>']
  kinds = [gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.USER_DEFINED, gguf.TokenType.CONTROL,
           gguf.TokenType.CONTROL, gguf.TokenType.NORMAL]
  write_gguf(tmp_path / 'm.gguf', ref.CFG, random_params(ref.CFG),
             words=lambda w, pre: byte_level(w, pre, list(zip(added, kinds)), template=False))
  words = gguf_io.read_head(tmp_path / 'm.gguf')[1]
  assert [words.piece(i) for i in words.stop_ids] == ['<|im_end|>', 'ab', '<|endoftext|>', '<|eot_id|>', '<|fim_pad|>']
  assert [words.piece(i) for i in words.encode('<think><|im_start|>')] == ['<think>', '<|im_start|>']
  words.save(tmp_path / 'saved')
  theirs = tokenizers.Tokenizer.from_file(str(tmp_path / 'saved' / 'tokenizer.json'))
  assert theirs.decode(words.encode('a<think><|im_start|>b<|eot_id|>'), skip_special_tokens=True) == 'a<think>b'


def test_a_part_of_a_gguf_file_is_named(tmp_path):
  for part in (0, 1):
    w = gguf.GGUFWriter(tmp_path / 'm.gguf', 'llama')
    w.kv_data[0].clear()  # the second part has no architecture
    w.add_key_value('split.no', part, gguf.GGUFValueType.UINT16)
    w.add_key_value('split.count', 2, gguf.GGUFValueType.UINT16)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    with pytest.raises(EagrlError, match=rf'm\.gguf is part {part + 1} of 2; join the parts: llama-gguf-split --merge'):
      gguf_io.read_config(tmp_path / 'm.gguf')


def test_quantised_gguf_weights_are_dequantised(tmp_path):
  cfg = dataclasses.replace(ref.CFG, d_model=32, d_ff=64)
  params = random_params(cfg)
  path = tmp_path / 'm.gguf'
  w = gguf.quants.quantize(params['embed'], gguf.GGMLQuantizationType.Q8_0)
  want = gguf.quants.dequantize(w, gguf.GGMLQuantizationType.Q8_0)
  original = gguf.GGUFWriter.add_tensor

  def quantised(self, name, value):
    if name == 'token_embd.weight':
      return original(self, name, w, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    return original(self, name, value)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(gguf.GGUFWriter, 'add_tensor', quantised)
    write_gguf(path, cfg, params)
  loaded, *_ = gguf_io.load_gguf(path)
  np.testing.assert_array_equal(loaded['embed'], want)
  assert 0 < np.abs(want - params['embed']).max() < 0.05


def test_broken_gguf_files_are_named(tmp_path):
  path, params = tmp_path / 'm.gguf', random_params(ref.CFG)
  with pytest.raises(EagrlError, match='is not a file'):
    gguf_io.load_gguf(path)
  write_gguf(path, ref.CFG, params, arch='gpt2')
  with pytest.raises(EagrlError, match=r"general\.architecture='gpt2'"):
    gguf_io.load_gguf(path)
  write_gguf(path, ref.CFG, params, pre='unknown')
  with pytest.raises(EagrlError, match=r"tokenizer\.ggml\.pre='unknown'"):
    gguf_io.load_gguf(path)
  changed = lambda **changes: functools.partial(sentencepiece_words, **changes)
  for words, said in ((changed(scores=[0.5]), 'scores has 1 numbers for 500'),
                      (changed(scores=[math.nan] * 500), r'tokenizer\.ggml\.scores has numbers that are not finite'),
                      (changed(types=[1] * 499), r'token_type and tokenizer\.ggml\.tokens differ'),
                      (changed(puts_space='false'), r"add_space_prefix='false' is neither"),
                      (lambda w, _: (sentencepiece_words(w, _), w.add_string('tokenizer.ggml.add_bos_token', 'no')),
                       r"add_bos_token='no' is neither"),
                      (changed(unknown=500), r'unknown_token_id=500 is none of the 500 tokens'),
                      (changed(eos=500), r'eos_token_id=500 is none of the 500 tokens'),
                      (lambda w, _: w.add_tokenizer_model('bert'), r"tokenizer\.ggml\.model='bert'")):
    write_gguf(path, ref.CFG, params, words=words)
    with pytest.raises(EagrlError, match=said):
      gguf_io.load_gguf(path)
  def scaled(key, value, w, pre):
    byte_level(w, pre)
    w.add_float32(f'llama.rope.{key}', value)
  for key, value in (('scaling.factor', 4.0), ('scale_linear', 8.0)):  # a factor without a type is linear
    write_gguf(path, ref.CFG, params, words=functools.partial(scaled, key, value))
    with pytest.raises(EagrlError, match=f'llama.rope.{key} is not supported'):
      gguf_io.load_gguf(path)
    write_gguf(path, ref.CFG, params, words=functools.partial(scaled, key, 1.0))
    gguf_io.load_gguf(path)
  write_gguf(path, ref.CFG, params, drop=('blk.1.ffn_up.weight',))
  with pytest.raises(EagrlError, match=r'blk\.1\.ffn_up\.weight'):
    gguf_io.load_gguf(path)
  write_gguf(path, ref.CFG, params, extra={'blk.0.ffn_gate_inp.weight': np.zeros((2, 2), np.float32)})
  with pytest.raises(EagrlError, match='ffn_gate_inp'):
    gguf_io.load_gguf(path)
  write_gguf(path, ref.CFG, params)
  whole = path.read_bytes()
  for cut in (b'', b'junk' * 10, whole[:40], whole[:3000], whole[:-2000]):
    path.write_bytes(cut)
    with pytest.raises(EagrlError, match='not a readable GGUF'):
      gguf_io.load_gguf(path)
