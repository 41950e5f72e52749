"""Licences and known vulnerabilities of the pinned packages.

    python constraints/audit.py constraints/py312.txt PIP_AUDIT

Licences are read from what is installed in this interpreter's environment. PIP_AUDIT is the program of that name; it
asks a public service about names and versions alone. Exit status: 0 nothing known, 1 something is, 2 not checked.
"""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys
import tempfile


def licence(name: str) -> str:
  """As the package states it: its expression, else its classifiers, else the first line of its free text."""
  try:
    said = importlib.metadata.metadata(name)
  except importlib.metadata.PackageNotFoundError:
    return 'not installed here'
  classes = [c.rsplit(' :: ', 1)[-1] for c in said.get_all('Classifier', []) if c.startswith('License :: ')]
  text = said.get('License', '').strip().splitlines()
  return said.get('License-Expression') or ', '.join(classes) or (text[0] if text else 'not stated')


def vulnerabilities(pins: str, pip_audit: str) -> tuple[int, str]:
  """Exit status and what to print."""
  with tempfile.TemporaryDirectory() as folder:
    report = pathlib.Path(folder) / 'report.json'
    command = [pip_audit, '--requirement', pins, '--no-deps', '--disable-pip', '--progress-spinner', 'off', '--format',
               'json', '--output', str(report)]
    try:
      subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
      found = json.loads(report.read_text())['dependencies']
    except (OSError, ValueError, KeyError):  # it writes no report where the service cannot be reached
      return 2, 'vulnerabilities were NOT checked: pip-audit is missing, or could reach no vulnerability service'
  known = [d for d in found if 'skip_reason' not in d]
  if not known:
    return 2, 'vulnerabilities were NOT checked: the service that pip-audit reached knows none of these packages'
  lines = [f'{d["name"]} {d["version"]}: {v["id"]}, fixed in {", ".join(v["fix_versions"]) or "no release yet"}'
           for d in known for v in d['vulns']]
  return int(bool(lines)), '\n'.join([*lines, f'{len(lines)} known vulnerabilities in {len(known)} packages; '
                                      f'{len(found) - len(known)} are unknown to the service'])


def main(pins: str, pip_audit: str) -> int:
  for line in pathlib.Path(pins).read_text().splitlines():
    if match := re.match(r'([\w.-]+)==(\S+)', line):
      print(f'{match[1]:24s} {match[2]:14s} {licence(match[1])}')
  status, said = vulnerabilities(pins, pip_audit)
  print(said)
  return status


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
