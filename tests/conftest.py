"""Settings of every test: CPU, strict rank promotion, one compile cache shared by all workers; and a browser."""

import os
import pathlib
import sys

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

import jax
import pytest

# Compiling is most of the tests' time, and what is compiled runs for milliseconds: nothing is optimised, neither here
# nor in started processes. test_as_users_compile.py sets EAGRL_OPTIMISED.
QUICK = os.environ.get('EAGRL_OPTIMISED') != '1'
if QUICK:
  os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
  jax.config.update('jax_disable_most_optimizations', True)
  if jax.__version_info__ < (0, 11):  # later versions know no such flag and end the process
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_cpu_use_fusion_emitters=false'

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tests'))
# Files of a minute and more come first, so that no worker is left with one at the end; those that start several
# processes not side by side.
LONG = (
    'multi_process/test_pipeline_processes.py', 'stages/test_memory.py', 'test_as_users_compile.py',
    'multi_process/test_interrupted.py', 'test_benchmarks.py', 'stages/test_preemption.py', 'rl/test_update.py',
    'lm/test_checkpoints.py', 'stages/test_privacy.py', 'expert/test_concare.py', 'stages/test_advice.py',
    'stages/test_kill_sweep.py', 'expert/test_gru.py', 'stages/test_disk.py', 'lm/test_sampler.py')
SHARED = ROOT.parent / 'shared'

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_compilation_cache_dir', str(ROOT / '.cache' / 'jax'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def _place(item) -> pathlib.Path:
  """Of the test's file among these."""
  return item.path.relative_to(ROOT / 'tests') if item.path.is_relative_to(ROOT / 'tests') else pathlib.Path()


def pytest_collection_modifyitems(items):
  rank = {name: i for i, name in enumerate(LONG)}
  items.sort(key=lambda item: rank.get(_place(item).as_posix(), len(LONG)))


@pytest.fixture(scope='session')
def chromium(tmp_path_factory):
  """A running Chromium; tests that need it skip where it is absent."""
  import browser
  if browser.PROGRAM is None:
    pytest.skip('no Chromium on this machine')
  with browser.Browser(tmp_path_factory.mktemp('profile')) as running:
    yield running


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
  """The folder of real cohorts; tests that need it skip where it is absent."""
  if not (SHARED / 'data').is_dir():
    pytest.skip('the real cohorts are not on this machine')
  return SHARED / 'data'
