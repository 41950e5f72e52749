"""Command line: `python -m eagrl_jax.compare runs/one runs/two --out compare.html`.

Prints the headline arms of every run and their paired differences, and writes one HTML file.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
  parser = argparse.ArgumentParser('python -m eagrl_jax.compare', description='Compares finished runs.')
  parser.add_argument('run', nargs='+', type=pathlib.Path, help='folder of a run; differences are from the first')
  parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('compare.html'), help='the HTML file to write')
  given = parser.parse_args(arguments)
  from eagrl_jax.evaluation import compare
  runs = compare.read([run.expanduser() for run in given.run])
  print(compare.table(runs))
  print(f'\n{compare.write(runs, given.out.expanduser())}')


def run() -> None:
  """Entry point: a mistake is a line, not a traceback."""
  from eagrl_jax.types import EagrlError
  try:
    main(sys.argv[1:])
  except EagrlError as error:
    print(f'eagrl_jax: {error}', file=sys.stderr)
    sys.exit(1)


if __name__ == '__main__':
  run()
