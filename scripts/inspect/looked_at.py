"""One picture on its way through the network: every layer, and which part of it matters."""

from typing import NamedTuple

import numpy as np
import scipy.special

from lenet.codes import digit_codes
from scripts.inspect.examples import bars, said
from scripts.inspect.opened import Run
from scripts.inspect.parts import Gallery, Item, percent
from scripts.inspect.pixels import columns_of, gray, in_colors, mosaic, reduced
from scripts.inspect.seen import occlusion
from scripts.pictures import seen_part

MAPS, MAPS_PX = 64, 100_000  # of a layer, at most
WHITE_PERCENTILE = 99
# Sixteen maps in a row where they are small, in pixels, and more than a few; else eight.
SMALL_MAP, FEW_MAPS = 16, 32


class Picture(NamedTuple):
    """What is looked at.

    Attributes:
      original: (H, W, C) uint8 of any size.
      image: (H, W, C) uint8, as the training set stores images.
      title: which it is.
      label: None where it is not known.
      layers: what each passes on, by its paper name, the output last.
    """

    original: np.ndarray
    image: np.ndarray
    title: str
    label: int | None
    layers: dict[str, np.ndarray]

    @property
    def hidden(self) -> str:
        """The last layer before the output: F6, or fc7."""
        return list(self.layers)[-2]

    @property
    def features(self) -> np.ndarray:
        """(units,): what the last hidden layer makes of the picture."""
        return self.layers[self.hidden].ravel()

    @property
    def probabilities(self) -> np.ndarray:
        """(num_classes,)."""
        *_, logits = self.layers.values()
        return scipy.special.softmax(logits)


def what_it_says(run: Run, picture: Picture) -> Gallery:
    """The picture with its most probable classes."""
    probabilities = picture.probabilities
    top = bars(run, probabilities, picture.label)
    part = seen_part(picture.image, run.trained.network)
    items = [Item(reduced(part), (picture.title, said(run, probabilities)), bars=top)]
    if picture.original.shape != part.shape:
        items[0] = items[0]._replace(lines=("what the network gets", said(run, probabilities)))
        items.insert(0, Item(reduced(picture.original), (picture.title,)))
    note = "With the most probable classes."
    return Gallery("picture", "The picture looked at", note, items)


def feature_maps(run: Run, picture: Picture) -> Gallery:
    """What every layer makes of the picture, up to the output."""
    *hidden, _ = picture.layers.items()
    items = []
    for name, x in hidden:
        low, high = float(x.min()), float(np.percentile(x, WHITE_PERCENTILE))
        high = high if high > low else float(x.max())  # where nearly all are silent
        if x.ndim == 1 or x.shape[:2] == (1, 1):
            tiles, columns, what = units(run, name, x)
        else:
            height, width, maps = x.shape
            columns = min(maps, 16 if width <= SMALL_MAP and maps > FEW_MAPS else 8)
            shown = min(maps, MAPS, max(MAPS_PX // (height * width * 8), 1) * 8)
            tiles = np.moveaxis(x, -1, 0)[:shown]
            what = f"{maps} maps of {height}x{width}" + f", {shown} shown" * (shown < maps)
        title = f"{run.layer_title(name)}: {what}"
        lines = (title, f"{low:.3g} (black) to {high:.3g} (white), at most {x.max():.3g}")
        image = mosaic(gray(tiles, low, high)[..., None], columns)
        items.append(Item(image, lines, f"{title}, as gray levels", name=name))
    note = (
        f"What each layer passes on of {picture.title}: the least value of a layer is black, what "
        f"lies above {WHITE_PERCENTILE}% of its values is white."
    )
    return Gallery("feature_maps", "Feature maps", note, items, wide=True)


def units(run: Run, name: str, x: np.ndarray) -> tuple[np.ndarray, int, str]:
    """Units without places as a map, those of F6 beside the nearest of the codes that they are
    compared with: (maps, columns of maps, what they are).
    """
    columns, what = columns_of(x.size), f"{x.size:,} units"
    tiles = padded(x.ravel(), columns)
    config = run.trained.config
    if run.network != "lenet" or name != "f6" or config.output != "rbf":
        return tiles, 1, what
    codes = digit_codes(config.codes)
    nearest = int(((codes - x) ** 2).sum(axis=1).argmin())
    code = codes[nearest].reshape(tiles.shape)
    what = f"{what}, and the nearest code, that of {run.name_of(nearest)}"
    return np.concatenate([tiles, code]), 2, what


def padded(x: np.ndarray, columns: int) -> np.ndarray:
    """(units,) as (1, rows, columns), the rest filled with the least value."""
    rows = -(-x.size // columns)
    filling = np.full(rows * columns - x.size, x.min(), x.dtype)
    return np.concatenate([x, filling]).reshape(1, rows, columns)


def occlusion_map(run: Run, picture: Picture) -> Gallery:
    """How sure the network stays where a square covers a part of the picture."""
    probabilities = picture.probabilities
    best = int(probabilities.argmax())
    name = run.name_of(best)
    found = occlusion(lambda images: run.trained.predict(images)[:, best], picture.image)
    shares, covered = found.shares, run.trained.predict(found.worst[None])[0]
    height, width, _ = picture.image.shape
    colors = in_colors(shares / max(float(shares.max()), 1e-9))
    sides = zip((height, width), shares.shape, strict=True)
    places = (np.minimum(np.arange(side) // found.step, last - 1) for side, last in sides)
    enlarged = colors[np.ix_(*places)]
    spans = f"{percent(shares.min())} to {percent(shares.max())}"
    items = [
        Item(reduced(picture.image), (picture.title, said(run, probabilities)), "uncovered"),
        Item(
            reduced(enlarged),
            (
                f"probability of {name} with the square there: {spans}",
                "dark blue is 0%, yellow the most",
            ),
            f"map of the probability of {name}, by the place of the square",
        ),
        Item(
            reduced(found.worst),
            ("covered where it harms most", said(run, covered)),
            "the picture with the square where it harms most",
        ),
    ]
    note = (
        f"A square of {found.side}x{found.side} pixels covers one part after the other. Where the "
        f"map is dark, the network needs that part to say {name}."
    )
    if seen_part(picture.image, run.trained.network).shape != picture.image.shape:
        note += " It sees the center alone: a square outside of that changes nothing."
    if run.network == "lenet" and run.trained.config.output == "rbf":
        note += " RBF units are so sure that their probabilities may not change at all."
    return Gallery("occlusion", "Occlusion map", note, items)
