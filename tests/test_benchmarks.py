"""The benchmarks run and print what they promise; their figures are not judged here."""

import json
import pathlib
import sys

import pytest

from eagrl_jax.lm.config import LMConfig

ROOT = pathlib.Path(__file__).parents[1]
KEYS = {'name', 'unit', 'ours', 'peer', 'peer_name', 'ratio', 'roofline'}


def test_attention_rows_print_one_line_a_case(monkeypatch, capsys):
  monkeypatch.syspath_prepend(str(ROOT))
  from benchmarks import alignment, measure
  micro = LMConfig(vocab_size=31, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=16)
  monkeypatch.setitem(measure.SHAPES, 'micro', micro)
  monkeypatch.setattr(sys, 'argv', ['alignment', '--shape=micro', '--rows=2', '--lengths=80', '--read=4', '--reps=1',
                                    '--no_peer'])
  monkeypatch.setattr(measure, 'peaks', lambda dtype: (2e9, 1e9, 'given'))
  alignment.main()
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert len(lines) == 2 and all(KEYS <= set(line) and line['ratio'] > 0 for line in lines)
  layer = 2 * (16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 16)  # q, k and v, o, mlp
  forward = 2 * (80 * layer + 4 * 2 * 8 * (76 * 76 / 2 + 4 * (76 + 2)))
  assert [line['roofline'] for line in lines] == pytest.approx([forward / 2e9, 3 * forward / 2e9], rel=1e-3)


def test_the_memory_of_attention_rows_is_planned_without_a_run(monkeypatch, capsys):
  monkeypatch.syspath_prepend(str(ROOT))
  from benchmarks import alignment, measure
  monkeypatch.setitem(measure.SHAPES, 'micro', LMConfig(
      vocab_size=31, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=16))
  monkeypatch.setattr(measure, 'peaks', lambda dtype: (2e9, 1e9, 'given'))
  monkeypatch.setattr(measure, 'seconds', lambda *_: pytest.fail('a pass was run'))
  monkeypatch.setattr(alignment, 'map_bytes', lambda cfg, batch: 4 * 2 * 2 * 80 * 80)  # rows, heads
  lines = run_micro(monkeypatch, capsys, alignment.main, '--shape=micro', '--rows=2', '--lengths=80', '--read=4',
                    '--cases=memory')
  assert [(line['unit'], line['peer']) for line in lines] == [('bytes', 102_400)]
  assert 0 < lines[0]['ours'] < 102_400 and lines[0]['ratio'] > 1


def test_more_tokens_than_a_small_machine_keeps_are_computed_again(monkeypatch, capsys):
  monkeypatch.syspath_prepend(str(ROOT))
  from benchmarks import alignment, measure
  monkeypatch.setattr(alignment, 'loss', lambda params, *_: params['final_norm'].sum())
  monkeypatch.setattr(measure, 'peaks', lambda dtype: (2e9, 1e9, 'given'))
  for flags, remat in (([], ['none', 'full']), (['--remat=dots'], ['dots', 'dots'])):
    lines = run_micro(monkeypatch, capsys, alignment.main, '--shape=micro', '--rows=8', '--lengths', '512', '513',
                      '--reps=1', '--no_peer', *flags)
    assert [line['name'].split()[-1] for line in lines] == [r for r in remat for _ in ('forward', 'backward')]


def test_a_ratio_above_one_is_ours(monkeypatch, capsys):
  monkeypatch.syspath_prepend(str(ROOT))
  from benchmarks import measure
  measure.report('a', 'tokens/s', 30.0, 10.0, 'peer', None)
  measure.report('b', 's', 1.0, 2.0, 'peer', None)
  assert [json.loads(line)['ratio'] for line in capsys.readouterr().out.splitlines()] == [3, 2]


def run_micro(monkeypatch, capsys, main, *flags):
  monkeypatch.setattr(sys, 'argv', ['benchmark', *flags])
  main()
  return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize('extra', [[], ['--prefixes']])
def test_expert_prints_one_line_for_each_number_of_members(monkeypatch, capsys, extra):
  monkeypatch.syspath_prepend(str(ROOT))
  from benchmarks import expert
  lines = run_micro(monkeypatch, capsys, expert.main, '--features=3', '--lengths=2', '--hidden=8', '--batch=4',
                    '--members', '1', '2', '--steps=1', '--reps=1', '--no_peer', *extra)
  assert len(lines) == 2 and all(KEYS <= set(line) and 0 < line['ours'] < line['roofline'] for line in lines)


def test_decode_is_held_against_bytes_where_rows_are_few_and_products_where_many(monkeypatch, capsys):
  monkeypatch.syspath_prepend(str(ROOT))
  from benchmarks import decode, measure
  times = iter([2.0, 0.5, 4.0, 4.0])  # of a whole call and of its first token, for each number of prompts
  monkeypatch.setattr(measure, 'seconds', lambda fn, reps: (fn(), next(times))[1])
  monkeypatch.setattr(measure, 'peaks', lambda dtype: (1e9, 1e9, 'given'))
  few, many = run_micro(monkeypatch, capsys, decode.main, '--shape=micro', '--prompts', '1', '4', '--length=8',
                        '--group=2', '--new=4', '--reps=1', '--no_peer')
  assert all(KEYS <= set(line) and line['peer'] is line['ratio'] is None for line in (few, many))
  assert (few['ours'], many['ours']) == (1 * 2 * 4 / 2, 4 * 2 * 4 / 4)
  layers, head = 2 * (32 * (2 * 32 + 2 * 16) + 3 * 32 * 64), 521 * 32  # o and q, k and v, mlp
  read = 4 * (layers + head + 2 * 2 * 16 * (8 + 2 * 4 / 2))  # one prompt's cache, and half of two answers'
  products = 4 * 2 * 2 * (layers + head)  # of eight rows
  assert few['roofline'] == pytest.approx(2 * 4 / (8 * 2 * layers + 4 * read) * 1e9, rel=1e-3)
  assert many['roofline'] == pytest.approx(8 * 4 / (4 * 8 * 2 * layers + 4 * products) * 1e9, rel=1e-3)
  # Three steps in 1.5 s; steps too short for the clock have no share.
  assert few['bandwidth'] == pytest.approx(3 * read / 1.5 / 1e9, rel=1e-3) and many['bandwidth'] is None


def test_search_counts_its_new_nodes(monkeypatch, capsys):
  monkeypatch.syspath_prepend(str(ROOT))
  from benchmarks import measure, search
  monkeypatch.setattr(measure, 'peaks', lambda dtype: (1e18, 1e9, 'given'))  # the bytes of a token step decide
  lines = run_micro(monkeypatch, capsys, search.main, '--shape=micro', '--trees=2', '--rollouts=1', '--siblings=2',
                    '--prompt=8', '--step=4', '--depth=1', '--reps=1', '--no_peer', '--no_growth')
  # One rollout to depth 1 expands the root and one of its children, which ends in one final step.
  assert len(lines) == 1 and KEYS <= set(lines[0]) and lines[0]['new_nodes'] in range(2 * 2, 2 * 3 + 1)
  layer = 32 * (2 * 32 + 2 * 16) + 3 * 32 * 64  # o and q, k and v, mlp
  free = 521 * 32 * 4 / lines[0]['tokens_a_node']  # of the head, met by 4 of a node's tokens
  read = 4 * (2 * layer + free + 2 * 2 * 16 * 2 * 8)
  assert lines[0]['roofline'] == pytest.approx(4 * 1e9 / (lines[0]['tokens_a_node'] * read), rel=1e-3)


def test_scaling_sets_the_same_batch_on_one_device_beside_many(monkeypatch, capsys):
  monkeypatch.syspath_prepend(str(ROOT))
  from benchmarks import scaling
  lines = run_micro(monkeypatch, capsys, scaling.main, '--stages=update', '--devices=2', '--length=8', '--lengths',
                    '--per_device=1', '--group=2', '--new=4', '--reps=1')
  assert [line['peer_name'] for line in lines] == ['ours, the same batch on one device']
  assert all(KEYS <= set(line) and line['ours'] > 0 and line['ratio'] > 0 for line in lines)


def test_a_repeated_hospital_has_so_many_times_the_patients(monkeypatch, capsys, tmp_path):
  monkeypatch.syspath_prepend(str(ROOT))
  monkeypatch.syspath_prepend(str(ROOT / 'tests' / 'ehr'))
  import mimic4_fixture

  from benchmarks import cohort_memory
  mimic4_fixture.write(tmp_path)
  lines = run_micro(monkeypatch, capsys, cohort_memory.main, f'--demo={tmp_path}', '--copies=3')
  rows = 3 * (len(mimic4_fixture.CHART) + len(mimic4_fixture.LAB))
  assert len(lines) == 1 and KEYS <= set(lines[0]) and (lines[0]['patients'], lines[0]['rows']) == (3 * 5, rows)
  assert lines[0]['ours'] > 5e7 and lines[0]['peer'] == 2e9
