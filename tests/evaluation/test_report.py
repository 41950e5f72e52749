"""The report of a made-up run folder: complete, partial, broken, shared."""

from __future__ import annotations

import json
import re

import pytest
from made_up_run import Page, dump, fake_run

from eagrl_jax.evaluation import bootstrap, report
from eagrl_jax.types import EagrlError

HEADINGS = ('Results', 'Paired differences', 'ROC, precision–recall, calibration and decisions', 'Subgroups',
            'Leakage audit', 'Learning curves', 'Search', 'Patients', 'Cohort', 'Config', 'Versions')
FURTHER = ('Ways of answering', 'Robustness', 'Faithfulness', 'Transfer')  # of a run that went further
WHOLE = (*HEADINGS[:5], *FURTHER, *HEADINGS[5:], 'TRIPOD+AI checklist')


def test_all_sections_and_no_junk(html):
  page = Page(html)
  assert not page.stack
  assert tuple(page.headings) == WHOLE
  text = ' '.join(page.text)
  assert not re.search(r'\b(None|nan|NaN|inf|Undefined|Markup)\b', text)
  assert 'not in this run' not in text
  assert 'test_ids' in text and '160 entries' in text and 'data.window_hours' in text and 'not set' in text


def test_figures_of_metrics_json_are_on_the_page(run, html):
  metrics = json.loads((run / 'evaluate/metrics.json').read_text())
  rl = metrics['arms']['rl']['auroc']
  assert f'{rl["point"]:.3f} <span class="ci">{rl["ci95"][0]:.3f}–{rl["ci95"][1]:.3f}</span>' in html
  assert f'rl  {rl["point"]:.3f} ({rl["ci95"][0]:.3f}–{rl["ci95"][1]:.3f})' in html  # legend of the ROC figure
  assert f'{metrics["oracle"]["auprc"]["point"]:.3f}' in html
  assert re.search(rf'rl − expert.*?{abs(metrics["paired"][4]["diff"]):.3f}', html, re.S)


def test_self_contained_without_script_and_with_unique_ids(html):
  page = Page(html)
  assert not {'script', 'link', 'img', 'iframe'} & set(page.tags)
  assert all(link.startswith('#') for link in page.links) and {link[1:] for link in page.links} <= set(page.ids)
  assert len(page.ids) == len(set(page.ids))
  assert {re.sub(r'["\s].*', '', url) for url in re.findall(r'https?://\S+', html)} == {'http://www.w3.org/2000/svg'}
  assert 'P-1' not in html  # subject ids stay in the parquet file


def test_tree_opens_the_best_path_only(html):
  tree = html[html.index('<ul class="tree">'):html.index('id="patients"')]
  assert tree.count('<details open>') == tree.count('class="star"') == 4
  assert tree.count('<details') == 14
  assert 'Is the urine output out of range?' in tree


def test_shared_copy_holds_no_patient(run):
  path = report.write_report(run, share=True)
  assert path.name == 'report_share.html'
  html = path.read_text(encoding='utf-8')
  assert 'Patients' not in Page(html).headings and 'case 1' not in html
  assert 'The last value is' not in html and 'class="answer"' not in html
  assert 'class="tree"' not in html and 'best path' not in html and not re.search(r'\d visits? ·', html)
  assert 'Trajectory reward' in html  # of all trees together
  assert 'somebody' not in html and 'data.xlsx' in html
  assert 'without bins of fewer than 10' in html and 'bins of fewer than ten patients are not shown' in html
  assert "no single patient's data" not in html and 'curve may be one patient' in html  # of ROC a step is a patient


def test_deterministic(run, html):
  assert report.write_report(run).read_text(encoding='utf-8') == html


def test_empty_run_says_what_is_missing(tmp_path):
  page = Page(report.write_report(tmp_path).read_text(encoding='utf-8'))
  assert tuple(page.headings) == HEADINGS
  text = ' '.join(page.text)
  for part in ('Results', 'Paired differences', 'Learning curves of rl', 'Search tree', 'Rewards of the search',
               'Patient cases', 'Attrition', 'Config', 'Versions'):
    assert f'{part}: not in this run.' in text
  with pytest.raises(EagrlError, match='workdir'):
    report.write_report(tmp_path / 'absent')


def test_one_class_run_gives_the_reason(tmp_path):
  arm = bootstrap.bootstrap([0, 0, 0], [0.1, 0.2, 0.3], n=10)
  dump(tmp_path / 'evaluate/metrics.json', {'task': 'mortality', 'n_test': 3, 'arms': {'rl': arm}})
  text = ' '.join(Page(report.write_report(tmp_path).read_text(encoding='utf-8')).text)
  assert 'only one class: all 3 patients have outcome 0' in text
  assert not re.search(r'\b(None|nan|NaN)\b', text)


@pytest.mark.parametrize(('n', 'prevalence', 'says'), [
    (200, 0.045, '9'), (200, 0.955, '9'), (30, 0.0, '0'), (200, 0.05, None), (200, 0.95, None)])
def test_few_events_are_told_beside_the_headline(tmp_path, n, prevalence, says):
  arm = bootstrap.bootstrap([0, 1, 0], [0.1, 0.2, 0.3], n=10)
  dump(tmp_path / 'evaluate/metrics.json', {'task': 'mortality', 'n_test': n, 'prevalence': prevalence,
                                            'arms': {'rl': arm}})
  text = ' '.join(Page(report.write_report(tmp_path).read_text(encoding='utf-8')).text)
  assert (f'Only {says} test patients of the rarer outcome' in text) == (says is not None)
  assert ('of the rarer outcome' in text) == (says is not None)


def test_a_run_that_is_not_evaluated_shows_the_experts_audit(tmp_path):
  check = lambda value: {'name': 'patients in two splits', 'value': value, 'ci95': None, 'warning': ''}
  dump(tmp_path / 'expert/audit.json', [check(3.0)])
  page = Page(report.write_report(tmp_path).read_text(encoding='utf-8'))
  text = ' '.join(page.text)
  assert 'patients in two splits 3' in re.sub(r'\s+', ' ', text) and 'nothing is evaluated yet' in text
  arm = bootstrap.bootstrap([0, 1, 0], [0.1, 0.2, 0.3], n=10)
  dump(tmp_path / 'evaluate/metrics.json', {'task': 't', 'n_test': 3, 'arms': {'rl': arm}, 'audit': [check(4.0)]})
  text = ' '.join(Page(report.write_report(tmp_path).read_text(encoding='utf-8')).text)
  assert 'patients in two splits 4' in re.sub(r'\s+', ' ', text) and 'nothing is evaluated yet' not in text


@pytest.mark.parametrize('name', ['evaluate/metrics.json', 'rl/metrics.jsonl', 'evaluate/predictions.parquet'])
def test_broken_file_is_named(tmp_path, name):
  path = tmp_path / name
  path.parent.mkdir()
  path.write_text('{"a": \n{}\n')
  with pytest.raises(EagrlError, match=re.escape(name)):
    report.write_report(tmp_path)


def test_hostile_text_stays_text(tmp_path):
  evil = '<script>document.title="x"</script><img src=x onerror=alert(1)>'
  fake_run(tmp_path, n=40)
  cases = json.loads((tmp_path / 'evaluate/cases.json').read_text())
  cases[0]['answers']['rl'] = cases[0]['features'][0]['name'] = cases[0]['label'] = evil
  dump(tmp_path / 'evaluate/cases.json', cases)
  dump(tmp_path / 'search/tree.json', {'nodes': [{'id': 0, 'parent': -1, 'text': evil, 'on_best_path': True}]})
  dump(tmp_path / 'config.json', {evil: evil})
  page = Page(report.write_report(tmp_path).read_text(encoding='utf-8'))
  assert not {'script', 'img'} & set(page.tags)
  assert ''.join(page.text).count('document.title="x"') >= 4


def test_summary_table(run):
  table = report.summary_table(json.loads((run / 'evaluate/metrics.json').read_text())).split('\n')
  assert [line.split()[0] for line in table[2:]] == ['base', 'sft', 'rl', 'expert', 'oracle']
  assert len({len(line) for line in table}) == 1
  assert table[0].split('  ')[0] == 'arm' and 'Jaccard@K' in table[0] and 'attention KL' in table[0]
  rl = json.loads((run / 'evaluate/metrics.json').read_text())['arms']['rl']
  assert f'{rl["auroc"]["point"]:.3f} ({rl["auroc"]["ci95"][0]:.3f}–{rl["auroc"]["ci95"][1]:.3f})' in table[4]
  assert f'{rl["jaccard_at_k"]["expert"]["mean"]:.3f}' in table[4] and '97.7%     0.1%' in table[4]
  assert '–' in table[5] and 'nan' not in '\n'.join(table)


def test_summary_table_reads_the_plain_schema():
  """ARCHITECTURE's schema: means without points, plain numbers for agreement."""
  table = report.summary_table({'arms': {'rl': {
      'auroc': {'mean': 0.8, 'std': 0.02, 'ci95': [0.76, 0.84]}, 'auprc': {'mean': 0.5, 'std': 0.1, 'ci95': [0.3, 0.7]},
      'parse_rate': 0.97, 'jaccard_at_k': 0.4, 'attention_kl': 0.9}}, 'oracle': 0.91})
  assert '0.800 (0.760–0.840)  0.500 (0.300–0.700)   97.0%        –      0.400       –         0.900         –' in table
  assert table.splitlines()[-1].split()[:2] == ['oracle', '0.910']


def test_a_run_that_went_no_further_has_no_empty_sections(tmp_path):
  page = Page(report.write_report(fake_run(tmp_path, n=40)).read_text(encoding='utf-8'))
  assert tuple(page.headings) == (*HEADINGS, 'TRIPOD+AI checklist')
  assert not {'robustness', 'faithfulness', 'transfer', 'ways'} & set(page.ids)
