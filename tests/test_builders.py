"""common/builders.py: IDX files, EMNIST's peculiarities, and folders as TFDS writes them."""

import gzip
import hashlib
import io
import struct
import tempfile
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from tensorflow_datasets.core import registered

from common import builders, data
from common.errors import DataError


def idx_bytes(values: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


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


def test_read_idx_split_of_mnist(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    labels = np.arange(5, dtype=np.uint8)
    write_mnist_files(tmp_path, images, labels, "test")
    read_images, read_labels = builders.read_idx_split("mnist", "test", tmp_path)
    np.testing.assert_array_equal(read_images, images[..., None])
    np.testing.assert_array_equal(read_labels, labels)


def test_read_idx_split_refuses_files_that_do_not_belong_together(tmp_path):
    write_mnist_files(tmp_path, np.zeros((5, 28, 28), np.uint8), np.zeros(4, np.uint8))
    with pytest.raises(DataError, match="do not belong together"):
        builders.read_idx_split("mnist", "train", tmp_path)


@pytest.mark.parametrize(("config", "first_label"), [("letters", 1), ("balanced", 0)])
def test_emnist_is_turned_upright_and_letters_start_at_zero(tmp_path, config, first_label):
    upright = np.zeros((2, 28, 28), np.uint8)
    upright[:, 3, 20] = [100, 200]  # row 3, column 20
    upright[1, 25, 1] = 50
    with zipfile.ZipFile(tmp_path / "gzip.zip", "w") as archive:
        for split in ("train", "test"):
            stored = np.ascontiguousarray(upright.transpose(0, 2, 1))
            archive.writestr(f"gzip/emnist-{config}-{split}-images-idx3-ubyte.gz", gzip.compress(idx_bytes(stored)))
            labels = np.array([first_label, first_label + 25], np.uint8)
            archive.writestr(f"gzip/emnist-{config}-{split}-labels-idx1-ubyte.gz", gzip.compress(idx_bytes(labels)))
    images, labels = builders.read_idx_split(f"emnist/{config}", "test", tmp_path)
    np.testing.assert_array_equal(images, upright[..., None])
    np.testing.assert_array_equal(labels, [0, 25])


def test_emnist_damaged_zip(tmp_path):
    (tmp_path / "gzip.zip").write_bytes(b"PK but not really")
    with pytest.raises(DataError, match=r"cannot read emnist/digits.*download them again"):
        builders.read_idx_split("emnist/digits", "train", tmp_path)


def test_class_counts():
    counts = {name: len(idx_set.class_names) for name, idx_set in builders.IDX_SETS.items()}
    # The numbers of classes that TFDS's own builders state, but for letters: 37 there, of which 26 occur.
    assert counts == {
        "mnist": 10,
        "fashion_mnist": 10,
        "kmnist": 10,
        "emnist/byclass": 62,
        "emnist/bymerge": 47,
        "emnist/balanced": 47,
        "emnist/letters": 26,
        "emnist/digits": 10,
        "emnist/mnist": 10,
    }
    assert all(len(set(idx_set.class_names)) == len(idx_set.class_names) for idx_set in builders.IDX_SETS.values())


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist", "emnist"])
def test_addresses_and_checksums_are_those_of_tfds(name):
    table = tfds.core.tfds_path() / "url_checksums" / f"{name}.txt"
    official = {}
    for line in table.read_text().splitlines():
        address, size, sha256, _ = line.split("\t")
        official[address] = (int(size), sha256)
    for dataset, idx_set in builders.IDX_SETS.items():
        if dataset.partition("/")[0] == name:
            assert {idx_set.address + file_name: facts for file_name, facts in idx_set.files.items()} == official


@pytest.mark.parametrize(("dataset", "channels"), [("mnist", 1), ("tiny/colour", 3)])
def test_prepared_folder_gives_the_same_bits_through_our_reader_and_tfds(tmp_path, dataset, channels):
    random = np.random.default_rng(channels)
    arrays = {
        split: (random.integers(0, 256, (count, 6, 5, channels), np.uint8), random.integers(0, 3, count))
        for split, count in (("train", 7), ("test", 4))
    }
    splits = {split: zip(*pair, strict=True) for split, pair in arrays.items()}
    folder = builders.write_prepared(tmp_path, dataset, "1.2.0", splits, (6, 5, channels), "abc", keep_order=True)
    assert folder == tmp_path / dataset / "1.2.0"
    for split, (images, labels) in arrays.items():
        examples = data.load(dataset, split, [tmp_path])
        assert (examples.images.dtype, examples.labels.dtype, examples.num_classes) == (np.uint8, np.int32, 3)
        np.testing.assert_array_equal(examples.images, images)
        np.testing.assert_array_equal(examples.labels, labels)
        records = tfds.builder_from_directory(folder).as_data_source(split)
        np.testing.assert_array_equal([record["image"] for record in records], images)
        np.testing.assert_array_equal([record["label"] for record in records], labels)


def test_preparing_mnist_leaves_tfds_own_builder_usable(tmp_path):
    splits = {"train": [(np.zeros((28, 28, 1), np.uint8), 7)]}
    builders.write_prepared(tmp_path, "mnist", "3.0.1", splits, (28, 28, 1), "0123456789", keep_order=False)
    assert tfds.data_source("mnist", split="train", data_dir=tmp_path)[0]["label"] == 7
    assert not any(builder_class.__module__ == "common.builders" for builder_class in registered._DATASET_REGISTRY.values())


def test_order_of_records_is_that_of_the_official_builders(tmp_path):
    images = np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1)
    splits = {"train": zip(images, np.zeros(50, int), strict=True)}
    builders.write_prepared(tmp_path, "tiny", "1.0.0", splits, (1, 1, 1), "a", keep_order=False)
    # TFDS's rule, tensorflow_datasets/core/hashing.py: sorted by the MD5 of the split's name and the index.
    expected = sorted(range(50), key=lambda index: hashlib.md5(f"train{index}".encode()).digest())
    np.testing.assert_array_equal(data.load("tiny", "train", [tmp_path]).images.ravel(), expected)


def test_encoded_images_are_stored_as_they_are(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(buffer, format="jpeg")
    splits = {"train": [(buffer.getvalue(), 0)]}
    folder = builders.write_prepared(tmp_path, "tiny", "1.0.0", splits, (None, None, 3), "a", keep_order=True)
    raw = {"image": tfds.decode.SkipDecoding()}
    assert tfds.builder_from_directory(folder).as_data_source("train", decoders=raw)[0]["image"] == buffer.getvalue()
    np.testing.assert_array_equal(data.load("tiny", "train", [tmp_path]).images[0], np.asarray(Image.open(buffer)))


def test_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    splits = {"train": [(np.zeros((2, 2, 1), np.uint8), 0)]}
    builders.write_prepared(tmp_path / "sets", "tiny", "1.0.0", splits, (2, 2, 1), "a", keep_order=True)
    data.load("tiny", "train", [tmp_path / "sets"])
    assert list((tmp_path / "temporary").iterdir()) == []
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["tiny"]


def test_a_failure_leaves_no_folder_and_prints_nothing(tmp_path, capsys):
    image = np.zeros((2, 2, 1), np.uint8)
    with pytest.raises(DataError, match="tiny, split train, example 1: label 3; allowed: 0 to 2"):
        builders.write_prepared(
            tmp_path, "tiny", "1.0.0", {"train": [(image, 0), (image, 3)]}, (2, 2, 1), "abc", keep_order=True
        )
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not (tmp_path / "tiny" / "1.0.0").exists()
    assert capsys.readouterr() == ("", "")
