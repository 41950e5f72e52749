"""What the report shows of single patients: the search tree and the cases. None of it is in a shared copy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from markupsafe import Markup

from eagrl_jax.ehr.prompt import MARKS
from eagrl_jax.evaluation import figures, marks
from eagrl_jax.evaluation.formats import finite

TAG = r'</?(?:Subquestion \d+|Answer \d+|Final subquestion|Important Features|Final answer)>'


def roots(tree: Mapping) -> list[dict]:
  """Nested copies of the tree's nodes."""
  blank = {'parent': None, 'depth': 0, 'visits': 0, 'value': None, 'reward': None, 'terminal': False,
           'on_best_path': False}
  nodes = {}
  for node in tree['nodes']:
    text = node.get('text') or ''
    nodes[node['id']] = {**blank, **node, 'children': [], 'segments': list(segments(text, [])), 'title': _title(text)}
  top: list[dict] = []
  for node in nodes.values():
    parent = nodes.get(node['parent'])
    # A parent has a smaller id than its child: anything else would be a loop.
    (parent['children'] if parent and parent['id'] < node['id'] else top).append(node)
  return top


def _title(text: str, limit: int = 110) -> str:
  """One line that says what a step is about: a final answer with its features, else the text without tags."""
  final = re.search(r'<Important Features>(.*?)</.*<Final answer>(.*?)</', text, re.DOTALL)
  line = f'{final[2].strip()} because of {final[1].strip()}' if final else re.sub(TAG, '', text)
  line = re.sub(r'\s+', ' ', line).strip()
  return line if len(line) <= limit else line[:limit - 1].rsplit(' ', 1)[0] + ' …'


def segments(text: str, names: Iterable[str]) -> Iterator[tuple[str, str]]:
  """Cuts an answer into ('tag' | 'name' | 'text', piece): the template escapes and marks each."""
  longest_first = sorted(filter(None, names), key=len, reverse=True)
  pattern = f'(?P<tag>{TAG})'
  if longest_first:
    pattern += rf'|(?<!\w)(?P<name>{"|".join(map(re.escape, longest_first))})(?!\w)'
  at = 0
  for match in re.finditer(pattern, text, re.IGNORECASE):
    if match.start() > at:
      yield 'text', text[at:match.start()]
    yield match.lastgroup or 'text', match.group()
    at = match.end()
  if at < len(text):
    yield 'text', text[at:]


def case(shown: Mapping) -> dict:
  """One patient: values, where expert and policy look, and the answers in pieces."""
  features, rows = shown['features'], []
  for f in features:
    seen = [v for v in f['values'] if finite(v)]
    low, high, last = f.get('ref_low'), f.get('ref_high'), seen[-1] if seen else None
    flag = '' if last is None else 'high' if high is not None and last > high else \
        'low' if low is not None and last < low else ''
    values = [v if finite(v) else None for v in f['values']]
    mark = MARKS[next(s for s, v in zip(f['signs'][::-1], values[::-1]) if v is not None)] if f.get('signs') else ''
    rows.append({'name': f['name'], 'unit': f.get('unit') or '', 'range': _range(low, high),
                 'range_kind': 'usual' if f.get('usual') else 'ref.',
                 'flag': f.get('flag', flag),  # of earlier versions' runs by the rounded value
                 'last': f.get('last', '–' if last is None else f'{mark}{last:g}'),
                 'spark': Markup(marks.sparkline(values, shown['hours'], low, high)),
                 'weight': max(f.get('salience') or 0, f.get('attention') or 0)})
  rows.sort(key=lambda r: -r['weight'])
  names = [f['name'] for f in features]
  bars = figures.paired_bars(names, [f.get('salience') or 0 for f in features],
                             [f.get('attention') or 0 for f in features], shown['label'])
  answers = [(arm, list(segments(text or '', names))) for arm, text in shown.get('answers', {}).items()]
  return {**shown, 'top': rows[:10], 'rest': rows[10:], 'bars': Markup(bars), 'shown_answers': answers[::-1],
          'layers': layers(shown)}


def layers(case: Mapping, top: int = 10) -> dict | None:
  """The expert's salience beside the policy's attention in every layer, each in percent of its own sum.

  The features with most of either, in any layer, come first; None where attention was not read by layer.
  """
  total = sum(f.get('salience') or 0 for f in case['features']) or 1
  rows = [(f['name'], [(f.get('salience') or 0) / total, *f['layers']]) for f in case['features'] if f.get('layers')]
  if not any(any(shares[1:]) for _, shares in rows):
    return None
  rows.sort(key=lambda row: -max(row[1]))
  most = max(rows[0][1])
  cells = lambda shares: [{'percent': 100 * x, 'weight': x / most} for x in shares]
  return {'count': len(rows[0][1]) - 1, 'rows': [{'name': name, 'cells': cells(shares)} for name, shares in rows[:top]]}


def _range(low: float | None, high: float | None) -> str:
  if low is None or high is None:
    return '' if low is None and high is None else f'≥ {low:g}' if high is None else f'≤ {high:g}'
  return f'{low:g}–{high:g}'
