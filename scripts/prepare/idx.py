"""A set of one's own from pairs of IDX files, the format of MNIST: images and their labels."""

import hashlib
import re
from pathlib import Path

import numpy as np
from PIL import Image

from common.errors import DataError
from scripts.prepare import equal_images
from scripts.prepare.encode import Form, resized
from scripts.prepare.layouts import SPLITS, File, Source
from scripts.prepare.published import prepared_before, read_idx, write_published
from scripts.prepare.table import table

NAMES = SPLITS | {"t10k": "test"}  # word in a file's name -> its split
_IMAGES = re.compile(r"(.*)images(.*idx)\d?(-ubyte)?(\.gz)?", re.IGNORECASE)


def find_pairs(source: Path) -> dict[str, tuple[Path, Path]]:
    """Split -> the files of its images and labels; none if `source` has no IDX files of images.

    A pair has one name, but for `images` and `labels` and the digit after `idx`. A pair whose name
    has none of NAMES is `train`. Raises DataError for images without labels, and two pairs of one
    split.
    """
    if not source.is_dir():
        return {}
    files = {path.name.lower(): path for path in sorted(source.iterdir()) if path.is_file()}
    pairs = {}
    for name, path in files.items():
        if not (match := _IMAGES.fullmatch(name)):
            continue
        before, after, _, _ = match.groups()
        labels = re.compile(rf"{re.escape(before)}labels{re.escape(after)}\d?(-ubyte)?(\.gz)?")
        partner = next((other for key, other in files.items() if labels.fullmatch(key)), None)
        if partner is None:
            raise DataError(f"{path} has no file of labels beside it, such as one with idx1")
        words = re.split(r"[^a-z0-9]+", f"{before} {after}")
        split = next((split for word, split in NAMES.items() if word in words), "train")
        if split in pairs:
            raise DataError(
                f"{pairs[split][0]} and {path} are both the {split} split; move one of them away"
            )
        pairs[split] = path, partner
    return pairs


def prepare_idx(
    data_dir: Path,
    dataset: str,
    pairs: dict[str, tuple[Path, Path]],
    size: int | None,
    grey: bool,
    draw,
) -> Path:
    """Prepares `<data_dir>/<dataset>/1.0.0/`, in the files' order, and prints what it has; returns
    that folder. Class names are the labels that occur.

    Args:
      size: what images are resized to, in pixels; None: as they are.
      grey: one channel; gray ones have it anyway.
      draw: a Source without a test split -> the one to prepare.

    Raises:
      DataError: files that are no such pairs, or a set of this name from other files.
      StorageError: `data_dir` cannot be written.
    """
    arrays = {split: _read_pair(*pair, size, grey) for split, pair in pairs.items()}
    shapes = {images.shape[1:] for images, _ in arrays.values()}
    if len(shapes) > 1:
        raise DataError(f"images of several sizes, {sorted(shapes)}; choose one with --size")
    values = np.unique(np.concatenate([labels for _, labels in arrays.values()]))
    # Listed like files, so that both kinds of sets are drawn and counted alike.
    found = Source(
        {
            split: [
                File(f"{pairs[split][0].name}, image {i:08d}", split, i, 0, int(label))
                for i, label in enumerate(np.searchsorted(values, labels))
            ]
            for split, (_, labels) in arrays.items()
        },
        tuple(map(str, values)),
        {},
    )
    found, digest = draw(found), hashlib.sha256()
    splits = {}
    for split, files in found.splits.items():
        place, labels = files[0].path, np.array([file.label for file in files])
        splits[split] = arrays[place][0][[file.offset for file in files]], labels
        for array in splits[split]:
            digest.update(f"{split} {array.dtype} {array.shape}".encode() + array.tobytes())
    description = f"From IDX files. SHA-256 of images and labels: {digest.hexdigest()}"
    if folder := prepared_before(data_dir, dataset, "1.0.0", description):
        return folder
    names = found.class_names
    folder = write_published(
        data_dir, dataset, "1.0.0", splits, names, keep_order=True, description=description
    )
    digests = {
        split: np.array([equal_images.digest(image) for image in images], np.uint64)
        for split, (images, _) in splits.items()
    }
    print("\n".join([table(found), *equal_images.equal_images(found, digests)]))
    return folder


def _read_pair(
    image_file: Path, label_file: Path, size: int | None, grey: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W, C) uint8 and labels (N,). Raises DataError."""
    try:
        images, labels = (
            read_idx(path.read_bytes(), str(path)) for path in (image_file, label_file)
        )
    except OSError as error:
        raise DataError(f"cannot read {image_file} and {label_file} ({error})") from error
    images = images[..., None] if images.ndim == 3 else images
    is_color = images.ndim == 4 and images.shape[-1] in (1, 3)
    if not images.size or not is_color or images.dtype != np.uint8:
        raise DataError(
            f"{image_file} has no images of 8 bits: {images.dtype} of shape {images.shape}"
        )
    if labels.shape != images.shape[:1]:
        raise DataError(
            f"{image_file} and {label_file} do not match: {len(images):,} images and labels of "
            f"shape {labels.shape}"
        )
    channels = images.shape[-1]
    if size is None and (channels == 1 or not grey):
        return images, labels
    if size is None:
        gray = [np.asarray(Image.fromarray(image).convert("L")) for image in images]
        return np.stack(gray)[..., None], labels
    form = Form(size=size, grey=grey or channels == 1)
    pixels = images[..., 0] if channels == 1 else images
    squares = [resized(Image.fromarray(image), form) for image in pixels]
    return np.stack(squares), labels
