"""What every stage is given: the config, the run's folder and the mesh."""

from __future__ import annotations

import dataclasses
import pathlib

from jax.sharding import Mesh
from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Context:
  config: ConfigDict
  workdir: pathlib.Path
  mesh: Mesh

  def folder(self, stage: str) -> pathlib.Path:
    """`<workdir>/<stage>`, made when missing."""
    path = self.workdir / stage
    path.mkdir(parents=True, exist_ok=True)
    return path
