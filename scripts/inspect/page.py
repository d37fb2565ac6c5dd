"""The report as one HTML file."""

import base64
from pathlib import Path

import jinja2
import markupsafe
import numpy as np

from common import provenance
from scripts.inspect.parts import Gallery, Subject, percent
from scripts.inspect.pixels import data_uri

# CSS pixels that a picture gets, about: a layer's, one of a few, one of many, any other.
LAYER_PX, FEW_PX, MANY_PX, PICTURE_PX = 640, 168, 84, 112
LAYER_HEIGHT_PX = 480
FEW, MANY = 3, 30


def render(subjects: list[Subject]) -> str:
    """The page. All that comes from files is escaped."""
    environment = environment_of(Path(__file__).parent)
    environment.finalize = filled_in
    environment.filters |= {"data_uri": data_uri, "base64": as_base64, "shown_width": shown_width}
    environment.filters["percent"] = percent
    environment.globals["MANY"] = MANY
    template = environment.get_template("report.html.jinja")
    return template.render(subjects=subjects, command=provenance.command())


def environment_of(folder: Path) -> jinja2.Environment:
    """What renders the templates of a folder, with all that is filled in escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def without_controls(text: str) -> str:
    """Text without control characters and marks that reverse it."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def filled_in(value):
    """What the template prints: text without controls, its own HTML as it is."""
    return value if isinstance(value, markupsafe.Markup) else without_controls(str(value))


def as_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def shown_width(image: np.ndarray, gallery: Gallery) -> int:
    """CSS pixels: a whole multiple of a small picture's own."""
    (height, width, _), count = image.shape, len(gallery.items)
    if gallery.wide:
        return width * min(max(min(LAYER_PX // width, LAYER_HEIGHT_PX // height), 1), 12)
    largest = MANY_PX if count > MANY else FEW_PX if count <= FEW else PICTURE_PX
    return width * max(largest // width, 1)
