"""`scripts.predict --string`: the digits of one line on each picture."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from PIL import Image

from common.classes import name_of
from common.errors import DataError, UserError
from common.network import Network, Trained
from lenet import space_displacement
from lenet.normalize import MAX_STRING_WIDTH, SIZE, String, normalize_string
from scripts.pictures import knows_digits, read_picture, takes_digits
from scripts.prepare.entries import printable
from scripts.runs import is_alexnet


class Line(NamedTuple):
    """What was read on a picture.

    Attributes:
      file: as it was named.
      picture: (H, W, 1) uint8.
      strip: what the network saw of it.
      digits: from left to right.
      names: of these digits' classes; their numbers where the run has no names.
    """

    file: str
    picture: np.ndarray
    strip: String
    digits: list[space_displacement.Digit]
    names: list[str]

    def columns_of(self, digit: space_displacement.Digit) -> tuple[int, int]:
        """The first column of the picture that the digit's window sees, and the one after the last,
        within the picture.
        """
        ends = (digit.left, digit.left + space_displacement.WINDOW)
        first, end = (round(self.strip.left + self.strip.scale * column) for column in ends)
        return max(first, 0), min(end, self.picture.shape[1])


def require_fit(workdir: Path, flag_values: flags.FlagValues) -> None:
    """Raises UserError for an AlexNet run, and flags that are for other pictures."""
    if is_alexnet(workdir):
        raise UserError(f"--string is for LeNet-5; {workdir} is an AlexNet run")
    if flag_values.crops != "center":
        raise UserError(f"--crops={flag_values.crops} is for AlexNet, --string for LeNet-5")
    if flag_values["top_k"].present:
        raise UserError("--top_k is not for --string, which prints one digit at each place")


def require_digits(network: Network, digit: str, tool: str = "--string") -> None:
    """Raises UserError unless the network was trained on digits such as MNIST's."""
    if not (takes_digits(network) if digit == "on" else knows_digits(network)):
        ways = "; add --digit=on if those are gray digits, white on black"
        way = ways if takes_digits(network) and tool == "--string" else ""
        raise UserError(
            f"{tool} is for networks that were trained on MNIST's digits; this one was trained on "
            f"{network.config.dataset}{way}"
        )


def read_lines(trained: Trained, files: Sequence[str], digit: str) -> Iterator[Line | DataError]:
    """What is on each file, in order, or why it could not be read. `digit`: see `strip_of`."""
    for file in files:
        try:
            picture, strip = _read(file, digit)
        except DataError as error:
            yield error
            continue
        (digits,) = space_displacement.read(trained, strip.image[None, ..., None])
        names = [name_of(found.label, trained.class_names) for found in digits]
        yield Line(file, picture, strip, digits, names)


def _read(file: str, digit: str) -> tuple[np.ndarray, String]:
    """Raises DataError, with the file's name."""
    picture = read_picture(file, 1)
    try:
        return picture, strip_of(picture[..., 0], digit)
    except ValueError as error:
        raise DataError(f"{printable(file)}: {error}") from error


def strip_of(picture: np.ndarray, digit: str) -> String:
    """A picture as an image of 28 or 32 rows, white on black.

    Args:
      picture: (H, W) uint8.
      digit: `on`: the digits are found and scaled; `off`: the picture is scaled to 28 rows; `auto`:
        as `on`, but a picture of 28 or 32 rows is taken as it is.

    Raises ValueError: no ink, or a line too long.
    """
    rows, columns = picture.shape
    stored = rows in (SIZE, space_displacement.WINDOW)
    if digit == "on" or (digit == "auto" and not stored):
        strip = normalize_string(picture)
        if strip is None:
            raise ValueError("no digits: no ink on it, or hardly any contrast")
        return strip
    if columns * SIZE / rows > MAX_STRING_WIDTH:
        raise ValueError(f"a line {columns / rows:,.0f} times as long as it is high")
    if stored:
        return String(picture, 0.0, 1.0)
    size = (max(round(columns * SIZE / rows), 1), SIZE)
    return String(np.asarray(Image.fromarray(picture).resize(size)), 0.0, columns / size[0])


def as_line(found: Line) -> str:
    """`string.png: 70241 (least certain: 2, 93.10%)`."""
    if not found.digits:
        return f"{printable(found.file)}: no digits"
    least, name = min(
        (digit.probability, name) for digit, name in zip(found.digits, found.names, strict=True)
    )
    certainty = f"least certain: {printable(name)}, {100 * least:.2f}%"
    return f"{printable(found.file)}: {printable(text(found))} ({certainty})"


def as_json(found: Line) -> str:
    digits = []
    for digit, name in zip(found.digits, found.names, strict=True):
        left, right = found.columns_of(digit)
        of_digit = {"label": digit.label, "name": name, "probability": digit.probability}
        digits.append(of_digit | {"left": left, "right": right})
    return json.dumps({"file": found.file, "string": text(found), "digits": digits})


def text(found: Line) -> str:
    """The string; names of several characters are kept apart by spaces."""
    return ("" if all(len(name) == 1 for name in found.names) else " ").join(found.names)
