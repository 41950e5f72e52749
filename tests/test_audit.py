"""The audit of pinned packages, with a program in pip-audit's place that writes what it would write."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / 'constraints' / 'audit.py'
PINS = ('# made by hand\nnumpy==2.3.1\n--hash=sha256:0\n  indented==1\njax-lib.x==0.1 ; python_version > "3"\n'
        '\nloose>=1\n')
CLEAN = {'name': 'numpy', 'version': '2.3.1', 'vulns': []}
UNKNOWN = {'name': 'secret', 'skip_reason': 'Dependency not found on the index'}


def vulnerable(*fixes: str) -> dict:
  return {'name': 'idna', 'version': '3.6', 'vulns': [
      {'id': 'PYSEC-2024-60', 'fix_versions': list(fixes), 'aliases': ['CVE-2024-3651'], 'description': 'slow'}]}


@pytest.fixture
def audit():
  spec = importlib.util.spec_from_file_location('audit', SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def pins(tmp_path):
  (tmp_path / 'pins.txt').write_text(PINS)
  return str(tmp_path / 'pins.txt')


def program(folder: pathlib.Path, report: str | None, status: int = 0) -> str:
  """A program that writes `report` where --output says and keeps its arguments; with None it writes nothing."""
  path = folder / 'pip-audit'
  path.write_text(f'#!{sys.executable}\nimport json, pathlib, sys\n'
                  f'pathlib.Path({str(folder / "seen.json")!r}).write_text(json.dumps(sys.argv[1:]))\n'
                  + ('' if report is None else
                     f'pathlib.Path(sys.argv[sys.argv.index("--output") + 1]).write_text({report!r})\n')
                  + f'print("noise"); print("noise", file=sys.stderr); sys.exit({status})\n')
  path.chmod(0o755)
  return str(path)


def reported(*dependencies: dict) -> str:
  return json.dumps({'dependencies': list(dependencies), 'fixes': []})


@pytest.mark.parametrize(('found', 'status', 'lines'), [
    ([CLEAN], 0, ['0 known vulnerabilities in 1 packages; 0 are unknown to the service']),
    ([CLEAN, UNKNOWN, UNKNOWN], 0, ['0 known vulnerabilities in 1 packages; 2 are unknown to the service']),
    ([CLEAN, vulnerable('3.7', '4.0')], 1, ['idna 3.6: PYSEC-2024-60, fixed in 3.7, 4.0',
                                            '1 known vulnerabilities in 2 packages; 0 are unknown to the service']),
    ([vulnerable(), UNKNOWN], 1, ['idna 3.6: PYSEC-2024-60, fixed in no release yet',
                                  '1 known vulnerabilities in 1 packages; 1 are unknown to the service'])])
def test_what_is_known_is_told_and_is_the_exit_status(audit, pins, tmp_path, found, status, lines):
  # pip-audit itself exits with 1 where it finds something: the report counts, not that status.
  assert audit.vulnerabilities(pins, program(tmp_path, reported(*found), status)) == (status, '\n'.join(lines))


def test_pip_audit_asks_about_these_pins_alone(audit, pins, tmp_path):
  audit.vulnerabilities(pins, program(tmp_path, reported(CLEAN)))
  seen = json.loads((tmp_path / 'seen.json').read_text())
  assert seen[seen.index('--requirement') + 1] == pins and seen[seen.index('--format') + 1] == 'json'
  assert {'--no-deps', '--disable-pip'} <= set(seen)  # nothing is resolved or installed
  assert not pathlib.Path(seen[seen.index('--output') + 1]).exists()  # the report is not left behind


@pytest.mark.parametrize('report', [None, '', '{"dependencies": ', '{}', reported(), reported(UNKNOWN, UNKNOWN)],
                         ids=['none', 'empty', 'cut', 'other', 'no packages', 'all unknown'])
def test_nothing_checked_is_never_told_as_nothing_found(audit, pins, tmp_path, report):
  status, said = audit.vulnerabilities(pins, program(tmp_path, report, 1))
  assert status == 2 and said.startswith('vulnerabilities were NOT checked') and '0 known' not in said


def test_without_the_program_nothing_is_checked(audit, pins, tmp_path):
  assert audit.vulnerabilities(pins, str(tmp_path / 'absent'))[0] == 2


@pytest.mark.parametrize(('text', 'told'), [
    ('License-Expression: MIT OR X\nLicense: other\nClassifier: License :: OSI Approved :: BSD License\n', 'MIT OR X'),
    ('License: words\nClassifier: License :: OSI Approved :: BSD License\nClassifier: Topic :: Text\n'
     'Classifier: License :: OSI Approved :: Apache Software License\n', 'BSD License, Apache Software License'),
    ('License: Apache 2.0\n        and a long text\n', 'Apache 2.0'),
    ('License: \n', 'not stated'), ('', 'not stated')])
def test_a_licence_as_its_package_states_it(audit, monkeypatch, tmp_path, text, told):
  folder = tmp_path / 'thing-1.0.dist-info'
  folder.mkdir()
  (folder / 'METADATA').write_text('Metadata-Version: 2.4\nName: thing\nVersion: 1.0\n' + text)
  monkeypatch.syspath_prepend(str(tmp_path))
  importlib.invalidate_caches()
  assert audit.licence('thing') == told


def test_a_package_that_is_absent_has_no_licence_here(audit):
  assert audit.licence('no-such-package-1') == 'not installed here'
  assert 'BSD' in audit.licence('numpy')


def test_as_a_program(pins, tmp_path):
  done = subprocess.run([sys.executable, str(SCRIPT), pins, program(tmp_path, reported(CLEAN, vulnerable('3.7')), 1)],
                        capture_output=True, text=True)
  lines = done.stdout.splitlines()
  assert (done.returncode, done.stderr) == (1, '')
  assert lines[0].split()[:2] == ['numpy', '2.3.1'] and lines[0].split()[2] != 'not'
  assert lines[1].split() == ['jax-lib.x', '0.1', 'not', 'installed', 'here']  # pins alone: neither hashes nor ranges
  assert lines[2].startswith('idna 3.6: PYSEC-2024-60') and len(lines) == 4
