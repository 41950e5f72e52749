"""Binary files and configs: workbooks, checkpoints, splits, the experiment itself."""

from __future__ import annotations

import functools
import io
import json
import pathlib
import struct
import tempfile

import hypothesis
import jax
import numpy as np
import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from material import damaged, only_our_error

from eagrl_jax.ehr import splits
from eagrl_jax.ehr.sources import tjh
from eagrl_jax.lm import checkpoint_config, hf_io, model
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.tokenizer import train_tokenizer
from eagrl_jax.stages import checks
from eagrl_jax.types import EagrlError

LM = LMConfig(vocab_size=300, d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=8)


@functools.cache
def workbook() -> bytes:
  book = openpyxl.Workbook()
  book.active.append(['PATIENT_ID', 'RE_DATE', 'age', 'gender', 'Admission time', 'Discharge time', 'outcome', 'ESR'])
  for i in range(3):
    day = f'2020-02-0{i + 1} 10:00:00'
    book.active.append([i + 1, day, 60, 1, '2020-02-01 00:00:00', '2020-02-09 00:00:00', i % 2, 10 + i])
  out = io.BytesIO()
  book.save(out)
  return out.getvalue()


@given(st.data())
def test_a_damaged_workbook(data):
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'a.xlsx')
    path.write_bytes(damaged(data, workbook()))
    only_our_error(lambda: tjh.load(path))


@functools.cache
def checkpoint() -> dict[str, bytes]:
  params = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), model.declare(LM))
  with tempfile.TemporaryDirectory() as folder:
    hf_io.save_hf(folder, params, LM, train_tokenizer(['a lactate'], ['lactate'], 300))
    return {p.name: p.read_bytes() for p in pathlib.Path(folder).iterdir()}


@given(st.data())
def test_a_damaged_safetensors_file(data):
  files = checkpoint()
  whole = files[hf_io.WEIGHTS]
  header = 8 + struct.unpack('<Q', whole[:8])[0]
  with tempfile.TemporaryDirectory() as folder:
    for name, content in files.items():
      pathlib.Path(folder, name).write_bytes(content)
    pathlib.Path(folder, hf_io.WEIGHTS).write_bytes(damaged(data, whole, header))
    only_our_error(lambda: hf_io.load_hf(folder))


def test_a_header_that_claims_everything():
  for claim in (2**60, 2**63 - 1, 2**64 - 1):
    with tempfile.TemporaryDirectory() as folder:
      for name, content in checkpoint().items():
        pathlib.Path(folder, name).write_bytes(content)
      pathlib.Path(folder, hf_io.WEIGHTS).write_bytes(struct.pack('<Q', claim) + b'{}' * 500)
      with pytest.raises(EagrlError, match='safetensors'):
        hf_io.load_hf(folder)


JSON = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
                    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=4), inner,
                                                                                         max_size=2)), max_leaves=4)


@given(st.data())
def test_a_config_json_of_anything(data):
  good = json.loads(checkpoint()['config.json'])
  for key in data.draw(st.lists(st.sampled_from(sorted(good)), max_size=3)):
    good[key] = data.draw(JSON)
  only_our_error(lambda: checkpoint_config.from_hf(good))


@given(st.data())
def test_a_damaged_splits_file(data):
  ids = np.array([f'p{i}' for i in range(12)])
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'splits.parquet')
    splits.save(path, splits.Splits(np.arange(4), np.arange(4, 8), np.arange(8, 12)), ids)
    path.write_bytes(damaged(data, path.read_bytes()))
    only_our_error(lambda: splits.load(path, ids))


NUMBERS = {int: st.sampled_from([0, -1, 1, 2, 3, 7, 10**9, -10**9]),
           float: st.sampled_from([0.0, -1.0, 0.5, 1.0, 1e30, -1e30, float('inf'), float('nan'), 1e-30]),
           bool: st.booleans(), str: st.sampled_from(['', 'x', '../..', '\x00', 'tiny', 'tjh', 'synthetic'])}


@given(st.data())
def test_an_experiment_of_anything(data):
  import sys
  sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
  from configs import defaults
  config = defaults.get_config()
  fields = [(s, f) for s in config if hasattr(config[s], 'to_dict') for f, v in config[s].items() if type(v) in NUMBERS]
  hypothesis.assume(fields)
  for section, field in data.draw(st.lists(st.sampled_from(fields), min_size=1, max_size=3)):
    config[section][field] = data.draw(NUMBERS[type(config[section][field])])
  only_our_error(lambda: checks.check(config))
