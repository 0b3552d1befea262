"""Style, legends and saving of all plots.

Needs matplotlib, an extra of the package: call `resnet_service.training.require_plots` before importing it.
"""

import textwrap
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from resnet_service.files import atomic_write

BLUE: Final = "#0072B2"
ORANGE: Final = "#E69F00"
GREEN: Final = "#009E73"
RED: Final = "#D55E00"
PURPLE: Final = "#CC79A7"
LIGHT_BLUE: Final = "#56B4E9"
BLACK: Final = "#000000"
GRAY: Final = "0.5"

MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "<")
"""One more than there are colors, so that 56 lines differ in color or marker."""

STYLE: Final = mpl.rc_context(
    {
        # Color-blind people can tell the colors of Okabe and Ito apart; yellow is left out, as it is faint.
        "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, RED, PURPLE, LIGHT_BLUE, BLACK]),
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "text.parse_math": False,  # users choose names; a dollar sign in one does not start a formula
    }
)
"""Decorates a function that draws a plot."""


def legend_beside(axes: Axes) -> None:
    """Show the legend at the right of the axes, because inside it would cover data."""
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def wrap(text: str, width: int) -> str:
    """Break each line of a text after at most `width` characters, within a word if it is longer."""
    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())


def save(figure: Figure, path: Path) -> Figure:
    """Write a figure as a PNG file, completely or not at all, and return it."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return figure
