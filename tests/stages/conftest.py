import os
import pathlib
import sys

import filelock
import pytest

ROOT = pathlib.Path(__file__).parents[2]


def published(variant: str = ''):
  """An experiment as its file gives it."""
  sys.path.insert(0, str(ROOT))
  try:
    from configs import defaults
  finally:
    sys.path.remove(str(ROOT))
  return defaults.get_config(variant)


def micro(variant: str = '', target: str = 'evaluate'):
  """The default experiment, shrunk until every stage takes seconds."""
  c = published(variant)
  c.target = target
  c.data.update(n=96, test=24)
  c.prompt.bucket = 128
  c.expert.update(members=2, hidden=8, ffn=8, epochs=2, batch=16, checkpoint_every=1)
  c.lm.update(d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=32, vocab_size=700)
  c.base.update(short_steps=2, short_batch=4, steps=2, batch=4, answers=2, short_micro_batch=4, micro_batch=2,
                checkpoint_every=2, warmup=2)
  c.search.update(patients=8, trees=4, rollouts=2, candidates=2, max_depth=1, question_tokens=6, answer_tokens=8,
                  min_reward=-9.0, min_jaccard=0.0)
  c.sft.update(epochs=3, batch=4, micro_batch=4, checkpoint_every=1)
  c.rl.update(steps=2, prompts=4, group=2, micro_batch=2, max_new=48, checkpoint_every=1)
  c.evaluate.update(samples=2, batch=16, max_new=48, bootstrap=20, cases=1)
  return c


get_config = micro  # this file is also a --config, of processes that tests start


@pytest.fixture(scope='session')
def published_config():
  return published


@pytest.fixture(scope='session')
def micro_config():
  return micro


@pytest.fixture(scope='session')
def finished(tmp_path_factory):
  """The folder of a whole run, which the first worker that needs one makes for all: copy it to change it."""
  from eagrl_jax.stages import pipeline
  shared = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:  # the workers' folders lie side by side
    shared = shared.parent
  workdir = shared / 'finished'
  with filelock.FileLock(shared / 'finished.lock'):
    if not workdir.exists():  # one that broke off would be resumed
      alone = shared / f'finished-{os.getpid()}'
      pipeline.run(micro(), alone)
      alone.rename(workdir)
  return workdir
