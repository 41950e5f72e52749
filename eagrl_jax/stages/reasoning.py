"""reasoning.jsonl: what policies wrote, a line a patient and arm. Patient-level content: never logged, in no report."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence

from eagrl_jax.stages.inference import Arm


def write(path: pathlib.Path, ids: Sequence[str], names: Sequence[str], arms: Mapping[str, Arm]) -> None:
  """What each arm wrote for each patient first, whether or not it could be read; of a search the best path.

  Args:
    ids: `[n]` of the patients, in the arms' order. names: `[F]` of the features.
  """
  with path.open('w', encoding='utf-8') as file:
    for arm, said in arms.items():
      for i, text, named in zip(ids, said.text, said.named, strict=True):
        line = {'subject_id': i, 'arm': arm, 'features': [names[f] for f in named], 'text': text}
        file.write(json.dumps(line, ensure_ascii=False) + '\n')
