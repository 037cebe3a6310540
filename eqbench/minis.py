"""Small charts and pictures as SVG text of a few hundred bytes, for a page that holds thousands of them (no torch)."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image

from eqbench.columns import number

T = TypeVar("T")

POINTS = 60  # of a line, at most: more cannot be told apart at this size
WIDTH, HEIGHT = 200.0, 80.0  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 3.0, 197.0, 13.0, 67.0  # of its plot; above and below stand the ends of the axes


@dataclass(frozen=True)
class Line:
    """Points from left to right, those without a y are gaps; `look` are classes of models.css, `title` is shown on pointing."""

    x: Sequence[float]
    y: Sequence[float | None]
    look: str
    title: str = ""


@dataclass(frozen=True)
class Band:
    """The area between two lines over the same x."""

    x: Sequence[float]
    lo: Sequence[float]
    hi: Sequence[float]
    look: str


def chart(
    title: str,
    marks: Iterable[Line | Band],
    x: tuple[float, float],
    y: tuple[float, float],
    ends: tuple[str, str] | None = None,
    unit: str = "",
    top: str | None = None,
) -> Markup:
    """Lines and bands in a frame that names the ends of its axes; what lies outside of `y` is cut at its edge.

    Args:
        title: what the chart shows, for those who do not see it.
        ends, top: what to write at the left and the right end, and at the upper one, instead of the numbers of `x` and `y`.
    """
    place = _Frame(x, y)
    left, right = ends or (number(x[0]), number(x[1]))
    top = top or f"{number(y[1])} {unit}".rstrip()
    base = "" if y[0] == 0 else f'<text x="3" y="65">{escape(number(y[0]))}</text>'
    return Markup(
        f'<svg class="mini" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img"><title>{escape(title)}</title>'
        f'<path class="frame" d="M{LEFT:g} {TOP:g}H{RIGHT:g}M{LEFT:g} {BOTTOM:g}H{RIGHT:g}"/>'
        f"{''.join(map(place.drawn, marks))}"
        f'<text x="3" y="10">{escape(top)}</text>{base}<text x="3" y="77">{escape(left)}</text>'
        f'<text x="197" y="77" text-anchor="end">{escape(right)}</text></svg>'
    )


class _Frame:
    """From numbers to places."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x, self.y = x, y

    def drawn(self, mark: Line | Band) -> str:
        if isinstance(mark, Band):
            upper = self._points(zip(mark.x, mark.hi, strict=True))
            lower = self._points(zip(mark.x, mark.lo, strict=True))
            return f'<path class="{mark.look}" d="M{" ".join(upper + lower[::-1])}z"/>' if len(upper) > 1 else ""
        runs = groupby(zip(mark.x, mark.y, strict=True), lambda point: _known(point[1]))
        pieces = [self._points((a, b) for a, b in run if b is not None) for known, run in runs if known]
        pieces = [piece * 2 if len(piece) == 1 else piece for piece in pieces]  # round caps make a dot of a lone point
        if not pieces:
            return ""
        path = f'<path class="{mark.look}" d="M{"M".join(" ".join(piece) for piece in pieces)}"'
        return f"{path}><title>{escape(mark.title)}</title></path>" if mark.title else f"{path}/>"

    def _points(self, points: Iterable[tuple[float, float]]) -> list[str]:
        places = [(_short(_scaled(a, self.x, LEFT, RIGHT)), _short(_scaled(b, self.y, BOTTOM, TOP))) for a, b in points]
        return [f"{a} {b}" for a, b in thinned(_bent(places))]


def _known(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))


def _scaled(value: float, span: tuple[float, float], start: float, end: float) -> float:
    share = (value - span[0]) / ((span[1] - span[0]) or 1.0)
    return start + min(max(share, 0.0), 1.0) * (end - start)


def _short(place: float) -> str:
    return f"{place:.1f}".removesuffix(".0")


def _bent(places: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Without the points between two of the same height."""
    last = len(places) - 1
    return [p for i, p in enumerate(places) if i in (0, last) or not places[i - 1][1] == p[1] == places[i + 1][1]]


def thinned(items: Sequence[T], most: int = POINTS) -> list[T]:
    """At most this many of them, first and last among them, evenly spaced.

    >>> thinned([0, 1, 2, 3, 4, 5, 6], 4)
    [0, 2, 4, 6]
    """
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def picture(title: str, pixels: NDArray[np.float64], look: str) -> Markup:
    """An image (height, width, RGBA in [0, 1]), each pixel a square that stays one at any size."""
    height, width = pixels.shape[:2]
    out = io.BytesIO()
    Image.fromarray((255 * pixels).round().astype(np.uint8)).save(out, "PNG", optimize=True)
    source = base64.b64encode(out.getvalue()).decode()
    return Markup(
        f'<svg class="{look}" viewBox="0 0 {width} {height}" width="{7 * width}" role="img"><title>{escape(title)}</title>'
        f'<image width="{width}" height="{height}" href="data:image/png;base64,{source}"/></svg>'
    )
