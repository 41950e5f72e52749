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


def cohort(women, men, unknown):
  """label, prob, age, sex of so many patients (all, with the outcome); all ages are known and of one band."""
  counts = (women, men, unknown)
  label = np.concatenate([np.repeat([1, 0], (y, n - y)) for n, y in counts])
  sex = np.repeat([0, 1, -1], [n for n, _ in counts])
  return label, np.random.default_rng(0).random(len(label)), np.full(len(label), 70.0), sex


def shown(*groups, unknown=(0, 0)):
  label, prob, age, sex = cohort(*groups, unknown)
  return {r.name for r in subgroups.table(label, prob, age, sex, resamples=5) if r.n is not None}


def test_a_small_group_does_not_follow_from_the_others_and_the_total():
  """Of 200 patients with 82 positives, 188 men with 78 would leave 12 women with 4."""
  assert shown((12, 4), (188, 78)) == {'age 65 to 79'}
  assert shown((100, 4), (100, 78)) == {'age 65 to 79'}  # few with the outcome is as few as few
  assert shown((30, 12), (170, 70)) == {'women', 'men', 'age 65 to 79'}
  # Those of unknown sex are no row, and what the rows leave of the total.
  assert shown((60, 20), (130, 50), unknown=(10, 3)) == {'men', 'age 65 to 79'}
  assert shown((60, 20), (100, 40), unknown=(40, 15)) == {'women', 'men', 'age 65 to 79'}
  assert shown((12, 4), (148, 63), unknown=(40, 15)) == {'men', 'age 65 to 79'}  # they hide the women well enough


def test_what_is_hidden_is_never_few_together():
  """Whatever the groups: of each kind, the patients that are not shown are none or at least ten of each outcome."""
  r = np.random.default_rng(1)
  names = list(subgroups.masks(np.zeros(1), np.zeros(1)))
  hid = 0
  for _ in range(500):
    n = r.integers(0, 60, len(names))
    counts = {name: (int(k), int(r.integers(0, k + 1))) for name, k in zip(names, n)}
    for kind in (names[:2], names[2:]):
      unknown = int(r.integers(0, 30)), 0
      everyone = tuple(sum(counts[name][i] for name in kind) + unknown[i] for i in (0, 1))
      hidden = subgroups.withheld({name: counts[name] for name in kind}, everyone)
      assert all(name in hidden for name in kind if subgroups._small(counts[name]))
      left = [everyone[i] - sum(counts[name][i] for name in kind if name not in hidden) for i in (0, 1)]
      assert left[0] == 0 or hidden == set(kind) or min(left[1], left[0] - left[1]) >= subgroups.SMALLEST
      again = {name: None if name in hidden else counts[name] for name in kind}
      assert subgroups.withheld(again, everyone) == hidden  # what was published needs no more hiding
      hid += len(hidden) > sum(subgroups._small(counts[name]) for name in kind)
  assert hid > 20
