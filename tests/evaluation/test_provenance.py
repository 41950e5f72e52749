"""Results of other settings, or of an earlier policy, stand beside no others."""

from __future__ import annotations

import json
import shutil

import pytest
from made_up_run import dump

from eagrl_jax.evaluation import compare, provenance, report

NEEDS = {'sft': (), 'rl': ('sft',), 'evaluate': ('sft', 'rl'), 'robustness': ('sft', 'rl', 'evaluate')}


@pytest.fixture
def marked(run, tmp_path):
  """The made-up run as the pipeline marks it, every hash the stage's own name."""
  folder = tmp_path / 'marked'
  shutil.copytree(run, folder)
  for stage, needs in NEEDS.items():
    dump(folder / stage / 'done.json', {'hash': stage, 'inputs': {n: n for n in needs}})
  manifest = folder / 'transfer/elsewhere/manifest.json'
  dump(manifest, json.loads(manifest.read_text()) | {'made_from': {'run': {n: n for n in ('sft', 'rl', 'evaluate')}}})
  dump(folder / provenance.HASHES, {stage: stage for stage in NEEDS})
  return folder


def test_what_bears_no_mark_and_what_fits_are_shown(run, marked):
  assert provenance.outdated(run) == provenance.outdated(marked) == set()
  assert report.write_report(marked).read_text() == report.write_report(run).read_text()


@pytest.mark.parametrize('mark', ['null', '[]', '{"x": 1}'])
def test_a_damaged_mark_is_none(marked, mark):
  (marked / 'robustness' / 'done.json').write_text(mark)
  assert provenance.outdated(marked) == set()


@pytest.mark.parametrize(('stage', 'gone'), [
    ('rl', {'evaluate', 'robustness', 'transfer/elsewhere'}), ('evaluate', {'robustness', 'transfer/elsewhere'}),
    ('robustness', set())])
@pytest.mark.parametrize('mark', ['done.json', 'started.json'])
def test_a_stage_made_anew_leaves_behind_what_was_made_from_it(marked, stage, gone, mark):
  for known in (True, False):  # a folder from before the hashes of its config were written has none
    (marked / stage / 'done.json').unlink(missing_ok=True)
    dump(marked / stage / mark, {'hash': 'another'})
    if known:
      dump(marked / provenance.HASHES, {n: 'another' if n == stage or n in gone else n for n in NEEDS})
    else:
      (marked / provenance.HASHES).unlink()
    assert provenance.outdated(marked) == gone


def test_a_config_that_was_not_run_yet_leaves_behind_what_it_will_make_anew(marked):
  dump(marked / provenance.HASHES, {'sft': 'sft', 'rl': 'new', 'evaluate': 'new', 'robustness': 'new'})
  assert provenance.outdated(marked) == {'rl', 'evaluate', 'robustness', 'transfer/elsewhere'}


def test_the_report_says_so_in_place_of_each_section(marked):
  (marked / 'rl/done.json').unlink()
  dump(marked / 'rl/started.json', {'hash': 'another'})
  (marked / provenance.HASHES).unlink()
  for share in (False, True):
    page = report.write_report(marked, share).read_text(encoding='utf-8')
    said = 'made with other settings or from an earlier policy; run'
    for what in ('Results', 'Paired differences', 'ROC, precision–recall and calibration', 'Subgroups', 'Leakage audit',
                 'Robustness and faithfulness', *(() if share else ('Patient cases',))):
      stage = 'robustness' if what.startswith('Robustness') else 'evaluate'
      assert f'<p class="absent">{what}: {said} the {stage} stage again.</p>' in page
    assert f'<p class="absent">Transfer to elsewhere: {said} configs/transfer.py again.</p>' in page
    for gone in ('97.7 %', 'class="scores"', 'id="fig-roc', 'id="faithfulness"', '0.987', 'class="case"', 'id="ways"'):
      assert gone not in page
    assert 'rl · reward' in page and 'href="#robustness"' in page and 'href="#transfer"' in page
    checklist = page[page.index('id="tripod"'):]
    assert 'the cohorts elsewhere' not in checklist and 'tested under Robustness' not in checklist
  dump(marked / provenance.HASHES, {'rl': 'new'})  # nor are its own curves those of the config
  page = report.write_report(marked).read_text(encoding='utf-8')
  assert f'Learning curves of rl: {said} the rl stage again' in page and 'rl · reward' not in page


def test_runs_are_not_compared_by_an_evaluation_of_other_settings(run, marked, tmp_path):
  dump(marked / provenance.HASHES, {'rl': 'new', 'evaluate': 'new'})
  text = compare.table(found := compare.read([run, marked]))
  assert 'marked was evaluated with other settings or an earlier policy; run its evaluate stage again' in text
  auroc = json.loads((run / 'evaluate/metrics.json').read_text())['arms']['rl']['auroc']['point']
  page = compare.write(found, tmp_path / 'c.html').read_text(encoding='utf-8')
  for shown in (text, page):
    assert shown.count(f'{auroc:.3f}') == 1
  assert '<small>evaluated with other settings or an earlier policy</small>' in page
  assert 'sft · loss' in page and 'rl · reward' not in page
