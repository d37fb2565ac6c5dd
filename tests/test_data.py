"""Prepared sets: found, described, loaded into memory and cached; the order of examples; and the
embedded digits.
"""

import hashlib
import io
import json
import os
import pwd
import re
import shutil
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common import examples
from common.errors import DataError, UserError
from common.examples import Examples, load
from common.images import empty_images
from common.order import epoch_order, eval_batches, hold_out, order_of_uses, steps_per_epoch
from common.prepared import data_dirs, find, split_sizes
from scripts.prepare import builders

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "lenet" / "digits"
SHARD = "tiny-train.array_record-00000-of-00001"


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lenet-alexnet"


def make_examples(count: int, seed: int = 0, shape=(4, 3, 1)) -> Examples:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, *shape), np.uint8)
    labels = random.integers(0, 3, count).astype(np.int32)
    return Examples(images, labels, 3, "tiny", ("a", "b", "c"))


def write(data_dir, dataset="tiny", version="1.0.0", shape=(4, 3, 1), **splits) -> Path:
    """Each split is `Examples`, or (image or file, label) pairs."""
    pairs = {
        split: zip(content.images, content.labels, strict=True)
        if isinstance(content, Examples)
        else content
        for split, content in splits.items()
    }
    return builders.write_prepared(data_dir, dataset, version, pairs, shape, "abc", keep_order=True)


def assert_same(left: Examples, right: Examples) -> None:
    np.testing.assert_array_equal(left.images, right.images)
    np.testing.assert_array_equal(left.labels, right.labels)
    for name in ("num_classes", "name", "class_names"):
        assert getattr(left, name) == getattr(right, name)


def edit_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def assert_refused(dataset, split, folders, *named) -> None:
    """In one line, with everything that must be named."""
    with pytest.raises(DataError) as caught:
        load(dataset, split, folders)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 65
    for part in named:
        assert str(part) in str(caught.value)


# Finding and reading


def test_newest_version_in_the_first_folder_that_has_the_set(tmp_path):
    old, new, other = (make_examples(count, count) for count in (2, 3, 4))
    write(tmp_path / "a", version="2.9.0", train=old)
    write(tmp_path / "a", version="2.10.0", train=new)  # newer, though it sorts first as text
    write(tmp_path / "b", version="3.0.0", train=other)
    unfinished = tmp_path / "a" / "tiny" / "incomplete.X_9.0.0"
    unfinished.mkdir()
    (unfinished / "dataset_info.json").write_text("{}")
    assert_same(load("tiny", "train", [tmp_path / "missing", tmp_path / "a", tmp_path / "b"]), new)
    assert_same(load("tiny", "train", [str(tmp_path / "b"), str(tmp_path / "a")]), other)
    assert split_sizes("tiny", [tmp_path / "a"]) == {"train": 3}


@pytest.mark.parametrize(
    "split",
    ["train", "test[:3]", "train[2:-1]", "train[-2:]", "train[:50%]", "train+test", "train[3:3]"],
)
def test_splits_mean_what_they_mean_in_tfds(tmp_path, split):
    folder = write(tmp_path, train=make_examples(9, 1), test=make_examples(5, 2))
    loaded, builder = load("tiny", split, [tmp_path]), tfds.builder_from_directory(folder)
    assert len(loaded) == len(loaded.images) == builder.info.splits[split].num_examples
    if len(loaded):  # TFDS itself cannot open an empty slice
        records = list(builder.as_data_source(split))
        np.testing.assert_array_equal(loaded.labels, [record["label"] for record in records])
        np.testing.assert_array_equal(loaded.images, [record["image"] for record in records])


def test_a_split_whose_name_ends_like_another(tmp_path):
    parts = {name: make_examples(count, count) for count, name in ((4, "train"), (3, "test"))}
    folder = write(tmp_path, **parts | {"hard-test": make_examples(2, 2)})
    assert [len(load("tiny", split, [tmp_path])) for split in ("test", "hard-test")] == [3, 2]
    (test,) = folder.glob("tiny-test.*")
    test.unlink()
    assert_refused("tiny", "test", [tmp_path], folder, "split test", "0 of 1 shards")


def test_class_names(tmp_path):
    folder = write(tmp_path, train=make_examples(2))
    assert load("tiny", "train", [tmp_path]).class_names == ("a", "b", "c")
    for names in ("a\nb\n", None):  # not one for each class
        path = folder / "label.labels.txt"
        path.write_text(names) if names else path.unlink()
        assert load("tiny", "train", [tmp_path]).class_names is None


@pytest.mark.parametrize("shape", [(0, 28, 28, 1), (3, 28, 28, 1), (2, 5, 32, 32, 3)])
def test_jax_takes_memory_for_images_without_a_copy(shape):
    images = empty_images(shape)
    assert images.shape == shape and images.dtype == np.uint8
    if images.size and jax.default_backend() == "cpu":
        assert images.ctypes.data % 64 == 0
        assert jax.device_put(images).unsafe_buffer_pointer() == images.ctypes.data


def test_examples_are_read_by_indices_of_any_shape():
    digits = Examples(np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1), np.arange(10), 10, "some")
    chosen = np.array([[9, 0, 3], [3, 3, 1]])
    images, labels = digits.read(chosen)
    np.testing.assert_array_equal(images, digits.images[chosen])
    np.testing.assert_array_equal(labels, chosen)
    for outside in (-1, 10):
        with pytest.raises(IndexError):
            digits.read(np.array([0, outside]))


def test_slices_and_held_out_examples():
    whole = make_examples(10)
    for train, validation in (
        (whole[:-3], whole[-3:]),
        hold_out(whole, train_size=0, validation_size=3),
    ):
        assert (len(train), len(validation), len(whole)) == (7, 3, 10)
        both = [np.concatenate([train.images, validation.images])]
        both += [np.concatenate([train.labels, validation.labels])]
        assert_same(Examples(*both, train.num_classes, train.name, train.class_names), whole)
    few, same = hold_out(whole, train_size=2, validation_size=3)
    assert_same(few, whole[:2])
    assert_same(same, validation)
    for sizes in (dict(train_size=0, validation_size=10), dict(train_size=8, validation_size=3)):
        with pytest.raises(UserError, match=f"--validation_size={sizes['validation_size']}"):
            hold_out(whole, **sizes)
    assert steps_per_epoch(23, 5) == 4
    with pytest.raises(UserError, match="--batch_size=24"):
        steps_per_epoch(23, 24)


def test_a_set_that_is_not_there(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    flags = ("--data_dir", "$TFDS_DATA_DIR", "scripts.prepare_data", "--dataset=mnist10k")
    assert_refused("mnist", "train", [here, there], here, there, *flags)
    for config in ("letters", "balanced"):
        write(here, dataset=f"emnist/{config}", train=make_examples(1))
    both = "--dataset=emnist/balanced, --dataset=emnist/letters"
    assert_refused("emnist", "train", [here], both)
    for name in ("", "../tiny", "/tiny", "tiny/", "a/b/c"):
        assert_refused(name, "train", [here], f"--dataset={name} ")


def test_a_split_that_is_not_there(tmp_path):
    folder = write(tmp_path, train=make_examples(2), test=make_examples(2))
    for split in ("valid", "train[", "train[0:x]", "", "valid[:5]", "train+valid"):
        assert_refused("tiny", split, [tmp_path], repr(split), "train, test", "train[:100]")
    (folder / SHARD).unlink()
    assert_refused("tiny", "train", [tmp_path], folder, "split train", "0 of 1 shards")


def test_data_dirs(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert data_dirs("", "embedded") == [tmp_path / "tensorflow_datasets", Path("embedded")]
    monkeypatch.setenv("TFDS_DATA_DIR", "~/sets")
    assert data_dirs("", "one", "two") == [tmp_path / "sets", Path("one"), Path("two")]
    assert data_dirs("given") == [Path("given")]
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # a container's user without a name
    assert data_dirs("", "embedded") == [Path("embedded")]
    with pytest.raises(UserError, match="--data_dir"):
        data_dirs("")


# Descriptions that cannot be used


def features_of(content: dict) -> dict:
    return content["featuresDict"]["features"]


def shape_of(content: dict) -> dict:
    return features_of(content)["image"]["image"]["shape"]


def label_of(content: dict) -> dict:
    return features_of(content)["label"]["classLabel"]


INFO, FEATURES = "dataset_info.json", "features.json"


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        (INFO, lambda f: f.update(fileFormat="tfrecord"), "tfrecord"),
        (INFO, lambda f: f.pop("fileFormat"), "tfrecord"),
        (INFO, lambda f: f["splits"][0].update(name="../tiny"), "'../tiny'"),
        (INFO, lambda f: f["splits"][0].update(shardLengths=["-1"]), "[-1]"),
        (INFO, lambda f: f.update(splits=[3]), ""),
        (FEATURES, lambda f: features_of(f).pop("label"), "`label`"),
        (FEATURES, lambda f: shape_of(f).update(dimensions=["4", "3"]), "['4', '3']"),
        (FEATURES, lambda f: shape_of(f).update(dimensions=["4", "3", "7"]), "1, 3 or 4 channels"),
        (FEATURES, lambda f: shape_of(f).update(dimensions=["10000", "9000", "3"]), "89,478,485"),
        (FEATURES, lambda f: label_of(f).update(numClasses="0"), "0 classes"),
        (FEATURES, lambda f: label_of(f).update(numClasses="many"), "many"),
    ],
)
def test_descriptions_that_cannot_be_used(tmp_path, name, change, named):
    folder = write(tmp_path, train=make_examples(2))
    edit_json(folder / name, change)
    assert_refused("tiny", "train", [tmp_path], folder, named)
    (folder / name).write_text("{ half a fi")
    assert_refused("tiny", "train", [tmp_path], folder / name)


def test_labels_that_are_not_classes_are_refused_also_from_the_cache(tmp_path):
    folder = write(tmp_path, train=make_examples(20))
    load("tiny", "train", [tmp_path])
    edit_json(folder / FEATURES, lambda content: label_of(content).update(numClasses="2"))
    for _ in range(2):
        assert_refused("tiny", "train", [tmp_path], "from 0 to 2", folder / FEATURES)


def test_images_of_different_shapes(tmp_path):
    square, wide = [(np.zeros((4, width, 1), np.uint8), 0) for width in (4, 5)]
    write(tmp_path, "mixed", shape=(None, None, 1), train=[square, wide])
    assert_refused("mixed", "train", [tmp_path], "split train", "(4, 4, 1)", "(4, 5, 1)")
    write(tmp_path, "apart", shape=(None, None, 1), train=[square], test=[wide])
    assert_refused("apart", "train+test", [tmp_path], "'train+test'")
    assert load("apart", "test", [tmp_path]).images.shape == (1, 4, 5, 1)
    folder = write(tmp_path, train=make_examples(2))
    edit_json(folder / FEATURES, lambda f: shape_of(f).update(dimensions=["4", "4", "1"]))
    assert_refused("tiny", "train", [tmp_path], folder / SHARD, "record 0", "4x3 pixels, not 4x4")


# Damage


@pytest.mark.parametrize("size", [(9_000, 10_000), (60_000, 60_000)])
def test_too_many_pixels_are_refused_by_the_header(tmp_path, size, monkeypatch):
    """A small file whose header claims gigabytes, in a set of varying size: nothing is decoded."""
    content = io.BytesIO()
    Image.new("L", (4, 4)).save(content, "png")
    png = bytearray(content.getvalue())
    png[16:24] = struct.pack(">II", *size)  # in the chunk IHDR, which a CRC follows
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    write(tmp_path, "bomb", shape=(None, None, 1), train=[(bytes(png), 0)])
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it was decoded"))
    assert_refused("bomb", "train", [tmp_path], "record 0", "89,478,485 pixels")


def test_damaged_records_are_never_read_as_good_ones(tmp_path):
    intact = make_examples(30)
    shard = write(tmp_path, train=intact) / SHARD
    good = shard.read_bytes()
    used = np.flatnonzero(np.frombuffer(good, np.uint8))  # most of the file is padding
    named = 0
    for position in np.random.default_rng(0).choice(used, 100, replace=False):
        damaged = bytearray(good)
        damaged[position] ^= 1 << (position % 8)
        shard.write_bytes(damaged)
        try:  # padding and unused fields may change
            assert_same(load("tiny", "train", [tmp_path]), intact)
        except DataError as error:
            named += all(part in str(error) for part in (str(shard), "split train", "record"))
    assert named >= 80
    for content in (good[: len(good) // 2], b""):
        shard.write_bytes(content)
        assert_refused("tiny", "train", [tmp_path], shard, "record 0 ")
    digits = [(np.zeros((4, 3, 1), np.uint8), 0)] * 3
    shard = write(tmp_path, "other", train=[*digits, (b"\x89PNG no image", 0)])
    assert_refused("other", "train", [tmp_path], "split train", shard, "record 3 (")


@pytest.mark.commands
def test_tensorflow_is_not_imported_even_where_it_is_installed(tmp_path):
    write(tmp_path, train=make_examples(3))
    (tmp_path / "installed" / "tensorflow").mkdir(parents=True)
    (tmp_path / "installed" / "tensorflow" / "__init__.py").write_text("raise AssertionError")
    code = """
import importlib, sys
import numpy as np
from common import examples
from scripts.prepare import builders
assert len(examples.load("tiny", "train[:2]", [sys.argv[1]])) == 2
splits = {"train": [(np.zeros((4, 4, 1), np.uint8), 0)]}
builders.write_prepared(sys.argv[1], "written", "1.0.0", splits, (4, 4, 1), "a", keep_order=True)
try:
    importlib.import_module("tensorflow")
except AssertionError:
    print("the guard works")
"""
    path = os.pathsep.join([str(tmp_path / "installed"), str(ROOT)])
    command = [sys.executable, "-c", code, tmp_path]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "the guard works\n"), done.stderr


# The cache


def test_a_second_load_comes_from_the_cache_until_the_set_changes(tmp_path, monkeypatch, cache_dir):
    first, second = make_examples(8, 1), make_examples(8, 2)
    folder = write(tmp_path, train=first)
    assert_same(load("tiny", "train", [tmp_path]), first)
    assert len(list(cache_dir.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(examples, "parse", lambda _: pytest.fail("the records were read"))
        assert_same(load("tiny", "train", [tmp_path]), first)
        assert_same(load("tiny", "train[2:5]", [tmp_path]), first[2:5])
    shutil.copy(write(tmp_path / "elsewhere", train=second) / SHARD, folder / SHARD)
    os.utime(folder / SHARD, ns=(1, 1))
    assert_same(load("tiny", "train", [tmp_path]), second)


@pytest.mark.commands
def test_a_damaged_cache_is_never_used(tmp_path, cache_dir):
    """Whatever bit of it flips, the arrays that come out are the true ones."""
    intact = make_examples(6)
    arrays = {"images": intact.images, "labels": intact.labels}
    path, computed = tmp_path / "cached.npz", []

    def compute():
        computed.append(1)
        return intact.images, intact.labels

    def read() -> int:
        """How often it computed them."""
        count = len(computed)
        found = examples.cached(path, list(arrays), compute)
        for array, true in zip(found, arrays.values(), strict=True):
            np.testing.assert_array_equal(array, true)
        return len(computed) - count

    assert (read(), read()) == (1, 0)
    good, noticed = path.read_bytes(), 0
    for position in range(len(good)):  # one bit of every byte
        damaged = bytearray(good)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        noticed += read()
    assert noticed > intact.images.nbytes + intact.labels.nbytes
    pickled = io.BytesIO()
    np.savez(pickled, **(arrays | {"images": np.array([{}])}))  # loading it could run a program
    for content in (b"", good[: len(good) // 2], b"\0" * len(good), pickled.getvalue()):
        path.write_bytes(content)
        assert read() == 1
        assert path.read_bytes() == good  # and it was written anew
    assert list(tmp_path.iterdir()) == [path]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, cache_dir):
    intact = make_examples(4)
    write(tmp_path, train=intact)

    def full_disk(stream, **_):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full_disk)
        assert_same(load("tiny", "train", [tmp_path]), intact)
    assert list(cache_dir.iterdir()) == []
    (tmp_path / "a_file").write_text("in the way")
    monkeypatch.chdir(tmp_path)
    for home in (str(tmp_path / "a_file"), "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        assert_same(load("tiny", "train", [tmp_path]), intact)
    assert not (tmp_path / "relative").exists()


# Orders and batches


@given(st.integers(0, 300), st.integers(0, 2**40), st.integers(0, 1000))
def test_epoch_order_is_a_permutation_and_a_function_of_its_arguments(num_examples, seed, epoch):
    order = epoch_order(num_examples, seed, epoch)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(num_examples))
    epoch_order.cache_clear()
    np.testing.assert_array_equal(order, epoch_order(num_examples, seed, epoch))


def test_equal_numbers_keep_their_order(monkeypatch):
    """Of 64 random bits two are hardly ever equal; here many are."""
    draws = np.random.default_rng(0).integers(0, 5, 1000).astype(np.uint64)

    class Philox:
        def __init__(self, seeds):
            pass

        def random_raw(self, count: int) -> np.ndarray:
            return draws[:count]

    monkeypatch.setattr(np.random, "Philox", Philox)
    order = epoch_order.__wrapped__(1000, 0, 0)
    np.testing.assert_array_equal(order, sorted(range(1000), key=lambda i: draws[i]))


def test_epoch_orders_differ_are_uniform_and_never_change():
    assert epoch_order(8, 1, 2).tolist() == [2, 0, 5, 7, 1, 6, 4, 3]
    pairs = [(seed, epoch) for seed in (0, 1, 5, 2**32, 2**32 + 5, 2**33) for epoch in (0, 1, 2, 5)]
    assert len({tuple(epoch_order(50, seed, epoch)) for seed, epoch in pairs}) == len(pairs)
    orders = np.stack([epoch_order(10, 3, epoch) for epoch in range(2000)])
    counts = np.stack([np.bincount(orders[:, place], minlength=10) for place in range(10)])
    assert np.abs(counts - 200).max() < 6 * np.sqrt(200 * 0.9)  # six standard deviations


COUNTS = st.integers(0, 200)


@given(st.integers(1, 40), COUNTS, st.integers(0, 15), st.integers(0, 2**33), st.booleans())
def test_order_of_uses_is_that_of_the_epochs_in_a_row(population, first, rows, seed, reshuffle):
    uses = np.arange(first, first + 2 * rows).reshape(2, rows)
    epochs = range((first + 2 * rows) // population + 1)
    orders = [epoch_order(population, seed, epoch if reshuffle else 0) for epoch in epochs]
    chosen = order_of_uses(population, uses, seed, reshuffle=reshuffle)
    np.testing.assert_array_equal(chosen, np.concatenate(orders)[uses])


@given(st.integers(0, 40), st.integers(1, 17), st.sampled_from([0, 3]))
def test_eval_batches_count_each_example_once(count, batch_size, num_threads):
    whole = make_examples(count)
    batches = list(eval_batches(whole, batch_size, num_threads=num_threads))
    assert len(batches) == -(-count // batch_size)
    images, labels = [], []
    for batch in batches:
        assert batch["image"].shape == (batch_size, 4, 3, 1)
        assert batch["label"].shape == batch["mask"].shape == (batch_size,)
        assert [batch[name].dtype for name in ("image", "label", "mask")] == [np.uint8, "i4", bool]
        assert not batch["image"][~batch["mask"]].any() and not batch["label"][~batch["mask"]].any()
        images.extend(batch["image"][batch["mask"]])
        labels.extend(batch["label"][batch["mask"]])
    np.testing.assert_array_equal(np.array(images).reshape(whole.images.shape), whole.images)
    np.testing.assert_array_equal(labels, whole.labels)


# The embedded digits

FIRST_LABELS = [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]  # the best-known line of MNIST
CLASS_COUNTS = {
    "train": [801, 902, 793, 826, 784, 690, 811, 856, 755, 782],
    "test": [200, 225, 198, 206, 196, 173, 203, 214, 189, 196],
}


@pytest.mark.commands
def test_mnist10k_is_stratified_of_the_right_size_and_has_no_digit_twice():
    distinct = set()
    for split, size in (("train", 8000), ("test", 2000)):
        digits = load("mnist10k", split, [DIGITS])
        assert digits.images.shape == (size, 28, 28, 1)
        assert (digits.num_classes, digits.name) == (10, "mnist10k")
        assert digits.class_names == tuple("0123456789")
        assert np.bincount(digits.labels).tolist() == CLASS_COUNTS[split]
        assert (digits.images.min(), digits.images.max()) == (0, 255)
        distinct |= {image.tobytes() for image in digits.images}
    assert len(distinct) == 10_000
    for train, test in zip(*CLASS_COUNTS.values(), strict=True):
        assert abs(test - (train + test) / 5) <= 0.5
    assert load("mnist10k", "train[:10]", [DIGITS]).labels.tolist() == FIRST_LABELS


@pytest.mark.commands
def test_the_python_on_the_page_of_mnist10k_works_when_pasted(tmp_path, monkeypatch):
    """It reads the set, and makes the same from the digits."""
    reading, making = re.findall(
        r"(?:^    .+\n|^\n(?=    ))+", (DIGITS / "README.md").read_text(), re.M
    )
    monkeypatch.chdir(ROOT)
    exec(textwrap.dedent(reading), read := {})
    parts = read["train"], read["test"]
    images, labels = (np.concatenate([getattr(p, n) for p in parts]) for n in ("images", "labels"))
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent(making), {"images": images, "labels": labels})
    for split, digits in zip(("train", "test"), parts, strict=True):
        assert_same(load("mnist10k", split, [tmp_path / "lenet/digits"]), digits)


@pytest.mark.commands
def test_mnist10k_is_the_first_10000_training_digits_of_mnist():
    try:
        folder = find("mnist", data_dirs(""))
    except DataError as error:
        pytest.skip(f"needs the full MNIST: {error}")
    # TFDS stores record i where the MD5 of "train<i>" sorts (see test_builders.py); undone, that is
    # the original order.
    order = sorted(range(60_000), key=lambda index: hashlib.md5(f"train{index}".encode()).digest())
    records = tfds.builder_from_directory(folder).as_data_source("train")
    first = {index: records[place] for place, index in enumerate(order) if index < 10_000}
    images = np.stack([first[index]["image"] for index in range(10_000)])
    labels = np.array([first[index]["label"] for index in range(10_000)])
    in_test = np.zeros(10_000, bool)
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        in_test[members[len(members) - round(len(members) / 5) :]] = True
    for split, chosen in (("train", ~in_test), ("test", in_test)):
        digits = load("mnist10k", split, [DIGITS])
        np.testing.assert_array_equal(digits.images, images[chosen])
        np.testing.assert_array_equal(digits.labels, labels[chosen])
