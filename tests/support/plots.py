"""What a reader expects of every plot, checked on the figure that it was drawn from."""

from collections.abc import Iterator
from itertools import combinations
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
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
    for (text, box), (other, other_box) in combinations(boxes, 2):
        assert not _overlap(box, other_box), f"{text!r} overlaps {other!r}"
    axes_with_data = [axes for axes in figure.axes if axes.has_data() and axes.axison]
    for axes in axes_with_data:
        shares_x = any(axes.get_shared_x_axes().joined(axes, other) for other in figure.axes if other != axes)
        has_names = any(label.get_text()[:1].isalpha() for label in axes.get_yticklabels())
        assert axes.get_ylabel() or has_names, "the vertical axis has no label"
        is_color_bar = not len(axes.get_xticks())
        assert axes.get_xlabel() or shares_x or is_color_bar, "the horizontal axis has no label"
        for line in axes.lines:
            _check_points(axes, line, figure.dpi)
    legends = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))]
    for legend in legends:
        for axes in axes_with_data:
            assert not _overlap(legend.get_window_extent(), axes.get_window_extent()), "a legend covers data"


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


def _check_points(axes: Axes, line: Line2D, dpi: float) -> None:
    """Fail if a marker of a line is not completely inside the axes, which clip it."""
    if (
        not line.get_clip_on()
        or line.get_marker() in ("None", "", " ", None)
        or line.get_transform() != axes.transData
    ):
        return
    points = axes.transData.transform(np.asarray(line.get_xydata(), dtype=float))
    radius = line.get_markersize() / 2 * dpi / 72
    for x, y in points[np.isfinite(points).all(axis=1)]:
        box = Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)
        assert _contains(axes.get_window_extent(), box), f"a point of {line.get_label()!r} is cut off"


def _contains(outer: BboxBase, inner: BboxBase) -> bool:
    return bool(
        inner.x0 >= outer.x0 - _TOLERANCE
        and inner.y0 >= outer.y0 - _TOLERANCE
        and inner.x1 <= outer.x1 + _TOLERANCE
        and inner.y1 <= outer.y1 + _TOLERANCE
    )


def _overlap(first: Bbox, second: Bbox) -> bool:
    common = Bbox.intersection(first, second)
    return common is not None and common.width > _TOLERANCE and common.height > _TOLERANCE
