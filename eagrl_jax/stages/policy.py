"""A policy on disk: parameters (Orbax), shape and tokenizer; handed from stage to stage."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from eagrl_jax.lm import gguf_io, hf_io, lora, model
from eagrl_jax.lm.config import LMConfig, LoraConfig, Mistral, RopeScaling
from eagrl_jax.lm.tokenizer import Tokenizer
from eagrl_jax.rl import engine, rollouts
from eagrl_jax.stages import settings
from eagrl_jax.stages.context import Context
from eagrl_jax.train import checkpoint, processes
from eagrl_jax.types import Array, EagrlError, Params, PromptBatch, Rollout, made_again

POLICIES = ('base', 'sft', 'rl')  # stages that leave one


@dataclasses.dataclass(frozen=True)
class Policy:
  params: Params
  config: LMConfig
  tokenizer: Tokenizer


def save(folder: pathlib.Path, policy: Policy) -> None:
  """Writes `<folder>/policy`."""
  target = folder / 'policy'

  def describe() -> None:
    target.mkdir(parents=True, exist_ok=True)
    (target / 'lm.json').write_text(json.dumps(dataclasses.asdict(policy.config), indent=2))
    policy.tokenizer.save(target / 'tokenizer')

  processes.first(describe)
  checkpoint.save_params(target / 'params', policy.params)


def load(folder: pathlib.Path, mesh: Mesh) -> Policy:
  """Reads `<folder>/policy`, already sharded over the mesh."""
  source = folder / 'policy'
  try:
    shape = json.loads((source / 'lm.json').read_text())
  except (OSError, json.JSONDecodeError) as e:
    raise EagrlError(f'{source} holds no readable policy; {made_again(folder.name)}') from e
  try:
    if shape['rope_scaling']:
      shape['rope_scaling'] = RopeScaling(**shape['rope_scaling'])
    if shape['lora']:
      shape['lora'] = LoraConfig(**shape['lora'] | {'targets': tuple(shape['lora']['targets'])})
    if shape.get('mistral'):
      shape['mistral'] = Mistral(**shape['mistral'])
    config = LMConfig(**shape)
  except (KeyError, TypeError) as e:
    raise EagrlError(f'{source} was written by another version of eagrl_jax; run it in a new --workdir') from e
  params = checkpoint.load_params(source / 'params', model.abstract(config, mesh), folder.name)
  return Policy(params, config, tokenizer(folder))


def in_turn(context: Context) -> Iterator[tuple[str, Policy]]:
  """Every policy of a run by its stage; its weights are freed before the next one's are read."""
  for name in POLICIES:
    policy = load(context.folder(name), context.mesh)
    yield name, policy
    for x in jax.tree.leaves(policy.params):
      x.delete()


def tokenizer(folder: pathlib.Path) -> Tokenizer:
  """Of `<folder>/policy`."""
  source = folder / 'policy' / 'tokenizer'
  try:
    return Tokenizer.load(source)
  except EagrlError as e:  # of somebody's own tokenizer the fix would be another
    raise EagrlError(f'{source} holds no readable tokenizer; {made_again(folder.name)}') from e


def release(policy: Policy) -> None:
  """Frees the trained weights of a policy whose training state has its own copy of them."""
  for x in jax.tree.leaves(lora.split(policy.params, policy.config)[0]):
    x.delete()


def read_head(c: ConfigDict) -> tuple[LMConfig, Tokenizer]:
  """Shape and tokenizer of the checkpoint that `lm.checkpoint` names, without its weights."""
  read = gguf_io.read_head if c.lm.checkpoint.endswith('.gguf') else hf_io.read_head
  shape, words = read(c.lm.checkpoint)
  return shape, words.within(shape.vocab_size)


def load_pretrained(c: ConfigDict, mesh: Mesh, key: Array) -> Policy:
  """The checkpoint that `lm.checkpoint` names (a `.gguf` file, a Hugging Face folder or a hub name), on the mesh.

  Args:
    c: the whole config; with `lm.lora_rank` the policy gets fresh adapters, and its own weights `lm.compute_dtype`.
    key: of the adapters.
  """
  read = gguf_io.load_gguf if c.lm.checkpoint.endswith('.gguf') else hf_io.load_hf
  adapters = settings.lora(c)
  params, config, words = read(c.lm.checkpoint, 'float32' if adapters is None else c.lm.compute_dtype, mesh)
  words = words.within(config.vocab_size)
  config = settings.shaped(config, c)
  if adapters is not None:
    where, _ = lora.split(model.param_shardings(config, mesh), config)
    fresh = jax.jit(lambda k: lora.split(model.init(config, k), config)[0], out_shardings=where)
    params = lora.join(fresh(key), params)
  return Policy(params, config, words)


def sampling(policy: Policy, group: int, max_new: int, temperature: float) -> engine.Sampling:
  """What is asked of whoever writes a policy's answers."""
  words = policy.tokenizer
  return engine.Sampling(group, max_new, temperature, words.stop_ids, words.pad_id)


def sample(policy: Policy, prompt: PromptBatch, key: Array, group: int, max_new: int, temperature: float) -> Rollout:
  """`group` answers to each prompt by our own sampler."""
  return rollouts.own(policy.config, sampling(policy, group, max_new, temperature))(policy.params, prompt, key)
