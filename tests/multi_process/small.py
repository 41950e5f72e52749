"""The micro experiment with fewer programs to compile: what several processes do needs no more of them."""

import importlib.util
import pathlib


def get_config():
  source = pathlib.Path(__file__).parents[1] / 'stages' / 'conftest.py'
  spec = importlib.util.spec_from_file_location('stages_conftest', source)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.micro()
  c.data.update(n=64, test=12)
  c.base.update(short_steps=0, steps=2, checkpoint_every=1)
  c.sft.update(epochs=1)
  c.rl.update(steps=2, max_new=16, checkpoint_every=1, kl=0.0, validate_every=1, keep='auroc')
  c.evaluate.update(samples=2, batch=4, max_new=16)
  return c
