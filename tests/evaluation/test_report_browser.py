"""The report in a real browser: no complaint, opens on a click, model-written text stays text, fits a phone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagrl_jax.evaluation import report

EVIL = '<script>document.title="owned"</script><img src=x onerror="document.title=1"><b>bold</b>'
POLICY = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'">'
SECTIONS = ('results', 'differences', 'discrimination', 'subgroups', 'audit', 'ways', 'robustness', 'faithfulness',
            'transfer', 'learning', 'search', 'patients', 'cohort', 'config', 'versions', 'tripod')
LINKED = '[...document.querySelectorAll("nav a")].every(a => document.querySelector(a.getAttribute("href")))'
A4 = 703  # CSS pixels between margins of 12 mm
CLOSED = '[...document.querySelectorAll(".tree details:not([open]) > summary")].find(s => s.checkVisibility())'


@pytest.fixture(scope='module')
def hostile(tmp_path_factory) -> Path:
  """The report of a run whose every name and text is markup, with the longest words and the most columns."""
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
      'transfer/elsewhere/metrics.json': {
          'cohort': EVIL, 'n_test': 9, 'arms': judged,
          'audit': [{'name': EVIL, 'value': 0.5, 'ci95': [0.4, 0.6], 'warning': EVIL}]},
      'transfer/elsewhere/manifest.json': {'made_from': {'run': {}}, 'attrition': [[EVIL, 9, EVIL]]},
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


@pytest.fixture(scope='module')
def whole(run, html) -> Path:
  """The report of a run that went as far as one can."""
  return run / 'report.html'


def test_every_section_is_there_and_the_console_is_silent(chromium, whole):
  tab = chromium.open(whole)
  found = tab.evaluate('''[...document.querySelectorAll("main > section")].map(s => [
      s.querySelector("h2").id, s.getBoundingClientRect().height > s.querySelector("h2").offsetHeight + 20,
      s.querySelector("table, svg, dl, ul.tree, article") !== null, s.querySelector(".absent") === null])''')
  assert found == [[name, True, True, True] for name in SECTIONS]
  assert tab.errors() == [] and tab.requests() == [whole.as_uri()]


def test_the_tree_opens_and_closes_on_click(chromium, run, whole):
  tab = chromium.open(whole)
  tab.evaluate(f'void (window.summary = {CLOSED})')
  step = 'summary.parentElement.querySelector(":scope > .answer")'
  assert tab.evaluate(f'[summary.parentElement.open, {step}.checkVisibility()]') == [False, False]
  tab.click('summary')
  assert tab.evaluate(f'[summary.parentElement.open, {step}.checkVisibility()]') == [True, True]
  assert 'The last value is' in tab.evaluate(f'{step}.innerText')
  nodes = json.loads((run / 'search/tree.json').read_text())['nodes']
  facts = [f'{n["visits"]} visit{"s" * (n["visits"] != 1)} · value {n["value"]:.2f} · reward {n["reward"]:.2f}'
           for n in nodes if 1 in (n['id'], n['parent'])]  # of the root's first child, and what the search tried next
  assert tab.evaluate('[...summary.parentElement.querySelectorAll(".facts")].map(e => e.checkVisibility() && '
                      'e.innerText)') == facts and len(facts) == 4
  tab.click('summary')
  assert tab.evaluate(f'[summary.parentElement.open, {step}.checkVisibility()]') == [False, False]
  assert tab.errors() == []


def test_the_page_is_used_by_keyboard(chromium, whole):
  tab = chromium.open(whole)
  tab.press('Tab')
  assert tab.evaluate('document.activeElement.className') == 'skip'
  tab.evaluate(f'(window.summary = {CLOSED}).focus()')
  tab.press('Enter')
  assert tab.evaluate('summary.parentElement.open')
  tab.evaluate('document.querySelectorAll("details").forEach(d => { d.open = true; })')
  assert tab.evaluate('[...document.querySelectorAll("summary, nav a, .scroll")].every('
                      'e => (e.focus(), document.activeElement === e))')
  assert tab.evaluate('[...document.querySelectorAll(".scroll")].every(e => e.getAttribute("aria-label"))')
  assert tab.evaluate(LINKED)


def test_planted_markup_stays_text(chromium, hostile):
  tab = chromium.open(hostile)
  assert tab.evaluate('document.title') == f'EAG-RL run: {EVIL}'
  assert tab.evaluate('document.querySelectorAll("script, img, b").length') == 0
  assert tab.evaluate('document.body.textContent').count('<script>') >= 6
  assert tab.errors() == [] and tab.requests() == [hostile.as_uri()]


@pytest.mark.parametrize(('policy', 'planted', 'said'), [
    (True, '<script>document.title = "owned"</script>', 'Content Security Policy'),
    (True, '<img src="picture.png">', 'Content Security Policy'),
    (False, '<script>console.error("a planted complaint")</script>', 'a planted complaint'),
    (False, '<script>throw new Error("a planted fault")</script>', 'a planted fault'),
    (False, '<img src="not-there.png">', 'ERR_FILE_NOT_FOUND')])
def test_what_the_console_says_is_heard(chromium, whole, tmp_path, policy, planted, said):
  """Else its silence above would say nothing."""
  page = tmp_path / 'report.html'
  html = whole.read_text(encoding='utf-8')
  assert POLICY in html and '</main>' in html
  page.write_text(html.replace(POLICY, POLICY if policy else '').replace('</main>', planted + '</main>'))
  tab = chromium.open(page)
  heard = tab.errors()
  assert len(heard) == 1 and said in heard[0]
  assert not policy or tab.evaluate('document.title').startswith('EAG-RL run')


@pytest.mark.parametrize('width', [360, 390, 768, 1280])
def test_no_sideways_scroll_at_any_width(chromium, hostile, width):
  tab = chromium.open(hostile, width)
  tab.evaluate('document.querySelectorAll("details").forEach(d => { d.open = true; })')
  root = 'document.documentElement'
  inner, room, needed = tab.evaluate(f'[innerWidth, {root}.clientWidth, {root}.scrollWidth]')
  assert inner == width and needed == room > width - 20
  if width < 1280:  # wide tables scroll in boxes of their own
    assert tab.evaluate('[...document.querySelectorAll(".scroll")].some(e => e.scrollWidth > e.clientWidth)')


def test_a_forest_bar_is_beside_its_figure_and_on_a_phone_below_it(chromium, whole):
  """Without a sideways scroll: neither of the page nor of the table's own box."""
  places = '''[...document.querySelectorAll(".forest")].map(bar => {
      const [f, b] = [bar.closest("td").querySelector(".barred > div"), bar].map(e => e.getBoundingClientRect());
      return [bar.checkVisibility() && b.width >= 60, b.left >= f.right, b.top >= f.bottom]; })'''
  bars = 5 * 2 + 2  # arms by metrics, and of the one group that is shown the two arms
  assert chromium.open(whole).evaluate(places) == [[True, True, False]] * bars
  tab = chromium.open(whole, 360)
  assert tab.evaluate(places) == [[True, False, True]] * bars
  assert tab.evaluate('[...document.querySelectorAll(".scroll:has(.forest)")].map(e => e.scrollWidth - e.clientWidth)'
                      ) == [0, 0]


def test_print_shows_what_is_folded_and_cuts_no_table(chromium, whole):
  tab = chromium.open(whole, A4)
  folded = '[...document.querySelectorAll("details:not([open]) > :not(summary)")].map(e => e.checkVisibility())'
  closed = tab.evaluate(folded)
  assert len(closed) > 20 and not any(closed)
  tab.call('Emulation.setEmulatedMedia', media='print')
  assert tab.evaluate(folded) == [True] * len(closed)
  assert not tab.evaluate('document.querySelector("nav").checkVisibility()')  # links lead nowhere on paper
  assert tab.evaluate('[...document.querySelectorAll("table")].filter(t => t.getBoundingClientRect().right > '
                      'document.documentElement.clientWidth).map(t => t.parentElement.ariaLabel)') == []


def test_the_shared_copy_is_whole_without_its_patients(chromium, run):
  tab = chromium.open(report.write_report(run, share=True))
  found = tab.evaluate('[...document.querySelectorAll("main > section > h2")].map(h => h.id)')
  assert found == [name for name in SECTIONS if name != 'patients']
  assert tab.evaluate('document.querySelectorAll(".tree, .answer, .case, .private").length') == 0
  assert tab.evaluate(LINKED)
  assert tab.errors() == []
