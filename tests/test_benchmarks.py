"""The benchmarks run and print what they promise; their figures are not judged here."""

import json
import pathlib
import sys

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
  alignment.main()
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert len(lines) == 2 and all(KEYS <= set(line) and line['ratio'] > 0 for line in lines)


def test_a_ratio_above_one_is_ours(monkeypatch, capsys):
  monkeypatch.syspath_prepend(str(ROOT))
  from benchmarks import measure
  measure.report('a', 'tokens/s', 30.0, 10.0, 'peer', None)
  measure.report('b', 's', 1.0, 2.0, 'peer', None)
  assert [json.loads(line)['ratio'] for line in capsys.readouterr().out.splitlines()] == [3, 2]
