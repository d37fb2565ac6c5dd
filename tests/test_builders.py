"""common/builders.py: IDX files, EMNIST's peculiarities, CIFAR-10's archive, and folders as TFDS
writes them.
"""

import gzip
import hashlib
import io
import os
import struct
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from tensorflow_datasets.core import registered

from common import builders
from common.errors import DataError
from common.examples import load


def idx_bytes(values: np.ndarray) -> bytes:
    return (
        b"\0\0\x08"
        + bytes([values.ndim])
        + struct.pack(f">{values.ndim}I", *values.shape)
        + values.tobytes()
    )


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_read_idx_parses_hand_made_bytes():
    content = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255])
    parsed = builders.read_idx(content, "file")
    assert parsed.dtype == np.uint8
    np.testing.assert_array_equal(parsed, [[1, 2, 3], [4, 5, 255]])
    np.testing.assert_array_equal(builders.read_idx(gzip.compress(content), "file"), parsed)


@given(npst.arrays(np.uint8, npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)))
def test_read_idx_inverts_writing(values):
    parsed = builders.read_idx(idx_bytes(values), "file")
    assert parsed.shape == values.shape
    np.testing.assert_array_equal(parsed, values)


@given(values=npst.arrays(np.uint8, (2, 3, 4)), missing=st.integers(1, 40), zipped=st.booleans())
def test_read_idx_refuses_every_truncation(values, missing, zipped):
    content = gzip.compress(idx_bytes(values)) if zipped else idx_bytes(values)
    with pytest.raises(DataError, match=r"train\.gz"):
        builders.read_idx(content[:-missing], "train.gz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x0d\x01\0\0\0\x01\0", "begins with 00 00 0d 01"),  # IDX of floats
        (b"<html>not found</html>", "is no IDX file"),
        (idx_bytes(np.zeros(3, np.uint8)) + b"\0", "4 values in place of 3"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "in place of"),  # sizes whose product does not fit 64 bits
    ],
)
def test_read_idx_refuses_other_files(content, message):
    with pytest.raises(DataError, match=message) as caught:
        builders.read_idx(content, "labels.gz")
    assert "\n" not in str(caught.value)


def write_mnist_files(folder, images, labels, split="train"):
    prefix = {"train": "train", "test": "t10k"}[split]
    (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
    (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))


def test_read_split_of_mnist(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    labels = np.arange(5, dtype=np.uint8)
    write_mnist_files(tmp_path, images, labels, "test")
    read_images, read_labels = builders.read_split("mnist", "test", tmp_path)
    np.testing.assert_array_equal(read_images, images[..., None])
    np.testing.assert_array_equal(read_labels, labels)


def test_read_split_refuses_files_that_do_not_belong_together(tmp_path):
    write_mnist_files(tmp_path, np.zeros((5, 28, 28), np.uint8), np.zeros(4, np.uint8))
    with pytest.raises(DataError, match="do not belong together"):
        builders.read_split("mnist", "train", tmp_path)


@pytest.mark.parametrize(("config", "first_label"), [("letters", 1), ("balanced", 0)])
def test_emnist_is_turned_upright_and_letters_start_at_zero(tmp_path, config, first_label):
    upright = np.zeros((2, 28, 28), np.uint8)
    upright[:, 3, 20] = [100, 200]  # row 3, column 20
    upright[1, 25, 1] = 50
    with zipfile.ZipFile(tmp_path / "gzip.zip", "w") as archive:
        for split in ("train", "test"):
            stored = np.ascontiguousarray(upright.transpose(0, 2, 1))
            archive.writestr(
                f"gzip/emnist-{config}-{split}-images-idx3-ubyte.gz",
                gzip.compress(idx_bytes(stored)),
            )
            labels = np.array([first_label, first_label + 25], np.uint8)
            archive.writestr(
                f"gzip/emnist-{config}-{split}-labels-idx1-ubyte.gz",
                gzip.compress(idx_bytes(labels)),
            )
    images, labels = builders.read_split(f"emnist/{config}", "test", tmp_path)
    np.testing.assert_array_equal(images, upright[..., None])
    np.testing.assert_array_equal(labels, [0, 25])


def test_emnist_damaged_zip(tmp_path):
    (tmp_path / "gzip.zip").write_bytes(b"PK but not really")
    with pytest.raises(DataError, match=r"cannot read emnist/digits.*download them again"):
        builders.read_split("emnist/digits", "train", tmp_path)


def write_cifar10_archive(folder, contents):
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            if isinstance(content, Path):
                member.type, member.linkname = tarfile.SYMTYPE, str(content)
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def test_cifar10_batches_follow_each_other_and_colours_are_planes(tmp_path):
    # A record: the label, then 1,024 bytes each of red, green and blue, row by row (the set's
    # homepage).
    red, green, blue = (
        bytes([200, 201]) + bytes(1022),
        bytes(32) + bytes([7]) + bytes(991),
        bytes(1023) + b"\x09",
    )
    contents = {
        f"data_batch_{number}.bin": bytes([number]) + red + green + blue
        for number in (5, 4, 3, 2, 1)
    }
    contents["test_batch.bin"] = bytes([9]) + bytes(3072) + bytes([8]) + bytes(3072)
    write_cifar10_archive(tmp_path, contents)
    images, labels = builders.read_split("cifar10", "train", tmp_path)
    assert (images.shape, images.dtype) == ((5, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(labels, [1, 2, 3, 4, 5])
    expected = np.zeros((32, 32, 3))
    expected[0, 0, 0], expected[0, 1, 0], expected[1, 0, 1], expected[31, 31, 2] = 200, 201, 7, 9
    np.testing.assert_array_equal(images[4], expected)
    np.testing.assert_array_equal(builders.read_split("cifar10", "test", tmp_path)[1], [9, 8])


@pytest.mark.parametrize(
    "damage", ["no archive", "a batch is missing", "a batch is cut", "a batch is a link"]
)
def test_cifar10_damaged_archive(tmp_path, damage):
    if damage == "no archive":
        (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"\x1f\x8b not really")
    else:
        names = [
            f"data_batch_{number}.bin"
            for number in range(1, 5 if damage == "a batch is missing" else 6)
        ]
        contents = {name: bytes(3073 if name != "data_batch_5.bin" else 3000) for name in names}
        if damage == "a batch is a link":  # out of the archive, to what would be a batch
            contents["data_batch_5.bin"] = tmp_path / "outside"
            contents["data_batch_5.bin"].write_bytes(bytes(3073))
        write_cifar10_archive(tmp_path, contents)
    message = (
        "no whole number of records"
        if damage == "a batch is cut"
        else "cannot read cifar10 from .* download them again"
    )
    with pytest.raises(DataError, match=message) as caught:
        builders.read_split("cifar10", "train", tmp_path)
    assert "\n" not in str(caught.value)


def test_cifar10_class_names_are_in_the_official_order(tmp_path):
    data_dir = os.environ.get("TFDS_DATA_DIR")
    found = sorted(Path(data_dir or ".").glob("cifar10/*/label.labels.txt"))
    if not data_dir or not found:
        pytest.skip(
            "$TFDS_DATA_DIR holds no cifar10: python -m scripts.prepare_data --dataset=cifar10"
        )
    assert list(builders.PUBLISHED_SETS["cifar10"].class_names) == found[0].read_text().split()


def test_class_counts():
    counts = {
        name: len(published.class_names) for name, published in builders.PUBLISHED_SETS.items()
    }
    # The numbers of classes that TFDS's own builders state, but for letters: 37 there, of which 26
    # occur.
    assert counts == {
        "mnist": 10,
        "fashion_mnist": 10,
        "kmnist": 10,
        "cifar10": 10,
        "emnist/byclass": 62,
        "emnist/bymerge": 47,
        "emnist/balanced": 47,
        "emnist/letters": 26,
        "emnist/digits": 10,
        "emnist/mnist": 10,
    }
    assert all(
        len(set(published.class_names)) == len(published.class_names)
        for published in builders.PUBLISHED_SETS.values()
    )


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist", "emnist", "cifar10"])
def test_addresses_and_checksums_are_those_of_tfds(name):
    table = tfds.core.tfds_path() / "url_checksums" / f"{name}.txt"
    official = {}
    for line in table.read_text().splitlines():
        address, size, sha256, _ = line.split("\t")
        official[address] = (int(size), sha256)
    for dataset, published in builders.PUBLISHED_SETS.items():
        if dataset.partition("/")[0] == name:
            assert {
                published.address + file_name: facts for file_name, facts in published.files.items()
            } == official


@pytest.mark.parametrize(("dataset", "channels"), [("mnist", 1), ("tiny/colour", 3)])
def test_prepared_folder_gives_the_same_bits_through_our_reader_and_tfds(
    tmp_path, dataset, channels
):
    random = np.random.default_rng(channels)
    arrays = {
        split: (
            random.integers(0, 256, (count, 6, 5, channels), np.uint8),
            random.integers(0, 3, count),
        )
        for split, count in (("train", 7), ("test", 4))
    }
    splits = {split: zip(*pair, strict=True) for split, pair in arrays.items()}
    folder = builders.write_prepared(
        tmp_path, dataset, "1.2.0", splits, (6, 5, channels), "abc", keep_order=True
    )
    assert folder == tmp_path / dataset / "1.2.0"
    for split, (images, labels) in arrays.items():
        examples = load(dataset, split, [tmp_path])
        assert (examples.images.dtype, examples.labels.dtype, examples.num_classes) == (
            np.uint8,
            np.int32,
            3,
        )
        np.testing.assert_array_equal(examples.images, images)
        np.testing.assert_array_equal(examples.labels, labels)
        records = tfds.builder_from_directory(folder).as_data_source(split)
        np.testing.assert_array_equal([record["image"] for record in records], images)
        np.testing.assert_array_equal([record["label"] for record in records], labels)


def test_preparing_mnist_leaves_tfds_own_builder_usable(tmp_path):
    splits = {"train": [(np.zeros((28, 28, 1), np.uint8), 7)]}
    builders.write_prepared(
        tmp_path, "mnist", "3.0.1", splits, (28, 28, 1), "0123456789", keep_order=False
    )
    assert tfds.data_source("mnist", split="train", data_dir=tmp_path)[0]["label"] == 7
    assert not any(
        builder_class.__module__ == "common.builders"
        for builder_class in registered._DATASET_REGISTRY.values()
    )


def test_order_of_records_is_that_of_the_official_builders(tmp_path):
    images = np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1)
    splits = {"train": zip(images, np.zeros(50, int), strict=True)}
    builders.write_prepared(tmp_path, "tiny", "1.0.0", splits, (1, 1, 1), "a", keep_order=False)
    # TFDS's rule, tensorflow_datasets/core/hashing.py: sorted by the MD5 of the split's name and
    # the index.
    expected = sorted(range(50), key=lambda index: hashlib.md5(f"train{index}".encode()).digest())
    np.testing.assert_array_equal(load("tiny", "train", [tmp_path]).images.ravel(), expected)


def test_encoded_images_are_stored_as_they_are(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(
        buffer, format="jpeg"
    )
    splits = {"train": [(buffer.getvalue(), 0)]}
    folder = builders.write_prepared(
        tmp_path, "tiny", "1.0.0", splits, (None, None, 3), "a", keep_order=True
    )
    raw = {"image": tfds.decode.SkipDecoding()}
    assert (
        tfds.builder_from_directory(folder).as_data_source("train", decoders=raw)[0]["image"]
        == buffer.getvalue()
    )
    np.testing.assert_array_equal(
        load("tiny", "train", [tmp_path]).images[0], np.asarray(Image.open(buffer))
    )


def test_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    splits = {"train": [(np.zeros((2, 2, 1), np.uint8), 0)]}
    builders.write_prepared(
        tmp_path / "sets", "tiny", "1.0.0", splits, (2, 2, 1), "a", keep_order=True
    )
    load("tiny", "train", [tmp_path / "sets"])
    assert list((tmp_path / "temporary").iterdir()) == []
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["tiny"]


def test_a_failure_leaves_no_folder_and_prints_nothing(tmp_path, capsys):
    image = np.zeros((2, 2, 1), np.uint8)
    with pytest.raises(DataError, match="tiny, split train, example 1: label 3; allowed: 0 to 2"):
        builders.write_prepared(
            tmp_path,
            "tiny",
            "1.0.0",
            {"train": [(image, 0), (image, 3)]},
            (2, 2, 1),
            "abc",
            keep_order=True,
        )
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not (tmp_path / "tiny" / "1.0.0").exists()
    assert capsys.readouterr() == ("", "")
