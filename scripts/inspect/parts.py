"""What a report consists of: plain values, which page.py writes as HTML and slides.py draws.

All text may come from a stranger's run: page.py escapes it, slides.py draws it as it stands.
"""

from typing import NamedTuple

import numpy as np


class Table(NamedTuple):
    """Rows of words, the first cell of each its heading.

    Attributes:
      name: of the part, in links and files.
      title, note: the heading, and what to know about it.
      head: the column headings; () for none.
      folded: shown on demand.
    """

    name: str
    title: str
    note: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    folded: bool = False

    kind = "table"


class Grid(NamedTuple):
    """A matrix with a color in each cell.

    Attributes:
      corner: what the rows and the columns are: "true \\ says".
      rows: heading -> cells.
    """

    name: str
    title: str
    note: str
    corner: str
    columns: tuple[str, ...]
    rows: list[tuple[str, list["Cell"]]]

    kind = "grid"


class Cell(NamedTuple):
    """Of a grid.

    Attributes:
      shade: 0 (no color) to 1.
      is_wrong: colored as a mistake.
    """

    text: str
    shade: float
    is_wrong: bool = False


class Gallery(NamedTuple):
    """Pictures with their captions, side by side.

    Attributes:
      wide: each picture has a row to itself.
    """

    name: str
    title: str
    note: str
    items: list["Item"]
    wide: bool = False

    kind = "gallery"


class Item(NamedTuple):
    """Of a gallery.

    Attributes:
      image: (H, W, C) uint8: gray, gray and alpha, RGB or RGBA.
      lines: the caption.
      alt: what a screen reader says in place of the picture; "" where the caption says it all.
      bars: probabilities shown below it.
      leads: begins a row.
      name: in files, of a gallery whose pictures are files of their own.
    """

    image: np.ndarray
    lines: tuple[str, ...]
    alt: str = ""
    bars: tuple["Bar", ...] = ()
    leads: bool = False
    name: str = ""


class Bar(NamedTuple):
    """The probability of a class. `is_true`: the class is the example's own label; None where that
    is not known.
    """

    name: str
    share: float
    is_true: bool | None

    @property
    def words(self) -> str:
        return f"{self.name} *" if self.is_true else self.name


def percent(share: float) -> str:
    """A probability; 99.96% is not 100%."""
    text = f"{100 * share:.1f}%"
    return ">99.9%" if text == "100.0%" else text


class Drawing(NamedTuple):
    """A figure that matplotlib has drawn.

    Attributes:
      alt: what it shows.
      svg, png: the files; b"" for none.
      min_width: below so many CSS pixels it is scrolled, not shrunk.
    """

    name: str
    title: str
    note: str
    alt: str
    svg: bytes
    png: bytes
    min_width: int = 0

    kind = "drawing"


class Subject(NamedTuple):
    """A run or a study in a report.

    Attributes:
      name: unique in the report; of letters, digits, - and _.
      title: the heading.
      summary: a line.
      missing: what could not be shown, and why.
    """

    name: str
    title: str
    summary: str
    parts: list[Table | Grid | Gallery | Drawing]
    missing: list[str]
