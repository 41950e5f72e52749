"""From answers as read to the batch of an update."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from eagrl_jax.rl import rewards
from eagrl_jax.rl.clip import ClipConfig
from eagrl_jax.rl.judge import Answers, JudgeConfig, judge
from eagrl_jax.rl.rewards import RewardConfig
from eagrl_jax.types import PromptBatch, Rollout

B, G, S, T, F = 2, 2, 4, 3, 3
CFG = JudgeConfig(RewardConfig(top_k=1), ClipConfig(), advantage='dr_grpo', dynamic_sampling=True)
PROMPT = PromptBatch(np.ones((B, S), int), np.ones((B, S), bool), np.array([[-1, 0, 1, 1]] * 2), np.arange(B))
ROLLOUT = Rollout(np.ones((B, G, T), int), np.ones((B, G, T), bool), np.zeros((B, G, T), np.float32),
                  np.array([[[1, 1, 3], [2, 2, 2]]] * 2, np.float32))
KEY = np.zeros((B, G, T), bool)
KEY[..., 2] = True
ANSWERS = Answers(np.array([[0.9, 0.2], [0.7, 0.7]], np.float32), np.ones((B, G), bool),
                  np.array([[[0, -1], [1, -1]], [[1, -1], [1, -1]]]), KEY, KEY)
LABEL, SALIENCE = np.array([1, 0]), np.array([[0.2, 0.3, 0.5], [0.0, 0.9, 0.1]], np.float32)


def test_rewards_advantages_and_clip_of_a_rollout():
  batch, figures = judge(CFG, PROMPT, ROLLOUT, ANSWERS, LABEL, SALIENCE)
  # Feature 2 is the first patient's most salient but not shown: feature 1 is who should be named.
  agree = np.array([[0, 1], [1, 1]])
  label = jnp.repeat(jnp.asarray(LABEL)[:, None], G, 1)
  score = rewards.classification_score(jnp.asarray(ANSWERS.prob), label, CFG.reward)
  want = 0.6 * np.asarray(score) + 0.4 * agree
  np.testing.assert_allclose(figures['reward'], want.mean(), rtol=1e-6)
  np.testing.assert_allclose(batch.advantage[0], want[0] - want[0].mean(), rtol=1e-5)
  np.testing.assert_array_equal(batch.weight, [1, 0])  # the second group's answers are worth the same
  np.testing.assert_allclose(batch.eps_high[0], [0.4, 0.2], rtol=1e-6)  # entropies of the key tokens: 3 and 2


def test_attention_that_agrees_is_paid_when_asked():
  attention = np.zeros((B, G, F), np.float32)
  attention[:, 0, 1] = attention[:, 1, 0] = 1  # the first answers attend to what the expert finds salient
  plain = judge(CFG, PROMPT, ROLLOUT, ANSWERS, LABEL, SALIENCE)[0]
  paid = judge(dataclasses.replace(CFG, attention_reward=0.5), PROMPT, ROLLOUT, ANSWERS, LABEL, SALIENCE, attention)[0]
  np.testing.assert_allclose(paid.advantage - plain.advantage, [[0.25, -0.25]] * 2, atol=1e-6)
  np.testing.assert_array_equal(paid.weight, [1, 1])


def test_length_costs_near_the_limit():
  valid = ROLLOUT.valid.copy()
  valid[:, 0, 1:] = False
  rollout = dataclasses.replace(ROLLOUT, valid=valid)
  plain = judge(CFG, PROMPT, rollout, ANSWERS, LABEL, SALIENCE)[0]
  cut = judge(dataclasses.replace(CFG, overlong_buffer=2), PROMPT, rollout, ANSWERS, LABEL, SALIENCE)[0]
  np.testing.assert_allclose(cut.advantage - plain.advantage, [[0.5, -0.5]] * 2, atol=1e-6)
