"""Imports point downwards only, and to packages that are declared."""

import ast
import importlib.metadata
import pathlib
import re
import sys
import tomllib

PACKAGE = pathlib.Path(__file__).parents[1] / 'eagrl_jax'
RANK = {'types': 0, 'masked': 0, 'rng': 0, 'mesh': 0, 'ehr': 1, 'expert': 1, 'lm': 1, 'search': 2, 'rl': 2,
        'train': 3, 'evaluation': 3, 'stages': 4, 'main': 5, 'compare': 5}
STRANGERS = [{'expert', 'lm'}, {'expert', 'ehr'}, {'lm', 'ehr'}, {'search', 'rl'}, {'train', 'evaluation'}]
SIDEWAYS_ALLOWED = {('types', 'types'), ('masked', 'types'), ('rng', 'types'), ('mesh', 'types')}


def imports(path: pathlib.Path):
  for node in ast.walk(ast.parse(path.read_text())):
    names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom):
      module = node.module or ''
      names = [f'{module}.{a.name}' for a in node.names] if module == 'eagrl_jax' else [module]
    yield from (n.split('.')[1] for n in names if n.startswith('eagrl_jax.'))


def test_imports_point_down():
  wrong = []
  for path in PACKAGE.rglob('*.py'):
    layer = path.relative_to(PACKAGE).with_suffix('').parts[0]
    for target in imports(path):
      sideways = RANK.get(layer) == RANK.get(target) and layer != target and (layer, target) not in SIDEWAYS_ALLOWED
      if layer in RANK and (RANK[target] > RANK[layer] or sideways or {layer, target} in STRANGERS):
        wrong.append(f'{path.relative_to(PACKAGE)} imports {target}')
  assert not wrong, wrong


def test_no_stray_top_level_module():
  found = {p.stem if p.suffix == '.py' else p.name for p in PACKAGE.iterdir() if p.suffix == '.py' or
           (p.is_dir() and p.name != '__pycache__')}
  assert found - {'__init__', 'packaged'} == set(RANK)


def test_every_package_that_is_imported_is_declared_and_explained():
  root = PACKAGE.parent
  plain = lambda name: re.sub('[-_.]+', '-', name).lower()
  listed = tomllib.loads((root / 'pyproject.toml').read_text())['project']['dependencies']
  declared = {plain(re.match(r'[\w.-]+', entry)[0]) for entry in listed}
  modules = set()
  for path in PACKAGE.rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      names = [a.name for a in node.names] if isinstance(node, ast.Import) else (
          [node.module] if isinstance(node, ast.ImportFrom) else [])
      modules |= {name.partition('.')[0] for name in names}
  owners = importlib.metadata.packages_distributions()
  foreign = modules - set(sys.stdlib_module_names) - {'eagrl_jax'}
  assert {m for m in foreign if not declared & {plain(owner) for owner in owners[m]}} == set()
  table = (root / 'BUILD.md').read_text().partition('## Why each dependency')[2].partition('\n\nA vLLM')[0]
  explained = {plain(name) for row in re.findall(r'^\| ([^|]+) \|', table, re.M) for name in row.split(', ')}
  assert declared - explained == set()
