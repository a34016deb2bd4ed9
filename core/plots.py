"""Pictures for READMEs, as SVG: no server, no window, and no package to draw them."""

from collections.abc import Mapping, Sequence

# Pixels.
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 640, 440, 56, 20, 16, 100
_STYLES = (("#1a5fb4", ""), ("#555555", "2 4"), ("#2e8b57", ""), ("#c01c28", ""))


def shares(curves: Mapping[str, Mapping[int, float]], *, places: Sequence[int], unit: str, title: str) -> str:
  """Curves of shares, 0 to 100 %, over places evenly apart.

  Args:
    curves: by name, at most four: a number in [0, 1] at each place, or at some.
    places: along the horizontal axis.
    unit: what stands behind each of them, " px" say.
    title: of the horizontal axis.
  """
  x = lambda place: _LEFT + (_WIDTH - _LEFT - _RIGHT) * (places.index(place) + 0.5) / len(places)
  y = lambda share: _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - share)
  lines = []
  for percent in range(0, 101, 20):
    height = y(percent / 100)
    lines.append(f'<path d="M{_LEFT} {height:.1f}H{_WIDTH - _RIGHT}" stroke="#dddddd"/>')
    lines.append(_text(_LEFT - 8, height + 4, f"{percent} %", "end"))
  for place in places:
    lines.append(_text(x(place), _HEIGHT - _BOTTOM + 20, f"{place:,}{unit}"))
  lines.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - _BOTTOM + 42, title))
  for number, ((name, curve), (color, dashes)) in enumerate(zip(curves.items(), _STYLES)):
    points = " ".join(f"{x(place):.1f},{y(curve[place]):.1f}" for place in sorted(curve))
    drawn = f'stroke="{color}" stroke-width="2.5" stroke-dasharray="{dashes}" fill="none"'
    lines.append(f'<polyline points="{points}" {drawn}/>')
    lines += [f'<circle cx="{x(place):.1f}" cy="{y(curve[place]):.1f}" r="4" fill="{color}"/>' for place in curve]
    left, height = _LEFT + 290 * (number % 2), _HEIGHT - 32 + 20 * (number // 2)
    lines.append(f'<path d="M{left} {height - 4}h28" {drawn}/>')
    lines.append(_text(left + 36, height, name, "start"))
  style = f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="13"'
  body = "\n".join(lines)
  background = '<rect width="100%" height="100%" fill="#ffffff"/>'
  return f'<svg xmlns="http://www.w3.org/2000/svg" {style}>\n{background}\n{body}\n</svg>\n'


def _text(at: float, height: float, words: str, anchor: str = "middle") -> str:
  return f'<text x="{at:.1f}" y="{height:.1f}" text-anchor="{anchor}" fill="#222222">{words}</text>'
