"""The parameters of the PhysioNet/CinC Challenge 2012: 37 time series, height and ICU type.

Units as in the files. The challenge's page gives magnesium in mmol/L, but its values (median 2.0)
are mg/dL. Zeros of pressures, heart and respiratory rate are disconnected sensors.
"""

from __future__ import annotations

from eagrl_jax.ehr.features import FeatureSpec, FeatureTable

_L, _N = True, False  # log scale: positive and skewed

# group -> (name, unit, ref_low, ref_high, hard_low, hard_high, decimals, log, parameter, other spellings...)
_ROWS: dict[str, tuple[tuple, ...]] = {
    'circulation': (
        ('heart rate', '/min', 60, 100, 10, 300, 0, _N, 'HR', 'pulse'),
        ('systolic arterial pressure', 'mmHg', 90, 140, 20, 300, 0, _N, 'SysABP'),
        ('diastolic arterial pressure', 'mmHg', 60, 90, 5, 200, 0, _N, 'DiasABP'),
        ('mean arterial pressure', 'mmHg', 70, 105, 10, 250, 0, _N, 'MAP'),
        ('non-invasive systolic pressure', 'mmHg', 90, 140, 20, 300, 0, _N, 'NISysABP'),
        ('non-invasive diastolic pressure', 'mmHg', 60, 90, 5, 200, 0, _N, 'NIDiasABP'),
        ('non-invasive mean pressure', 'mmHg', 70, 105, 10, 250, 0, _N, 'NIMAP'),
        ('troponin I', 'ug/L', 0, 0.4, 0, 500, 2, _L, 'TroponinI'),
        ('troponin T', 'ug/L', 0, 0.1, 0, 100, 2, _L, 'TroponinT'),
    ),
    'respiration': (
        ('respiratory rate', '/min', 12, 20, 1, 80, 0, _N, 'RespRate'),
        ('oxygen saturation', '%', 94, 100, 20, 100, 0, _N, 'SaO2'),
        ('FiO2', 'fraction', 0.2, 0.22, 0.2, 1, 2, _N, 'fraction of inspired oxygen'),
        ('PaO2', 'mmHg', 75, 100, 15, 700, 0, _L, 'partial pressure of oxygen'),
        ('PaCO2', 'mmHg', 35, 45, 5, 200, 0, _N, 'partial pressure of carbon dioxide'),
        ('arterial pH', '', 7.35, 7.45, 6.5, 8, 2, _N, 'pH'),
        ('mechanical ventilation', '', None, None, 0, 1, 0, _N, 'MechVent'),
    ),
    'brain and temperature': (
        ('Glasgow coma score', '', 15, 15, 3, 15, 0, _N, 'GCS'),
        ('temperature', 'degC', 36.1, 37.8, 25, 45, 1, _N, 'Temp'),
    ),
    'kidney and metabolism': (
        ('urine output', 'mL', 30, 500, 0, 5000, 0, _L, 'Urine'),
        ('creatinine', 'mg/dL', 0.6, 1.3, 0, 40, 1, _L, 'Creatinine'),
        ('blood urea nitrogen', 'mg/dL', 7, 20, 0.5, 300, 0, _L, 'BUN', 'urea nitrogen'),
        ('glucose', 'mg/dL', 70, 140, 5, 2000, 0, _L, 'Glucose'),
        ('lactate', 'mmol/L', 0.5, 2, 0, 50, 1, _L, 'Lactate'),
        ('bicarbonate', 'mmol/L', 22, 29, 2, 60, 0, _N, 'HCO3'),
        ('sodium', 'mmol/L', 136, 145, 90, 200, 0, _N, 'Na'),
        ('potassium', 'mmol/L', 3.5, 5.1, 1, 12, 1, _N, 'K'),
        ('magnesium', 'mg/dL', 1.7, 2.4, 0.3, 15, 1, _N, 'Mg'),
    ),
    'liver': (
        ('bilirubin', 'mg/dL', 0.2, 1.2, 0, 80, 1, _L, 'Bilirubin', 'total bilirubin'),
        ('ALT', 'IU/L', 5, 40, 0, 30000, 0, _L, 'alanine aminotransferase'),
        ('AST', 'IU/L', 5, 40, 0, 30000, 0, _L, 'aspartate aminotransferase'),
        ('alkaline phosphatase', 'IU/L', 40, 130, 0, 10000, 0, _L, 'ALP'),
        ('albumin', 'g/dL', 3.5, 5, 0.5, 7, 1, _N, 'Albumin'),
        ('cholesterol', 'mg/dL', 110, 200, 10, 1200, 0, _N, 'Cholesterol', 'total cholesterol'),
    ),
    'blood count': (
        ('hematocrit', '%', 36, 50, 5, 75, 1, _N, 'HCT'),
        ('platelet count', '10^9/L', 150, 400, 1, 2500, 0, _L, 'Platelets'),
        ('white blood cell count', '10^9/L', 4, 11, 0.05, 500, 1, _L, 'WBC'),
    ),
    'admission': (
        ('ICU type', '', None, None, 1, 4, 0, _N, 'ICUType'),
        ('height', 'cm', None, None, 100, 230, 0, _N, 'Height'),
        ('weight', 'kg', None, None, 20, 350, 1, _N, 'Weight'),
    ),
}
_LEVELS = {
    'mechanical ventilation': ((0.0, 'no'), (1.0, 'yes')),
    'ICU type': ((1.0, 'coronary care'), (2.0, 'cardiac surgery recovery'), (3.0, 'medical'), (4.0, 'surgical')),
}
_MINUS_ONE_IS_MISSING = ('height', 'weight')

FEATURES = FeatureTable(tuple(
    FeatureSpec(name, unit, low, high, hard_low, hard_high, log, decimals, aliases=tuple(aliases), group=group,
                kind='ordinal' if name in _LEVELS else 'numeric', levels=_LEVELS.get(name, ()),
                sentinels=(-1.0,) if name in _MINUS_ONE_IS_MISSING else ())
    for group, rows in _ROWS.items()
    for name, unit, low, high, hard_low, hard_high, decimals, log, *aliases in rows))
