"""Pseudonyms: one a patient within a folder, nothing to those who do not have the folder."""

from __future__ import annotations

import hashlib
import stat

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eagrl_jax.evaluation import pseudonyms
from eagrl_jax.types import EagrlError

IDS = [f'{i}' for i in range(1, 400)]


def test_a_folder_has_one_secret_for_good(tmp_path):
  one, two = tmp_path / 'one', tmp_path / 'two'
  one.mkdir()
  two.mkdir()
  key = pseudonyms.salt(one)
  assert len(key) == 32 and pseudonyms.salt(one) == key != pseudonyms.salt(two)
  assert [p.name for p in one.iterdir()] == [pseudonyms.FILE]
  assert stat.S_IMODE((one / pseudonyms.FILE).stat().st_mode) == 0o600
  said = pseudonyms.of(IDS, key)
  assert said == pseudonyms.of(IDS, key) and len(set(said)) == len(IDS)
  assert not set(said) & set(pseudonyms.of(IDS, pseudonyms.salt(two)))


def test_a_salt_cut_short_while_it_was_made_is_made_anew(tmp_path):
  (tmp_path / pseudonyms.FILE).with_suffix('.part').write_text('12')
  assert len(pseudonyms.salt(tmp_path)) == 32


@pytest.mark.parametrize('content', ['', 'ab' * 31, 'xy' * 32])
def test_a_damaged_salt_is_not_used(tmp_path, content):
  (tmp_path / pseudonyms.FILE).write_text(content)
  with pytest.raises(EagrlError, match='id_salt.txt is damaged; bring it back'):
    pseudonyms.salt(tmp_path)


def test_enumerating_ids_finds_nobody(tmp_path):
  """By any hash of an id and a small number, the seed among them: all that an outsider can try."""
  said = set(pseudonyms.of(IDS, pseudonyms.salt(tmp_path)))
  for text in (form for i in IDS for seed in range(5) for form in (i, f'{seed}{i}', f'{seed}/{i}',
                                                                   f'predictions/{seed}/{i}')):
    assert hashlib.sha256(text.encode()).hexdigest()[:16] not in said


def test_the_owner_of_the_folder_can_undo_them(tmp_path):
  (tmp_path / 'prepare').mkdir()
  of = lambda ids: np.array(pseudonyms.of(ids, pseudonyms.salt(tmp_path)))
  assert pseudonyms.undone(tmp_path, of(IDS[:3])) is None  # nobody is known
  pq.write_table(pa.table({'subject_id': IDS, 'split': ['train'] * len(IDS)}), tmp_path / 'prepare/splits.parquet')
  assert pseudonyms.undone(tmp_path, of(IDS[::-1])).tolist() == IDS[::-1]
  assert pseudonyms.undone(tmp_path, np.array(IDS)).tolist() == IDS  # `evaluate.plain_ids`
  assert pseudonyms.undone(tmp_path, of([*IDS, 'somebody else'])) is None
  said = of(IDS)
  (tmp_path / pseudonyms.FILE).unlink()
  assert pseudonyms.undone(tmp_path, said) is None
  (tmp_path / 'prepare/splits.parquet').write_text('no table')
  with pytest.raises(EagrlError, match='prepare/splits.parquet cannot be read'):
    pseudonyms.undone(tmp_path, said)
