import numpy as np

from eagrl_jax.evaluation import metrics, subgroups


def patients(n=300):
  r = np.random.default_rng(0)
  label = (r.random(n) < 0.4).astype(int)
  age, sex = r.uniform(20, 79, n), r.integers(-1, 2, n)
  age[:5] = np.nan
  return label, np.clip(0.3 * label + r.random(n) * 0.7, 0, 1), age, sex


def test_each_row_is_its_own_patients():
  label, prob, age, sex = patients()
  rows = {r.name: r for r in subgroups.table(label, prob, age, sex, resamples=50)}
  women = sex == 0
  assert rows['women'].n == women.sum() and rows['women'].positives == label[women].sum()
  assert rows['women'].auroc == metrics.auroc(label[women], prob[women])
  assert rows['women'].ci95[0] < rows['women'].auroc < rows['women'].ci95[1]
  band = (age >= 50) & (age < 65)
  assert rows['age 50 to 64'].n == band.sum()
  bands = [m for name, m in subgroups.masks(age, sex).items() if name.startswith('age')]
  assert (np.sum(bands, 0) == np.isfinite(age)).all()  # each known age in one band


def test_small_groups_say_nothing_at_all():
  rows = {r.name: r for r in subgroups.table(*patients(), resamples=20)}
  assert rows['age 80 and over'] == subgroups.Subgroup('age 80 and over', None, None, None, None)
