"""A file of a finished stage that is gone or damaged: one line, and what it tells to do makes the file again."""

import shutil

import jax
import pytest

from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import expert, pipeline, policy, sft
from eagrl_jax.stages.context import Context
from eagrl_jax.types import EagrlError

FILES = ('prepare/statistics.json', 'prepare/splits.parquet', 'expert/prob.npy', 'expert/salience_occlusion.npy',
         'expert/members/_METADATA', 'base/policy/lm.json', 'base/policy/tokenizer/tokenizer.json',
         'base/policy/params/_METADATA', 'search/trajectories/trajectories.parquet')


def read(context, file):
  """What later stages do to get at the file."""
  if file.startswith('prepare'):
    return data_lib.load(context)
  if file.startswith('base'):
    return policy.load(context.folder('base'), context.mesh).params
  if file.startswith('search'):
    return sft.trajectories(context)
  if 'members' in file:
    with jax.set_mesh(context.mesh):
      return expert.load_members(context, data_lib.load(context))
  return expert.load_prob(context) if 'prob' in file else expert.load_salience(context)


def test_what_is_lost_is_made_again_as_told(finished, micro_config, tmp_path):
  for stage in ('prepare', 'expert', 'base', 'search'):
    shutil.copytree(finished / stage, tmp_path / stage)
  context = Context(micro_config(), tmp_path, make_mesh())
  for file in FILES:
    path, stage = tmp_path / file, file.partition('/')[0]
    said, whole = rf'; delete {stage}/done\.json and run the command that made it again$', path.read_bytes()
    for damaged in (b'', whole[:len(whole) // 2], None):
      path.unlink() if damaged is None else path.write_bytes(damaged)
      with pytest.raises(EagrlError, match=said) as error:
        read(context, file)
      assert '\n' not in str(error.value)
    path.write_bytes(whole)
  for file in FILES:
    (tmp_path / file).unlink()
  for stage in ('prepare', 'expert', 'base', 'search'):
    (tmp_path / stage / 'done.json').unlink()
  pipeline.run(micro_config(target='search'), tmp_path)
  for file in FILES:
    read(context, file)
