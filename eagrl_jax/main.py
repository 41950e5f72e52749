"""Command line: `python -m eagrl_jax.main --config=configs/rl.py --workdir=runs/first`.

Any field of the config is a flag: `--config.rl.learning_rate=3e-6`. A variant follows a
colon: `--config=configs/rl.py:tjh`.
"""

from __future__ import annotations

import difflib
import importlib
import math
import os
import pathlib
import sys

from absl import app, flags, logging
from absl.logging import converter
from ml_collections import config_flags

_ABSENT = '_CHECKPOINT_METADATA'  # which orbax misses in each checkpoint of ours that it reads, and does without
PACKAGED = pathlib.Path(__file__).parent / 'packaged'


def _find_config(argument: str) -> str:
  """In an installed wheel `configs/rl.py` lies inside the package; a checkout's own file wins."""
  from eagrl_jax.types import EagrlError
  path, colon, variant = argument.partition(':')
  if os.path.isdir(path):
    raise EagrlError(f'--config={path} is a folder: name a file in it, such as configs/rl.py')
  if os.path.exists(path):
    return argument
  if not (PACKAGED / path).is_file():
    files = [*pathlib.Path('configs').glob('*.py'), *(PACKAGED / 'configs').glob('*.py')]
    known = [f'configs/{p.name}' for p in files if p.stem not in ('__init__', 'defaults')]
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.0)
    raise EagrlError(f'--config={path}: there is no such file' + (f'; did you mean {near[0]}?' if near else ''))
  return str(PACKAGED / path) + colon + variant


def _with_config_found(argv: list[str]) -> list[str]:
  """The arguments with the config's own place; absl reads `--config X` and `-config=X` as `--config=X`."""
  found, rest = [], iter(argv)
  for argument in rest:
    name, equals, value = argument.partition('=')
    ours = name in ('--config', '-config')
    given = value if equals or not ours else next(rest, None)  # None: absl says that it is missing
    found.append(argument if not ours or given is None else f'--config={_find_config(given)}')
  return found


def _prefer_own_configs() -> None:
  """Config files import each other as `configs`: those of the working folder if it has them, else the package's."""
  sys.path.insert(0, os.getcwd() if os.path.exists('configs/defaults.py') else str(PACKAGED))


_CONFIG = config_flags.DEFINE_config_file('config', help_string='experiment, e.g. configs/rl.py or configs/rl.py:tjh',
                                          lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', 'runs/default', 'folder of the run; finished stages in it are skipped')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'print the resolved config, stages, sizes and memory; touch nothing')
_DEVICES = flags.DEFINE_integer('devices', 0, 'with --dry_run: plan for so many devices, pretended on this machine', 0)
_DEVICE_GIB = flags.DEFINE_float('device_gib', 0.0, 'with --dry_run: memory of a device, 0 = of the one here', 0.0)
_DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'be one of several processes: of a TPU slice, Slurm, Open MPI')
_COORDINATOR = flags.DEFINE_string('coordinator', '', 'with --distributed, without a cluster: host:port of process 0')
_PROCESSES = flags.DEFINE_integer('processes', 1, 'with --coordinator: how many processes there are', 1)
_PROCESS = flags.DEFINE_integer('process', 0, 'with --coordinator: which one this is, from 0', 0)


def main(argv: list[str]) -> None:
  from eagrl_jax.types import EagrlError
  if len(argv) > 1:
    raise EagrlError(f'unexpected argument {argv[1]!r}: overrides look like --config.rl.steps=10')
  if _CONFIG.value is None:
    raise EagrlError('--config is missing: try --config=configs/rl.py')
  if (_DEVICES.value or _DEVICE_GIB.value) and not _DRY_RUN.value:
    raise EagrlError('--devices and --device_gib describe a machine to plan for: add --dry_run')
  if not 0 <= _DEVICE_GIB.value < math.inf:
    raise EagrlError(f'--device_gib={_DEVICE_GIB.value:g} is no size of a memory; 0 = that of the device here')
  if _DEVICES.value:
    import jax
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', _DEVICES.value)
  if _COORDINATOR.value and not _DISTRIBUTED.value:
    raise EagrlError('--coordinator belongs to a run of several processes: add --distributed')
  if _DISTRIBUTED.value:
    if _DRY_RUN.value:
      raise EagrlError('--dry_run plans in one process: leave --distributed out; --devices pretends any number')
    from eagrl_jax.train import preemption, processes
    processes.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    preemption.listen(processes.count() > 1, processes.is_main())
    if not processes.is_main():  # of the others errors only, on stderr
      logging.set_verbosity(logging.ERROR)
      os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
  from eagrl_jax.stages import fields, pipeline
  workdir = pathlib.Path(_WORKDIR.value).expanduser()  # libraries differ in what they make of a ~
  if not _WORKDIR.value.strip():
    raise EagrlError('--workdir is empty: name the folder of the run, such as --workdir=runs/first')
  fields.split_commas(_CONFIG.value)
  fields.expand_home(_CONFIG.value)
  if _CONFIG.value.target in ('predict', 'transfer', 'study'):  # built on whole runs
    importlib.import_module(f'eagrl_jax.stages.{_CONFIG.value.target}').run(_CONFIG.value, workdir, _DRY_RUN.value)
  elif _DRY_RUN.value:
    pipeline.describe(_CONFIG.value, workdir, int(_DEVICE_GIB.value * 2**30))
  else:
    pipeline.run(_CONFIG.value, workdir)


def _unraisable(lost) -> None:
  """Where a write fails, tensorstore reports the others too, to a loop that orbax has closed: the first one counts."""
  if not (lost.exc_type is RuntimeError and str(lost.exc_value) == 'Event loop is closed'):
    sys.__unraisablehook__(lost)


def run() -> None:
  """Entry point: flags are parsed here so that a mistake in one is a line, not a traceback."""
  from eagrl_jax.train import preemption
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  # Of the libraries only warnings: their narration would bury ours, and so would tracebacks of what they raise anyway.
  warning = converter.STANDARD_WARNING
  logging.get_absl_handler().addFilter(
      lambda r: 'eagrl_jax' in r.pathname or (
          r.levelno >= warning and not r.exc_info and _ABSENT not in r.getMessage()))
  sys.unraisablehook = _unraisable
  try:
    preemption.listen()
    from eagrl_jax.types import EagrlError
    _prefer_own_configs()
    app.run(main, argv=_with_config_found(sys.argv), flags_parser=lambda args: flags.FLAGS(args, known_only=False))
  except Exception as e:
    if preemption.explains(e):
      preemption.say()
      sys.exit(preemption.status())
    mistakes = () if flags.FLAGS.is_parsed() else (AttributeError, KeyError, TypeError, ValueError, FileNotFoundError)
    if not isinstance(e, (EagrlError, flags.Error, *mistakes)):
      raise  # a defect of ours: the traceback helps
    text = str(e.args[0] if isinstance(e, KeyError) and e.args else e)
    if type(e).__name__ == 'Elsewhere':  # by name: no import of jax to report a mistyped flag
      sys.exit(1)
    text = text.rpartition('Error: ')[2] if 'Traceback' in text else text  # a config file's own refusal
    if text[:1] == text[-1:] and text[:1] in '\'"':  # a KeyError shown inside another error
      text = text[1:-1].replace('\\n', ' ').replace('\\', '')
    text = _unknown_field(text) if isinstance(e, (AttributeError, KeyError)) else text
    print(f'eagrl_jax: {" ".join(text.split())}', file=sys.stderr)
    sys.exit(1)


def _unknown_field(text: str) -> str:
  """Names the flag of a field that there is not, of which ml_collections says its last word or section."""
  word, _, rest = text.strip('\'"').partition("'")
  for flag in (a.partition('=')[0] for a in sys.argv if a.startswith('--config.')):
    if word in flag.split('.')[1:]:
      return f'{flag}: there is no field {word!r}; {rest.strip() or "configs/defaults.py lists all"}'
  return text


if __name__ == '__main__':
  run()
