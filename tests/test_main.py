"""The command line, in a process of its own: mistakes are one line and exit 1, before any compile."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import jax
import pytest

from eagrl_jax.train import processes
from eagrl_jax.types import EagrlError

ROOT = pathlib.Path(__file__).parents[1]


def call(*flags, cwd=ROOT, path=ROOT):
  cache = jax.config.jax_compilation_cache_dir or ''
  env = {**os.environ, 'PYTHONPATH': str(path), 'JAX_PLATFORMS': 'cpu', 'JAX_COMPILATION_CACHE_DIR': cache}
  return subprocess.run([sys.executable, '-m', 'eagrl_jax.main', *flags], cwd=cwd, env=env, capture_output=True,
                        text=True, check=False)


@pytest.mark.parametrize(('flags', 'words'), [
    (['--config.rl.learning_rat=1e-6'], ['learning_rat', 'learning_rate']),
    (['--config.rl.lr=1e-6'], ['--config.rl.lr: there is no field']),
    (['--workdir='], ['--workdir is empty']),
    (['--config.rl.group=1'], ['rl.group', '--config.rl.group=2']),
    (['--config.mesh.tensor=3'], ['mesh', 'tensor=3']),
    (['--config.evaluate.cases=-1', '--dry_run'], ['evaluate.cases=-1']),
    (['--device_gib=nan', '--dry_run'], ['--device_gib=nan']),
    (['--config.data.source=tjh', '--config.data.path=absent.xlsx'], ['data.path', 'absent.xlsx']),
])
def test_a_mistake_is_one_line(flags, words, tmp_path):
  result = call('--config=configs/rl.py', f'--workdir={tmp_path / "w"}', *flags)
  lines = result.stderr.strip().splitlines()
  assert result.returncode == 1 and len(lines) == 1, result.stderr
  assert all(w in lines[0] for w in words), lines[0]
  assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('address', ['nonsense', 'host:', ':1234', 'host:port', 'host:99999'])
def test_the_address_of_process_0_is_a_host_and_a_port(address):
  with pytest.raises(EagrlError, match=f'--coordinator={address} is no host:port'):
    processes.start(address, 2, 0)


@pytest.mark.parametrize(('field', 'value', 'words'), [
    ('lm.checkpoint', '', ['lm.checkpoint', 'set --config.lm.checkpoint=']),
    ('lm.checkpoint', 'absent.gguf', ['lm.checkpoint', 'absent.gguf']),
    ('search.expert_weight', 1.5, ['search.expert_weight=1.5', '[0, 1]']),
    ('evaluate.temperature', 0.0, ['evaluate.temperature', 'evaluate.samples=1']),
    ('rl.micro_batch', 7, ['rl.micro_batch=7']),
    ('expert.salience', 'magic', ['expert.salience', 'occlusion']),
])
def test_a_mistake_is_found_before_anything_runs(field, value, words, monkeypatch, tmp_path):
  monkeypatch.syspath_prepend(str(ROOT))
  from configs import rl
  from eagrl_jax.stages import pipeline
  config = rl.get_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(EagrlError) as error:
    pipeline.run(config, tmp_path / 'w')
  assert all(w in str(error.value) for w in words) and '\n' not in str(error.value)
  assert not (tmp_path / 'w').exists()


def test_a_mistake_does_not_wait_for_what_only_a_run_needs():
  """Statistics, drawing and data frames are more than half of all imports."""
  heavy = ('scipy', 'sklearn', 'pandas', 'matplotlib', 'datasets', 'transformers')
  said = subprocess.run([sys.executable, '-c', 'import sys, eagrl_jax.main, eagrl_jax.stages.pipeline, '
                         'eagrl_jax.stages.checks; print(*sys.modules)'], cwd=ROOT, capture_output=True, text=True,
                        env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}, check=True).stdout.split()
  assert 'jax' in said and not set(heavy) & set(said)


def test_an_unknown_variant_names_the_known_ones(tmp_path):
  result = call('--config=configs/rl.py:tjhh', f'--workdir={tmp_path / "w"}')
  assert result.returncode == 1 and 'physionet2012' in result.stderr and 'Traceback' not in result.stderr


def test_an_absent_config_file_names_a_near_one(tmp_path):
  result = call('--config=configs/rll.py', f'--workdir={tmp_path / "w"}')
  assert result.returncode == 1 and result.stderr.strip().endswith('did you mean configs/rl.py?')


def test_a_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'here').mkdir()
  done = call(f'--config={ROOT}/configs/rl.py', '--workdir=~/w', '--config.target=prepare', '--config.data.n=60',
              '--config.data.test=20', cwd=tmp_path / 'here')
  assert done.returncode == 0, done.stderr
  assert {path.name for path in (tmp_path / 'w' / 'prepare').iterdir()} >= {'done.json', 'events.parquet'}
  assert not list((tmp_path / 'here').iterdir())


def test_a_folder_of_configs_is_no_config():
  done = call('--config=configs')
  assert done.returncode == 1 and 'is a folder' in done.stderr and len(done.stderr.splitlines()) == 1


def test_dry_run_touches_nothing(tmp_path):
  result = call('--config=configs/base.py', f'--workdir={tmp_path / "w"}', '--dry_run', '--config.rl.steps=7',
                '--config.base.short_steps=0', '--config.lm.n_layers=1')
  assert result.returncode == 0, result.stderr
  assert '"steps": 7' in result.stdout and 'prepare' in result.stdout and 'MiB' in result.stdout
  planned = [line.split()[0] for line in result.stdout.split('MiB')[-1].splitlines() if '= weights' in line]
  assert planned == ['base']  # the stages that the target takes
  assert not (tmp_path / 'w').exists()


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """What an installed wheel is."""
  folder = tmp_path_factory.mktemp('wheel')
  subprocess.run([sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', str(folder), str(ROOT)],
                 check=True, capture_output=True)
  (wheel,) = folder.glob('*.whl')
  with zipfile.ZipFile(wheel) as z:
    z.extractall(folder / 'site')
  return folder / 'site'


def test_the_wheel_works_outside_the_checkout(site, tmp_path):
  result = call('--config=configs/expert.py:tjh', '--config.data.source=synthetic', '--config.data.path=', '--dry_run',
                cwd=tmp_path, path=site)
  assert result.returncode == 0, result.stderr
  assert list(tmp_path.iterdir()) == []
  for given in (('--config', 'configs/rl.py'), ('-config=configs/rl.py',)):
    result = call(*given, '--config.rl.group=1', cwd=tmp_path, path=site)
    assert 'rl.group=1' in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize('configs', ['none', 'theirs', 'a copy'])
def test_a_config_of_ones_own_stands_on_the_wheels(configs, site, tmp_path):
  """Whatever else is called configs in the working folder; on a copy there, where there is one."""
  (tmp_path / 'mine.py').write_text(
      'from configs import defaults\n\n\ndef get_config():\n  raise ValueError(defaults.__file__)\n')
  if configs == 'theirs':
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / '__init__.py').touch()
  elif configs == 'a copy':
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
  home = tmp_path if configs == 'a copy' else site / 'eagrl_jax' / 'packaged'
  assert call('--config=mine.py', cwd=tmp_path, path=site).stderr == f'eagrl_jax: {home / "configs" / "defaults.py"}\n'
