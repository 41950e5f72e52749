"""The report in a real browser: model-written text stays text, nothing is fetched, a phone needs no sideways scroll."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from eagrl_jax.evaluation import report

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
FLAGS = ('--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage', '--allow-file-access-from-files')
EVIL = '<script>document.title="owned"</script><img src=x onerror="document.title=1"><b>bold</b>'

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium on this machine')


def dom(page: Path, profile: Path) -> str:
  """The document after everything ran, as the browser serialises it."""
  command = [CHROMIUM, *FLAGS, f'--user-data-dir={profile}', '--virtual-time-budget=3000', '--dump-dom', page.as_uri()]
  return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.fixture(scope='module')
def page(tmp_path_factory) -> Path:
  root = tmp_path_factory.mktemp('run')
  case = {'label': 'case 1', 'n_visits': 3, 'hours': [0, 24, 48], 'answers': {'rl': EVIL}, 'probabilities': {'rl': 0.7},
          'outcome': 1, 'features': [
              {'name': EVIL, 'values': [1.0, None, 3.0], 'unit': 'mmol/L', 'ref_low': 1, 'ref_high': 2, 'salience': 0.6,
               'attention': 0.2, 'layers': [0.1] * 32},
              {'name': 'a_feature_name_without_any_space_to_break_it_at', 'values': [1.0, 2.0, 3.0], 'unit': '',
               'ref_low': None, 'ref_high': None, 'salience': 0.4, 'attention': 0.8,
               'layers': [0.9] * 32}]}
  arm = {'mean': 0.8, 'std': 0.02, 'ci95': [0.75, 0.85]}
  change = {'diff': -0.1, 'ci95': [-0.2, 0.01], 'p': 0.1}
  judged = {name: {'auroc': arm, 'auprc': arm, 'change': {'auroc': change, 'auprc': change}}
            for name in ('base', 'sft', 'rl', 'expert', EVIL)}
  measured = {'size': arm, 'comprehensiveness': arm, 'sufficiency': arm}
  files = {
      'transfer/elsewhere/metrics.json': {'cohort': EVIL, 'n_test': 9, 'arms': judged},
      'robustness/metrics.json': {
          'n': 9, 'samples': 2, 'levels': {'order': 'share of the features'}, 'unchanged': judged, 'salience': EVIL,
          'conditions': [{'kind': 'order', 'level': 0.5, 'arms': judged}, {'kind': EVIL, 'level': 1, 'arms': judged}],
          'faithfulness': {EVIL: {'own': measured | {'over_random': measured}, 'random': measured}},
          'member_agreement': {'k': 5, 'jaccard': arm, 'random': arm}},
      'evaluate/cases.json': [case], 'config.json': {'data': {'path': '/x' * 80}, EVIL: EVIL},
      'search/tree.json': {'nodes': [
          {'id': 0, 'parent': -1, 'depth': 0, 'text': '', 'on_best_path': True},
          {'id': 1, 'parent': 0, 'depth': 1, 'text': EVIL + 'x' * 200, 'on_best_path': True},
          {'id': 2, 'parent': 0, 'depth': 1, 'text': 'closed', 'on_best_path': False}]},
      'evaluate/metrics.json': {'task': EVIL, 'n_test': 10, 'prevalence': 0.3, 'arms': {
          name: {'auroc': arm, 'auprc': arm, 'parse_rate': 0.9, 'attention_kl': {**arm, 'permuted': arm},
                 'jaccard_at_k': {'expert': arm, 'random': arm, 'truth': arm},
                 'cost': {'seconds': 1.0, 'new_tokens': 9.0, 'with_compilation': True}}
          for name in ('base', 'rl', EVIL)}}}
  for name, value in files.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(value))
  log = ''.join(json.dumps({'step': s, EVIL: s * 1.0}) + '\n' for s in range(5))
  (root / 'rl').mkdir()
  (root / 'rl/metrics.jsonl').write_text(log)
  return report.write_report(root)


def test_model_text_runs_nothing(page, tmp_path):
  html = dom(page, tmp_path / 'profile')
  title = re.search(r'<title>(.*?)</title>', html, re.DOTALL)[1]
  assert title.startswith('EAG-RL run: &lt;script&gt;')
  body = html[html.index('<body'):]
  assert not re.search(r'<(script|img|b)[\s>]', body)
  assert body.count('&lt;script&gt;') >= 6


def probe(page: Path, tmp_path: Path, width: int, script: str) -> dict:
  """Measures the report inside a frame of a given width; a script of the outer page reads it."""
  outer = tmp_path / 'outer.html'
  # The report's own policy forbids scripts: the measuring one lives in the page around it.
  outer.write_text(
      f'<iframe id="f" style="width:{width}px;height:800px;border:0" src="{page.as_uri()}"></iframe>'
      '<pre id="out"></pre>'
      '<script>f.onload = () => { const d = f.contentDocument, w = f.contentWindow;'
      f' out.textContent = JSON.stringify({script}); }}</script>')
  html = dom(outer, tmp_path / 'profile')
  return json.loads(re.search(r'<pre id="out">(.*?)</pre>', html)[1])


@pytest.mark.parametrize('width', [360, 390, 768, 1280])
def test_no_sideways_scroll_at_any_width(page, tmp_path, width):
  got = probe(page, tmp_path, width, '(d.querySelectorAll("details").forEach(x => { x.open = true; }),'
              ' {frame: w.innerWidth, room: d.documentElement.clientWidth, needed: d.documentElement.scrollWidth})')
  assert got['frame'] == width and got['needed'] == got['room']


def test_tree_and_links_work_by_keyboard_and_nothing_is_fetched(page, tmp_path):
  got = probe(page, tmp_path, 800, (
      '{open: [...d.querySelectorAll(".tree details")].map(x => x.open),'
      ' focusable: (d.querySelectorAll("details").forEach(x => { x.open = true; }),'
      ' [...d.querySelectorAll("summary, nav a, .scroll")].every(x => { x.focus(); return d.activeElement === x; })),'
      ' named: [...d.querySelectorAll(".scroll")].every(x => x.getAttribute("aria-label")),'
      ' wide: [...d.querySelectorAll(".scroll")].filter(x => x.scrollWidth > x.clientWidth).length > 0,'
      ' targets: [...d.querySelectorAll("nav a")].every(a => d.querySelector(a.getAttribute("href"))),'
      ' fetched: w.performance.getEntriesByType("resource").length}'))
  assert got == {'open': [True, True, False], 'focusable': True, 'named': True, 'wide': True,
                 'targets': True, 'fetched': 0}
