"""Figures as text."""

import math

import pytest

from eagrl_jax.evaluation import formats


@pytest.mark.parametrize(('value', 'plain', 'signed'), [
    (0.1234, '0.123', '+0.123'), (-0.1236, '−0.124', '−0.124'), (-0.0002, '0.000', '0.000'), (0.0002, '0.000', '0.000'),
    (0, '0.000', '0.000'), (None, '–', '–'), (math.nan, '–', '–'), (True, '–', '–')])
def test_numbers_have_one_minus_no_negative_zero_and_a_dash_for_nothing(value, plain, signed):
  assert (formats.number(value), formats.signed(value)) == (plain, signed)


def test_intervals_of_values_and_of_differences():
  gap = formats.interval({'diff': 0.02, 'ci95': [-0.01, 0.05]})
  assert formats.range_text(gap) == '+0.020 (−0.010 to 0.050)'
  area = formats.interval({'point': 0.8, 'mean': 0.7, 'ci95': [0.6, 0.9]})
  assert formats.interval_text(area) == '0.800 (0.600–0.900)'
  assert formats.interval_text(formats.interval(0.5)) == '0.500' and formats.range_text(None) == '–'


def test_aligned_columns_have_one_width():
  lines = formats.aligned([('arm', 'x'), ('a long name', '1.0')]).split('\n')
  assert len({len(line) for line in lines}) == 1 and lines[2].endswith('1.0')
