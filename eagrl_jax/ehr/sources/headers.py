"""What an error may say of a file's headers: without a header line its first row stands there, which is a patient's."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from eagrl_jax.ehr.features import canonical
from eagrl_jax.types import EagrlError

OF_CSV = 'check its header line, --config.data.delimiter and --config.data.columns'


def check_spelling(name: str, headers: Collection[str], field: str, file: str) -> None:
  """Refuses a file where the column `name`, which may be absent, is there by a header in another spelling."""
  if name not in headers and (near := next((h for h in headers if canonical(h) == canonical(name)), None)):
    raise EagrlError(f'{field}: {file} has a column {near!r}, and {name!r} is what would be read; rename it, or give '
                     'its header by --config.data.columns')


def lacking(name: str, headers: Iterable[str], wanted: Iterable[str], may_be: Iterable[str] = (),
            fix: str = 'does it have a header line with these names?') -> str:
  """What is wrong with a file without the column `name`, to be read after the file's name.

  A header is shown only where one of the wanted ones is there, so that the line is a header line.

  Args:
    headers: the entries of the first line.
    wanted: the columns that must be there, `name` among them; `may_be`: others by which a header line is known.
    fix: what to do where none of them is there.
  """
  headers, wanted = list(headers), list(wanted)
  if {canonical(w) for w in (*wanted, *may_be)}.isdisjoint(map(canonical, headers)):
    return f'holds none of the columns {", ".join(map(repr, wanted))} in its first line; {fix}'
  plain = {canonical(header): header for header in headers}
  near = difflib.get_close_matches(canonical(name), plain, n=1, cutoff=0.0)
  return f'has no column {name!r}; the nearest header is {plain[near[0]]!r}'
