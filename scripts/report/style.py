"""How the figures of studies and runs look."""

import io
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from common.workdir import write_atomic

# Okabe and Ito's colors, which color-blind people can tell apart; all of them, and the gray of the
# text, stand out from white as from black: the SVG has no background.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b38600", "#56a0d3", "#8c6bb1", "#7a7a3a")
GRAY = "#737c87"
_STYLE = {
    "svg.hashsalt": "study",  # the same file every time
    "svg.fonttype": "none",
    "text.color": GRAY,
    "axes.labelcolor": GRAY,
    "axes.edgecolor": GRAY,
    "axes.facecolor": "none",
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def style():
    """A context in which figures get these colors."""
    return matplotlib.rc_context(_STYLE)


def content(figure: Figure, form: str) -> bytes:
    """The file: 'svg' without a background, or 'png' on white."""
    svg = form == "svg"
    options = dict(transparent=True, metadata={"Date": None}) if svg else dict(facecolor="white")
    image = io.BytesIO()
    figure.savefig(image, format=form, dpi=150, **options)
    return image.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Writes an SVG without a background, or a PNG on white."""
    write_atomic(path, content(figure, path.suffix[1:]))


def scale_error(axes: Axes) -> None:
    """A logarithmic axis where the errors, or losses, span more than a factor of four."""
    low, high = axes.dataLim.intervaly
    if low > 0 and high / low > 4:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axes.grid(axis="y", color=GRAY, alpha=0.2)
