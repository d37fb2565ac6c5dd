"""scripts/prepare/published.py and builders.py: IDX files, EMNIST's quirks, CIFAR-10's archive, and
folders as TFDS writes them.
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

from common.errors import DataError
from common.examples import load
from scripts.prepare.builders import write_prepared
from scripts.prepare.published import PUBLISHED_SETS, read_idx, read_split


def idx_bytes(values: np.ndarray) -> bytes:
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return b"\0\0\x08" + bytes([values.ndim]) + sizes + values.tobytes()


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# ---- published files


def test_read_idx_parses_hand_made_bytes():
    content = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255])
    for file in (content, gzip.compress(content)):
        parsed = read_idx(file, "file")
        assert parsed.dtype == np.uint8
        np.testing.assert_array_equal(parsed, [[1, 2, 3], [4, 5, 255]])


@given(npst.arrays(np.uint8, npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)))
def test_read_idx_inverts_writing(values):
    parsed = read_idx(idx_bytes(values), "file")
    assert parsed.shape == values.shape
    np.testing.assert_array_equal(parsed, values)


@given(values=npst.arrays(np.uint8, (2, 3, 4)), missing=st.integers(1, 40), zipped=st.booleans())
def test_read_idx_refuses_every_truncation(values, missing, zipped):
    content = gzip.compress(idx_bytes(values)) if zipped else idx_bytes(values)
    with pytest.raises(DataError, match=r"train\.gz"):
        read_idx(content[:-missing], "train.gz")


@pytest.mark.parametrize(
    "content",
    [
        b"\0\0\x0d\x01\0\0\0\x01\0",  # IDX of floats
        b"<html>not found</html>",
        idx_bytes(np.zeros(3, np.uint8)) + b"\0",
        b"\0\0\x08\x03" + b"\xff" * 12,  # sizes whose product overflows 64 bits
    ],
)
def test_read_idx_refuses_other_files(content):
    with pytest.raises(DataError, match=r"^labels\.gz [^\n]*$"):
        read_idx(content, "labels.gz")


def write_mnist_files(folder, images, labels, prefix):
    (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
    (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))


def test_read_split_of_mnist(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    labels = np.arange(5, dtype=np.uint8)
    write_mnist_files(tmp_path, images, labels, "t10k")
    read_images, read_labels = read_split("mnist", "test", tmp_path)
    np.testing.assert_array_equal(read_images, images[..., None])
    np.testing.assert_array_equal(read_labels, labels)
    write_mnist_files(tmp_path, images, labels[:4], "t10k")  # one label too few
    with pytest.raises(DataError, match="t10k-labels"):
        read_split("mnist", "test", tmp_path)


@pytest.mark.parametrize(("config", "first_label"), [("letters", 1), ("balanced", 0)])
def test_emnist_is_transposed_and_letters_start_at_zero(tmp_path, config, first_label):
    upright = np.zeros((2, 28, 28), np.uint8)
    upright[:, 3, 20] = [100, 200]  # row 3, column 20
    upright[1, 25, 1] = 50
    labels = np.array([first_label, first_label + 25], np.uint8)
    files = {"images-idx3": np.ascontiguousarray(upright.swapaxes(1, 2)), "labels-idx1": labels}
    with zipfile.ZipFile(tmp_path / "gzip.zip", "w") as archive:
        for kind, values in files.items():
            name = f"gzip/emnist-{config}-test-{kind}-ubyte.gz"
            archive.writestr(name, gzip.compress(idx_bytes(values)))
    images, labels = read_split(f"emnist/{config}", "test", tmp_path)
    np.testing.assert_array_equal(images, upright[..., None])
    np.testing.assert_array_equal(labels, [0, 25])


def test_emnist_corrupt_zip(tmp_path):
    (tmp_path / "gzip.zip").write_bytes(b"PK but not really")
    with pytest.raises(DataError, match="emnist/digits"):
        read_split("emnist/digits", "train", tmp_path)


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


def test_cifar10_batches_are_concatenated_and_colors_are_planes(tmp_path):
    # A record: the label, then 1,024 bytes each of red, green and blue, row by row (the set's
    # homepage).
    red = bytes([200, 201]) + bytes(1022)
    green = bytes(32) + bytes([7]) + bytes(991)
    blue = bytes(1023) + b"\x09"
    contents = {
        f"data_batch_{number}.bin": bytes([number]) + red + green + blue
        for number in (5, 4, 3, 2, 1)
    }
    contents["test_batch.bin"] = bytes([9]) + bytes(3072) + bytes([8]) + bytes(3072)
    write_cifar10_archive(tmp_path, contents)
    images, labels = read_split("cifar10", "train", tmp_path)
    assert (images.shape, images.dtype) == ((5, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(labels, [1, 2, 3, 4, 5])
    expected = np.zeros((32, 32, 3))
    expected[0, 0, 0], expected[0, 1, 0], expected[1, 0, 1], expected[31, 31, 2] = 200, 201, 7, 9
    np.testing.assert_array_equal(images[4], expected)
    np.testing.assert_array_equal(read_split("cifar10", "test", tmp_path)[1], [9, 8])


@pytest.mark.parametrize("damage", ["no archive", "missing", "truncated", "a link"])
def test_cifar10_corrupt_archive(tmp_path, damage):
    """One of the five batches is missing, truncated, or a link to a file outside the archive."""
    contents = {f"data_batch_{number}.bin": bytes(3073) for number in range(1, 5)}
    if damage == "truncated":
        contents["data_batch_5.bin"] = bytes(3000)
    elif damage == "a link":
        contents["data_batch_5.bin"] = tmp_path / "outside"
        contents["data_batch_5.bin"].write_bytes(bytes(3073))
    write_cifar10_archive(tmp_path, contents)
    if damage == "no archive":
        (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"\x1f\x8b not really")
    with pytest.raises(DataError, match=r"^[^\n]*cifar10[^\n]*$"):
        read_split("cifar10", "train", tmp_path)


def test_cifar10_class_names_are_in_the_official_order():
    found = sorted(Path(os.environ.get("TFDS_DATA_DIR", ".")).glob("cifar10/*/label.labels.txt"))
    if not found:
        pytest.skip(
            "$TFDS_DATA_DIR holds no cifar10: python -m scripts.prepare_data --dataset=cifar10"
        )
    assert list(PUBLISHED_SETS["cifar10"].class_names) == found[0].read_text().split()


def test_class_counts():
    # As in TFDS's own builders, except for letters: 37 there, of which 26 occur.
    assert {name: len(published.class_names) for name, published in PUBLISHED_SETS.items()} == {
        **{"mnist": 10, "fashion_mnist": 10, "kmnist": 10, "cifar10": 10},
        **{"emnist/byclass": 62, "emnist/bymerge": 47, "emnist/balanced": 47},
        **{"emnist/letters": 26, "emnist/digits": 10, "emnist/mnist": 10},
    }
    for published in PUBLISHED_SETS.values():
        assert len(set(published.class_names)) == len(published.class_names)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist", "emnist", "cifar10"])
def test_addresses_and_checksums_are_those_of_tfds(name):
    table = tfds.core.tfds_path() / "url_checksums" / f"{name}.txt"
    official = {}
    for line in table.read_text().splitlines():
        address, size, sha256, _ = line.split("\t")
        official[address] = (int(size), sha256)
    for dataset, published in PUBLISHED_SETS.items():
        if dataset.partition("/")[0] == name:
            files = published.files.items()
            assert {published.address + file_name: facts for file_name, facts in files} == official


# ---- prepared folders


@pytest.mark.parametrize(("dataset", "channels"), [("mnist", 1), ("tiny/color", 3)])
def test_our_reader_and_tfds_return_the_same_bits(tmp_path, dataset, channels):
    random = np.random.default_rng(channels)
    arrays = {
        split: (random.integers(0, 256, (n, 6, 5, channels), np.uint8), random.integers(0, 3, n))
        for split, n in (("train", 7), ("test", 4))
    }
    splits = {split: zip(*pair, strict=True) for split, pair in arrays.items()}
    shape = (6, 5, channels)
    folder = write_prepared(tmp_path, dataset, "1.2.0", splits, shape, "abc", keep_order=True)
    assert folder == tmp_path / dataset / "1.2.0"
    for split, (images, labels) in arrays.items():
        examples = load(dataset, split, [tmp_path])
        assert (examples.images.dtype, examples.labels.dtype) == (np.uint8, np.int32)
        assert examples.num_classes == 3
        np.testing.assert_array_equal(examples.images, images)
        np.testing.assert_array_equal(examples.labels, labels)
        records = tfds.builder_from_directory(folder).as_data_source(split)
        np.testing.assert_array_equal([record["image"] for record in records], images)
        np.testing.assert_array_equal([record["label"] for record in records], labels)


# SHA-256 of what `write_prepared` wrote when it was common/builders.py.
WRITTEN_BEFORE = {
    "dataset_info.json": "7f89370b4ca0fc983089b99919a8741bc5baec666dd25c32aa2c07b7771fb654",
    "features.json": "dd85b2e1ea674689f8b2a7e11c6fbf3533b23b136c991a0114a1f951f84b73bc",
    "label.labels.txt": "801bbadc133e6570b3f6912d110aed3053a9fc9fde26c8f6803423e8efb3c9d3",
}


def test_descriptions_have_the_bytes_of_sets_prepared_before(tmp_path):
    splits = {split: [(b"any bytes", label) for label in range(9)] for split in ("train", "test")}
    folder = write_prepared(
        *(tmp_path, "tiny/x", "1.0.0", splits, (8, 8, 3), "abcdefghi"),
        keep_order=False,
        description="d",
        homepage="h",
    )
    found = {name: hashlib.sha256((folder / name).read_bytes()) for name in WRITTEN_BEFORE}
    assert {name: digest.hexdigest() for name, digest in found.items()} == WRITTEN_BEFORE


def test_preparing_mnist_leaves_tfds_own_builder_usable(tmp_path):
    splits = {"train": [(np.zeros((28, 28, 1), np.uint8), 7)]}
    before = dict(registered._DATASET_REGISTRY)
    write_prepared(tmp_path, "mnist", "3.0.1", splits, (28, 28, 1), "0123456789", keep_order=False)
    assert before == registered._DATASET_REGISTRY
    assert tfds.data_source("mnist", split="train", data_dir=tmp_path)[0]["label"] == 7


def test_the_order_of_records_is_that_of_the_official_builders(tmp_path):
    images = np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1)
    splits = {"train": zip(images, np.zeros(50, int), strict=True)}
    write_prepared(tmp_path, "tiny", "1.0.0", splits, (1, 1, 1), "a", keep_order=False)
    # tensorflow_datasets/core/hashing.py: sorted by the MD5 of the split's name and the index.
    expected = sorted(range(50), key=lambda index: hashlib.md5(f"train{index}".encode()).digest())
    np.testing.assert_array_equal(load("tiny", "train", [tmp_path]).images.ravel(), expected)


def test_encoded_images_are_stored_unchanged(tmp_path):
    buffer = io.BytesIO()
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(image).save(buffer, format="jpeg")
    splits = {"train": [(buffer.getvalue(), 0)]}
    shape = (None, None, 3)
    folder = write_prepared(tmp_path, "tiny", "1.0.0", splits, shape, "a", keep_order=True)
    decoders = {"image": tfds.decode.SkipDecoding()}
    records = tfds.builder_from_directory(folder).as_data_source("train", decoders=decoders)
    assert records[0]["image"] == buffer.getvalue()
    loaded = load("tiny", "train", [tmp_path]).images[0]
    np.testing.assert_array_equal(loaded, np.asarray(Image.open(buffer)))


def test_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    splits = {"train": [(np.zeros((2, 2, 1), np.uint8), 0)]}
    write_prepared(tmp_path / "sets", "tiny", "1.0.0", splits, (2, 2, 1), "a", keep_order=True)
    load("tiny", "train", [tmp_path / "sets"])
    assert list((tmp_path / "temporary").iterdir()) == []
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["tiny"]


def test_a_failure_leaves_no_folder_and_prints_nothing(tmp_path, capsys):
    image = np.zeros((2, 2, 1), np.uint8)
    splits = {"train": [(image, 0), (image, 3)]}
    with pytest.raises(DataError, match="tiny, split train, example 1: label 3"):
        write_prepared(tmp_path, "tiny", "1.0.0", splits, (2, 2, 1), "abc", keep_order=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not (tmp_path / "tiny" / "1.0.0").exists()
    assert capsys.readouterr() == ("", "")
