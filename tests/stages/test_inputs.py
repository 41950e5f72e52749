"""A user's own files through the csv variant: what a run makes of good ones, and what it says of bad ones."""

import csv
import json
import os
import pathlib
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import predict, study, transfer
from eagrl_jax.ehr import splits, store
from eagrl_jax.stages import checks, fields, finished, graph, pipeline, settings
from eagrl_jax.stages import predict as predict_stage
from eagrl_jax.stages import study as study_stage
from eagrl_jax.stages import transfer as transfer_stage
from eagrl_jax.types import EagrlError

PATIENTS = [f'p{i}' for i in range(40)]


def write(path, header, rows):
  with path.open('w', newline='') as f:
    csv.writer(f).writerows([header, *rows])
  return str(path)


def outcomes(labels):
  return [(p, int(y), 50 + i, 'F' if i % 2 else 'M') for i, (p, y) in enumerate(zip(PATIENTS, labels))]


@pytest.fixture
def config(tmp_path, micro_config):
  rng = np.random.default_rng(0)
  c = micro_config('csv', target='prepare')
  events = [(p, hour, name, round(float(rng.normal(5, 1)), 2)) for p in PATIENTS for hour in (0, 6, 30)
            for name in ('heart rate', 'lactate')]
  c.data.path = write(tmp_path / 'events.csv', ('patient', 'time', 'feature', 'value'), events)
  header = ('patient', 'label', 'age', 'sex')
  c.data.outcomes = write(tmp_path / 'outcomes.csv', header, outcomes(np.arange(40) % 2))
  c.data.test = 0.2
  return c


def test_a_long_csv_becomes_a_cohort(config, tmp_path):
  pipeline.run(config, tmp_path / 'w')
  cohort = store.load(tmp_path / 'w' / 'prepare')
  assert len(cohort) == 40 and cohort.features.names == ('heart rate', 'lactate') and len(cohort.value) == 240
  parts = splits.load(tmp_path / 'w' / 'prepare' / 'splits.parquet', cohort.subject_id)
  assert (len(parts.train), len(parts.valid), len(parts.test)) == (28, 4, 8)


def test_a_copy_of_the_data_is_the_same_data(config, tmp_path, monkeypatch):
  """Another time of a file, as after a copy or a new mount, makes nothing again; other content does."""
  hashes = lambda: graph.stage_hashes(config)['prepare']
  path = pathlib.Path(config.data.path)
  before = hashes()
  os.utime(path, (1, 1))
  assert hashes() == before
  text = path.read_text()
  path.write_text(text.replace('lactate', 'lactose', 1))
  os.utime(path, (1, 1))
  graph._content.cache_clear()
  assert hashes() != before
  path.write_text(text)
  monkeypatch.setattr(graph, 'HASHED', 10)  # a large file: its time decides
  graph._content.cache_clear()
  large = hashes()
  os.utime(path, (2, 2))
  assert hashes() != large


def test_a_folder_behind_a_link_is_part_of_the_data(config, tmp_path):
  """A link into the folder itself is none."""
  folder, elsewhere = tmp_path / 'data', tmp_path / 'elsewhere'
  (elsewhere / 'hosp').mkdir(parents=True)
  folder.mkdir()
  (elsewhere / 'hosp' / 'events.csv').write_text('1')
  (folder / 'hosp').symlink_to(elsewhere / 'hosp')
  (elsewhere / 'hosp' / 'round').symlink_to(folder)
  config.data.path = str(folder)
  before, found = graph.stage_hashes(config)['prepare'], finished.fingerprint(folder)
  (elsewhere / 'hosp' / 'events.csv').write_text('2')
  graph._content.cache_clear()
  assert graph.stage_hashes(config)['prepare'] != before and finished.fingerprint(folder) != found
  assert graph.files_below(folder) == [folder / 'hosp' / 'events.csv']


@pytest.mark.parametrize('path', ['set-a', 'set-a.tar.xz', 'sets'])
def test_outcomes_that_are_found_beside_the_path_are_hashed(path, tmp_path, published_config):
  """Those inside it are already."""
  c = published_config('physionet2012')
  c.data.update(path=str(tmp_path / path), outcomes='')
  outcomes = tmp_path / 'Outcomes-a.txt'
  if path == 'sets':
    (tmp_path / path / 'set-a').mkdir(parents=True)
    outcomes = tmp_path / path / 'Outcomes-a.txt'
  elif path == 'set-a':
    (tmp_path / path).mkdir()
  else:
    (tmp_path / path).touch()
  assert graph.source_files('prepare', c) == [c.data.path, str(outcomes) if path != 'sets' else '', '', '']
  hashes = []
  for content in ('one', 'two'):
    outcomes.write_text(content)
    graph._content.cache_clear()
    hashes.append(graph.stage_hashes(c)['prepare'])
  assert hashes[0] != hashes[1]


def test_a_run_inside_its_own_data_is_refused(config, tmp_path):
  data, inside = tmp_path / 'data', tmp_path / 'data' / 'runs' / 'w'
  data.mkdir()
  said = r'^--workdir=.*/data/runs/w lies inside {}=.*/data, and what the run writes there .*: choose a folder outside$'
  c = transfer.get_config()
  c.data.update(source='mimic4', path=str(data))
  with pytest.raises(EagrlError, match=said.format(r'data\.path')):
    transfer_stage.run(c, inside)
  c = predict.get_config()
  c.predict.path = str(data)
  with pytest.raises(EagrlError, match=said.format(r'predict\.path')):
    predict_stage.run(c, inside)
  pathlib.Path(config.data.path).rename(data / 'events.csv')
  config.data.path = str(data)
  for work in (pipeline.run, pipeline.describe):
    with pytest.raises(EagrlError, match=said.format(r'data\.path')):
      work(config, inside)
  assert not inside.parent.exists()
  fields.outside(tmp_path / 'database', config, 'data.path')  # beside it


def test_labels_of_anything_from_parquet(config, tmp_path):
  """Files of MEDS's columns: what they say is asked in the user's words, up to the grammar of the search."""
  rng = np.random.default_rng(1)
  ids, hours = np.repeat(np.arange(40), 4), np.tile([0.0, 6.0, 30.0, 90.0], 40)
  pq.write_table(pa.table({
      'subject_id': ids, 'time': (hours * 3.6e9).astype('datetime64[us]'), 'code': ['lactate'] * 160,
      'numeric_value': rng.normal(5, 1, 160)}), tmp_path / 'events.parquet')
  pq.write_table(pa.table({'subject_id': np.arange(40), 'boolean_value': np.arange(40) % 2 == 1,
                           'prediction_time': np.full(40, np.datetime64('1970-01-02', 'us'))}),
                 tmp_path / 'labels.parquet')
  config.data.update(
      path=str(tmp_path / 'events.parquet'), outcomes=str(tmp_path / 'labels.parquet'), window_hours=24.0,
      task='dialysis', question='will the patient need dialysis?', quantity='the probability of dialysis')
  config.data.columns.update(patient='subject_id', feature='code', value='numeric_value', outcome_patient='subject_id',
                             label='boolean_value')
  checks.check(config)
  pipeline.run(config, tmp_path / 'w')
  cohort = store.load(tmp_path / 'w' / 'prepare')
  assert len(cohort) == 40 and cohort.task == 'dialysis' and cohort.label.sum() == 20
  assert {int(i) % 2 for i in cohort.subject_id[cohort.label == 1]} == {1}
  assert len(cohort.value) == 160 and cohort.hour.max() == 90
  assert settings.grammar(config).final_question.endswith('will the patient need dialysis?')
  assert settings.prompt(config).task.quantity == 'the probability of dialysis'


@pytest.mark.parametrize(('fields', 'match'), [
    ({'task': 'dialysis'}, "data.question: data.task='dialysis'"), ({'task': 'Two words'}, "data.task='Two words'"),
    ({'source': 'tjh', 'task': 'readmission'}, "data.task='readmission'"),
    ({'source': 'mimic4', 'task': 'aki', 'question': 'x?', 'quantity': 'x'}, "data.task='aki'")])
def test_a_task_without_words_or_without_labels_is_refused(config, fields, match):
  config.data.update(fields)
  with pytest.raises(EagrlError, match=match):
    checks.check(config)


def two_splits(config, folder):
  table = pa.table({'subject_id': [*PATIENTS, 'p0'], 'split': ['train'] * 26 + ['tuning'] * 7 + ['held_out'] * 8})
  pq.write_table(table, folder / 'splits.parquet')
  config.data.splits = str(folder / 'splits.parquet')


def no_positives(config, folder):
  config.data.outcomes = write(folder / 'none.csv', ('patient', 'label'), [(p, 0) for p in PATIENTS])


def two_outcomes(config, folder):
  rows = [*outcomes(np.arange(40) % 2), ('p3', 0, 53, 'F')]
  config.data.outcomes = write(folder / 'twice.csv', ('patient', 'label', 'age', 'sex'), rows)


def wrong_columns(config, folder):
  config.data.path = write(folder / 'wrong.csv', ('pid', 'time', 'feature', 'value'), [('p1', 0, 'lactate', 2)])


def unknown_feature(config, folder):
  (folder / 'features.json').write_text(json.dumps([{'name': 'heart rate', 'unit': 'bpm'}]))
  config.data.features = str(folder / 'features.json')


@pytest.mark.parametrize(('spoil', 'words'), [
    (two_splits, ('splits', 'twice')),
    (no_positives, ('label', 'negative')),
    (two_outcomes, ('data.outcomes', 'two different outcomes')),
    (wrong_columns, ('data.path', "no column 'patient'")),
    (unknown_feature, ('unknown feature', 'lactate', 'heart rate')),
])
def test_a_bad_file_is_one_line_that_names_field_and_fix(spoil, words, config, tmp_path):
  spoil(config, tmp_path)
  with pytest.raises(EagrlError) as error:
    pipeline.run(config, tmp_path / 'w')
  text = str(error.value)
  assert all(w in text for w in words) and '\n' not in text
  assert not any(p in text for p in PATIENTS)  # no identifier
  assert not (tmp_path / 'w' / 'prepare' / 'done.json').exists()


def test_a_broken_checkpoint_is_refused_before_anything_runs(config, tmp_path):
  (tmp_path / 'broken.gguf').write_bytes(b'GGUF\x03\x00\x00\x00' + b'\xff' * 64)
  config.lm.checkpoint = str(tmp_path / 'broken.gguf')
  with pytest.raises(EagrlError, match=r'broken\.gguf.*not a readable GGUF'):
    checks.check(config)


def one_class_in_a_part(config, folder):
  split = ['train'] * 28 + ['tuning'] * 4 + ['held_out'] * 8
  order = [*PATIENTS[1::2], *PATIENTS[::2]]  # the last of them all lived
  pq.write_table(pa.table({'subject_id': order, 'split': split}), folder / 'one.parquet')
  config.data.splits = str(folder / 'one.parquet')


def ids_as_features(config, folder):
  unknown_feature(config, folder)
  config.data.columns.feature = 'patient'


def sex_in_numbers(config, folder):
  rows = [(p, y, age, {'M': 1, 'F': 2}[s]) for p, y, age, s in outcomes(np.arange(40) % 2)]
  config.data.outcomes = write(folder / 'sex.csv', ('patient', 'label', 'age', 'sex'), rows)


@pytest.mark.parametrize(('spoil', 'words'), [
    (one_class_in_a_part, ('part has 0 positives', 'data.splits')),
    (ids_as_features, ("column 'patient'", 'data.columns.feature')),
    (sex_in_numbers, ('--config.data.sex_codes=',)),
])
def test_a_mistake_in_the_config_is_one_line_without_an_id(spoil, words, config, tmp_path):
  test_a_bad_file_is_one_line_that_names_field_and_fix(spoil, words, config, tmp_path)


def test_sex_codes_are_a_flag(config, tmp_path):
  sex_in_numbers(config, tmp_path)
  config.data.sex_codes = '1=m,2=f'
  pipeline.run(config, tmp_path / 'w')
  assert sorted(np.unique(store.load(tmp_path / 'w' / 'prepare').sex)) == [0, 1]


@pytest.mark.parametrize(('section', 'field', 'value', 'words'), [
    ('data', 'task', 'foo', 'data.task'), ('data', 'aggregate', 'sum', 'data.aggregate'),
    ('data', 'bin_hours', 0.0, 'data.bin_hours'), ('lm', 'compute_dtype', 'int8', 'lm.compute_dtype'),
    *(('lm', 'checkpoint', path, f'lm.checkpoint={path} is not a directory') for path in (
        '/absent/model', './absent', '~/absent', '../absent', 'absent/models/small')),
    ('rl', 'align_layers', (9,), 'rl.align_layers'),
    ('rl', 'align_heads', (4,), 'rl.align_heads'), ('sft', 'micro_batch', 3, 'sft.micro_batch'),
    ('sft', 'learning_rate', -1.0, 'sft.learning_rate'), ('search', 'candidates', 0, 'search.candidates'),
    ('rl', 'loss', 'foo', 'rl.loss'), ('rl', 'clip_over', 'foo', 'rl.clip_over'), ('rl', 'kl', -1.0, 'rl.kl'),
    ('rl', 'resample', -1, 'rl.resample'),
    ('rl', 'attention_reward', -1.0, 'rl.attention_reward'), ('reward', 'clip_low', 0.6, 'reward.clip_low'),
])
def test_a_bad_field_is_named_before_any_data_is_read(section, field, value, words, published_config):
  config = published_config()
  config[section][field] = value
  with pytest.raises(EagrlError, match=words):
    checks.check(config)


@pytest.mark.parametrize(('field', 'value'), [
    ('seed', -1), ('seed', 2**32), ('data.n', 0), ('data.prevalence', 2.0), ('data.informative', -1.0),
    ('data.site', 'moon'), ('data.test', -5.0), ('data.test', 0.0), ('data.valid_fraction', 2.0),
    ('prompt.max_characters', -1), ('prompt.max_values', 0), ('expert.hidden', 0), ('expert.heads', 0),
    ('expert.ffn', 0), ('expert.learning_rate', 0.0), ('expert.weight_decay', -1.0), ('expert.decov', -1.0),
    ('lm.attention', 'cudnn'), ('lm.attention', 'splash'), ('base.prompt_loss', -1.0), ('base.warmup', -1),
    ('base.weight_decay', -1.0), ('reward.beta', -1.0), ('reward.authors_weights', (1.0,)),
    ('reward.authors_weights', (1.0, 0.5, float('nan'))), ('search.min_jaccard', 5.0), ('search.question_tokens', 0),
    ('search.answer_tokens', -3), ('search.exploration', -1.0), ('search.max_depth', 0), ('sft.warmup', -1),
    ('sft.weight_decay', -1.0), ('rl.warmup', -1), ('rl.weight_decay', -1.0), ('rl.learning_rate', 0.0),
    ('rl.rollouts_timeout', 0.0), ('evaluate.cases', -1), ('evaluate.temperature', -1.0), ('data.seed', -1),
    ('data.path', 'records.csv'), ('data.outcomes', 'died.csv'), ('rl.align_layers', ('a',)),
    ('rl.align_heads', (1.0,)), ('robustness.levels.order', ('a',))])
def test_a_value_outside_its_range_is_refused_by_a_dry_run(field, value, published_config, tmp_path, capsys):
  config = published_config()
  config.evaluate.samples = 1
  config.update_from_flattened_dict({field: value})
  with pytest.raises(EagrlError) as error:
    pipeline.describe(config, tmp_path / 'w')
  assert f'{field}=' in str(error.value) and '\n' not in str(error.value)
  assert not capsys.readouterr().out and not (tmp_path / 'w').exists()


def test_the_other_cohort_of_a_transfer_is_asked_the_same():
  config = transfer.get_config()
  checks.check_transfer(config)
  config.data.prevalence = 2.0
  with pytest.raises(EagrlError, match=r'data\.prevalence=2\.0'):
    checks.check_transfer(config)


def test_seeds_and_codes_are_named_by_their_own_fields(tmp_path, published_config):
  c = transfer.get_config()
  c.seed = -1
  with pytest.raises(EagrlError, match='^seed=-1'):
    checks.check_transfer(c)
  c = predict.get_config()
  c.predict.path = str(tmp_path)
  c.predict.sex_codes = 'foo'
  with pytest.raises(EagrlError, match='^predict.sex_codes='):
    checks.check_predict(c)
  c = study.get_config()
  c.study.seeds = (0.0,)
  with pytest.raises(EagrlError, match='^study.seeds='):
    study_stage.run(c, tmp_path / 'w')


def test_features_of_a_source_that_has_its_own_are_refused(tmp_path, published_config):
  c = published_config('physionet2012')
  c.data.path, c.data.outcomes, c.data.features = str(tmp_path), str(tmp_path), str(tmp_path)
  with pytest.raises(EagrlError, match='data.features=.* physionet2012 has features of its own'):
    checks.check(c)


def test_words_may_be_separated_by_commas(published_config):
  c = published_config()
  c.robustness.kinds, c.evaluate.inference, c.rl.align_layers = ('order, noise',), ('samples',), (0, 1)
  fields.split_commas(c)
  assert (c.robustness.kinds, c.evaluate.inference, c.rl.align_layers) == (('order', 'noise'), ('samples',), (0, 1))


def test_a_tilde_behind_an_equals_sign_is_the_home_folder(published_config, monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  c = published_config('csv')
  c.data.path, c.data.outcomes = '~/a.csv', 'b~.csv'
  fields.expand_home(c)
  assert (c.data.path, c.data.outcomes, c.data.splits) == ('/home/me/a.csv', 'b~.csv', '')


def test_settings_of_a_hub_name_are_refused_too(published_config):
  config = published_config()
  config.lm.update(checkpoint='some/model', remat='half')
  with pytest.raises(EagrlError, match='lm.remat'):
    checks.check(config)


@pytest.mark.parametrize(('axis', 'size', 'change', 'words'), [
    ('tensor', 8, {}, 'lm.n_heads=4 .* mesh.tensor=8'), ('fsdp', 8, {'d_model': 100}, 'lm.d_model=100 .* mesh.fsdp=8'),
])
def test_a_mesh_that_would_share_nothing_out_is_refused(axis, size, change, words, published_config):
  config = published_config()
  config.lm.update(change)
  mesh = types.SimpleNamespace(shape={'data': 1, 'fsdp': 1, 'tensor': 1} | {axis: size})
  with pytest.raises(EagrlError, match=words):
    checks.check_shards(config, mesh, settings.tiny(config))


def test_rows_too_few_for_the_devices_are_a_warning(published_config, caplog):
  config = published_config()
  mesh = types.SimpleNamespace(shape={'data': 8, 'fsdp': 1, 'tensor': 1})
  with caplog.at_level('WARNING', logger='absl'):
    checks.check_shards(config, mesh, settings.tiny(config))
  assert 'rl.micro_batch=2' in caplog.text and 'search.trees' not in caplog.text  # 32 trees are shared out evenly


def test_a_temperature_that_the_update_does_not_know_is_a_warning(published_config, caplog):
  config = published_config()
  with caplog.at_level('WARNING', logger='absl'):
    checks.check(config)
    assert 'rl.temperature' not in caplog.text
    config.rl.temperature = 0.7
    checks.check(config)
  assert 'rl.temperature=0.7' in caplog.text


def test_replaced_weights_in_a_folder_are_noticed(config, tmp_path):
  (tmp_path / 'hf').mkdir()
  (tmp_path / 'hf' / 'model.safetensors').write_bytes(b'one')
  config.lm.checkpoint = str(tmp_path / 'hf')
  before = graph.stage_hashes(config)['base']
  (tmp_path / 'hf' / 'model.safetensors').write_bytes(b'another')
  assert graph.stage_hashes(config)['base'] != before


@pytest.mark.parametrize('variant', ['', 'tjh', 'tjh24', 'physionet2012', 'pretrained', 'csv', 'mimic4',
                                     'mimic4_last_days', 'mimic4_readmission', 'mimic4_readmission48', 'meds', 'yaib',
                                     'wide_csv'])
def test_every_variant_is_a_valid_config(variant, config, published_config):
  """All but their files, which are not on every machine."""
  c = published_config(variant)
  if variant:
    c.data.path, c.data.outcomes, c.lm.checkpoint = config.data.path, config.data.outcomes, 'tiny'
  checks.check(c)
