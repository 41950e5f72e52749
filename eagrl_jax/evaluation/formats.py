"""Figures of a metrics.json as text: fixed digits, an en dash for what is missing, intervals in one form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

NAMES = {'auroc': 'AUROC', 'auprc': 'AUPRC', 'log_loss': 'log loss'}  # in a sentence


def number(value: Any, digits: int = 3) -> str:
  """Fixed digits, or an en dash for what is missing or undefined."""
  if not finite(value):
    return '–'
  text = f'{value:.{digits}f}'
  return text.replace('-', '−') if float(text) else text.lstrip('-')  # no negative zero


def signed(value: Any, digits: int = 3) -> str:
  """As `number`, with a plus before what is above 0."""
  text = number(value, digits)
  return f'+{text}' if finite(value) and float(f'{value:.{digits}f}') > 0 else text


def percent(value: Any) -> str:
  return f'{100 * value:.1f}%' if finite(value) else '–'


def interval(value: Any) -> dict | None:
  """A number, or {'point', 'mean' or 'diff', 'ci95'}, as {'mean', 'lo', 'hi', 'reason'}; None where absent."""
  if value is None:
    return None
  if not isinstance(value, Mapping):
    return {'mean': value, 'lo': None, 'hi': None, 'reason': ''}
  lo, hi = value.get('ci95') or (None, None)
  return {'mean': value.get('point', value.get('mean', value.get('diff'))), 'lo': lo, 'hi': hi,
          'reason': value.get('reason', '')}


def interval_text(value: Mapping | None) -> str:
  """'0.843 (0.801–0.884)', without the bracket where there is no interval."""
  if value is None or not finite(value['mean']):
    return '–'
  bracket = f' ({number(value["lo"])}–{number(value["hi"])})' if finite(value['lo']) else ''
  return number(value['mean']) + bracket


def range_text(value: Mapping | None) -> str:
  """'+0.021 (−0.003 to 0.044)' of a difference."""
  if value is None or not finite(value['mean']):
    return '–'
  bracket = f' ({number(value["lo"])} to {number(value["hi"])})' if finite(value['lo']) else ''
  return signed(value['mean']) + bracket


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
  """Rows as a plain-text table: the first is the head, the first column stands left, the others right."""
  width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = ['  '.join([row[0].ljust(width[0]), *(c.rjust(w) for c, w in zip(row[1:], width[1:], strict=True))])
           for row in rows]
  return '\n'.join([lines[0], '─' * len(lines[0]), *lines[1:]])


def finite(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
