"""MNIST, Fashion-MNIST, KMNIST, EMNIST and CIFAR-10 as published: where their files are, and how to
read them.
"""

import dataclasses
import gzip
import math
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from common.errors import DataError, StorageError
from common.prepared import read_json
from common.storage import make_folder
from scripts.prepare.builders import write_prepared
from scripts.prepare.download import download, verify


@dataclasses.dataclass(frozen=True)
class PublishedSet:
    """Where a data set comes from and what it contains.

    Attributes:
      version: of the prepared folder.
      address: the URL of the folder with the files, ending in a slash.
      files: name -> (size in bytes, SHA-256), as in TFDS's url_checksums/*.txt (TFDS 4.9.10).
      class_names: label k is class_names[k].
      description, homepage: for dataset_info.json.
    """

    version: str
    address: str
    files: Mapping[str, tuple[int, str]]
    class_names: tuple[str, ...]
    description: str
    homepage: str


_DIGITS = tuple("0123456789")
_UPPER = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_LOWER = tuple("abcdefghijklmnopqrstuvwxyz")
# The other 15 lowercase letters look like their capitals (EMNIST paper, II-C).
_MERGED = _DIGITS + _UPPER + tuple("abdefghnqrt")

# EMNIST is published transposed, with `letters` labeled from 1. TFDS 3.1.0 keeps both; our folders
# have upright images and labels from 0, hence another version number.
_EMNIST_CLASSES = {
    "byclass": _DIGITS + _UPPER + _LOWER,
    "bymerge": _MERGED,
    "balanced": _MERGED,
    "letters": _UPPER,
    "digits": _DIGITS,
    "mnist": _DIGITS,
}

PUBLISHED_SETS = {
    "mnist": PublishedSet(
        version="3.0.1",
        address="https://storage.googleapis.com/cvdf-datasets/mnist/",
        files={
            "train-images-idx3-ubyte.gz": (
                9912422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            "train-labels-idx1-ubyte.gz": (
                28881,
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            ),
            "t10k-images-idx3-ubyte.gz": (
                1648877,
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            "t10k-labels-idx1-ubyte.gz": (
                4542,
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        },
        class_names=_DIGITS,
        description="The MNIST database of handwritten digits.",
        homepage="http://yann.lecun.com/exdb/mnist/",
    ),
    "fashion_mnist": PublishedSet(
        version="3.0.1",
        address="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        files={
            "train-images-idx3-ubyte.gz": (
                26421880,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            "train-labels-idx1-ubyte.gz": (
                29515,
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            ),
            "t10k-images-idx3-ubyte.gz": (
                4422102,
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            "t10k-labels-idx1-ubyte.gz": (
                5148,
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        },
        class_names=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        description="Fashion-MNIST: 28x28 grey images of Zalando's articles.",
        homepage="https://github.com/zalandoresearch/fashion-mnist",
    ),
    "kmnist": PublishedSet(
        version="3.0.1",
        address="http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        files={
            "train-images-idx3-ubyte.gz": (
                18165135,
                "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            ),
            "train-labels-idx1-ubyte.gz": (
                29497,
                "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            ),
            "t10k-images-idx3-ubyte.gz": (
                3041136,
                "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            ),
            "t10k-labels-idx1-ubyte.gz": (
                5120,
                "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
            ),
        },
        class_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        description="Kuzushiji-MNIST: ten characters of cursive Japanese.",
        homepage="http://codh.rois.ac.jp/kmnist/index.html.en",
    ),
    "cifar10": PublishedSet(
        version="3.0.2",
        address="https://www.cs.toronto.edu/~kriz/",
        files={
            "cifar-10-binary.tar.gz": (
                170052171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        },
        class_names=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
        description="CIFAR-10: 32x32 colour images in ten classes.",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
} | {
    f"emnist/{name}": PublishedSet(
        version="4.0.0",
        address="https://biometrics.nist.gov/cs_links/EMNIST/",
        files={
            "gzip.zip": (
                561753746,
                "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e",
            )
        },
        class_names=class_names,
        description=f"EMNIST {name}: handwritten characters, upright, labels from 0 "
        "(TFDS 3.1.0: transposed, letters from 1).",
        homepage="https://www.nist.gov/itl/products-and-services/emnist-dataset",
    )
    for name, class_names in _EMNIST_CLASSES.items()
}


def read_idx(content: bytes, name: str) -> np.ndarray:
    """Parses an IDX file, the format of MNIST: two zeros, the type (8: uint8; 12: big-endian
    int32), the rank d, d sizes as big-endian uint32, the values.

    Args:
      content: the file, gzipped or not.
      name: of the file, for messages.

    Returns:
      A uint8 or int32 array of rank d.

    Raises:
      DataError: not an IDX file, or longer or shorter than its header says.
    """
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(
                f"{name} is corrupt ({error}); delete it and download it again"
            ) from error
    dtype = {b"\0\0\x08": np.dtype(np.uint8), b"\0\0\x0c": np.dtype(">i4")}.get(content[:3])
    if dtype is None or len(content) < 4 or len(content) < 4 + 4 * content[3]:
        raise DataError(
            f"{name} is not an IDX file of bytes or integers: it begins with "
            f"{content[:4].hex(' ')}, not with 00 00 08 or 00 00 0c and its rank"
        )
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    values = content[4 + 4 * content[3] :]
    expected = dtype.itemsize * math.prod(shape)  # Python's integers do not overflow
    if len(values) != expected:
        raise DataError(
            f"{name} is corrupt: {len(values):,} bytes of values, expected {expected:,}; "
            "delete it and download it again"
        )
    return np.frombuffer(values, dtype).astype(dtype.newbyteorder("="), copy=False).reshape(shape)


def read_split(dataset: str, split: str, folder: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads one split of a set in `PUBLISHED_SETS` from its downloaded files.

    Args:
      dataset: a key of `PUBLISHED_SETS`.
      split: `train` or `test`.
      folder: with the files under their official names.

    Returns:
      images (N, H, W, C) uint8, upright; labels (N,) uint8, from 0; in the files' order.

    Raises:
      DataError: a file is corrupt, or images and labels do not match.
    """
    read = _read_cifar10_split if dataset == "cifar10" else _read_idx_split
    try:
        return read(dataset, split, Path(folder))
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"cannot read {dataset} from {folder} ({error}); "
            "delete its files and download them again"
        ) from error


def _read_idx_split(dataset: str, split: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    name, _, config = dataset.partition("/")
    if name == "emnist":
        prefix = f"gzip/emnist-{config}-{split}"
    else:
        prefix = {"train": "train", "test": "t10k"}[split]
    file_names = f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"
    if name == "emnist":
        with zipfile.ZipFile(folder / "gzip.zip") as archive:
            contents = [archive.read(file_name) for file_name in file_names]
    else:
        contents = [(folder / file_name).read_bytes() for file_name in file_names]
    images, labels = map(read_idx, contents, file_names)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        shapes = f"{file_names[0]} {images.shape} and {file_names[1]} {labels.shape}"
        raise DataError(f"{shapes} do not match; delete them and download them again")
    if name == "emnist":
        images = images.swapaxes(1, 2)
    if dataset == "emnist/letters":
        labels = labels - 1
    return images[..., None], labels


def _read_cifar10_split(dataset: str, split: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    names = {
        "train": [f"data_batch_{number}.bin" for number in range(1, 6)],
        "test": ["test_batch.bin"],
    }[split]
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "r:gz") as archive:
        content = b"".join(
            archive.extractfile(f"cifar-10-batches-bin/{name}").read() for name in names
        )
    if len(content) % 3073:
        raise DataError(
            f"{dataset}, split {split}: {len(content):,} bytes are not a multiple of 3,073, "
            "the size of a record"
        )
    # A record: the label, then the 32x32 red, green and blue planes.
    records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]


def prepare_published(dataset: str, data_dir: Path, source: str = "", mirror: str = "") -> Path:
    """Prepares a set of `PUBLISHED_SETS` in `<data_dir>/<dataset>/<version>/`, unless it is there
    already; returns that folder.

    Args:
      dataset: a key of `PUBLISHED_SETS`.
      data_dir: downloads are kept in its `downloads/`, for the other subsets of EMNIST.
      source: a folder with the downloaded files; empty: download them.
      mirror: the URL of a folder to download from instead of the official one.

    Raises:
      DataError: a file is missing in `source` or is not the published one; `<version>/` has another
        format.
      LockedError: another process is downloading the files.
      StorageError: no network, or `data_dir` cannot be written.
    """
    published = PUBLISHED_SETS[dataset]
    if prepared := prepared_before(data_dir, dataset, published.version):
        return prepared
    if source and not Path(source).expanduser().is_dir():
        raise DataError(f"--source={source} is not a folder")
    downloads = data_dir / "downloads" / dataset.partition("/")[0]
    folder = Path(source).expanduser() if source else downloads
    mirror = f"{mirror.rstrip('/')}/" if mirror else published.address
    try:
        for file_name, (size, sha256) in published.files.items():
            path = folder / file_name
            if source:
                verify(path, published.address + file_name, size, sha256)
            else:
                download(mirror + file_name, path, size, sha256)
    except OSError as error:
        if source:
            raise DataError(f"cannot read {path} ({error.strerror})") from error
        raise cannot_write(data_dir, error) from error
    return write_published(
        data_dir,
        dataset,
        published.version,
        {split: read_split(dataset, split, folder) for split in ("train", "test")},
        published.class_names,
        keep_order=False,
        description=published.description,
        homepage=published.homepage,
    )


def write_published(
    data_dir: Path,
    dataset: str,
    version: str,
    splits: Mapping[str, tuple[np.ndarray, np.ndarray]],
    class_names: tuple[str, ...],
    **options,
) -> Path:
    """Writes images (N, H, W, C) and labels (N,) of each split, says where, and returns the folder;
    `options` as for `write_prepared`. Raises StorageError if `data_dir` cannot be written.
    """
    print(f"writing {data_dir / dataset / version}", flush=True)
    pairs = {split: _with_progress(split, *arrays) for split, arrays in splits.items()}
    image_shape = next(iter(splits.values()))[0].shape[1:]
    try:
        make_folder(data_dir)
        folder = write_prepared(
            data_dir, dataset, version, pairs, image_shape, class_names, **options
        )
    except OSError as error:
        raise cannot_write(data_dir, error) from error
    print(f"{dataset} is ready: --dataset={dataset} --data_dir={data_dir}")
    return folder


def cannot_write(data_dir: Path, error: OSError) -> StorageError:
    """What to say of an error of writing there; raises one of the lines that are printed."""
    if isinstance(error, BrokenPipeError):
        raise error
    return StorageError(
        f"cannot write to {data_dir} ({error}); choose another folder with --data_dir"
    )


def prepared_before(
    data_dir: Path, dataset: str, version: str, description: str | None = None
) -> Path | None:
    """The folder of a set that was prepared before, which is said, or None. Raises DataError if it
    is incomplete or has another format, or another `description`, if one is given.
    """
    prepared = data_dir / dataset / version
    if not prepared.exists():
        return None
    try:
        info = read_json(prepared / "dataset_info.json")
    except DataError as error:
        raise DataError(f"{prepared} is incomplete: delete it and rerun the command") from error
    if info.get("fileFormat") != "array_record":
        raise DataError(
            f"{prepared} is not in array_record format; choose another folder with --data_dir"
        )
    if description not in (None, info.get("description")):
        raise DataError(
            f"{prepared} was made from other files or with other flags; delete that folder, or "
            "choose another --dataset=NAME"
        )
    print(f"{dataset} is already prepared in {prepared}")
    return prepared


def _with_progress(split: str, images: np.ndarray, labels: np.ndarray) -> Iterable:
    return track(
        zip(images, labels, strict=True),
        description=split,
        total=len(labels),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
