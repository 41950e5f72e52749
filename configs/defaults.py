"""Every field of an experiment with its default: the synthetic cohort and the `tiny` policy.

The other files choose where the pipeline stops; `VARIANTS` here chooses the data.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(variant: str = '') -> ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f'config variant {variant!r} is unknown; choose one of {sorted(v for v in VARIANTS if v)}')
  config = ConfigDict()
  config.seed = 0
  config.target = 'evaluate'  # last stage to run
  config.remake = True  # finished stages before the target, where settings differ: made again | False: refused
  config.nonfinite = 'stop'  # of base, sft, rl at a NaN or infinity: stop | skip (leave the step out, go on)
  config.data = ConfigDict(dict(
      seed=placeholder(int),  # of the synthetic cohort and of the splits; unset: the experiment's
      source='synthetic',  # synthetic | tjh | physionet2012 | mimic4 | meds | yaib | csv | wide_csv
      path='',  # file or folder of the source
      outcomes='',  # outcomes of csv, wide_csv, meds; of physionet2012 '' = beside the path
      task='mortality',  # mortality | readmission, or with meds, yaib, csv, wide_csv any name of what the labels say,
      question='', quantity='',  # and its words: 'will the patient …?' and 'the probability that …'
      index='icu',  # mimic4: the stay that starts the clock and whose end counts, icu | hospital
      n=2400,  # synthetic: patients
      prevalence=0.35,  # synthetic
      informative=0.5,  # synthetic: how much sampling depends on severity, 0 = not at all
      site='mimic',  # synthetic: mimic | eicu
      bin_hours=24.0,  # width of a visit
      max_visits=2,  # older ones fold into the first
      window_hours=48.0,  # only data before this, of meds so long before the prediction; 0 = the whole record
      aggregate='mean',  # mean | last, within a visit
      test=400.0,  # patients, or a share of them below 1
      valid_fraction=0.125,  # of the rest
      protocol='',  # a published split instead: tjh_140_21_200 | mimic4_8750_1250_200 | 10fold:<0 to 9>
      splits='',  # a splits.parquet to use instead
      ranges='reference',  # that prompts flag values by: reference | usual, of this cohort, as where a file gives none
      # a user's own files
      features='',  # feature specs, JSON or YAML, needed by meds; '' = of csv names alone, of yaib its own
      sex_codes='',  # such as '1=m,2=f' or '0=f,1=m,9=unknown'; '' = m, f, male, female
      encoding='utf8', delimiter=',', setting='patients in hospital',
      decimal='.',  # of csv, wide_csv: the decimal mark, '.' or ','
      time_unit='hours',  # of csv, wide_csv: of times that are numbers, seconds | minutes | hours | days
      columns=ConfigDict(dict(  # unit, available, age, sex, until may be absent from the files
          patient='patient', time='time', feature='feature', value='value', unit='unit',
          available='available',  # when a value could be known
          outcome_patient='patient', label='label', age='age', sex='sex',
          until='until')),  # nothing later is used: death, discharge (after window_hours) or prediction
  ))
  config.prompt = ConfigDict(dict(
      style='compact',  # compact | full, with instructions
      reasoning='questions',  # what full asks for: questions | free
      may_refuse=True,  # whether full offers "I do not know" as an answer
      max_values=3, max_characters=0, bucket=208, shuffle_features=True))
  config.expert = ConfigDict(dict(
      members=5, hidden=32, heads=4, ffn=64, dropout=0.3, decov=10.0, time_attention='new', time_unit='visit',
      use_mask_channel=False, prefixes=False, batch=32, learning_rate=1e-3, weight_decay=1e-2, epochs=32, patience=16,
      checkpoint_every=10, select_on='loss', salience='occlusion'))  # salience: attention | grad_x_input | occlusion
  config.lm = ConfigDict(dict(
      checkpoint='tiny',  # tiny | a Hugging Face folder or hub name | a .gguf file
      d_model=128, n_layers=3, n_heads=4, n_kv_heads=4, head_dim=32, d_ff=384, vocab_size=1024,  # tiny only
      qk_norm=True,  # tiny only
      compute_dtype='float32',  # of activations: float32 | bfloat16; trained weights stay float32
      remat='none',  # what the backward pass recomputes: none | dots (all but matrix products) | full
      attention='auto',  # of prompts: auto | xla | cudnn (NVIDIA from Ampere on, bfloat16) | splash (TPU)
      lora_rank=0,  # above 0 only adapters of this rank are trained; not for tiny
      lora_alpha=32.0, lora_targets=('q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj')))
  config.base = ConfigDict(dict(
      short_steps=100, short_batch=64, short_features=4,  # first on records of 2 to so many features
      steps=80, batch=16, answers=2,  # then on whole ones
      scattered=0.5,  # share of whole records whose values are drawn anew, so that a name does not tell its flag
      read_weight=4.0,  # in the loss, of text that the record decides; which feature comes next is chance
      learning_rate=1.5e-3, warmup=15, weight_decay=0.01, prompt_loss=0.1, short_micro_batch=8, micro_batch=2,
      checkpoint_every=100, schedule='cosine'))
  config.reward = ConfigDict(dict(
      kind='eag',  # eag | authors | log | brier
      lam=0.6, beta=0.5, top_k=5, clip_low=0.01, clip_high=0.99,
      unparsed=placeholder(float),  # R_cls of an answer without a probability; unset: a certain mistake at the clip
      authors_weights=(1.0, 0.5, 0.1)))  # log-likelihood, separation, Jaccard
  config.search = ConfigDict(dict(
      patients=384, trees=32, rollouts=8, candidates=3, max_depth=2, exploration=1.0, backup='max',
      alpha=0.4, salience_weight=0.5,
      expert_weight=0.8,  # of the expert's probability beside the outcome in the terminal reward
      question_tokens=10, answer_tokens=16, question_temperature=1.2,
      answer_temperature=0.9, top_p=0.8,
      top_k=2, min_reward=-0.5, min_jaccard=0.1, balance=True))
  config.sft = ConfigDict(dict(
      epochs=8, batch=32, learning_rate=1e-3, warmup=20, weight_decay=0.01, micro_batch=4, checkpoint_every=100,
      schedule='cosine', answer_weight=20.0))  # answer_weight: of the tokens from <Final answer> on; 1 = plain
  config.rl = ConfigDict(dict(
      temperature=1.0,  # of the answers; the update's ratios are of probabilities at 1, so that others are off policy
      steps=48, prompts=32, group=8, epochs=1, minibatches=2, max_new=80, learning_rate=5e-4, warmup=5,
      weight_decay=0.0, micro_batch=2, advantage='dr_grpo', loss='token_mean',
      clip_low=0.2, clip_min=0.2, clip_max=0.4, clip_over='group', dual_clip=0.0,
      kl=0.02,  # keeps a small policy's text in form
      dynamic_sampling=True,  # groups whose answers are all worth the same do not count
      resample=0,  # rollouts a step may add to fill their places
      overlong_buffer=0, c_align=0.05, align='kl', align_rows='features',
      align_per_token=True, align_layers=(), align_heads=(),  # () = all of them
      attention_reward=0.0,  # of the top-K agreement of attention, beside the joint reward
      align_control='expert',  # whose salience reward and alignment follow: expert, or a control: random | prevalence
      lam=placeholder(float),  # reward.lam of this stage alone; unset: reward.lam
      start='sft',  # the policy to go on from: base | sft
      rollouts='own',  # who writes the answers: own | the http://host:port/v1 of a vLLM server
      rollouts_model='',  # the name it serves; '' = its only one
      rollouts_refresh=1,  # steps after which it reads the policy's weights again
      rollouts_timeout=600.0,  # seconds of one of its requests
      validate_every=0,  # steps after which validation patients are asked, beside the first and the last; 0 = never
      validate_patients=200,  # 0 = all of them
      keep='last',  # the policy to leave: last, or the best by these patients' auroc | auprc | log_loss
      checkpoint_every=10, schedule='constant'))
  config.evaluate = ConfigDict(dict(
      batch=64, samples=8, temperature=1.0, max_new=80, bootstrap=1000, cases=3,
      inference=('samples',),  # samples, and any of greedy | digits | search: arms such as rl_greedy, with their cost
      inference_policies=('base', 'rl'),  # those that answer in the other ways too; base: what search owes the expert
      threshold=0.5,  # a probability from here on foretells the outcome: early score, predicted_boolean_value
      plain_ids=False))  # True: predictions hold ids, and in evaluate/meds times of MEDS, as the source gives them
  config.robustness = ConfigDict(dict(  # batch, temperature, max_new and bootstrap are evaluate's
      kinds=('order', 'noise', 'drop', 'units', 'wording'),
      levels=ConfigDict(dict(
          order=(0.2, 0.4, 0.6, 1.0),  # shares of the features that change places
          noise=(0.25, 0.5, 1.0),  # train standard deviations
          drop=(0.2, 0.4, 0.6),  # shares of a patient's features left out
          units=(0.1, 0.3, 0.5))),  # shares of the features in another unit, undeclared
      patients=200,  # of the test split, at random; 0 = all
      samples=4))  # answers a patient and condition
  config.study = ConfigDict(dict(
      seeds=(0, 1, 2),  # of training; cohort and split are those of the first
      resamples=10_000,  # of patients, for the final table: enough for Holm's p of all arms to fall below .05
      arms=('direct', 'think', 'grpo', 'dapo', 'no_stage1', 'no_attention_reward', 'no_adaptive_clip', 'no_alignment',
            'random_features', 'prevalent_features'),  # beside base, sft, eag and what evaluate sets beside them
      learning_rates=(),  # beside rl.learning_rate; each arm is given the one that validation patients speak for
      robustness=False))  # True: every seed's run judges perturbed records too
  config.export = ConfigDict(dict(
      policy='rl', dtype='float32',  # policy: base | sft | rl; dtype: float32 | bfloat16
      adapter=False))  # the trained adapters alone, as a PEFT directory, instead of merged weights
  config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))
  VARIANTS[variant](config)
  return config


def _synthetic(config):
  del config


def _tjh(config):
  config.data.update(source='tjh', path='../shared/data/tjh/time_series_375_prerpocess_en.xlsx', bin_hours=24.0,
                     max_visits=8, window_hours=0.0, test=200)
  config.expert.update(batch=16, epochs=60, patience=20)
  config.reward.top_k = 10
  config.prompt.update(max_values=1, bucket=192)
  config.lm.vocab_size = 2048
  config.base.update(steps=120, batch=8)
  config.search.update(patients=140, trees=28, rollouts=8, max_depth=1, min_jaccard=0.05, answer_tokens=20)
  config.sft.update(epochs=20, batch=14, micro_batch=2)
  config.rl.update(steps=40, prompts=20, group=4, micro_batch=2, max_new=96, learning_rate=2e-4, kl=0.05)
  config.evaluate.update(batch=40, max_new=96)


def _tjh24(config):
  _tjh(config)
  config.data.update(window_hours=24.0, max_visits=1)


def _physionet2012(config):
  config.data.update(source='physionet2012', path='../shared/data/physionet2012/set-a.tar.xz',
                     outcomes='../shared/data/physionet2012/Outcomes-a.txt', bin_hours=6.0, max_visits=8,
                     window_hours=48.5, test=800)  # some records stand at 48:00 exactly
  config.expert.update(members=3, use_mask_channel=True, learning_rate=2e-3, decov=1.0, batch=32, patience=5, epochs=20)
  config.prompt.bucket = 128
  config.evaluate.samples = 4


def _pretrained(config):
  """A checkpoint of about a hundred million parameters on TJH, at the size that two cores allow."""
  _tjh24(config)
  config.data.test = 40
  config.lm.update(checkpoint='', remat='full')  # --config.lm.checkpoint=smollm2-135m.gguf
  config.prompt.update(max_characters=1100, bucket=64)
  config.base.update(short_steps=0, steps=12, batch=4, answers=1, scattered=0.0, learning_rate=1e-4, warmup=2,
                     micro_batch=2)
  config.search.update(patients=8, trees=8, rollouts=3, candidates=2, question_tokens=16, answer_tokens=24,
                       min_reward=-1.5, min_jaccard=0.0, balance=False)
  config.sft.update(epochs=3, batch=4, learning_rate=5e-5, warmup=1)
  config.rl.update(steps=2, prompts=4, group=4, max_new=144, learning_rate=1e-5, warmup=1, kl=0.0)
  config.evaluate.update(batch=20, samples=1, temperature=0.0, max_new=144)


def _csv(config):
  config.data.update(source='csv', path='', outcomes='', bin_hours=24.0, max_visits=8, window_hours=0.0, test=0.2)


def _mimic4(config):
  """In-hospital death from the first 48 hours of intensive care; also of 24 with data.window_hours=24."""
  config.data.update(source='mimic4', path='../shared/data/mimic_iv_demo', bin_hours=6.0, max_visits=8,
                     window_hours=48.0, aggregate='last', test=0.2)


def _mimic4_last_days(config):
  """The published window: the last 8 days of a stay, seen from its end, older ones folded into the first."""
  _mimic4(config)
  config.data.update(bin_hours=24.0, window_hours=0.0)


def _mimic4_readmission(config):
  """Back in intensive care, or dead, within 30 days of leaving it; data.index=hospital: of leaving the hospital."""
  _mimic4_last_days(config)
  config.data.task = 'readmission'


def _mimic4_readmission48(config):
  """The same of who leaves alive, told from the first 48 hours of the stay."""
  _mimic4(config)
  config.data.task = 'readmission'


def _meds(config):
  """A MEDS data set and a label set, the last 48 hours before each prediction time."""
  config.data.update(source='meds', path='', outcomes='', features='', bin_hours=6.0, max_visits=8, window_hours=48.0,
                     aggregate='last', test=0.2)


def _yaib(config):
  """The hours that the tables hold: 0 to 24 of YAIB's mortality task."""
  config.data.update(source='yaib', path='../shared/data/yaib_mimic_demo', bin_hours=6.0, max_visits=8,
                     window_hours=0.0, aggregate='last', test=0.2, setting='adults in an intensive care stay')


def _wide_csv(config):
  _csv(config)
  config.data.source = 'wide_csv'


VARIANTS = {'': _synthetic, 'tjh': _tjh, 'tjh24': _tjh24, 'physionet2012': _physionet2012, 'csv': _csv,
            'pretrained': _pretrained, 'mimic4': _mimic4, 'mimic4_last_days': _mimic4_last_days,
            'mimic4_readmission': _mimic4_readmission, 'mimic4_readmission48': _mimic4_readmission48, 'meds': _meds,
            'yaib': _yaib, 'wide_csv': _wide_csv}
