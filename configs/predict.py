"""A finished run's policy on new patients, without outcomes: `<workdir>/predictions/<name>/`.

    python -m eagrl_jax.main --config=configs/predict.py --workdir=runs/first --config.predict.path=new.csv

New patients of every kind are read without outcomes: a TJH workbook, PhysioNet 2012 set, MIMIC-IV or YAIB folder
without them, or with the cells empty. All else is the run's own: only what stands here can be changed.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(variant: str = ''):
  del variant
  return ConfigDict(dict(
      target='predict',
      predict=ConfigDict(dict(
          path='',  # file or folder of the new patients
          source='',  # as data.source; '' = that of the run, csv where that is synthetic
          # csv, wide_csv: a CSV of patient, age, sex, '' = not known; meds: subject_id and prediction_time, of a label
          # set, boolean_value may be empty or absent; the others need none
          statics='',
          features='',  # meds: feature specs whose names and aliases are the data's codes; '' = the run's data.features
          policy='rl',  # base | sft | rl
          name='',  # of the output's folder; '' = that of the file
          # how a CSV is written; '' = as the run's
          encoding='', delimiter='', sex_codes='', time_unit='',
          columns=ConfigDict(dict(patient='', time='', feature='', value='', unit='', outcome_patient='', age='',
                                  sex='')))),
      evaluate=ConfigDict(dict(plain_ids=placeholder(bool))),  # True: ids as the source gives them; unset: as the run
      mesh=ConfigDict(dict(data=-1, fsdp=1, tensor=1))))
