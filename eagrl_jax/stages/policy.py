"""A policy on disk: parameters (Orbax), shape and tokenizer; handed from stage to stage."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from eagrl_jax.lm import gguf_io, hf_io, model
from eagrl_jax.lm.config import LMConfig, RopeScaling
from eagrl_jax.lm.tokenizer import Tokenizer
from eagrl_jax.train import checkpoint
from eagrl_jax.types import EagrlError, Params

POLICIES = ('base', 'sft', 'rl')  # stages that leave one


@dataclasses.dataclass(frozen=True)
class Policy:
  params: Params
  config: LMConfig
  tokenizer: Tokenizer


def save(folder: pathlib.Path, policy: Policy) -> None:
  """Writes `<folder>/policy`."""
  target = folder / 'policy'
  target.mkdir(parents=True, exist_ok=True)
  (target / 'lm.json').write_text(json.dumps(dataclasses.asdict(policy.config), indent=2))
  policy.tokenizer.save(target / 'tokenizer')
  checkpoint.save_params(target / 'params', policy.params)


def load(folder: pathlib.Path, mesh: Mesh) -> Policy:
  """Reads `<folder>/policy`, already sharded over the mesh."""
  source = folder / 'policy'
  try:
    shape = json.loads((source / 'lm.json').read_text())
  except (OSError, json.JSONDecodeError) as e:
    raise EagrlError(f'{source} holds no readable policy; delete {folder.name}/done.json to make it again') from e
  scaling = shape.pop('rope_scaling')
  config = LMConfig(rope_scaling=RopeScaling(**scaling) if scaling else None, **shape)
  params = checkpoint.load_params(source / 'params', like=_abstract(config, mesh))
  return Policy(params, config, Tokenizer.load(source / 'tokenizer'))


def _abstract(config: LMConfig, mesh: Mesh) -> Params:
  shapes = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
  where = model.param_shardings(config, mesh)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)


def load_pretrained(lm: ConfigDict) -> Policy:
  """The checkpoint that `lm.checkpoint` names: a `.gguf` file, a Hugging Face folder or a hub name."""
  read = gguf_io.load_gguf if lm.checkpoint.endswith('.gguf') else hf_io.load_hf
  params, config, tokenizer = read(lm.checkpoint)
  return Policy(params, dataclasses.replace(config, compute_dtype=lm.compute_dtype, remat=lm.remat), tokenizer)
