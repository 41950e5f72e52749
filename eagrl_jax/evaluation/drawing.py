"""What all figures share: colours, dashes, the style, and a figure as inline SVG.

Text stays text, colours are CSS variables with a light-mode fallback. Figures are small (one panel, 316 to 380 pixels
wide) so that they read at their own size on a phone. An arm has one colour and one dash everywhere; neither alone
carries the meaning.
"""

from __future__ import annotations

import html
import io
import re
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# CSS variable -> its light value; the page overrides them in the dark. Contrast to white is at least 3 : 1.
COLOURS = {
    'ink': '#1c2430', 'muted': '#5c6673', 'rule': '#dde1e6', 'base': '#6f7782', 'sft': '#bf6900', 'rl': '#0b62b3',
    'expert': '#00805f', 'oracle': '#1c2431', 'extra0': '#a33b7c', 'extra1': '#7a5c00', 'extra2': '#5a4fcf',
    'extra3': '#b23a2e'}
DASHES = {'base': (0, (1, 1.2)), 'sft': (0, (5, 1.6)), 'rl': 'solid', 'expert': (0, (6, 1.5, 1.5, 1.5)),
           'oracle': (0, (2, 2))}
_RUNS = ('rl', 'sft', 'expert', 'extra0', 'extra2', 'extra1', 'extra3', 'base')  # colours of runs compared
STYLE: dict[Any, Any] = {
    'svg.fonttype': 'none', 'svg.hashsalt': 'eagrl', 'text.parse_math': False, 'axes.unicode_minus': True,
    'font.family': 'DejaVu Sans', 'font.size': 10.5, 'axes.titlesize': 12, 'axes.titlelocation': 'left',
    'axes.titleweight': 'bold', 'axes.spines.top': False, 'axes.spines.right': False, 'axes.linewidth': 0.8,
    'axes.edgecolor': COLOURS['muted'], 'axes.labelcolor': COLOURS['muted'], 'axes.titlecolor': COLOURS['ink'],
    'text.color': COLOURS['ink'], 'xtick.color': COLOURS['muted'], 'ytick.color': COLOURS['muted'],
    'axes.grid': True, 'grid.color': COLOURS['rule'], 'grid.linewidth': 0.7, 'axes.axisbelow': True,
    'legend.frameon': False, 'legend.fontsize': 11, 'lines.linewidth': 1.8, 'figure.facecolor': 'none',
    'axes.facecolor': 'none', 'savefig.facecolor': 'none'}


def colour(arm: str) -> str:
  """Light-mode colour of an arm; an arm outside the table keeps one of four extra colours by its name."""
  return COLOURS[token(arm)]


def look(arm: str) -> dict[str, Any]:
  """How a line of an arm is drawn."""
  return {'color': colour(arm), 'ls': DASHES.get(arm, 'dashed')}


def token(arm: str) -> str:
  """Name of the CSS variable that holds an arm's colour."""
  return arm if arm in DASHES else f'extra{sum(arm.encode()) % 4}'


def run_token(i: int) -> str:
  """Name of the CSS variable of the i-th run of a comparison."""
  return _RUNS[i % len(_RUNS)]


def short(name: str, limit: int = 26) -> str:
  return name if len(name) <= limit else name[:limit - 1] + '…'


def axes(width: float, height: float, title: str, x: str, y: str) -> tuple[Figure, Axes]:
  fig = Figure(figsize=(width / 72, height / 72), layout='constrained')
  ax = fig.subplots()
  ax.set(title=title, xlabel=x, ylabel=y)
  return fig, ax


def legend_below(fig: Figure, ax: Axes) -> None:
  handles, labels = ax.get_legend_handles_labels()
  if handles:
    fig.legend(handles, labels, loc='outside lower left', ncols=1 if max(map(len, labels)) > 12 else 3,
               handlelength=2.8, borderaxespad=0.2)


def to_svg(fig: Figure, name: str, label: str) -> str:
  """The figure as one <svg> element: own id space, themable colours, accessible name, fluid width."""
  buffer = io.StringIO()
  fig.savefig(buffer, format='svg', metadata={'Date': None, 'Creator': None, 'Format': None, 'Type': None})
  text = buffer.getvalue()
  text = text[text.index('<svg'):]
  # The renderer's own <style> would apply to the whole page.
  text = re.sub(r'<metadata>.*?</metadata>|<style.*?</style>', '', text, flags=re.S)
  prefix = re.sub(r'\W+', '-', f'fig-{name}')
  text = re.sub(r'\bid="', f'id="{prefix}-', text)
  text = re.sub(r'url\(#', f'url(#{prefix}-', text)
  text = re.sub(r'xlink:href="#', f'href="#{prefix}-', text)
  for variable, value in COLOURS.items():
    text = text.replace(value, f'var(--{variable}, {value})')
  width, height = (fig.get_size_inches() * 72).round().astype(int)
  head = (f'<svg class="figure" role="img" aria-label="{html.escape(label)}" viewBox="0 0 {width} {height}" '
          f'width="{width}" height="{height}" xmlns="http://www.w3.org/2000/svg">')
  return head + text[text.index('>') + 1:].strip()
