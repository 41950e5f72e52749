"""What a run makes of the checkpoint that it starts from."""


import pytest

from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.tokenizer import Tokenizer, train_tokenizer
from eagrl_jax.stages import policy

LM = LMConfig(vocab_size=300, d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=8)


@pytest.fixture(scope='module')
def tokenizer():
  return train_tokenizer(['a lactate of 3.8'], ['lactate'], 300)


def test_whoever_writes_answers_stops_at_every_end(tokenizer):
  several = Tokenizer(tokenizer._fast, '<|end|>', '<|pad|>', stop_ids=[7])
  asked = policy.sampling(policy.Policy({}, LM, several), 2, 4, 1.0)
  assert asked.stop_ids == (tokenizer.eos_id, 7) and asked.pad_id == tokenizer.pad_id
