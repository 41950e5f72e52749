"""The 48 dynamic variables of YAIB's cohorts, and height and weight: ricu's concepts in ricu's units.

Hard ranges keep what can be real; zeros of pressures, heart and respiratory rate are disconnected sensors. The table
name of a variable is its first alias.
"""

from __future__ import annotations

from eagrl_jax.ehr.features import FeatureSpec, FeatureTable

_L, _N = True, False  # log scale: positive and skewed

# group -> (name, unit, ref_low, ref_high, hard_low, hard_high, decimals, log, column, other spellings...)
_ROWS: dict[str, tuple[tuple, ...]] = {
    'circulation': (
        ('heart rate', '/min', 60, 100, 10, 300, 0, _N, 'hr', 'pulse'),
        ('systolic blood pressure', 'mmHg', 90, 140, 20, 300, 0, _N, 'sbp'),
        ('diastolic blood pressure', 'mmHg', 60, 90, 5, 200, 0, _N, 'dbp'),
        ('mean arterial pressure', 'mmHg', 70, 105, 10, 250, 0, _N, 'map', 'mean blood pressure'),
        ('lactate', 'mmol/L', 0.5, 2, 0, 50, 1, _L, 'lact'),
        ('troponin T', 'ng/mL', 0, 0.014, 0, 100, 3, _L, 'tnt'),
        ('creatine kinase', 'IU/L', 30, 200, 0, 500000, 0, _L, 'ck'),
        ('creatine kinase MB', 'ng/mL', 0, 5, 0, 5000, 1, _L, 'ckmb'),
    ),
    'respiration': (
        ('respiratory rate', '/min', 12, 20, 1, 80, 0, _N, 'resp'),
        ('oxygen saturation', '%', 94, 100, 20, 100, 0, _N, 'o2sat', 'SpO2'),
        ('FiO2', '%', 21, 21, 21, 100, 0, _N, 'fio2', 'fraction of inspired oxygen'),
        ('PaO2', 'mmHg', 75, 100, 15, 700, 0, _L, 'po2', 'partial pressure of oxygen'),
        ('PaCO2', 'mmHg', 35, 45, 5, 200, 0, _N, 'pco2', 'partial pressure of carbon dioxide'),
        ('blood pH', '', 7.35, 7.45, 6.5, 8, 2, _N, 'ph'),
        ('base excess', 'mmol/L', -2, 2, -50, 50, 1, _N, 'be'),
        ('bicarbonate', 'mmol/L', 22, 29, 2, 60, 0, _N, 'bicar'),
        ('methemoglobin', '%', 0, 1.5, 0, 100, 1, _L, 'methb'),
    ),
    'brain and temperature': (
        ('temperature', 'degC', 36.1, 37.8, 25, 45, 1, _N, 'temp'),
    ),
    'kidney and metabolism': (
        ('urine output', 'mL', 30, 500, 0, 5000, 0, _L, 'urine'),
        ('creatinine', 'mg/dL', 0.6, 1.3, 0, 40, 1, _L, 'crea'),
        ('blood urea nitrogen', 'mg/dL', 7, 20, 0.5, 300, 0, _L, 'bun', 'urea nitrogen'),
        ('glucose', 'mg/dL', 70, 140, 5, 2000, 0, _L, 'glu'),
        ('sodium', 'mmol/L', 136, 145, 90, 200, 0, _N, 'na'),
        ('potassium', 'mmol/L', 3.5, 5.1, 1, 12, 1, _N, 'k'),
        ('chloride', 'mmol/L', 98, 107, 50, 160, 0, _N, 'cl'),
        ('calcium', 'mg/dL', 8.6, 10.2, 2, 20, 1, _N, 'ca'),
        ('ionized calcium', 'mmol/L', 1.1, 1.3, 0.2, 4, 2, _N, 'cai'),
        ('magnesium', 'mg/dL', 1.7, 2.4, 0.3, 15, 1, _N, 'mg'),
        ('phosphate', 'mg/dL', 2.5, 4.5, 0.1, 40, 1, _N, 'phos'),
    ),
    'liver': (
        ('bilirubin', 'mg/dL', 0.2, 1.2, 0, 80, 1, _L, 'bili', 'total bilirubin'),
        ('direct bilirubin', 'mg/dL', 0, 0.3, 0, 80, 1, _L, 'bili_dir'),
        ('ALT', 'IU/L', 5, 40, 0, 30000, 0, _L, 'alt', 'alanine aminotransferase'),
        ('AST', 'IU/L', 5, 40, 0, 30000, 0, _L, 'ast', 'aspartate aminotransferase'),
        ('alkaline phosphatase', 'IU/L', 40, 130, 0, 10000, 0, _L, 'alp'),
        ('albumin', 'g/dL', 3.5, 5, 0.5, 7, 1, _N, 'alb'),
    ),
    'blood count and coagulation': (
        ('hemoglobin', 'g/dL', 12, 17.5, 2, 25, 1, _N, 'hgb', 'haemoglobin'),
        ('platelet count', '10^9/L', 150, 400, 1, 2500, 0, _L, 'plt'),
        ('white blood cell count', '10^9/L', 4, 11, 0.05, 500, 1, _L, 'wbc'),
        ('neutrophil percentage', '%', 40, 75, 0, 100, 0, _N, 'neut'),
        ('lymphocyte percentage', '%', 20, 45, 0, 100, 0, _N, 'lymph'),
        ('band percentage', '%', 0, 5, 0, 100, 0, _N, 'bnd', 'band form neutrophils'),
        ('mean corpuscular volume', 'fL', 80, 100, 40, 150, 0, _N, 'mcv'),
        ('mean corpuscular hemoglobin', 'pg', 27, 34, 10, 60, 1, _N, 'mch'),
        ('mean corpuscular hemoglobin concentration', '%', 32, 36, 15, 50, 1, _N, 'mchc'),
        ('INR', '', 0.8, 1.2, 0.3, 30, 1, _L, 'inr_pt'),
        ('partial thromboplastin time', 's', 25, 36, 5, 300, 0, _L, 'ptt'),
        ('fibrinogen', 'mg/dL', 200, 400, 5, 2000, 0, _L, 'fgn'),
        ('C-reactive protein', 'mg/L', 0, 5, 0, 1000, 0, _L, 'crp'),
    ),
    'admission': (
        ('height', 'cm', None, None, 100, 230, 0, _N, 'height'),
        ('weight', 'kg', None, None, 20, 350, 1, _N, 'weight'),
    ),
}

FEATURES = FeatureTable(tuple(
    FeatureSpec(name, unit, low, high, hard_low, hard_high, log, decimals, group=group,
                aliases=tuple(a for a in aliases if a != name))
    for group, rows in _ROWS.items()
    for name, unit, low, high, hard_low, hard_high, decimals, log, *aliases in rows))
