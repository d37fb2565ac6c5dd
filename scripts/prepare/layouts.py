"""Lists the images of ImageNet's official tar files, or of a class-per-folder tree, with labels."""

import functools
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

from common.errors import DataError, one_line
from common.order import epoch_order

SPLITS = {"train": "train", "val": "validation"}  # folder -> TFDS's name of the split
ENDINGS = (".jpg", ".jpeg", ".png")  # case-insensitive
_WNID = re.compile(r"n\d{8}")
_OFFICIAL_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


class File(NamedTuple):
    """An image of the source: `size` bytes at byte `offset` of the file at `path`; `name` is
    relative to the source.
    """

    name: str
    path: str
    offset: int
    size: int
    label: int = -1


class Source(NamedTuple):
    """What `find_images` found.

    Attributes:
      splits: `train` and `validation`, or one of them -> the images, in storage order.
      class_names: label k is class_names[k].
      left_out: names of the files that are not images of any class.
    """

    splits: dict[str, list[File]]
    class_names: tuple[str, ...]
    left_out: list[str]


@functools.cache
def synsets() -> dict[str, str]:
    """The 1,000 classes of ILSVRC 2012: wnid -> name, sorted by wnid; the rank is the usual class
    index.
    """
    lines = Path(__file__).with_name("synsets.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def find_images(source: str | Path) -> Source:
    """Lists the images of a source, with their labels.

    Args:
      source: a folder with the official `ILSVRC2012_img_train.tar` and `ILSVRC2012_img_val.tar`, or
        one of them; a folder with `train/<class>/*.JPEG` and `val/<class>/*.JPEG`, or one of them,
        or with `<class>/*.JPEG`, which gives `train`; or an uncompressed tar file of such a tree.
        Official validation images may also lie in `val/` without class folders: TFDS ships their
        labels. They are read in random order, so an SSD helps.

    Returns:
      The images. If the classes are named like wnids (n and 8 digits) they are the 1,000 `synsets`,
      even where the source has only some; otherwise the names of the class folders, sorted.

    Raises:
      DataError: not such a source, an unknown synset, or a class folder without images.
    """
    source = Path(source).expanduser()
    try:
        return _arrange(_entries(source), source)
    except tarfile.TarError as error:
        raise DataError(
            f"a tar file of {source} is corrupt or compressed ({one_line(error)}); "
            "download or decompress it"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {source}: {one_line(error)}") from error


def _entries(source: Path) -> Iterator[File]:
    """Every file, and every folder under a name that ends in a slash."""
    if source.is_dir():
        official = {folder: source / f"ILSVRC2012_img_{folder}.tar" for folder in SPLITS}
        tars = [(f"{folder}/", path) for folder, path in official.items() if path.is_file()]
        if not tars:
            yield from _folder_entries(source)
    elif source.is_file():
        tars = [("", source)]
    else:
        raise DataError(f"--source={source} is neither a folder nor a tar file")
    for prefix, path in tars:
        with tarfile.open(path, "r:") as archive:
            yield from _tar_entries(archive, str(path), prefix, 0)


def _folder_entries(folder: Path) -> Iterator[File]:
    def fail(error: OSError):
        raise error

    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        prefix = "" if place == str(folder) else f"{Path(place).relative_to(folder).as_posix()}/"
        yield from (File(f"{prefix}{name}/", "", 0, 0) for name in folders)
        for name in names:
            path = os.path.join(place, name)
            yield File(prefix + name, path, 0, os.path.getsize(path) if os.path.exists(path) else 0)


def _tar_entries(archive: tarfile.TarFile, path: str, prefix: str, start: int) -> Iterator[File]:
    """Where the members lie in the file at `path`, in which `archive` begins at byte `start`; inner
    tars count as folders.
    """
    for member in archive:
        name = prefix + member.name.removeprefix("./")
        if member.isdir():
            yield File(f"{name}/", "", 0, 0)
        elif member.isfile() and name.endswith(".tar"):
            folder = name.removesuffix(".tar") + "/"
            yield File(folder, "", 0, 0)
            with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as inner:
                yield from _tar_entries(inner, path, folder, start + member.offset_data)
        else:
            yield File(name, path, start + member.offset_data, member.size)


def _arrange(entries: Iterator[File], source: Path) -> Source:
    """Sorts the entries into splits and classes."""
    folders: set[tuple[str, ...]] = set()
    images: dict[tuple[str, ...], list[File]] = {}
    validation, left_out = [], []
    for entry in entries:
        *parents, name = entry.name.split("/")
        folder = tuple(parents)
        if folder not in folders:
            folders.update(folder[:depth] for depth in range(1, len(folder) + 1))
        in_class = bool(folder) and bool(_WNID.fullmatch(folder[-1]))
        if _OFFICIAL_VALIDATION.fullmatch(name) and not in_class:
            validation.append(entry)
        elif name.lower().endswith(ENDINGS) and folder:
            images.setdefault(folder, []).append(entry)
        elif name:
            left_out.append(entry.name)

    roots = _roots(images, source, required=not validation)
    empty = sorted(folder for folder in folders if folder[:-1] in roots and folder not in images)
    if empty:
        raise DataError(
            f"the class folder {'/'.join(empty[0])} of {source} has no images; fill or remove it"
        )
    class_of = [(entry, "validation", _validation_wnid(entry.name)) for entry in validation]
    for folder, files in images.items():
        if folder[:-1] in roots:
            class_of += [(entry, roots[folder[:-1]], folder[-1]) for entry in files]
        else:
            left_out += [entry.name for entry in files]
    names = _class_names({name for _, _, name in class_of}, source)
    labels = {name: label for label, name in enumerate(names)}
    splits: dict[str, list[File]] = {split: [] for split in SPLITS.values()}
    for entry, split, name in sorted(class_of):
        splits[split].append(entry._replace(label=labels[name]))
    shuffled = {
        split: [files[i] for i in epoch_order(len(files), 0, 0)]
        for split, files in splits.items()
        if files
    }
    return Source(shuffled, names, sorted(left_out))


def _roots(
    images: dict[tuple[str, ...], list[File]], source: Path, *, required: bool
) -> dict[tuple[str, ...], str]:
    """The folders that hold class folders -> their split; none only if not `required`."""
    places = {folder[:-1] for folder in images}
    roots = {place: SPLITS[place[-1]] for place in places if place and place[-1] in SPLITS}
    if not roots and required and len(places) == 1:
        roots = dict.fromkeys(places, "train")
    if (not roots and required) or len(set(roots.values())) < len(roots):
        found = " and ".join("/".join(folder) for folder in sorted(images)[:2])
        raise DataError(
            f"--source={source} has neither ILSVRC2012_img_*.tar, nor train/<class>/ and "
            f"val/<class>/, nor <class>/ with files that end in {', '.join(ENDINGS)}; "
            + (f"its images are in {found}" if found else "it has no such files")
        )
    return roots


def _class_names(names: set[str], source: Path) -> tuple[str, ...]:
    if not any(_WNID.fullmatch(name) for name in names):
        return tuple(sorted(names))
    unknown = sorted(names - synsets().keys())
    if unknown:
        raise DataError(
            f"the class folder {unknown[0]} of {source} is not one of the 1,000 synsets of "
            "ILSVRC 2012"
        )
    return tuple(synsets())


@functools.cache
def _validation_wnids() -> list[str]:
    """In the order of the official file names; 50 of each class."""
    return tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()


def _validation_wnid(name: str) -> str:
    number = int(_OFFICIAL_VALIDATION.fullmatch(name.rpartition("/")[2])[1])
    if not 1 <= number <= len(_validation_wnids()):
        raise DataError(
            f"{name} is not an official validation image: they are numbered from 1 to "
            f"{len(_validation_wnids()):,}"
        )
    return _validation_wnids()[number - 1]
