"""Runs side by side: made-up folders of which is known what they share."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eagrl_jax import compare as command
from eagrl_jax.evaluation import bootstrap, compare, pseudonyms
from eagrl_jax.types import EagrlError

N = 80
IDS = [f'{i:016x}' for i in range(N)]
LABEL = (np.random.default_rng(0).random(N) < 0.4).astype(int)
EVIL = '<script>document.title="x"</script>'


def make(root: Path, skill: float, *, rate: float = 1e-4, ids=IDS, label=LABEL, seed: int = 0, note: str = '') -> Path:
  """A run whose policy after RL follows the outcome by `skill`; the expert is the same in every run."""
  noise = np.random.default_rng(1).random(N)
  probs = {'rl': np.round(np.clip(skill * label + (1 - skill) * noise, 0, 1), 2), 'expert': 0.5 * noise + 0.4 * label}
  shuffled = np.random.default_rng(int(1000 * skill)).permutation(N)  # the order of rows must not matter
  rows = [(ids[i], arm, bool(label[i]), float(prob[i])) for arm, prob in probs.items() for i in shuffled]
  columns = ('subject_id', 'arm', 'boolean_value', 'predicted_boolean_probability')
  (root / 'evaluate').mkdir(parents=True)
  (root / 'rl').mkdir()
  pq.write_table(pa.table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))),
                 root / 'evaluate/predictions.parquet')
  files = {'config.json': {'seed': seed, 'data': {'path': f'/somebody/private/{rate}.xlsx'},
                           'rl': {'learning_rate': rate}, 'note': note},
           'environment.json': {'python': '3.11', 'git': f'commit-{rate}'},
           'evaluate/metrics.json': {'task': 'mortality', 'cohort': 'c', 'n_test': N, 'arms': {
               arm: bootstrap.bootstrap(label, prob, n=50) for arm, prob in probs.items()}}}
  for name, value in files.items():
    (root / name).write_text(json.dumps(value))
  (root / 'rl/metrics.jsonl').write_text(
      ''.join(json.dumps({'step': s, 'reward': skill * s, 'only' + str(rate): s}) + '\n' for s in range(30)))
  return root


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp('runs')
  return [make(root / 'weak', 0.1), make(root / 'strong', 0.4, rate=3e-4, note=EVIL)]


@pytest.fixture(scope='module')
def runs(folders):
  return compare.read(folders)


def test_paired_differences_are_those_of_the_same_patients_whatever_their_order(runs):
  rows = {row['arm']: row for row in compare.paired(runs, n=200)}
  assert rows['expert']['auroc']['mean'] == 0 and rows['expert']['auroc']['lo'] == rows['expert']['auroc']['hi'] == 0
  expected = bootstrap.paired_difference(runs[0].label, runs[1].prob['rl'], runs[0].prob['rl'], 200)['auroc']
  assert rows['rl']['auroc']['mean'] == expected['diff'] > 0.1 and rows['rl']['auroc']['lo'] == expected['ci95'][0] > 0
  assert runs[1].result['arms']['rl']['auroc']['point'] - runs[0].result['arms']['rl']['auroc']['point'] == \
      pytest.approx(expected['diff'])


@pytest.mark.parametrize(('change', 'reason'), [
    ({'ids': [*IDS[:-1], 'f' * 16]}, r'79 of 80 and 80 are the same\)'),
    ({'ids': [i[::-1] + 'x' for i in IDS]}, r'compare needs prepare/ and id_salt.txt in both$'),
    ({'label': 1 - LABEL}, 'outcomes differ')])
def test_other_patients_are_not_paired(tmp_path, folders, change, reason):
  found = compare.read([folders[0], make(tmp_path / 'other', 0.3, **change)])
  rows = compare.paired(found)
  assert len(rows) == 1 and re.search(reason, rows[0]['reason'])
  assert rows[0]['reason'] in compare.table(found)


def test_patients_behind_two_folders_pseudonyms_are_paired_by_their_owner(tmp_path):
  roots = [tmp_path / 'one', tmp_path / 'two']
  for root, skill in zip(roots, (0.1, 0.4)):
    root.mkdir()
    make(root, skill, ids=pseudonyms.of(IDS, pseudonyms.salt(root)))
  assert 'are not paired' in compare.table(compare.read(roots))
  for root, order in zip(roots, (1, -1)):
    (root / 'prepare').mkdir()
    pq.write_table(pa.table({'subject_id': IDS[::order], 'split': ['held_out'] * N}), root / 'prepare/splits.parquet')
  one, two = compare.read(roots)
  assert one.ids.tolist() == two.ids.tolist() == sorted(IDS) and np.array_equal(one.label, LABEL)
  text = compare.table([one, two])
  assert 'are not paired' not in text and not any(i in text for i in IDS)
  assert not any(i in compare.write([one, two], tmp_path / 'compare.html').read_text() for i in IDS)


def test_only_settings_that_differ_are_listed_and_paths_are_not(runs):
  rows = dict(compare.differences([run.settings for run in runs]))
  assert rows == {'data.path': ['0.0001.xlsx', '0.0003.xlsx'], 'rl.learning_rate': ['0.0001', '0.0003'],
                  'note': ['not set', EVIL]}
  assert dict(compare.differences([run.versions for run in runs])) == {'git': ['commit-0.0001', 'commit-0.0003']}


class Page(HTMLParser):
  def __init__(self, html: str):
    super().__init__()
    self.tags, self.text = [], []
    self.feed(html)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)

  def handle_data(self, data):
    self.text.append(data)


def test_page_shows_both_runs_and_no_patient(runs, tmp_path):
  html = compare.write(runs, tmp_path / 'deep/compare.html').read_text()
  page = Page(html)
  text = ' '.join(' '.join(page.text).split())
  for run in runs:
    auroc = run.result['arms']['rl']['auroc']
    assert f'{auroc["point"]:.3f} <span class="ci">{auroc["ci95"][0]:.3f}–{auroc["ci95"][1]:.3f}</span>' in html
    assert run.name in text
  assert 'rl · reward' in text and 'only0.0001' not in html  # a metric of one run has nothing to lie over
  assert 'rl.learning_rate 0.0001 0.0003' in text and EVIL in text
  assert not {'script', 'link', 'img'} & set(page.tags)
  assert not any(i in html for i in IDS) and 'somebody' not in html


def test_curves_and_arms_of_an_unfinished_run_are_left_out(folders, tmp_path):
  (tmp_path / 'begun').mkdir()
  (tmp_path / 'begun/config.json').write_text('{"seed": 0}')
  found = compare.read([folders[0], tmp_path / 'begun'])
  html = compare.write(found, tmp_path / 'c.html').read_text()
  assert 'not evaluated' in html and 'no predictions in one of them' in html and 'id="learning"' not in html
  assert 'begun' not in compare.table(found).split('\n\n')[0]


def test_runs_of_one_name_get_numbers_and_other_folders_are_refused(folders, tmp_path):
  same = make(tmp_path / 'weak', 0.2)
  assert [run.name for run in compare.read([folders[0], same])] == ['1: weak', '2: weak']
  with pytest.raises(EagrlError, match='at least two'):
    compare.read(folders[:1])
  with pytest.raises(EagrlError, match='config.json'):
    compare.read([folders[0], tmp_path])


def test_command_prints_the_table_and_a_mistake_is_one_line(folders, tmp_path, capsys, monkeypatch):
  command.main([*map(str, folders), '--out', str(tmp_path / 'c.html')])
  said = capsys.readouterr().out
  assert 'minus weak, paired by patient' in said and (tmp_path / 'c.html').exists()
  assert not any(i in said for i in IDS)
  monkeypatch.setattr(sys, 'argv', ['compare', str(folders[0])])
  with pytest.raises(SystemExit, match='1'):
    command.run()
  assert capsys.readouterr().err == 'eagrl_jax: compare: give the folders of at least two runs\n'
