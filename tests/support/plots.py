"""What a reader expects of every plot, checked on the figure that it was drawn from."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox, BboxBase

_TOLERANCE: Final = 2.0
"""In pixels; lines and letters are antialiased."""


def check_readable(figure: Figure) -> None:
    """Fail if text is cut off or overlaps text, a point is cut off, or a legend covers axes.

    Axes need labels. Names as ticks of the vertical axis, and a horizontal axis that is shared, need none.
    """
    figure.draw_without_rendering()
    hidden = {label for axes in figure.axes for label in _hidden_tick_labels(axes)}
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_visible()]
    boxes = [
        (text.get_text(), text.get_window_extent())
        for text in texts
        if text.get_text().strip() and text not in hidden
    ]
    for text, box in boxes:
        assert _contains(figure.bbox, box), f"{text!r} is cut off"
    for first, second in _overlapping([box for _, box in boxes]):
        raise AssertionError(f"{boxes[first][0]!r} overlaps {boxes[second][0]!r}")
    axes_with_data = [axes for axes in figure.axes if axes.has_data() and axes.axison]
    for axes in axes_with_data:
        shares_x = any(axes.get_shared_x_axes().joined(axes, other) for other in figure.axes if other != axes)
        has_names = any(label.get_text()[:1].isalpha() for label in axes.get_yticklabels())
        assert axes.get_ylabel() or has_names, "the vertical axis has no label"
        is_color_bar = not len(axes.get_xticks())
        assert axes.get_xlabel() or shares_x or is_color_bar, "the horizontal axis has no label"
        for line in axes.lines:
            if line.get_clip_on() and line.get_marker() not in ("None", "", " ", None):
                _check_points(axes, line.get_xydata(), line.get_markersize() * figure.dpi / 72)
        for points in axes.findobj(PathCollection):
            assert isinstance(points, PathCollection)
            _check_points(axes, points.get_offsets(), max(points.get_sizes()) ** 0.5 * figure.dpi / 72)
    legends = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))]
    for legend in legends:
        for axes in axes_with_data:
            both = [legend.get_window_extent(), axes.get_window_extent()]
            assert not _overlapping(both), "a legend covers data"


def texts_of(figure: Figure) -> str:
    """Return all texts of a figure, one in a line."""
    return "\n".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


def _hidden_tick_labels(axes: Axes) -> Iterator[Text]:
    """Yield the labels of ticks beyond the limits of an axis, which are not drawn."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for minor in (False, True):
            ticks = zip(axis.get_ticklocs(minor=minor), axis.get_ticklabels(minor=minor), strict=False)
            yield from (label for location, label in ticks if not axes.axison or not low <= location <= high)


def _check_points(axes: Axes, points: npt.ArrayLike, diameter: float) -> None:
    """Fail if a point of this diameter in pixels is not completely inside the axes, which clip it."""
    centers = axes.transData.transform(np.asarray(points, dtype=float))
    centers = centers[np.isfinite(centers).all(axis=1)]
    inside = axes.get_window_extent().padded(_TOLERANCE - diameter / 2)
    is_inside = (centers >= inside.min) & (centers <= inside.max)
    assert is_inside.all(), "a point is cut off"


def _contains(outer: BboxBase, inner: BboxBase) -> bool:
    return bool(
        inner.x0 >= outer.x0 - _TOLERANCE
        and inner.y0 >= outer.y0 - _TOLERANCE
        and inner.x1 <= outer.x1 + _TOLERANCE
        and inner.y1 <= outer.y1 + _TOLERANCE
    )


def _overlapping(boxes: list[Bbox]) -> list[tuple[int, int]]:
    """Return the indexes of each two boxes that overlap; with arrays, as a matrix has hundreds of numbers."""
    extents = np.array([box.extents for box in boxes]).reshape(-1, 4)
    low = np.maximum(extents[:, None, :2], extents[None, :, :2])
    high = np.minimum(extents[:, None, 2:], extents[None, :, 2:])
    first, second = np.triu(((high - low) > _TOLERANCE).all(axis=2), k=1).nonzero()
    return list(zip(first.tolist(), second.tolist(), strict=True))
