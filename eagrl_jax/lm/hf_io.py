"""Hugging Face checkpoints: safetensors in, safetensors out."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import ml_dtypes  # noqa: F401  registers bfloat16, which safetensors' numpy reader returns
import numpy as np
import safetensors
from absl import logging
from jax.sharding import Mesh

from eagrl_jax.lm import checkpoint_config, json_file, layout, lora, tensor_file
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.layout import Dtype
from eagrl_jax.lm.tokenizer import Tokenizer
from eagrl_jax.types import EagrlError, Params

INDEX, WEIGHTS, SHARDS = 'model.safetensors.index.json', 'model.safetensors', 'model-*-of-*.safetensors'
IGNORED = ('rotary_emb.inv_freq',)  # recomputed from the config
WANTED = ('*.json', '*.safetensors', '*.jinja', '*.txt', 'tokenizer.model')  # of a repository on the hub
TWICE = ('consolidated*', 'original/*')  # the same weights once more, in their authors' own layout

_HUB_NAME = re.compile(r'\w[\w.-]*(/\w[\w.-]*)?')  # not ./x, ~/x, /x or x/y/z, which mean a place here


def load_hf(path: str | Path, dtype: Dtype = np.float32, mesh: Mesh | None = None
            ) -> tuple[Params, LMConfig, Tokenizer]:
  """Loads a directory, or a hub name when no such directory exists.

  Args:
    path: holds config.json, safetensors (one file or an index with shards) and a tokenizer.
    dtype: of the weights in memory; float32 is exact for bfloat16 and float16 files.
    mesh: the devices that the weights go to, one tensor at a time; None leaves them on the host, as numpy arrays.

  Returns:
    `(params, config, tokenizer)`.

  Raises:
    EagrlError: names the file or key that is missing, corrupt or of the wrong shape.
  """
  directory = _directory(path)
  named = checkpoint_config.from_hf(_json(directory / 'config.json'))
  tensors = _Tensors(directory)
  cfg = _as_stored(named, tensors)
  if cfg != named:
    logging.info('%s: tie_word_embeddings is true, but a head of its own is stored, and used', directory.name)
  if not cfg.tie_embeddings and layout.TOP['lm_head'] not in tensors.names:
    raise EagrlError(f'{directory.name}: no {layout.TOP["lm_head"]} and tie_word_embeddings is false; set it to true in'
                     ' config.json if the head is tied')
  ignored = {layout.TOP['lm_head']} if cfg.tie_embeddings else set()
  wanted = {layout.hf_key(name, i) for name, i in layout.leaves(cfg)} | ignored
  extra = sorted(n for n in tensors.names - wanted if not n.endswith(IGNORED))
  if extra:
    raise EagrlError(f'{directory.name}: {len(extra)} unknown weights, the first is {extra[0]!r}; the checkpoint does'
                     ' not match its config.json')
  tokenizer = Tokenizer.load(directory)
  return layout.assemble(cfg, lambda name, index: tensors.read(layout.hf_key(name, index)), dtype, mesh), cfg, tokenizer


def save_hf(path: str | Path, params: Params, cfg: LMConfig, tokenizer: Tokenizer, dtype: Dtype | None = None,
            shard_bytes: int = 5 * 10**9, change: Callable[[str, np.ndarray], np.ndarray] = lambda _, x: x) -> None:
  """Writes config.json, safetensors and what belongs to the tokenizer, as transformers and `load_hf` read them.

  One shard of weights is on the host at a time; adapters are merged into their weights, one weight at a time.

  Args:
    dtype: of the weights in the files; None keeps that of `params`.
    shard_bytes: a weight that would make a file larger than this begins the next one.
    change: what to write for a weight, given its name in `model.declare` and its values, without the axis of layers.
  """
  directory = Path(path)
  directory.mkdir(parents=True, exist_ok=True)
  plain = dataclasses.replace(cfg, lora=None)

  def value(name, index):
    x = change(name, np.asarray(lora.merged(params, cfg, name, index)))
    return np.ascontiguousarray(layout.to_hf(name, x if dtype is None else x.astype(dtype)))

  def size(name, index):
    x = params[name] if index is None else params['layers'][name]
    itemsize = np.dtype(dtype or lora.merged_dtype(params, cfg, name)).itemsize
    return x.size // (1 if index is None else x.shape[0]) * itemsize

  shards: list[list[tuple[str, int | None]]] = [[]]
  filled = 0
  for leaf in layout.leaves(plain):
    if shards[-1] and filled + size(*leaf) > shard_bytes:
      shards.append([])
      filled = 0
    shards[-1].append(leaf)
    filled += size(*leaf)
  where: dict[str, str] = {}
  for i, shard in enumerate(shards, 1):
    file = WEIGHTS if len(shards) == 1 else f'model-{i:05d}-of-{len(shards):05d}.safetensors'
    tensors = {layout.hf_key(*leaf): value(*leaf) for leaf in shard}
    tensor_file.save(tensors, directory / file)
    where |= dict.fromkeys(tensors, file)
    del tensors  # before the next shard is built
  for old in {*directory.glob(SHARDS), directory / INDEX, directory / WEIGHTS}:
    if old.name not in where.values():
      old.unlink(missing_ok=True)
  if len(shards) > 1:
    total = sum(size(*leaf) for leaf in layout.leaves(plain))
    _write_json(directory / INDEX, {'metadata': {'total_size': total}, 'weight_map': where})
  stored = np.dtype(dtype or params['embed'].dtype).name
  _write_json(directory / 'config.json', checkpoint_config.to_hf(plain) | tokenizer.special_ids() | {'dtype': stored})
  tokenizer.save(directory)


def read_head(path: str | Path) -> tuple[LMConfig, Tokenizer]:
  """What `load_hf` gives beside the weights, without reading those. Raises as `load_hf` does."""
  directory = _directory(path)
  named = checkpoint_config.from_hf(_json(directory / 'config.json'))
  return _as_stored(named, _Tensors(directory)), Tokenizer.load(directory)


def hub_name(path: str | Path) -> str | None:
  """What can only be a checkpoint's name on the hub; None for a place on this machine."""
  name = str(path).removesuffix('/')
  return name if _HUB_NAME.fullmatch(name) and not Path(path).expanduser().exists() else None


def _as_stored(cfg: LMConfig, tensors: _Tensors) -> LMConfig:
  """Untied where a head is stored that is not the embedding, whatever config.json says: as transformers 5 has it."""
  embed, head = layout.TOP['embed'], layout.TOP['lm_head']
  if cfg.tie_embeddings and head in tensors.names and not np.array_equal(tensors.read(embed), tensors.read(head)):
    return dataclasses.replace(cfg, tie_embeddings=False)
  return cfg


class _Tensors:
  """Reads tensors by name out of one safetensors file or an index of shards; of both, as transformers, of the file."""

  def __init__(self, directory: Path):
    self._directory = directory
    self._open: dict[str, safetensors.safe_open] = {}
    if (directory / INDEX).is_file() and not (directory / WEIGHTS).is_file():
      file_of = _json(directory / INDEX).get('weight_map')
      if not isinstance(file_of, dict) or not all(
          isinstance(file, str) and file == Path(file).name and file.isprintable() for file in file_of.values()):
        raise EagrlError(f'{INDEX}: weight_map does not give a file of this directory for each weight; copy it again'
                         ' from its source')
      self._file_of: dict[str, str] = file_of
    else:
      self._file_of = {name: WEIGHTS for name in self._file(WEIGHTS).keys()}
    self.names = set(self._file_of)

  def open_all(self) -> None:
    """Opens every file, which reads its header."""
    for name in sorted(set(self._file_of.values())):
      self._file(name)

  def read(self, key: str) -> np.ndarray:
    if key not in self._file_of:
      raise EagrlError(f'{self._directory.name}: weight {key!r} is missing; the checkpoint does not match its'
                       ' config.json')
    try:
      return self._file(self._file_of[key]).get_tensor(key)
    except safetensors.SafetensorError as e:
      raise EagrlError(f'{self._file_of[key]}: weight {key!r} cannot be read ({e}); copy the file again') from e

  def _file(self, name: str):
    if name not in self._open:
      file = self._directory / name
      if not file.is_file():
        raise EagrlError(f'lm.checkpoint: {self._directory.name} has no {name}; only safetensors weights are read.'
                         ' Where it has pytorch_model.bin, convert it with transformers and torch:'
                         ' AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW), and AutoTokenizer likewise')
      try:
        self._open[name] = safetensors.safe_open(str(file), framework='numpy')
      except (safetensors.SafetensorError, OSError) as e:
        raise EagrlError(f'{name} is not a readable safetensors file ({e}); copy it again from its source') from e
    return self._open[name]


def inspect(path: str | Path) -> LMConfig | None:
  """The shape in a checkpoint's config.json, once its weight files have shown that they can be opened.

  None for a hub name that was not downloaded whole before; nothing is downloaded here.

  Raises:
    EagrlError: neither a directory nor a possible hub name, or a broken file.
  """
  local = _local(path)
  directory = local or downloaded(str(path))
  if directory is None:
    return None
  cfg = checkpoint_config.from_hf(_json(directory / 'config.json'))
  try:
    tensors = _Tensors(directory)
    tensors.open_all()
  except EagrlError:
    if local is None:  # `load_hf` completes what was broken off, or says what is wrong with it
      return None
    raise
  return _as_stored(cfg, tensors)


def downloaded(name: str) -> Path | None:
  """Where a hub name's files are since an earlier download; nothing reaches the network."""
  import huggingface_hub

  try:
    config = huggingface_hub.try_to_load_from_cache(name.removesuffix('/'), 'config.json')
  except ValueError:  # no name that the hub would give: `load_hf` says so
    return None
  return Path(config).parent if isinstance(config, str) else None


def _local(path: str | Path) -> Path | None:
  """The directory, None for what can only be a hub name."""
  directory = Path(path).expanduser()
  if directory.is_dir():
    return directory
  if hub_name(path) is None:
    raise EagrlError(f'lm.checkpoint={path} is not a directory; give a Hugging Face directory, a hub name or a'
                     ' .gguf file')
  return None


def _directory(path: str | Path) -> Path:
  directory = _local(path)
  if directory is not None:
    return directory
  import huggingface_hub.errors  # only a hub name reaches the network

  try:
    return Path(huggingface_hub.snapshot_download(
        str(path).removesuffix('/'), allow_patterns=list(WANTED), ignore_patterns=list(TWICE)))
  except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as e:
    raise EagrlError(f'lm.checkpoint={path} is no directory here and the hub gives no such model ({type(e).__name__});'
                     ' check the name and the network, or give a local directory') from e


def _write_json(file: Path, content: dict) -> None:
  file.write_text(json.dumps(content, indent=2) + '\n', 'utf-8')


def _json(file: Path) -> dict:
  if not file.is_file():
    raise EagrlError(f'lm.checkpoint: {file.parent.name} has no {file.name}; give a complete Hugging Face directory')
  return json_file.read(file)
