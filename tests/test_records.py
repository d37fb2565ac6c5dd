"""Images read record by record: every kind of file, damage and what stands in for it, and reading
ahead by threads.
"""

import contextlib
import copy
import io
import json
import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from common import records
from common.errors import DataError, StorageError
from common.examples import load
from common.images import decode
from common.order import eval_batches, read_batches
from common.records import Damage, DamagedRecords, Records, open_records
from scripts.prepare import builders

SIZE = 256
SHARD = "photos-train.array_record-00000-of-00001"


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def photo(seed: int, size: int = SIZE) -> np.ndarray:
    """(size, size, 3) uint8, smooth enough for a JPEG."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    waves = [
        np.sin(random.uniform(2, 20) * x + random.uniform(2, 20) * y + random.uniform(0, 6))
        for _ in range(3)
    ]
    noise = random.integers(-20, 21, (size, size, 3))
    return np.uint8(np.stack(waves, axis=-1) * 100 + 128 + noise)


def encoded(image: np.ndarray, kind: str = "jpeg", mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def write(data_dir, images, *, shape=(SIZE, SIZE, 3), classes=5) -> Path:
    """A set `photos` with labels 0, 1, ... 4, 0, ..."""
    pairs = {"train": [(image, i % classes) for i, image in enumerate(images)]}
    names = [str(i) for i in range(classes)]
    return builders.write_prepared(
        data_dir, "photos", "1.0.0", pairs, shape, names, keep_order=True
    )


def opened(data_dir, split="train", allowed=0) -> Records:
    return open_records("photos", split, [data_dir], DamagedRecords("photos", allowed))


def edit_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def two_shards(tmp_path_factory):
    """A set of 4 + 5 noise images of 6x5 pixels in two shards: (data_dir, images, labels)."""
    data_dir = tmp_path_factory.mktemp("two_shards")
    images = np.random.default_rng(0).integers(0, 256, (9, 6, 5, 3), np.uint8)
    folder = write(data_dir, images[:4], shape=(6, 5, 3))
    write(data_dir / "other", images, shape=(6, 5, 3))
    source = opened(data_dir / "other", "train[4:]").source
    (folder / SHARD).rename(folder / "photos-train.array_record-00000-of-00002")
    second = folder / "photos-train.array_record-00001-of-00002"
    writer = ArrayRecordWriter(str(second), "group_size:1")
    for number in range(5):
        writer.write(source[number])
    writer.close()
    lengths = {"shardLengths": ["4", "5"]}
    edit_json(folder / "dataset_info.json", lambda info: info["splits"][0].update(lengths))
    return data_dir, images, np.arange(9) % 5


@pytest.fixture
def own_two_shards(two_shards, tmp_path):
    """A copy of `two_shards` to damage: its folder."""
    shutil.copytree(two_shards[0] / "photos", tmp_path / "photos")
    return tmp_path / "photos" / "1.0.0"


def message_of(function, *arguments) -> str:
    with pytest.raises(DataError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 65
    return str(caught.value)


# Reading


def test_records_in_any_order_and_more_than_once_like_examples_in_memory(two_shards):
    data_dir, images, labels = two_shards
    for whole in (opened(data_dir), load("photos", "train", [data_dir])):
        assert (len(whole), whole.image_shape, whole.num_classes) == (9, (6, 5, 3), 5)
        assert (whole.name, whole.class_names) == ("photos", tuple("01234"))
        for indices in (np.arange(9), np.array([8, 0, 4, 3, 4, 4]), np.array([], np.int64)):
            read_images, read_labels = whole.read(indices)
            assert (read_images.dtype, read_labels.dtype) == (np.uint8, np.int32)
            np.testing.assert_array_equal(read_images, images[indices])
            np.testing.assert_array_equal(read_labels, labels[indices])
    for index in (-1, 9):
        with pytest.raises(IndexError):
            opened(data_dir).read(np.array([index]))


@pytest.mark.parametrize(
    "split",
    ["train", "train[:3]", "train[3:6]", "train[-2:]", "train[:50%]", "train[5:]+train[:5]"],
)
def test_splits_mean_what_they_mean_in_tfds(two_shards, split):
    builder = tfds.builder_from_directory(two_shards[0] / "photos" / "1.0.0")
    expected = list(builder.as_data_source(split))
    chosen = opened(two_shards[0], split)
    images, labels = chosen.read(np.arange(len(chosen)))
    np.testing.assert_array_equal(images, [example["image"] for example in expected])
    np.testing.assert_array_equal(labels, [example["label"] for example in expected])


BOUNDS = st.none() | st.integers(-10, 10)


@given(BOUNDS, BOUNDS, BOUNDS, BOUNDS)
def test_slices_of_slices(two_shards, start, stop, second_start, second_stop):
    whole = opened(two_shards[0])
    chosen = whole[start:stop][second_start:second_stop]
    expected = np.arange(9)[start:stop][second_start:second_stop]
    assert len(chosen) == len(expected) and chosen.damaged is whole.damaged
    np.testing.assert_array_equal(chosen.read(np.arange(len(chosen)))[0], two_shards[1][expected])
    with pytest.raises(ValueError, match="2"):
        whole[::2]


def test_a_copy_reads_too_after_the_original_did(two_shards):
    """As in the processes of PyTorch's DataLoader, to which the benchmark sends one."""
    whole = opened(two_shards[0])
    whole.read(np.array([0]))
    np.testing.assert_array_equal(copy.deepcopy(whole).read(np.array([7]))[0], two_shards[1][[7]])


FILES = {
    "jpeg": encoded(photo(0), quality=90),
    "fine chroma": encoded(photo(1), quality=95, subsampling=0),
    "progressive": encoded(photo(2), progressive=True),
    "gray": encoded(photo(3), mode="L"),
    "CMYK": encoded(photo(4), mode="CMYK"),
    "RGB inside": encoded(photo(5), keep_rgb=True),
    "png": encoded(photo(6), "png"),
    "gray png": encoded(photo(7), "png", mode="L"),
    "palette png": encoded(photo(8), "png", mode="P"),
    "transparent png": encoded(photo(9), "png", mode="RGBA"),
}


def test_every_kind_of_file_has_the_pixels_that_pillow_reads(tmp_path):
    write(tmp_path, list(FILES.values()))
    images, _ = opened(tmp_path).read(np.arange(len(FILES)))
    for image, (kind, content) in zip(images, FILES.items(), strict=True):
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        np.testing.assert_array_equal(image, expected, err_msg=kind)
    for number in (0, 6):  # and those that were meant
        assert np.abs(images[number].astype(int) - photo(number)).mean() < 15
    gray = np.random.default_rng(0).integers(0, 256, (3, 7, 6, 1), np.uint8)
    write(tmp_path / "gray", gray, shape=(7, 6, 1))
    np.testing.assert_array_equal(opened(tmp_path / "gray").read(np.arange(3))[0], gray)


def make_raw(folder: Path, images, labels) -> None:
    """Turns a set into one whose records hold the pixels themselves, as TFDS's Tensor feature
    stores them.
    """
    dimensions = [str(size) for size in images.shape[1:]]
    tensor = {"dtype": "uint8", "encoding": "bytes", "shape": {"dimensions": dimensions}}
    name = "tensorflow_datasets.core.features.tensor_feature.Tensor"
    feature = {"tensor": tensor, "pythonClassName": name}
    edit_json(
        folder / "features.json",
        lambda content: content["featuresDict"]["features"].update(image=feature),
    )
    writer = ArrayRecordWriter(str(folder / SHARD), "group_size:1")
    for image, label in zip(images, labels, strict=True):
        example = tf_example_pb2.Example()
        example.features.feature["image"].bytes_list.value.append(image.tobytes())
        example.features.feature["label"].int64_list.value.append(label)
        writer.write(example.SerializeToString())
    writer.close()


def test_raw_pixels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), np.uint8)
    images[0].reshape(-1)[:3] = 0xFF, 0xD8, 0xFF  # as a JPEG begins
    folder = write(tmp_path, images, shape=(6, 5, 3))
    make_raw(folder, images, [2, 0, 4])
    builder = tfds.builder_from_directory(folder)
    for image, example in zip(images, builder.as_data_source("train"), strict=True):
        np.testing.assert_array_equal(example["image"], image)  # TFDS agrees
    read_images, labels = opened(tmp_path).read(np.array([2, 0, 1]))
    np.testing.assert_array_equal(read_images, images[[2, 0, 1]])
    assert labels.tolist() == [4, 2, 0]
    assert str(folder) in message_of(load, "photos", "train", [tmp_path])
    make_raw(folder, images[:, :5], [0, 1, 2])
    shape = {"dimensions": ["6", "5", "3"]}  # of more pixels than the records have
    edit_json(
        folder / "features.json",
        lambda content: content["featuresDict"]["features"]["image"]["tensor"].update(shape=shape),
    )
    assert "record 1 (" in message_of(opened(tmp_path).read, np.array([1]))


# What is refused


def test_opening_is_refused_as_loading_is(own_two_shards, tmp_path):
    def alike(*arguments) -> str:
        message = message_of(open_records, *arguments)
        assert message == message_of(load, *arguments)
        return message

    for dataset, split in (("photos", "valid"), ("other", "train"), ("../photos", "train")):
        alike(dataset, split, [tmp_path])
    (own_two_shards / "photos-train.array_record-00001-of-00002").unlink()
    assert "1 of 2 shards" in alike("photos", "train", [tmp_path])
    edit_json(own_two_shards / "dataset_info.json", lambda info: info.update(fileFormat="tfrecord"))
    assert "tfrecord" in alike("photos", "train", [tmp_path])
    varying = tmp_path / "varying"
    folder = write(varying, [encoded(photo(0, 20)), encoded(photo(0, 21))], shape=(None, None, 3))
    assert str(folder) in message_of(open_records, "photos", "train", [varying])


def test_damaged_images_are_named_by_split_shard_and_record(tmp_path):
    bad = {
        b"\xff\xd8\xff no image": "",
        b"no image": "neither JPEG nor PNG",
        encoded(photo(0), "gif"): "neither JPEG nor PNG",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 256 256\n": "neither JPEG nor PNG",
        b"": "",
        FILES["jpeg"][: len(FILES["jpeg"]) // 2]: "",
        FILES["png"][: len(FILES["png"]) // 2]: "",
        encoded(photo(0, 200)): "an image of 200x200 pixels, not 256x256",
        encoded(photo(0, 300), "png"): "an image of 300x300 pixels, not 256x256",
    }
    folder = write(tmp_path, [FILES["jpeg"], FILES["png"], *bad, FILES["gray"]])
    chosen = opened(tmp_path, "train[1:]")
    chosen.read(np.array([0, 10]))
    for number, reason in enumerate(bad.values()):
        message = message_of(chosen.read, np.array([0, 1 + number, 10]))
        named = f"photos, split train, shard {folder / SHARD}, record {2 + number} ({reason}"
        assert named in message


def test_the_record_is_counted_in_its_own_shard(own_two_shards, tmp_path):
    """With four classes, label 4 of the 5th of the nine examples, record 0 of shard 1, is none."""
    edit_json(
        own_two_shards / "features.json",
        lambda f: f["featuresDict"]["features"]["label"]["classLabel"].update(numClasses=4),
    )
    whole = opened(tmp_path)
    whole.read(np.array([0, 1, 2, 3, 5, 8]))
    message = message_of(whole.read, np.array([4]))
    assert "-00001-of-00002, record 0 (label 4; allowed: 0 to 3)" in message
    assert "record 0 (" in message_of(whole[2:7].read, np.array([2]))


def test_damaged_files_are_never_read_as_good_ones(own_two_shards, two_shards, tmp_path):
    _, images, labels = two_shards
    shard = own_two_shards / "photos-train.array_record-00001-of-00002"
    good = shard.read_bytes()
    used = np.flatnonzero(np.frombuffer(good, np.uint8))  # most of the file is padding
    named = 0
    for position in np.random.default_rng(0).choice(used, 100, replace=False):
        damaged = bytearray(good)
        damaged[position] ^= 1 << (position % 8)
        shard.write_bytes(damaged)
        try:  # padding and unused fields may change
            read_images, read_labels = opened(tmp_path).read(np.arange(9))
            np.testing.assert_array_equal(read_images, images)
            np.testing.assert_array_equal(read_labels, labels)
        except DataError as error:
            assert f"shard {shard}, record" in str(error)
            named += 1
    assert named >= 80
    shard.write_bytes(good[: len(good) // 2])
    whole = opened(tmp_path)
    assert str(shard) in message_of(whole.read, np.array([8]))
    np.testing.assert_array_equal(whole.read(np.array([0, 3]))[0], images[[0, 3]])


# Damaged records that are allowed


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """Seven noise images with labels 0 to 6, and the data_dir that has them."""
    folder = tmp_path_factory.mktemp("seven")
    images = np.random.default_rng(1).integers(0, 256, (7, 6, 5, 3), np.uint8)
    write(folder, images, shape=(6, 5, 3), classes=7)
    return images, folder


class Chosen(Records):
    """Records of which those in `bad` are damaged."""

    bad: frozenset = frozenset()

    @property
    def source(self):
        intact, bad = super().source, self.bad

        class Source:
            def __getitem__(self, index):
                return b"no record" if index in bad else intact[index]

        return Source()


def damaged_view(seven, bad, allowed: int = 7) -> Records:
    whole = opened(seven[1], allowed=allowed)
    view = Chosen(**{name: getattr(whole, name) for name in whole.__dataclass_fields__})
    object.__setattr__(view, "bad", frozenset(bad))
    return view


@given(st.sets(st.integers(0, 6)), st.lists(st.integers(0, 6), max_size=12))
def test_the_next_intact_record_replaces_a_damaged_one(seven, bad, indices):
    chosen, images = damaged_view(seven, bad), seven[0]
    if len(bad) == 7 and indices:
        assert "photos" in message_of(chosen.read, np.array(indices))
        return
    read_images, labels = chosen.read(np.array(indices, int))
    stand_ins = [
        next(i % 7 for i in range(index, index + 7) if i % 7 not in bad) for index in indices
    ]
    np.testing.assert_array_equal(read_images, images[stand_ins])
    assert labels.tolist() == stand_ins
    asked = {
        i % 7
        for index, stand_in in zip(indices, stand_ins, strict=True)
        for i in range(index, index + (stand_in - index) % 7)
    }
    listed = [Damage(*each) for each in chosen.damaged.listed]
    assert [damage.record for damage in listed] == sorted(asked)
    assert {damage[:2] for damage in listed} <= {("train", SHARD)}


def test_reading_ends_where_more_are_damaged_than_allowed(seven):
    chosen = damaged_view(seven, range(1, 7), allowed=3)
    message = message_of(chosen.read, np.array([1, 2]))
    assert "--max_bad_records=3" in message
    assert [f"record {number} (" in message for number in range(7)] == [0, 1, 1, 1, 1, 0, 0]


def test_sixteen_bits_are_not_clipped_to_eight():
    content = io.BytesIO()
    Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4) * 4000).save(content, "PNG")
    with pytest.raises(ValueError, match="8 bits"):
        decode(content.getvalue(), (4, 4, 1))


def test_what_the_machine_lacks_is_no_damage(seven, monkeypatch):
    def starved(content):
        raise error

    monkeypatch.setattr(records, "parse", starved)
    for error in (MemoryError("no memory"), OSError(24, "Too many open files")):
        with pytest.raises(StorageError, match=re.escape(str(error))):
            opened(seven[1], allowed=7).read(np.array([1]))


def joined(batches) -> dict[str, np.ndarray]:
    batches = list(batches)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("num_threads", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_damaged_records_are_scored_nowhere_and_counted_once(
    seven, batch_size, num_threads, capsys
):
    images, chosen = seven[0], damaged_view(seven, {0, 4}, allowed=2)
    for _ in range(2):
        scored = joined(eval_batches(chosen, batch_size, num_threads=num_threads))
        mask = scored["mask"]
        assert np.flatnonzero(mask).tolist() == [1, 2, 3, 5, 6]
        np.testing.assert_array_equal(scored["image"][mask], images[[1, 2, 3, 5, 6]])
        assert not scored["image"][~mask].any() and not scored["label"][~mask].any()
    assert chosen.damaged.count == 2
    lines = capsys.readouterr().err.splitlines()
    for number, line in zip((0, 4), lines, strict=True):
        assert f"photos, split train, shard {SHARD}, record {number} (" in line
    too_many = damaged_view(seven, {0, 4, 6}, allowed=2)
    message = message_of(list, eval_batches(too_many, 2, num_threads=num_threads))
    assert "--max_bad_records=2" in message
    assert [f"record {number} (" in message for number in range(7)] == [1, 0, 0, 0, 1, 0, 1]


def test_what_a_checkpoint_lists_counts_and_is_not_printed_again(capsys):
    damage = Damage("train", SHARD, 3, "a reason")
    first, second = DamagedRecords("photos", 1), DamagedRecords("photos", 1)
    first.add([damage, damage._replace(reason="in other words")], "gone")
    line = f"damaged data in photos, split train, shard {SHARD}, record 3 (a reason): gone\n"
    assert capsys.readouterr().err == line
    second.add(json.loads(json.dumps(first.listed)))
    second.add([damage], "gone")
    second.agree("skipped")
    assert (second.count, capsys.readouterr().err) == (1, "")
    assert "record 4 (" in message_of(second.add, [damage._replace(record=4)])


# Reading ahead


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@pytest.mark.parametrize("num_threads", [0, 1, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 9, 20])
def test_eval_batches_of_records_count_each_once(two_shards, batch_size, num_threads, monkeypatch):
    monkeypatch.setattr("common.order.MIN_PART_BYTES", 1)  # each thread gets its parts
    data_dir, images, labels = two_shards
    scored = joined(eval_batches(opened(data_dir), batch_size, num_threads=num_threads))
    size = -(-9 // batch_size) * batch_size
    assert scored["mask"].tolist() == [True] * 9 + [False] * (size - 9)
    np.testing.assert_array_equal(scored["image"][:9], images)
    np.testing.assert_array_equal(scored["label"][:9], labels)
    assert not scored["image"][9:].any() and not scored["label"][9:].any()
    assert not readers()


@pytest.mark.parametrize("num_threads", [0, 2])
def test_damage_reaches_the_caller_with_its_batch(tmp_path, num_threads):
    write(tmp_path, [FILES["jpeg"], b"no image", FILES["png"]])
    batches = eval_batches(opened(tmp_path), 1, num_threads=num_threads)
    assert next(batches)["mask"].all()
    assert "record 1 (" in message_of(next, batches)
    assert not readers()


class Watched:
    """Examples that note when they are read, by whom, and may take their time."""

    image_shape, name, damaged = (1, 1, 1), "watched", None

    def __init__(self, seconds: float = 0.0):
        self.seconds, self.read, self.by = seconds, [], set()

    def __len__(self):
        return 1000

    def read_into(self, indices, images, labels, mask=None):
        self.by.add(threading.current_thread())
        self.read += indices.tolist()
        time.sleep(self.seconds)
        images[:], labels[:] = indices[:, None, None, None] % 256, indices
        return ()


@pytest.mark.parametrize(("num_threads", "ahead"), [(0, 0), (1, 2), (3, 2)])
def test_batches_are_read_ahead_but_not_far(num_threads, ahead):
    watched = Watched()
    batches = eval_batches(watched, 1, num_threads=num_threads)
    assert next(batches)["label"] == [0]
    batches.close()  # waits for the readers
    assert sorted(watched.read) == list(range(1 + ahead))[: len(watched.read)]
    assert len(watched.read) <= 1 + ahead
    assert (threading.main_thread() in watched.by) == (num_threads == 0)


@pytest.mark.commands
def test_closing_early_ends_the_threads_quickly(monkeypatch):
    """Parts that have not begun are never read; those that have are finished."""
    monkeypatch.setattr("common.order.MIN_PART_BYTES", 1)
    watched = Watched(0.2)
    indices = (np.arange(step, step + 8) for step in range(100))
    with contextlib.closing(read_batches(watched, indices, size=8, num_threads=2)) as batches:
        next(batches)
        assert len(readers()) == 2
        start = time.monotonic()
    assert time.monotonic() - start < 0.4 and not readers()
    batches = eval_batches(watched, 8, num_threads=2)
    next(batches)
    del batches  # as where an error leaves the loop
    assert not readers()


def test_each_batch_has_arrays_of_its_own():
    """A device may still be reading the last batch while the next is filled."""
    batches = list(eval_batches(Watched(), 100, num_threads=2))
    assert [batch["label"][0] for batch in batches] == list(range(0, 1000, 100))
    assert len({batch["image"].ctypes.data for batch in batches}) == 10
