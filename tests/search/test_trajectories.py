"""Reading paths from a tree written by hand, and every reason for dropping one."""

import datasets
import numpy as np
import pytest

from eagrl_jax.search import tree as tree_lib
from eagrl_jax.search.steps import SearchResult
from eagrl_jax.search.trajectories import SelectionConfig, Trajectory, read, select
from eagrl_jax.types import EagrlError


def hand_written(tok):
  """root -> 1 (inner) -> 3 (end), 4 (end, never visited); root -> 2 (inner). Slot 5 is stale."""
  texts = ['', '<Subquestion 1> a? </Subquestion 1>\n<Answer 1> b </Answer 1>\n', 'unused', ' first', ' second',
           'stale']
  rows = [tok.encode(t) + [tok.eos_id] * (i > 2) for i, t in enumerate(texts)]
  tokens = np.zeros((1, 6, 60), np.int32)
  for i, row in enumerate(rows):
    tokens[0, i, :len(row)] = row
  tree = tree_lib.batched(1, 6, 2).replace(
      parent=np.array([[-1, 0, 0, 1, 1, 0]]), terminal=np.array([[0, 0, 0, 1, 1, 1]], bool),
      reward=np.array([[0, .5, .1, .9, -.3, 9]]), visits=np.array([[3, 3, 0, 3, 0, 0]]), count=np.array([5]))
  return SearchResult(
      tree=tree, tokens=tokens, length=np.array([[len(r) for r in rows]]), mentioned=np.zeros((1, 6, 4), bool),
      named=np.array([[[-1, -1]] * 3 + [[2, 0], [1, -1], [3, -1]]]), prob=np.array([[-1, -1, -1, .75, .2, .9]]),
      useful=np.zeros((1, 6)), confidence=np.zeros((1, 6))), texts


def test_read(toy):
  tok = toy.tokenizer('tiny')
  result, texts = hand_written(tok)
  first, second = read(result, [17], [1], [[True, False, True, True]], tok)
  assert first == Trajectory(
      row=17, label=1, node=3, steps=2, text=texts[1] + texts[3],
      tokens=(*tok.encode(texts[1]), *tok.encode(texts[3]), tok.eos_id), reward=first.reward, value=first.value,
      visits=3, prob=.75, features=(2, 0), jaccard=2 / 3)
  np.testing.assert_allclose([first.reward, first.value, second.reward, second.value], [.9, .7, -.3, .1], atol=1e-6)
  assert (second.node, second.visits, second.features, second.jaccard, second.prob) == (4, 0, (1,), 0., .2)


def make(row, label, reward, jaccard=.5, value=0., text='x'):
  return Trajectory(row=row, label=label, node=1, steps=2, text=text, tokens=tuple(text.encode()), reward=reward,
                    value=value, visits=1, prob=.5, features=(1, 0), jaccard=jaccard)


def test_every_reason_is_counted():
  pool = [
      make(0, 0, .9, text='a'), make(0, 0, .9, text='a'), make(0, 0, .8, text='b'), make(0, 0, .7, text='c'),
      make(1, 0, -.9, text='a'), make(1, 0, .5, jaccard=.1, text='b'),
      make(2, 0, .3, text='a'), make(3, 1, .2, value=.1, text='a'), make(3, 1, .2, value=.4, text='b'),
  ]
  out = select(pool, SelectionConfig(top_k=2, min_reward=0., min_jaccard=.2, balance=False))
  assert [(t.row, t.text) for t in out.kept] == [(0, 'a'), (0, 'b'), (2, 'a'), (3, 'b'), (3, 'a')]
  assert out.dropped == {'duplicate': 1, 'low_reward': 1, 'low_jaccard': 1, 'beyond_top_k': 1, 'class_balance': 0}
  assert out.n_patients == 3
  # Balanced, one of three from label 0 goes: the second choice of patient 0, though it is rewarded more than (2, 'a').
  out = select(pool, SelectionConfig(top_k=2, min_reward=0., min_jaccard=.2))
  assert [(t.row, t.text) for t in out.kept] == [(0, 'a'), (2, 'a'), (3, 'b'), (3, 'a')]
  assert out.dropped['class_balance'] == 1
  assert len(out.kept) + sum(out.dropped.values()) == len(pool)


def test_columns_make_a_dataset():
  out = select([make(0, 0, .9), make(1, 1, .8)], SelectionConfig())
  table = datasets.Dataset.from_dict(out.columns(('lactate', 'pH')))
  assert table.num_rows == 2 and table[0]['features'] == ['pH', 'lactate'] and table[1]['tokens'] == [120]
  assert {'row', 'label', 'text', 'reward', 'value', 'prob', 'jaccard'} <= set(table.column_names)


def test_one_class_only_keeps_nothing_when_balanced():
  out = select([make(0, 1, .9), make(1, 1, .8)], SelectionConfig())
  assert out.kept == () and out.dropped['class_balance'] == 2 and out.n_patients == 0


@pytest.mark.parametrize('bad', [{'top_k': 0}, {'min_jaccard': 1.5}])
def test_bad_config_names_the_field(bad):
  with pytest.raises(EagrlError, match=f'search.{next(iter(bad))}'):
    SelectionConfig(**bad)
