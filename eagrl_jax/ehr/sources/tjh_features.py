"""The 73 laboratory features of TJH: display names, units as in the workbook, reference and hard ranges.

Ranges are adult two-sided ranges of Chinese hospital laboratories, both sexes together, checked
against the survivors' medians. Units follow the magnitude of the data: albumin is in g/L,
IL-2R in U/mL. Hard ranges also separate specimens that share a column: pH, red and white cells
of urine, and haemoglobin of a blood-gas analyser in g/dL.
"""

from __future__ import annotations

from eagrl_jax.ehr.features import FeatureSpec, FeatureTable

_L, _N = True, False  # log scale: positive and skewed

# group -> (name, unit, ref_low, ref_high, hard_low, hard_high, decimals, log, other spellings...)
_ROWS: dict[str, tuple[tuple, ...]] = {
    'blood count': (
        ('white blood cell count', '10^9/L', 3.5, 9.5, 0.01, 300, 2, _L, 'WBC', '白细胞计数'),
        ('neutrophil count', '10^9/L', 1.8, 6.3, 0, 200, 2, _L, 'neutrophils count', '中性粒细胞计数', '中性粒细胞(#)'),
        ('lymphocyte count', '10^9/L', 1.1, 3.2, 0, 200, 2, _L, '淋巴细胞计数', '淋巴细胞(#)'),
        ('monocyte count', '10^9/L', 0.1, 0.6, 0, 100, 2, _L, 'monocytes count', '单核细胞计数', '单核细胞(#)'),
        ('eosinophil count', '10^9/L', 0.02, 0.52, 0, 50, 2, _N, '嗜酸性粒细胞计数', '嗜酸细胞(#)'),
        ('basophil count', '10^9/L', 0, 0.06, 0, 20, 2, _N, 'basophil count(#)', '嗜碱性粒细胞计数', '嗜碱细胞(#)'),
        ('neutrophil percentage', '%', 40, 75, 0, 100, 1, _N, 'neutrophils(%)', 'neutrophil(%)', '中性粒细胞(%)'),
        ('lymphocyte percentage', '%', 20, 50, 0, 100, 1, _N, '(%)lymphocyte', 'lymphocyte(%)', '淋巴细胞(%)'),
        ('monocyte percentage', '%', 3, 10, 0, 100, 1, _N, 'monocytes(%)', 'monocyte(%)', '单核细胞(%)'),
        ('eosinophil percentage', '%', 0.4, 8, 0, 100, 1, _N, 'eosinophils(%)', 'eosinophil(%)', '嗜酸细胞(%)'),
        ('basophil percentage', '%', 0, 1, 0, 100, 1, _N, 'basophil(%)', 'basophils(%)', '嗜碱细胞(%)'),
        ('red blood cell count', '10^12/L', 3.8, 5.8, 0.5, 10, 2, _N, 'RBC', '红细胞计数'),
        ('hemoglobin', 'g/L', 115, 175, 30, 250, 0, _N, 'haemoglobin', '血红蛋白'),
        ('hematocrit', '%', 35, 50, 5, 75, 1, _N, 'haematocrit', '红细胞压积'),
        ('mean corpuscular volume', 'fL', 82, 100, 40, 150, 1, _N, 'MCV', '平均红细胞体积'),
        ('mean corpuscular hemoglobin', 'pg', 27, 34, 10, 60, 1, _N, 'MCH', '平均红细胞血红蛋白量'),
        ('mean corpuscular hemoglobin concentration', 'g/L', 316, 354, 200, 450, 0, _N, 'MCHC',
         '平均红细胞血红蛋白浓度'),
        ('red cell distribution width', '%', 11.5, 14.5, 8, 40, 1, _N, 'Red blood cell distribution width', 'RDW',
         'RDW-CV', '红细胞分布宽度', '红细胞分布宽度CV'),
        ('RDW-SD', 'fL', 37, 50, 20, 150, 1, _N, 'RBC distribution width SD', '红细胞分布宽度SD'),
        ('platelet count', '10^9/L', 125, 350, 1, 2000, 0, _N, 'platelets', 'PLT', '血小板计数'),
        ('mean platelet volume', 'fL', 9, 13, 4, 25, 1, _N, 'MPV', '平均血小板体积'),
        ('platelet distribution width', 'fL', 9, 17, 4, 40, 1, _N, 'PLT distribution width', 'PDW', '血小板分布宽度'),
        ('platelet large cell ratio', '%', 19.2, 47, 0, 100, 1, _N, 'P-LCR', '血小板大细胞比率', '大血小板比率'),
        ('plateletcrit', '%', 0.11, 0.31, 0, 3, 2, _N, 'thrombocytocrit', '血小板压积'),
    ),
    'inflammation': (
        ('hs-CRP', 'mg/L', 0, 3, 0, 1000, 1, _L, 'High sensitivity C-reactive protein',
         'Hypersensitive C-reactive protein', 'hypersensitive c reactive protein', 'C-reactive protein', 'CRP',
         '超敏C反应蛋白'),
        ('procalcitonin', 'ng/mL', 0, 0.05, 0, 500, 2, _L, 'PCT', '降钙素原'),
        ('ferritin', 'ug/L', 15, 400, 0, 200000, 1, _L, '铁蛋白'),
        ('ESR', 'mm/h', 0, 20, 0, 200, 0, _L, 'erythrocyte sedimentation rate', '血沉'),
        ('interleukin-6', 'pg/mL', 0, 7, 0, 100000, 2, _L, 'Interleukin 6', 'IL-6', '白介素6'),
        ('interleukin-2 receptor', 'U/mL', 223, 710, 0, 100000, 0, _L, 'Interleukin 2 receptor', 'IL-2R',
         '白介素2受体'),
        ('interleukin-8', 'pg/mL', 0, 62, 0, 100000, 1, _L, 'Interleukin 8', 'IL-8', '白介素8'),
        ('interleukin-10', 'pg/mL', 0, 9.1, 0, 100000, 1, _L, 'Interleukin 10', 'IL-10', '白介素10'),
        ('interleukin-1 beta', 'pg/mL', 0, 5, 0, 100000, 1, _L, 'Interleukin 1β', 'IL-1β', 'IL-1 beta', '白介素1β'),
        ('tumor necrosis factor alpha', 'pg/mL', 0, 8.1, 0, 100000, 1, _L, 'Tumor necrosis factorα', 'TNF-α',
         'TNF alpha', '肿瘤坏死因子α'),
    ),
    'coagulation': (
        ('D-dimer', 'ug/mL', 0, 0.5, 0, 200, 2, _L, 'D-D dimer', 'D dimer', 'D-二聚体', 'D-D二聚体定量'),
        ('fibrin degradation products', 'ug/mL', 0, 5, 0, 2000, 1, _L, 'FDP', '纤维蛋白降解产物'),
        ('fibrinogen', 'g/L', 2, 4, 0, 20, 2, _N, '纤维蛋白原'),
        ('prothrombin time', 's', 11.5, 14.5, 5, 300, 1, _L, 'PT', '凝血酶原时间'),
        ('INR', '', 0.8, 1.2, 0.3, 30, 2, _L, 'International standard ratio', 'international normalized ratio',
         '国际标准化比值', '国际标准比值'),
        ('prothrombin activity', '%', 75, 125, 0, 250, 0, _N, '凝血酶原活动度'),
        ('aPTT', 's', 29, 42, 10, 300, 1, _L, 'Activation of partial thromboplastin time',
         'activated partial thromboplastin time', '活化部分凝血活酶时间'),
        ('thrombin time', 's', 14, 19, 5, 300, 1, _L, '凝血酶时间'),
        ('antithrombin', '%', 80, 120, 0, 250, 0, _N, '抗凝血酶'),
    ),
    'heart and tissue injury': (
        ('cardiac troponin I', 'pg/mL', 0, 34.2, 0, 500000, 1, _L, 'Hypersensitive cardiac troponinI',
         'Hypersensitive cardiac troponin I', 'troponin I', '超敏肌钙蛋白I'),
        ('NT-proBNP', 'pg/mL', 0, 300, 0, 500000, 0, _L,
         'Amino-terminal brain natriuretic peptide precursor(NT-proBNP)',
         'Amino-terminal brain natriuretic peptide precursor'),
        ('lactate dehydrogenase', 'U/L', 120, 250, 10, 50000, 0, _L, 'LDH', '乳酸脱氢酶'),
    ),
    'liver': (
        ('ALT', 'U/L', 5, 41, 0, 50000, 0, _L, 'glutamic-pyruvic transaminase', 'alanine aminotransferase',
         '谷丙转氨酶'),
        ('AST', 'U/L', 5, 40, 0, 50000, 0, _L, 'aspartate aminotransferase', '谷草转氨酶', '天门冬氨酸氨基转移酶'),
        ('gamma-glutamyl transferase', 'U/L', 6, 60, 0, 10000, 0, _L, 'γ-glutamyl transpeptidase',
         'gamma-glutamyl transpeptidase', 'GGT', 'γ-谷氨酰转肽酶'),
        ('alkaline phosphatase', 'U/L', 40, 130, 0, 10000, 0, _L, 'ALP', '碱性磷酸酶'),
        ('total bilirubin', 'umol/L', 3.4, 26, 0, 1200, 1, _L, '总胆红素'),
        ('direct bilirubin', 'umol/L', 0, 8, 0, 1000, 1, _L, '直接胆红素'),
        ('indirect bilirubin', 'umol/L', 1.7, 16.8, 0, 1000, 1, _L, '间接胆红素'),
        ('albumin', 'g/L', 35, 52, 5, 70, 1, _N, '白蛋白'),
        ('globulin', 'g/L', 20, 35, 5, 120, 1, _N, '球蛋白'),
        ('total protein', 'g/L', 64, 83, 20, 150, 1, _N, '总蛋白'),
    ),
    'kidney': (
        ('creatinine', 'umol/L', 45, 104, 5, 3000, 0, _L, '肌酐'),
        ('urea', 'mmol/L', 3.1, 8, 0.1, 100, 1, _L, 'blood urea nitrogen', '尿素'),
        ('eGFR', 'mL/min/1.73m2', 90, 140, 0, 300, 1, _N, 'estimated glomerular filtration rate',
         'eGFR(根据CKD-EPI方程)'),
        ('uric acid', 'umol/L', 142, 416, 10, 2500, 0, _N, '尿酸'),
    ),
    'electrolytes and blood gas': (
        ('sodium', 'mmol/L', 136, 145, 90, 200, 1, _N, 'serum sodium', '血清钠'),
        ('potassium', 'mmol/L', 3.5, 5.1, 1, 12, 2, _N, 'Serum potassium', '血清钾'),
        ('chloride', 'mmol/L', 99, 110, 50, 160, 1, _N, 'Serum chloride', '血清氯'),
        ('calcium', 'mmol/L', 2.15, 2.5, 0.8, 5, 2, _N, '钙', '血清钙'),
        ('corrected calcium', 'mmol/L', 2.15, 2.57, 0.8, 5, 2, _N, '校正钙'),
        ('bicarbonate', 'mmol/L', 22, 29, 2, 60, 1, _N, 'HCO3-'),
        ('blood pH', '', 7.35, 7.45, 6.8, 7.9, 2, _N, 'PH value', 'pH', 'PH值'),
    ),
    'metabolism': (
        ('glucose', 'mmol/L', 3.9, 6.1, 0.3, 80, 2, _L, '葡萄糖'),
        ('total cholesterol', 'mmol/L', 2.9, 5.2, 0.3, 30, 2, _N, '总胆固醇'),
    ),
    'serology': (
        ('hepatitis B surface antigen', 'IU/mL', 0, 0.05, 0, 10000, 2, _L, 'HBsAg', '乙肝表面抗原'),
        ('hepatitis C antibody', 'S/CO', 0, 1, 0, 1000, 2, _L, 'HCV antibody quantification', 'HCV抗体定量'),
        ('HIV antibody', 'S/CO', 0, 1, 0, 1000, 2, _L, 'HIV antibody quantification', 'HIV抗体定量'),
        ('Treponema pallidum antibody', 'S/CO', 0, 1, 0, 1000, 2, _L,
         'Quantification of Treponema pallidum antibodies', '梅毒螺旋体抗体定量'),
    ),
}

FEATURES = FeatureTable(tuple(
    FeatureSpec(name, unit, low, high, hard_low, hard_high, log, decimals, aliases=tuple(aliases), group=group)
    for group, rows in _ROWS.items()
    for name, unit, low, high, hard_low, hard_high, decimals, log, *aliases in rows))
