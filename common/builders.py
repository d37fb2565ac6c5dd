"""Writes image sets as TFDS does, without TensorFlow: array_record folders that `common.examples.load`
and `tfds.data_source` read.

`write_prepared` writes any labelled images; `read_split` reads the files of MNIST, Fashion-MNIST,
KMNIST, EMNIST and CIFAR-10 as published (addresses, sizes and checksums in `PUBLISHED_SETS`).
"""

import contextlib
import dataclasses
import gzip
import io
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from common.errors import DataError


@dataclasses.dataclass(frozen=True)
class PublishedSet:
    """Where a set comes from and what is in it.

    Attributes:
      version: of the prepared folder.
      address: of the folder with the files, ending in a slash.
      files: name -> (size in bytes, SHA-256), as in TFDS's url_checksums/*.txt (TFDS 4.9.10).
      class_names: one name a class; label k is class_names[k].
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
_MERGED = (
    _DIGITS + _UPPER + tuple("abdefghnqrt")
)  # the 15 other small letters look like their capitals (EMNIST paper, II-C)

# EMNIST as published is transposed, and the labels of `letters` start at 1. TFDS 3.1.0 keeps both;
# our folders hold upright images and labels from 0, and so have another version.
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
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
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
        description=f"EMNIST {name}: handwritten characters, upright, labels from 0 (TFDS 3.1.0: transposed, letters from 1).",
        homepage="https://www.nist.gov/itl/products-and-services/emnist-dataset",
    )
    for name, class_names in _EMNIST_CLASSES.items()
}


def read_idx(content: bytes, name: str) -> np.ndarray:
    """Parses an IDX file of bytes, the format of the MNIST files: magic 0 0 8 d, d sizes as
    big-endian uint32, the values.

    Args:
      content: the file, gzipped or not.
      name: of the file, for messages.

    Returns:
      uint8 array with d axes.

    Raises:
      DataError: not such a file, or longer or shorter than its header says.
    """
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(
                f"{name} is damaged ({error}); delete it and download it again"
            ) from error
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise DataError(
            f"{name} is no IDX file of bytes: it begins with {content[:4].hex(' ')}, not with 00 00 08 and its rank"
        )
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    expected = int(
        np.prod(shape, dtype=object)
    )  # Python integers: a damaged header must not overflow
    if len(values) != expected:
        raise DataError(
            f"{name} is damaged: {len(values):,} values in place of {expected:,}; delete it and download it again"
        )
    return values.reshape(shape)


def read_split(dataset: str, split: str, folder: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads one split of a set in `PUBLISHED_SETS` from its downloaded files.

    Args:
      dataset: a key of `PUBLISHED_SETS`.
      split: `train` or `test`.
      folder: where the files lie under their official names.

    Returns:
      images (N, H, W, C) uint8, upright; labels (N,) uint8, from 0; in the order of the files.
      EMNIST is transposed and its `letters` shifted to that.

    Raises:
      DataError: a file is damaged, or images and labels do not belong together.
    """
    try:
        return (_read_cifar10_split if dataset == "cifar10" else _read_idx_split)(
            dataset, split, Path(folder)
        )
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"cannot read {dataset} from {folder} ({error}); delete its files and download them again"
        ) from error


def _read_idx_split(dataset: str, split: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    name, _, config = dataset.partition("/")
    prefix = (
        f"gzip/emnist-{config}-{split}"
        if name == "emnist"
        else {"train": "train", "test": "t10k"}[split]
    )
    file_names = f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"
    if name == "emnist":
        with zipfile.ZipFile(folder / "gzip.zip") as archive:
            contents = [archive.read(file_name) for file_name in file_names]
    else:
        contents = [(folder / file_name).read_bytes() for file_name in file_names]
    images, labels = map(read_idx, contents, file_names)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        shapes = f"{file_names[0]} {images.shape} and {file_names[1]} {labels.shape}"
        raise DataError(f"{shapes} do not belong together; delete them and download them again")
    if name == "emnist":
        images = images.swapaxes(1, 2)
    if dataset == "emnist/letters":
        labels = labels - 1
    return images[..., None], labels


def _read_cifar10_split(dataset: str, split: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    names = (
        [f"data_batch_{number}.bin" for number in range(1, 6)]
        if split == "train"
        else ["test_batch.bin"]
    )
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "r:gz") as archive:
        content = b"".join(
            archive.extractfile(f"cifar-10-batches-bin/{name}").read() for name in names
        )
    if len(content) % 3073:
        raise DataError(
            f"{dataset}, split {split}: {len(content):,} bytes are no whole number of records of 3,073 bytes"
        )
    records = np.frombuffer(content, np.uint8).reshape(
        -1, 3073
    )  # label, then 32x32 of red, of green, of blue
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]


def write_prepared(
    data_dir: str | Path,
    dataset: str,
    version: str,
    splits: Mapping[str, Iterable[tuple[np.ndarray | bytes, int]]],
    image_shape: tuple[int | None, int | None, int],
    class_names: Iterable[str],
    *,
    keep_order: bool,
    description: str = "",
    homepage: str = "",
) -> Path:
    """Writes `<data_dir>/<dataset>/<version>/` in TFDS's array_record format, whole or not at all.

    Args:
      data_dir: made if needed.
      dataset: `name` or `name/config`.
      version: such as `1.0.0`.
      splits: split name -> (image, label) pairs, such as `zip(images, labels)` of (N, H, W, C)
        uint8 and (N,) integers. An image is a uint8 array, stored as PNG, or the bytes of a PNG or
        JPEG file, stored as they are.
      image_shape: (H, W, C); H and W may be None where they differ.
      class_names: one a class, in the order of the labels.
      keep_order: True stores the records as given; False in the order TFDS's official builders
        store them, in which the i-th record of our `mnist` is the i-th of theirs and a slice such
        as `train[:100]` is a fair sample.
      description, homepage: for dataset_info.json.

    Returns:
      The folder. One that exists is left as it is.

    Raises:
      DataError: a label outside the classes.
    """
    builder = _Builder(
        data_dir,
        dataset,
        version,
        splits,
        image_shape,
        class_names,
        keep_order,
        description,
        homepage,
    )
    tfds.disable_progress_bar()  # its bars and prints speak of downloads, which are not made here
    with (
        contextlib.redirect_stdout(io.StringIO()),
        tempfile.TemporaryDirectory() as unused_download_dir,
    ):
        builder.download_and_prepare(file_format="array_record", download_dir=unused_download_dir)
    return Path(builder.data_dir)


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    # One class for all sets, named by the instance and not registered: a registered class `Mnist`
    # would make tfds.data_source("mnist") fail.

    def __init__(
        self,
        data_dir,
        dataset,
        version,
        splits,
        image_shape,
        class_names,
        keep_order,
        description,
        homepage,
    ):
        self.name, _, config = dataset.partition("/")
        self.VERSION = tfds.core.Version(version)
        self.BUILDER_CONFIGS = (
            [tfds.core.BuilderConfig(name=config, version=version)] if config else []
        )
        self._splits = splits
        self._features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=image_shape),
                "label": tfds.features.ClassLabel(names=list(class_names)),
            }
        )
        self._texts = {"description": description, "homepage": homepage}
        self._keeps_order = keep_order
        super().__init__(data_dir=data_dir, config=self.BUILDER_CONFIGS[0] if config else None)

    def _info(self):
        info = tfds.core.DatasetInfo(
            builder=self,
            features=self._features,
            supervised_keys=("image", "label"),
            disable_shuffling=self._keeps_order,
            **self._texts,
        )
        info.initialize_from_bucket = lambda: (
            None
        )  # it would only leave an empty folder in the system's temporary one
        return info

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(split, pairs) for split, pairs in self._splits.items()
        }

    def _generate_examples(self, split, pairs):
        num_classes = self._features["label"].num_classes
        for index, (image, label) in enumerate(pairs):
            if not 0 <= label < num_classes:
                raise DataError(
                    f"{self.name}, split {split}, example {index}: label {label}; allowed: 0 to {num_classes - 1}"
                )
            yield (
                index,
                {
                    "image": io.BytesIO(image if isinstance(image, bytes) else _png(image)),
                    "label": int(label),
                },
            )


def _png(image: np.ndarray) -> bytes:
    # Encoded here because TFDS encodes arrays with TensorFlow.
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(
        buffer, format="png", optimize=True
    )
    return buffer.getvalue()
