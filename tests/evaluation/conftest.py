"""Makes the golden scripts and the fixture databases of tests/ehr importable by name."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / 'golden'), str(TESTS / 'ehr')]
