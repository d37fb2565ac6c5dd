"""common/data.py: finding and reading prepared sets, the cache, orders and batches; and the
embedded digits.
"""

import hashlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common import data
from common.errors import DataError
from scripts.prepare import builders

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "lenet" / "digits"


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lenet-alexnet"


def make_examples(count: int, seed: int = 0, shape=(4, 3, 1)) -> data.Examples:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, *shape), np.uint8)
    return data.Examples(images, random.integers(0, 3, count).astype(np.int32), 3, "tiny")


def write(data_dir, dataset="tiny", version="1.0.0", **splits) -> Path:
    pairs = {
        split: zip(examples.images, examples.labels, strict=True)
        for split, examples in splits.items()
    }
    shape = next(iter(splits.values())).images.shape[1:]
    return builders.write_prepared(data_dir, dataset, version, pairs, shape, "abc", keep_order=True)


def assert_same(left: data.Examples, right: data.Examples) -> None:
    np.testing.assert_array_equal(left.images, right.images)
    np.testing.assert_array_equal(left.labels, right.labels)
    assert (left.num_classes, left.name) == (right.num_classes, right.name)


def forbid_reading_records(monkeypatch) -> None:
    def refuse(*_):
        raise AssertionError("the records were read")

    monkeypatch.setattr(data, "_read_records", refuse)


def edit_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# Finding and reading


def test_newest_version_in_the_first_folder_that_has_the_set(tmp_path):
    old, new, other = make_examples(2, 1), make_examples(3, 2), make_examples(4, 3)
    write(tmp_path / "a", version="2.9.0", train=old)
    write(
        tmp_path / "a", version="2.10.0", train=new
    )  # newer, though it sorts before 2.9.0 as text
    write(tmp_path / "b", version="3.0.0", train=other)
    (tmp_path / "a" / "tiny" / "incomplete.X_9.0.0").mkdir()
    (tmp_path / "a" / "tiny" / "incomplete.X_9.0.0" / "dataset_info.json").write_text(
        "{}"
    )  # an interrupted preparation
    assert_same(
        data.load("tiny", "train", [tmp_path / "missing", tmp_path / "a", tmp_path / "b"]), new
    )
    assert_same(data.load("tiny", "train", [str(tmp_path / "b"), str(tmp_path / "a")]), other)


@pytest.mark.parametrize(
    "split",
    ["train", "test[:3]", "train[2:-1]", "train[-2:]", "train[:50%]", "train+test", "train[3:3]"],
)
def test_splits_mean_what_they_mean_in_tfds(tmp_path, split):
    folder = write(tmp_path, train=make_examples(9, 1), test=make_examples(5, 2))
    examples = data.load("tiny", split, [tmp_path])
    builder = tfds.builder_from_directory(folder)
    assert len(examples) == len(examples.images) == builder.info.splits[split].num_examples
    if len(examples):  # TFDS itself cannot open an empty slice
        records = list(builder.as_data_source(split))
        np.testing.assert_array_equal(examples.labels, [record["label"] for record in records])
        np.testing.assert_array_equal(examples.images, [record["image"] for record in records])


def test_slicing_examples():
    examples = make_examples(10)
    training, validation = examples[:-3], examples[-3:]
    assert (len(training), len(validation), len(examples)) == (7, 3, 10)
    np.testing.assert_array_equal(
        np.concatenate([training.images, validation.images]), examples.images
    )
    np.testing.assert_array_equal(
        np.concatenate([training.labels, validation.labels]), examples.labels
    )
    assert (training.num_classes, training.name) == (3, "tiny")


def message_of(*arguments) -> str:
    with pytest.raises(DataError) as caught:
        data.load(*arguments)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 65
    return str(caught.value)


def test_set_not_found_says_where_it_looked_and_what_to_do(tmp_path):
    message = message_of("mnist", "train", [tmp_path / "here", tmp_path / "there"])
    for part in (
        str(tmp_path / "here"),
        str(tmp_path / "there"),
        "--data_dir",
        "$TFDS_DATA_DIR",
        "python -m scripts.prepare_data --help`",
        "--dataset=mnist10k, for LeNet-5, is embedded",
    ):
        assert part in message


def test_sub_sets_are_listed(tmp_path):
    for config in ("letters", "balanced"):
        write(tmp_path, dataset=f"emnist/{config}", train=make_examples(1))
    assert "choose one of: --dataset=emnist/balanced, --dataset=emnist/letters" in message_of(
        "emnist", "train", [tmp_path]
    )


@pytest.mark.parametrize("dataset", ["", "../tiny", "/tiny", "tiny/", "a/b/c"])
def test_what_is_no_name_of_a_set(tmp_path, dataset):
    assert "allowed: a name such as mnist" in message_of(dataset, "train", [tmp_path])


@pytest.mark.parametrize("split", ["valid", "train[", "train[0:x]", "", "valid[:5]", "train+valid"])
def test_unknown_split_lists_those_available(tmp_path, split):
    write(tmp_path, train=make_examples(2), test=make_examples(2))
    assert "available: train, test, and slices such as train[:100]" in message_of(
        "tiny", split, [tmp_path]
    )


@pytest.mark.parametrize("file_format", ["tfrecord", None])
def test_tfrecord_is_refused_in_words(tmp_path, file_format):
    folder = write(tmp_path, train=make_examples(2))
    edit_json(
        folder / "dataset_info.json",
        lambda info: info.update(fileFormat=file_format) if file_format else info.pop("fileFormat"),
    )
    message = message_of("tiny", "train", [tmp_path])
    assert "tfrecord" in message
    assert "only array_record" in message


def test_labels_outside_the_classes_are_refused_also_from_the_cache(tmp_path):
    examples = make_examples(20)
    folder = write(tmp_path, train=examples)
    data.load("tiny", "train", [tmp_path])
    edit_json(
        folder / "features.json",
        lambda f: f["featuresDict"]["features"]["label"]["classLabel"].update(numClasses="2"),
    )
    for _ in range(2):
        assert "labels run from 0 to 2" in message_of("tiny", "train", [tmp_path])


def test_images_of_differing_shapes_are_refused(tmp_path):
    splits = {"train": [(np.zeros((4, 4, 1), np.uint8), 0), (np.zeros((4, 5, 1), np.uint8), 0)]}
    builders.write_prepared(
        tmp_path, "mixed", "1.0.0", splits, (None, None, 1), "a", keep_order=True
    )
    assert "images of 2 shapes, such as (4, 4, 1) and (4, 5, 1)" in message_of(
        "mixed", "train", [tmp_path]
    )


def test_splits_of_differing_shapes_are_refused_together_and_read_alone(tmp_path):
    splits = {
        "train": [(np.zeros((4, 4, 1), np.uint8), 0)],
        "test": [(np.zeros((4, 5, 1), np.uint8), 0)],
    }
    builders.write_prepared(
        tmp_path, "mixed", "1.0.0", splits, (None, None, 1), "a", keep_order=True
    )
    assert "different shapes" in message_of("mixed", "train+test", [tmp_path])
    assert data.load("mixed", "test", [tmp_path]).images.shape == (1, 4, 5, 1)


def test_a_set_without_image_and_class_label_is_refused(tmp_path):
    folder = write(tmp_path, train=make_examples(2))
    edit_json(folder / "features.json", lambda f: f["featuresDict"]["features"].pop("label"))
    assert "needed are `image`" in message_of("tiny", "train", [tmp_path])


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_unreadable_descriptions_are_named(tmp_path, name):
    folder = write(tmp_path, train=make_examples(2))
    (folder / name).write_text("{ half a fi")
    assert name in message_of("tiny", "train", [tmp_path])


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (
            "dataset_info.json",
            lambda f: f["splits"][0].update(name="../tiny"),
            "a split '../tiny' with shards",
        ),
        (
            "dataset_info.json",
            lambda f: f["splits"][0].update(shardLengths=["-1"]),
            "shards of .-1. records",
        ),
        ("dataset_info.json", lambda f: f.update(splits=[3]), "described wrongly"),
        (
            "features.json",
            lambda f: image_of(f).update(dimensions=["4", "3"]),
            "images of shape .'4', '3'.; allowed:",
        ),
        (
            "features.json",
            lambda f: image_of(f).update(dimensions=["4", "3", "7"]),
            "and 1, 3 or 4 channels",
        ),
        (
            "features.json",
            lambda f: image_of(f).update(dimensions=["10000", "9000", "3"]),
            "allowed: 89,478,485 pixels",
        ),
        ("features.json", lambda f: label_of(f).update(numClasses="0"), "0 classes"),
        ("features.json", lambda f: label_of(f).update(numClasses="many"), "invalid literal"),
    ],
)
def test_descriptions_that_cannot_be_true(tmp_path, name, change, reason):
    folder = write(tmp_path, train=make_examples(2))
    edit_json(folder / name, change)
    message = message_of("tiny", "train", [tmp_path])
    assert re.search(reason, message) and f"{folder} is described wrongly" in message


def image_of(features: dict) -> dict:
    return features["featuresDict"]["features"]["image"]["image"]["shape"]


def label_of(features: dict) -> dict:
    return features["featuresDict"]["features"]["label"]["classLabel"]


@pytest.mark.parametrize("size", [(9_000, 10_000), (60_000, 60_000)])
def test_too_many_pixels_are_refused_by_the_header(tmp_path, size, monkeypatch):
    """A small file whose header claims gigabytes, in a set of no fixed size: nothing is decoded."""
    content = io.BytesIO()
    Image.new("L", (4, 4)).save(content, "png")
    png = bytearray(content.getvalue())
    png[16:24] = struct.pack(">II", *size)  # in the chunk IHDR, which a CRC follows
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    builders.write_prepared(
        tmp_path,
        "bomb",
        "1.0.0",
        {"train": [(bytes(png), 0)]},
        (None, None, 1),
        "a",
        keep_order=True,
    )
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it was decoded"))
    assert "record 0 (more than 89,478,485 pixels)" in message_of("bomb", "train", [tmp_path])


def test_images_of_another_shape_than_described_are_refused(tmp_path):
    folder = write(tmp_path, train=make_examples(2))
    edit_json(folder / "features.json", lambda f: image_of(f).update(dimensions=["4", "4", "1"]))
    assert "record 0 (an image of 4x3 pixels, not 4x4)" in message_of("tiny", "train", [tmp_path])


def test_missing_shard(tmp_path):
    folder = write(tmp_path, train=make_examples(2))
    (folder / "tiny-train.array_record-00000-of-00001").unlink()
    assert "split train: 0 of 1 shards" in message_of("tiny", "train", [tmp_path])


def test_damaged_records_are_never_read_as_good_ones(tmp_path):
    examples = make_examples(30)
    shard = write(tmp_path, train=examples) / "tiny-train.array_record-00000-of-00001"
    good = shard.read_bytes()
    used = np.flatnonzero(np.frombuffer(good, np.uint8))  # most of the file is padding
    named = 0
    for position in np.random.default_rng(0).choice(used, 100, replace=False):
        damaged = bytearray(good)
        damaged[position] ^= 1 << (position % 8)
        shard.write_bytes(damaged)
        try:
            assert_same(
                data.load("tiny", "train", [tmp_path]), examples
            )  # padding and unused fields may change
        except DataError as error:
            named += (
                str(shard) in str(error) and "split train" in str(error) and "record" in str(error)
            )
    assert named >= 80
    for content in (good[: len(good) // 2], b""):
        shard.write_bytes(content)
        assert str(shard) in message_of("tiny", "train", [tmp_path])


def test_a_damaged_record_is_named_by_shard_and_number(tmp_path):
    splits = {"train": [(np.zeros((4, 4, 1), np.uint8), 0)] * 3 + [(b"\x89PNG no image", 0)]}
    builders.write_prepared(tmp_path, "tiny", "1.0.0", splits, (4, 4, 1), "a", keep_order=True)
    message = message_of("tiny", "train", [tmp_path])
    assert "split train" in message
    assert "tiny-train.array_record-00000-of-00001, record 3 (" in message


def test_tensorflow_is_not_imported_even_where_it_is_installed(tmp_path):
    write(tmp_path, train=make_examples(3))
    (tmp_path / "installed" / "tensorflow").mkdir(parents=True)
    (tmp_path / "installed" / "tensorflow" / "__init__.py").write_text(
        "raise AssertionError('TensorFlow was imported')"
    )
    code = """
import importlib, sys
import numpy as np
from common import data
from scripts.prepare import builders
assert len(data.load("tiny", "train[:2]", [sys.argv[1]])) == 2
splits = {"train": [(np.zeros((4, 4, 1), np.uint8), 0)]}
builders.write_prepared(sys.argv[1], "written", "1.0.0", splits, (4, 4, 1), "a", keep_order=True)
try:
    importlib.import_module("tensorflow")
except AssertionError:
    print("the guard works")
"""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "installed"), str(ROOT)])
    }
    command = [sys.executable, "-c", code, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "the guard works\n"), done.stderr


# The cache


def test_second_load_comes_from_the_cache(tmp_path, monkeypatch, cache_dir):
    examples = make_examples(8)
    write(tmp_path, train=examples)
    assert_same(data.load("tiny", "train", [tmp_path]), examples)
    assert len(list(cache_dir.iterdir())) == 1
    forbid_reading_records(monkeypatch)
    assert_same(data.load("tiny", "train", [tmp_path]), examples)
    assert_same(data.load("tiny", "train[2:5]", [tmp_path]), examples[2:5])


def test_a_changed_set_is_read_again(tmp_path):
    first, second = make_examples(8, 1), make_examples(8, 2)
    folder = write(tmp_path, train=first)
    assert_same(data.load("tiny", "train", [tmp_path]), first)
    write(tmp_path / "elsewhere", train=second)
    shard = "tiny-train.array_record-00000-of-00001"
    (folder / shard).write_bytes((tmp_path / "elsewhere" / "tiny" / "1.0.0" / shard).read_bytes())
    os.utime(folder / shard, ns=(1, 1))
    assert_same(data.load("tiny", "train", [tmp_path]), second)


def test_a_damaged_cache_is_never_used(tmp_path, monkeypatch, cache_dir):
    examples = make_examples(6)
    write(tmp_path, train=examples)
    data.load("tiny", "train", [tmp_path])
    (cache_file,) = cache_dir.iterdir()
    good = cache_file.read_bytes()
    rereads = []

    def read_records(*_):
        rereads.append(1)
        return examples.images, examples.labels

    monkeypatch.setattr(data, "_read_records", read_records)
    for position in range(
        len(good)
    ):  # one bit of every byte: where the arrays come out, they must be the true ones
        damaged = bytearray(good)
        damaged[position] ^= 1 << (position % 8)
        cache_file.write_bytes(damaged)
        assert_same(data.load("tiny", "train", [tmp_path]), examples)
    assert (
        len(rereads) > examples.images.nbytes + examples.labels.nbytes
    )  # at least every byte of the arrays was noticed
    pickled = io.BytesIO()
    np.savez(
        pickled, images=np.array([{}]), labels=examples.labels
    )  # loading it could run a program
    for content in (b"", good[: len(good) // 2], b"\0" * len(good), pickled.getvalue()):
        cache_file.write_bytes(content)
        count = len(rereads)
        assert_same(data.load("tiny", "train", [tmp_path]), examples)
        assert len(rereads) == count + 1
    assert cache_file.read_bytes() == good  # and it was written anew
    assert len(list(cache_dir.iterdir())) == 1


def test_a_damaged_cache_is_replaced_from_the_records(tmp_path, cache_dir):
    examples = make_examples(6)
    write(tmp_path, train=examples)
    data.load("tiny", "train", [tmp_path])
    (cache_file,) = cache_dir.iterdir()
    good = cache_file.read_bytes()
    place = good.index(examples.images.tobytes())
    cache_file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    assert_same(data.load("tiny", "train", [tmp_path]), examples)
    assert cache_file.read_bytes() == good


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    examples = make_examples(4)
    write(tmp_path, train=examples)
    (tmp_path / "a_file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a_file"))
    assert_same(data.load("tiny", "train", [tmp_path]), examples)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.chdir(tmp_path)
    assert_same(data.load("tiny", "train", [tmp_path]), examples)
    assert not (tmp_path / "relative").exists()


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch, cache_dir):
    examples = make_examples(4)
    write(tmp_path, train=examples)

    def full_disk(stream, **_):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    assert_same(data.load("tiny", "train", [tmp_path]), examples)
    assert list(cache_dir.iterdir()) == []


# Where to look


def test_data_dirs(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert data.data_dirs("", "embedded") == [tmp_path / "tensorflow_datasets", Path("embedded")]
    monkeypatch.setenv("TFDS_DATA_DIR", "~/sets")
    assert data.data_dirs("", "one", "two") == [tmp_path / "sets", Path("one"), Path("two")]
    assert data.data_dirs("given") == [Path("given")]


# Orders and batches


@given(st.integers(0, 300), st.integers(0, 2**40), st.integers(0, 1000))
def test_epoch_order_is_a_permutation_and_a_function_of_its_arguments(num_examples, seed, epoch):
    order = data.epoch_order(num_examples, seed, epoch)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(num_examples))
    np.testing.assert_array_equal(order, data.epoch_order(num_examples, seed, epoch))


def test_epoch_order_differs_by_seed_and_epoch():
    pairs = [(seed, epoch) for seed in (0, 1, 5, 2**32, 2**32 + 5, 2**33) for epoch in (0, 1, 2, 5)]
    orders = {tuple(data.epoch_order(50, seed, epoch)) for seed, epoch in pairs}
    assert len(orders) == len(pairs)


def test_epoch_order_is_the_same_for_all_times():
    assert data.epoch_order(8, 1, 2).tolist() == [2, 0, 5, 7, 1, 6, 4, 3]


def test_epoch_order_puts_every_example_everywhere():
    orders = np.stack([data.epoch_order(10, 3, epoch) for epoch in range(2000)])
    counts = np.stack([np.bincount(orders[:, place], minlength=10) for place in range(10)])
    assert np.abs(counts - 200).max() < 6 * np.sqrt(200 * 0.9)  # six standard deviations


@given(st.integers(0, 40), st.integers(1, 17))
def test_eval_batches_count_each_example_once(count, batch_size):
    examples = make_examples(count)
    batches = list(data.eval_batches(examples, batch_size))
    assert len(batches) == -(-count // batch_size)
    images, labels = [], []
    for batch in batches:
        assert batch["image"].shape == (batch_size, 4, 3, 1)
        assert (batch["image"].dtype, batch["label"].dtype, batch["mask"].dtype) == (
            np.uint8,
            np.int32,
            bool,
        )
        assert batch["label"].shape == batch["mask"].shape == (batch_size,)
        assert not batch["image"][~batch["mask"]].any()
        assert not batch["label"][~batch["mask"]].any()
        images.extend(batch["image"][batch["mask"]])
        labels.extend(batch["label"][batch["mask"]])
    np.testing.assert_array_equal(np.array(images).reshape(examples.images.shape), examples.images)
    np.testing.assert_array_equal(labels, examples.labels)


# The embedded digits

FIRST_LABELS = [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]  # the best-known line of MNIST
CLASS_COUNTS = {
    "train": [801, 902, 793, 826, 784, 690, 811, 856, 755, 782],
    "test": [200, 225, 198, 206, 196, 173, 203, 214, 189, 196],
}


def test_mnist10k_is_stratified_and_of_the_right_size():
    for split, size in (("train", 8000), ("test", 2000)):
        examples = data.load("mnist10k", split, [DIGITS])
        assert examples.images.shape == (size, 28, 28, 1)
        assert (examples.num_classes, examples.name) == (10, "mnist10k")
        assert np.bincount(examples.labels).tolist() == CLASS_COUNTS[split]
        assert (examples.images.min(), examples.images.max()) == (0, 255)
    for train, test in zip(*CLASS_COUNTS.values(), strict=True):
        assert abs(test - (train + test) / 5) <= 0.5
    assert data.load("mnist10k", "train[:10]", [DIGITS]).labels.tolist() == FIRST_LABELS


def test_mnist10k_has_no_digit_twice():
    images = data.load("mnist10k", "train+test", [DIGITS]).images
    assert len({image.tobytes() for image in images}) == 10_000


def test_mnist10k_is_the_first_10000_training_digits_of_mnist():
    try:
        folder = data.find("mnist", data.data_dirs(""))
    except DataError as error:
        pytest.skip(f"needs the full MNIST: {error}")
    # TFDS stores record i where the MD5 of "train<i>" sorts (see test_builders.py); undone, that is
    # the original order.
    order = sorted(range(60_000), key=lambda index: hashlib.md5(f"train{index}".encode()).digest())
    records = tfds.builder_from_directory(folder).as_data_source("train")
    first = {index: records[place] for place, index in enumerate(order) if index < 10_000}
    images = np.stack([first[index]["image"] for index in range(10_000)])
    labels = np.array([first[index]["label"] for index in range(10_000)])
    assert labels[:10].tolist() == FIRST_LABELS
    in_test = np.zeros(10_000, bool)
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        in_test[members[len(members) - round(len(members) / 5) :]] = True
    for split, chosen in (("train", ~in_test), ("test", in_test)):
        examples = data.load("mnist10k", split, [DIGITS])
        np.testing.assert_array_equal(examples.images, images[chosen])
        np.testing.assert_array_equal(examples.labels, labels[chosen])
