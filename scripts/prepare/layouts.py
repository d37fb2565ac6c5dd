"""Lists the images of a source, with their labels: ImageNet's official tar files, or class folders,
as they are or under train/, val/ and test/.
"""

import functools
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

from common.errors import DataError, one_line
from common.order import epoch_order
from scripts.prepare.entries import File, entries, is_hidden, printable, read

# Folder, in lowercase -> TFDS's name of the split.
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
ENDINGS = (".jpg", ".jpeg", ".png")  # case-insensitive
DESCRIPTIONS = (".txt", ".csv", ".json", ".xml")  # beside images; no one expects them in a set
_WNID = re.compile(r"n\d{8}")
_OFFICIAL_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")

# Why something is left out.
HIDDEN = "hidden or system files and folders"
OTHER_ENDING = f"files that do not end in {', '.join(ENDINGS)}"
OUTSIDE = "images outside of the class folders"
BELOW = "images in folders below those of a class"
UNLABELED = "images without labels"
TEST_UNLABELED = "test images without labels"  # as ImageNet's: nothing is missing


class Source(NamedTuple):
    """What `find_images` found.

    Attributes:
      splits: some of `train`, `validation` and `test` -> the images, in storage order.
      class_names: label k is class_names[k].
      left_out: a reason -> the names of what was left out for it.
    """

    splits: dict[str, list[File]]
    class_names: tuple[str, ...]
    left_out: dict[str, list[str]]


Folder = tuple[str, ...]  # the parts of its path in the source


class _Tree(NamedTuple):
    """The files of a source by their folders.

    Attributes:
      images: folder -> images that lie directly in it.
      below: folder -> its folders that hold images, directly or deeper.
      folders: all folders, empty ones too.
      annotations: folder -> its file `*_annotations.txt`, as in Tiny ImageNet.
    """

    images: dict[Folder, list[File]]
    below: dict[Folder, set[Folder]]
    folders: set[Folder]
    annotations: dict[Folder, File]


@functools.cache
def synsets() -> dict[str, str]:
    """The 1,000 classes of ILSVRC 2012: wnid -> name, sorted by wnid; the rank is the usual class
    index.
    """
    lines = Path(__file__).with_name("synsets.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def find_images(source: str | Path, *, all_synsets: bool = True) -> Source:
    """Lists the images of a source, with their labels.

    Args:
      source: a folder with the official `ILSVRC2012_img_train.tar` and `ILSVRC2012_img_val.tar`, or
        one of them; a folder with `train/<class>/` and, under their names in SPLITS, those of the
        other splits; a folder with `<class>/`, which gives `train`; or an uncompressed tar file of
        such a tree. The images of a class are in its folder, or in one folder below, as in Tiny
        ImageNet, whose `val/images/` is labeled by `val/val_annotations.txt`. Official validation
        images may also lie in `val/` without class folders: TFDS ships their labels. Files are read
        in random order, so an SSD helps.
      all_synsets: if the classes are named like wnids (n and 8 digits) they are the 1,000
        `synsets`, even where the source has only some.

    Returns:
      The images. Class names are the names of the folders, sorted; numbers as numbers.

    Raises:
      DataError: not such a source, an unknown synset, a class folder or a split without images, or
        one for which more would be left out than taken.
    """
    source, left_out = Path(source).expanduser(), defaultdict(list)
    try:
        return _arrange(entries(source, left_out), source, left_out, all_synsets)
    except tarfile.TarError as error:
        raise DataError(
            f"a tar file of {source} is corrupt or compressed ({one_line(error)}); "
            "download or decompress it"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {source}: {one_line(error)}") from error


def draw_test_split(source: Source, share: float, seed: int) -> Source:
    """Moves `share` of the training images of each class to `test`: at least one where a class has
    two, and never all. Which ones is a function of the names, `share` and `seed`.
    """
    train = source.splits["train"]
    drawn, of_class = set(), defaultdict(list)
    for file in sorted(train):
        of_class[file.label].append(file)
    for label, files in of_class.items():
        count = min(max(round(share * len(files)), 1), len(files) - 1)
        drawn |= {files[i] for i in epoch_order(len(files), seed, label)[:count]}
    splits = {"train": [file for file in train if file not in drawn]}
    splits["test"] = [file for file in train if file in drawn]
    if not drawn:
        raise DataError("no class has two images, one to train on and one to test on")
    return source._replace(splits=splits)


def _arrange(
    found: Iterator[File], source: Path, left_out: dict[str, list[str]], all_synsets: bool
) -> Source:
    """Sorts the entries into splits and classes."""
    tree, validation = _Tree({}, defaultdict(set), set(), {}), []
    hidden = {}  # as a set, in order
    for entry in found:
        entry = entry._replace(name=printable(entry.name))
        *parents, name = parts = entry.name.split("/")
        if depth := next((i for i, part in enumerate(parts, 1) if is_hidden(part)), 0):
            hidden["/".join(parts[:depth])] = True
            continue
        folder = tuple(parents)
        if folder not in tree.folders:
            tree.folders.update(folder[:depth] for depth in range(1, len(folder) + 1))
        in_class = bool(folder) and bool(_WNID.fullmatch(folder[-1]))
        if _OFFICIAL_VALIDATION.fullmatch(name) and not in_class:
            validation.append(entry)
        elif name.lower().endswith(ENDINGS):
            _add_image(tree, folder, entry)
        elif name.endswith("_annotations.txt"):
            tree.annotations[folder] = entry
        elif name:
            left_out[OTHER_ENDING].append(entry.name)
    left_out[HIDDEN] += hidden
    if not all_synsets and not any(_WNID.fullmatch(f[-1]) for f in tree.folders):
        for entry in validation.copy():  # in classes of one's own, whatever its name
            folder = tuple(entry.name.split("/")[:-1])
            if folder and folder[-1].lower() not in SPLITS:
                validation.remove(entry)
                _add_image(tree, folder, entry)

    class_of = [(entry, "validation", _validation_wnid(entry.name)) for entry in validation]
    roots = _roots(tree, source, required=not validation)
    class_of += _labeled(tree, roots, source, left_out)
    _require_split_folders(tree, roots, {split for _, split, _ in class_of}, source, left_out)
    taken = {entry.name for entry, _, _ in class_of}
    known = taken.union(*(left_out[reason] for reason in (BELOW, UNLABELED, TEST_UNLABELED)))
    for files in tree.images.values():
        left_out[OUTSIDE] += [entry.name for entry in files if entry.name not in known]

    names = _class_names({name for _, _, name in class_of}, source, all_synsets)
    labels = {name: label for label, name in enumerate(names)}
    splits: dict[str, list[File]] = {split: [] for split in SPLITS.values()}
    for entry, split, name in sorted(class_of):
        splits[split].append(entry._replace(label=labels[name]))
    shuffled = {
        split: [files[i] for i in epoch_order(len(files), 0, 0)]
        for split, files in splits.items()
        if files
    }
    arranged = Source(shuffled, names, {why: sorted(out) for why, out in left_out.items() if out})
    _require_most_taken(arranged, source)
    return arranged


def _add_image(tree: _Tree, folder: Folder, entry: File) -> None:
    tree.images.setdefault(folder, []).append(entry)
    for depth in range(len(folder), 0, -1):
        tree.below[folder[: depth - 1]].add(folder[:depth])


def _roots(tree: _Tree, source: Path, *, required: bool) -> dict[Folder, str]:
    """The folders that hold class folders -> their split; none only if not `required`."""

    def is_split(folder: Folder) -> bool:
        return folder[-1].lower() in SPLITS and bool(tree.below.get(folder))

    def splits_below(folder: Folder) -> Iterator[Folder]:
        for child in sorted(tree.below.get(folder, ())):
            # The outermost, but for one that only holds others, as after unpacking train/train/.
            if is_split(child) and not all(map(is_split, tree.below[child])):
                yield child
            else:
                yield from splits_below(child)

    roots = {folder: SPLITS[folder[-1].lower()] for folder in splits_below(())}
    for split in set(roots.values()):
        several = ["/".join(folder) for folder in roots if roots[folder] == split]
        if len(several) > 1:
            raise DataError(
                f"{' and '.join(several)} of {source} are both the {split} split; move one of them "
                "away, or choose one by --source"
            )
    if roots or not required:
        return roots
    root = ()
    while len(tree.below.get(root, ())) == 1 and root not in tree.images:
        (child,) = tree.below[root]
        if child in tree.images:
            break
        root = child
    if not tree.below.get(root):
        found = ", such as " + min(file.name for file in tree.images[()]) if tree.images else ""
        raise DataError(
            f"--source={source} has neither ILSVRC2012_img_*.tar, nor train/<class>/ and "
            f"val/<class>/ or test/<class>/, nor <class>/ with files that end in "
            f"{', '.join(ENDINGS)}; "
            + (f"its images are in no folder{found}" if found else "it has no such files")
        )
    return {root: "train"}


def _labeled(
    tree: _Tree, roots: dict[Folder, str], source: Path, left_out: dict[str, list[str]]
) -> Iterator[tuple[File, str, str]]:
    """The images of the splits: (image, split, class name). Raises DataError for a split that has
    no class of `train`; if it is test images in a single folder, they lack labels.
    """
    trained = []
    for root, split in sorted(roots.items(), key=lambda item: item[1] != "train"):
        found = list(_classes(tree, root, source, left_out))
        names = list(dict.fromkeys(name for _, name in found))
        if split == "train":
            trained = names
        elif trained and found and not set(names) & set(trained):
            if split != "test" or len(names) > 1:
                raise DataError(
                    f"{'/'.join(root)} of {source}, the {split} split, has classes such as "
                    f"{names[0]}, and none of those of train, such as {trained[0]}"
                )
            left_out[TEST_UNLABELED] += [entry.name for entry, _ in found]
            continue
        yield from ((entry, split, name) for entry, name in found)


def _classes(
    tree: _Tree, root: Folder, source: Path, left_out: dict[str, list[str]]
) -> Iterator[tuple[File, str]]:
    """The images of a split with the names of their classes. Raises DataError where a folder is
    not that of a class.
    """
    annotated = tree.annotations.get(root)
    if annotated and len(tree.below[root]) < 2:  # else these are class folders
        lines = read(annotated).decode(errors="replace").splitlines()
        class_of = dict(line.split(maxsplit=2)[:2] for line in lines if len(line.split()) > 1)
        for folder in (root, *sorted(tree.below[root])):
            for entry in tree.images.get(folder, ()):
                name = class_of.get(entry.name.rpartition("/")[2])
                if name is None:
                    left_out[UNLABELED].append(entry.name)
                else:
                    yield entry, printable(name)
        return
    children = {folder for folder in tree.folders if folder[:-1] == root}
    for child in sorted(children):
        holders = [f for f in _with_images(tree, child) if f == child or child not in tree.images]
        place = "/".join(child)
        if not holders:
            raise DataError(
                f"the class folder {place} of {source} has no images; fill or remove it"
            )
        if len(holders) > 1:
            names = ", ".join("/".join(holder[len(child) :]) for holder in holders[:3])
            raise DataError(
                f"the folder {place} of {source} has its images in {len(holders)} folders "
                f"({names}), where a class has them in one; move it away, or, if these are the "
                f"classes, use --source={source / place}"
            )
        yield from ((entry, child[-1]) for entry in tree.images[holders[0]])
        for folder in _with_images(tree, child):
            if folder not in holders:
                left_out[BELOW] += [entry.name for entry in tree.images[folder]]


def _with_images(tree: _Tree, folder: Folder) -> list[Folder]:
    """The folder and those below it, as far as images lie directly in them."""
    found = [folder] if folder in tree.images else []
    for child in sorted(tree.below.get(folder, ())):
        found += _with_images(tree, child)
    return found


def _require_split_folders(
    tree: _Tree, roots: dict[Folder, str], splits: set[str], source: Path, left_out: dict
) -> None:
    """Raises DataError for a folder beside those of splits that is named like one of another split
    and has no labeled images. Test images may lack labels: they are left out.
    """
    places = {root[:-1] for root in roots if root and root[-1].lower() in SPLITS}
    for folder in sorted(tree.folders):
        split = SPLITS.get(folder[-1].lower())
        if folder[:-1] not in places or split is None or split in splits:
            continue
        unlabeled = [entry.name for f in _with_images(tree, folder) for entry in tree.images[f]]
        if split == "test" and unlabeled:
            if folder not in roots:  # else they are listed
                left_out[TEST_UNLABELED] += unlabeled
            continue
        raise DataError(
            f"{'/'.join(folder)} of {source}, the {split} split, has no images in class folders; "
            "fill or remove it"
        )


def _require_most_taken(found: Source, source: Path) -> None:
    unexpected = {
        reason: [name for name in names if not name.lower().endswith(DESCRIPTIONS)]
        for reason, names in found.left_out.items()
        if reason not in (HIDDEN, TEST_UNLABELED)
    }
    missed, taken = sum(map(len, unexpected.values())), sum(map(len, found.splits.values()))
    if missed > taken:
        reasons = "; ".join(
            f"{len(x):,} {why}, such as {x[0]}" for why, x in unexpected.items() if x
        )
        raise DataError(
            f"most files of {source} would be left out, {missed:,} of {missed + taken:,}: "
            f"{reasons}; move them into class folders, or away"
        )


def _class_names(names: set[str], source: Path, all_synsets: bool) -> tuple[str, ...]:
    if not all_synsets or not any(_WNID.fullmatch(name) for name in names):
        return tuple(sorted(names, key=_rank))
    unknown = sorted(names - synsets().keys())
    if unknown:
        raise DataError(
            f"the class folder {unknown[0]} of {source} is not one of the 1,000 synsets of "
            "ILSVRC 2012"
        )
    return tuple(synsets())


def _rank(name: str) -> tuple:
    digits = name.lstrip("0") if name.isascii() and name.isdecimal() else None
    return digits is None, len(digits or ""), digits or "", name  # by value, however many digits


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
