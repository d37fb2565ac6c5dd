"""common/data.py: records read one by one, the order of uses, and the batches of an evaluation."""

import copy
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from common.damage import DamagedRecords
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from common import builders, data
from common.errors import DataError

SIZE = 256


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
    return np.uint8(
        np.stack(waves, axis=-1) * 100 + 128 + random.integers(-20, 21, (size, size, 3))
    )


def encoded(image: np.ndarray, kind: str = "jpeg", mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def write(
    data_dir,
    images,
    labels=None,
    *,
    name="photos",
    shape=(SIZE, SIZE, 3),
    classes=5,
    splits=("train",),
) -> Path:
    labels = [i % classes for i in range(len(images))] if labels is None else labels
    pairs = {split: list(zip(images, labels, strict=True)) for split in splits}
    names = [str(i) for i in range(classes)]
    return builders.write_prepared(data_dir, name, "1.0.0", pairs, shape, names, keep_order=True)


def edit_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def two_shards(tmp_path_factory):
    """A set of 4 + 5 noise images of 6x5 pixels in two shards: (data_dir, images, labels)."""
    data_dir = tmp_path_factory.mktemp("two_shards")
    images = np.random.default_rng(0).integers(0, 256, (9, 6, 5, 3), np.uint8)
    labels = np.arange(9) % 5
    folder = write(data_dir, images[:4], labels[:4], shape=(6, 5, 3))
    other = write(data_dir / "other", images[4:], labels[4:], shape=(6, 5, 3))
    shard = "photos-train.array_record-00000-of-00001"
    (folder / shard).rename(folder / "photos-train.array_record-00000-of-00002")
    shutil.copy(other / shard, folder / "photos-train.array_record-00001-of-00002")
    edit_json(
        folder / "dataset_info.json", lambda info: info["splits"][0].update(shardLengths=["4", "5"])
    )
    return data_dir, images, labels


@pytest.fixture
def own_two_shards(two_shards, tmp_path):
    """A copy of `two_shards` to damage: its folder."""
    shutil.copytree(two_shards[0] / "photos", tmp_path / "photos")
    return tmp_path / "photos" / "1.0.0"


def message_of(function, *arguments) -> str:
    with pytest.raises(DataError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 65
    return str(caught.value)


# Reading


def test_records_in_any_order_and_more_than_once(two_shards):
    data_dir, images, labels = two_shards
    records = data.open_records("photos", "train", [data_dir])
    assert (len(records), records.image_shape, records.num_classes, records.name) == (
        9,
        (6, 5, 3),
        5,
        "photos",
    )
    for indices in (np.arange(9), np.array([8, 0, 4, 3, 4, 4]), np.array([], np.int64)):
        read_images, read_labels = records.read(indices)
        assert (read_images.dtype, read_labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(read_images, images[indices])
        np.testing.assert_array_equal(read_labels, labels[indices])


def test_examples_in_memory_read_alike(two_shards):
    data_dir, images, labels = two_shards
    examples, indices = data.load("photos", "train", [data_dir]), np.array([8, 0, 4, 4])
    assert examples.image_shape == (6, 5, 3)
    np.testing.assert_array_equal(examples.read(indices)[0], images[indices])
    np.testing.assert_array_equal(examples.read(indices)[1], labels[indices])


@pytest.mark.parametrize(
    "split",
    ["train", "train[:3]", "train[3:6]", "train[-2:]", "train[:50%]", "train[5:]+train[:5]"],
)
def test_splits_mean_what_they_mean_in_tfds(two_shards, split):
    data_dir, _, _ = two_shards
    records = data.open_records("photos", split, [data_dir])
    expected = list(
        tfds.builder_from_directory(data_dir / "photos" / "1.0.0").as_data_source(split)
    )
    images, labels = records.read(np.arange(len(records)))
    np.testing.assert_array_equal(images, [example["image"] for example in expected])
    np.testing.assert_array_equal(labels, [example["label"] for example in expected])


BOUNDS = st.none() | st.integers(-10, 10)


@given(BOUNDS, BOUNDS, BOUNDS, BOUNDS)
def test_slices_of_slices(two_shards, start, stop, second_start, second_stop):
    records = data.open_records("photos", "train", [two_shards[0]])
    chosen = records[start:stop][second_start:second_stop]
    expected = np.arange(9)[start:stop][second_start:second_stop]
    assert len(chosen) == len(expected)
    np.testing.assert_array_equal(chosen.read(np.arange(len(chosen)))[0], two_shards[1][expected])


def test_records_are_not_sliced_in_steps(two_shards):
    with pytest.raises(ValueError, match="steps of 1, not 2"):
        data.open_records("photos", "train", [two_shards[0]])[::2]


def test_a_copy_reads_too_after_the_original_did(two_shards):
    records = data.open_records("photos", "train", [two_shards[0]])
    records.read(np.array([0]))
    np.testing.assert_array_equal(copy.deepcopy(records).read(np.array([7]))[0], two_shards[1][[7]])


@pytest.mark.parametrize("index", [-1, 9])
def test_an_index_outside_the_records(two_shards, index):
    with pytest.raises(IndexError):
        data.open_records("photos", "train", [two_shards[0]]).read(np.array([index]))


FILES = {
    "jpeg": encoded(photo(0), quality=90),
    "fine chroma": encoded(photo(1), quality=95, subsampling=0),
    "progressive": encoded(photo(2), progressive=True),
    "grey": encoded(photo(3), mode="L"),
    "CMYK": encoded(photo(4), mode="CMYK"),
    "RGB inside": encoded(photo(5), keep_rgb=True),
    "png": encoded(photo(6), "png"),
    "grey png": encoded(photo(7), "png", mode="L"),
    "palette png": encoded(photo(8), "png", mode="P"),
    "transparent png": encoded(photo(9), "png", mode="RGBA"),
}


def test_every_kind_of_file_has_the_pixels_that_pillow_reads(tmp_path):
    write(tmp_path, list(FILES.values()))
    images, _ = data.open_records("photos", "train", [tmp_path]).read(np.arange(len(FILES)))
    for image, (kind, content) in zip(images, FILES.items(), strict=True):
        np.testing.assert_array_equal(
            image, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")), err_msg=kind
        )
    for number in (0, 6):  # and that were meant
        assert np.abs(images[number].astype(int) - photo(number)).mean() < 15


def test_grey_sets(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 7, 6, 1), np.uint8)
    write(tmp_path, images, shape=(7, 6, 1))
    np.testing.assert_array_equal(
        data.open_records("photos", "train", [tmp_path]).read(np.arange(3))[0], images
    )


def make_raw(folder: Path, images, labels) -> None:
    """Turns a set into one whose records hold the pixels themselves, as TFDS's Tensor feature
    stores them.
    """
    dimensions = [str(size) for size in images.shape[1:]]
    tensor = {
        "tensor": {"dtype": "uint8", "encoding": "bytes", "shape": {"dimensions": dimensions}}
    }
    tensor["pythonClassName"] = "tensorflow_datasets.core.features.tensor_feature.Tensor"
    edit_json(
        folder / "features.json",
        lambda content: content["featuresDict"]["features"].update(image=tensor),
    )
    writer = ArrayRecordWriter(
        str(folder / "photos-train.array_record-00000-of-00001"), "group_size:1"
    )
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
    for number, example in enumerate(
        tfds.builder_from_directory(folder).as_data_source("train")
    ):  # TFDS agrees
        np.testing.assert_array_equal(example["image"], images[number])
    read_images, labels = data.open_records("photos", "train", [tmp_path]).read(np.array([2, 0, 1]))
    np.testing.assert_array_equal(read_images, images[[2, 0, 1]])
    assert labels.tolist() == [4, 2, 0]
    assert "raw pixels" in message_of(data.load, "photos", "train", [tmp_path])


def test_raw_pixels_of_another_number(tmp_path):
    images = np.zeros((2, 6, 5, 3), np.uint8)
    folder = write(tmp_path, images, shape=(6, 5, 3))
    make_raw(folder, images[:, :5], [0, 1])
    shape = {"dimensions": ["6", "5", "3"]}
    edit_json(
        folder / "features.json",
        lambda content: content["featuresDict"]["features"]["image"]["tensor"].update(shape=shape),
    )
    assert "record 1 (" in message_of(
        data.open_records("photos", "train", [tmp_path]).read, np.array([1])
    )


# What is refused


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xd8\xff no image", ""),
        (b"no image", "neither JPEG nor PNG"),
        (encoded(photo(0), "gif"), "neither JPEG nor PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 256 256\n", "neither JPEG nor PNG"),
        (b"", ""),
        (FILES["jpeg"][: len(FILES["jpeg"]) // 2], ""),
        (FILES["png"][: len(FILES["png"]) // 2], ""),
        (encoded(photo(0, 200)), "an image of 200x200 pixels, not 256x256"),
        (encoded(photo(0, 300), "png"), "an image of 300x300 pixels, not 256x256"),
    ],
)
def test_damaged_images_are_named_by_split_shard_and_record(tmp_path, content, reason):
    folder = write(tmp_path, [FILES["jpeg"], FILES["png"], content, FILES["grey"]])
    records = data.open_records("photos", "train[1:]", [tmp_path])
    records.read(np.array([0, 2]))
    message = message_of(records.read, np.array([0, 1, 2]))
    shard = folder / "photos-train.array_record-00000-of-00001"
    assert f"damaged data in photos, split train, shard {shard}, record 2 ({reason}" in message


def test_the_record_is_counted_in_its_own_shard(own_two_shards):
    """Labels 0 to 4 come in order; with four classes the 5th of the first nine examples, record 0
    of shard 1, is wrong.
    """
    edit_json(
        own_two_shards / "features.json",
        lambda f: f["featuresDict"]["features"]["label"]["classLabel"].update(numClasses=4),
    )
    records = data.open_records("photos", "train", [own_two_shards.parents[1]])
    records.read(np.array([0, 1, 2, 3, 5, 8]))
    message = message_of(records.read, np.array([4]))
    assert (
        "photos-train.array_record-00001-of-00002, record 0 (label 4; allowed: 0 to 3)" in message
    )
    assert "record 0 (" in message_of(records[2:7].read, np.array([2]))


def test_damaged_files_are_never_read_as_good_ones(own_two_shards, two_shards):
    _, images, labels = two_shards
    shard = own_two_shards / "photos-train.array_record-00001-of-00002"
    good = shard.read_bytes()
    used = np.flatnonzero(np.frombuffer(good, np.uint8))  # most of the file is padding
    named = 0
    for position in np.random.default_rng(0).choice(used, 100, replace=False):
        damaged = bytearray(good)
        damaged[position] ^= 1 << (position % 8)
        shard.write_bytes(damaged)
        try:
            read_images, read_labels = data.open_records(
                "photos", "train", [own_two_shards.parents[1]]
            ).read(np.arange(9))
            np.testing.assert_array_equal(
                read_images, images
            )  # padding and unused fields may change
            np.testing.assert_array_equal(read_labels, labels)
        except DataError as error:
            assert f"shard {shard}, record" in str(error)
            named += 1
    assert named >= 80
    shard.write_bytes(good[: len(good) // 2])
    records = data.open_records("photos", "train", [own_two_shards.parents[1]])
    assert str(shard) in message_of(records.read, np.array([8]))
    np.testing.assert_array_equal(
        records.read(np.array([0, 3]))[0], images[[0, 3]]
    )  # the other shard is whole


def test_opening_is_refused_with_the_words_of_load(own_two_shards, tmp_path):
    for arguments in (
        ("photos", "valid", [tmp_path]),
        ("other", "train", [tmp_path]),
        ("../photos", "train", [tmp_path]),
    ):
        assert message_of(data.open_records, *arguments) == message_of(data.load, *arguments)
    (own_two_shards / "photos-train.array_record-00001-of-00002").unlink()
    arguments = ("photos", "train", [tmp_path])
    assert "1 of 2 shards" in message_of(data.open_records, *arguments)
    assert message_of(data.open_records, *arguments) == message_of(data.load, *arguments)
    edit_json(own_two_shards / "dataset_info.json", lambda info: info.update(fileFormat="tfrecord"))
    assert message_of(data.open_records, *arguments) == message_of(data.load, *arguments)


def test_images_of_no_fixed_size_are_refused(tmp_path):
    write(tmp_path, [encoded(photo(0, 20)), encoded(photo(0, 21))], shape=(None, None, 3))
    assert "no fixed size" in message_of(data.open_records, "photos", "train", [tmp_path])


def test_split_sizes(tmp_path, two_shards):
    assert data.split_sizes("photos", [two_shards[0]]) == {"train": 9}
    write(
        tmp_path, np.zeros((2, 6, 5, 3), np.uint8), shape=(6, 5, 3), splits=("train", "validation")
    )
    assert data.split_sizes("photos", [tmp_path]) == {"train": 2, "validation": 2}


# Damaged records that are allowed

SHARD = "photos-train.array_record-00000-of-00001"


@given(st.sets(st.integers(0, 6)), st.lists(st.integers(0, 6), max_size=12))
def test_the_next_intact_record_stands_for_a_damaged_one(one_of_each, bad, indices):
    """Records 0 to 6 are intact in `good`; in `bad` those that are chosen have a label that is
    none.
    """
    good, labelled = one_of_each
    records = damaged_view(labelled, bad)
    if len(bad) == 7 and indices:
        assert "none of the 7 records is intact" in message_of(
            records.read_intact, np.array(indices), 7
        )
        return
    images, labels, found = records.read_intact(np.array(indices, int), 7)
    stand_ins = [
        next(i % 7 for i in range(index, index + 7) if i % 7 not in bad) for index in indices
    ]
    np.testing.assert_array_equal(images, good[stand_ins])
    assert labels.tolist() == stand_ins
    asked = {
        i % 7
        for index, stand_in in zip(indices, stand_ins, strict=True)
        for i in range(index, index + (stand_in - index) % 7)
    }
    assert [damage.record for damage in found] == sorted(asked)
    assert {(damage.split, damage.shard) for damage in found} <= {("train", SHARD)}


class Chosen(data.Records):
    """Records of which some are damaged."""

    bad: frozenset = frozenset()

    @property
    def source(self):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        source, bad = ArrayRecordDataSource(self.stretches), self.bad

        class Source:
            def __getitem__(self, index):
                return b"no record" if index in bad else source[index]

        return Source()


def damaged_view(records: data.Records, bad) -> data.Records:
    view = Chosen(**{name: getattr(records, name) for name in records.__dataclass_fields__})
    object.__setattr__(view, "bad", frozenset(bad))
    return view


@pytest.fixture(scope="module")
def one_of_each(tmp_path_factory):
    """Seven noise images with labels 0 to 6, and their records."""
    folder, images = (
        tmp_path_factory.mktemp("seven"),
        np.random.default_rng(1).integers(0, 256, (7, 6, 5, 3), np.uint8),
    )
    write(folder, images, shape=(6, 5, 3), classes=7)
    return images, data.open_records("photos", "train", [folder])


def test_reading_ends_where_more_are_damaged_than_allowed(one_of_each):
    _, records = one_of_each
    _, _, found = damaged_view(records, range(1, 7)).read_intact(np.array([1, 2]), 3)
    assert len(found) == 4


def test_what_the_machine_lacks_is_no_damage(one_of_each, monkeypatch):
    def starved(content):
        raise error

    monkeypatch.setattr(data, "parse", starved)
    for error in (MemoryError("no memory"), OSError(24, "Too many open files")):
        assert str(error) in message_of(one_of_each[1].read_intact, np.array([1]), 7)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7])
def test_damaged_records_are_scored_nowhere_and_counted_once(one_of_each, batch_size, capsys):
    images, records = one_of_each
    damaged = DamagedRecords("photos", 2)
    for _ in range(2):
        batches = list(
            data.eval_batches(damaged_view(records, {0, 4}), batch_size, damaged=damaged)
        )
        joined = {
            name: np.concatenate([batch[name] for batch in batches])
            for name in ("image", "label", "mask")
        }
        assert np.flatnonzero(joined["mask"]).tolist() == [1, 2, 3, 5, 6]
        np.testing.assert_array_equal(joined["image"][joined["mask"]], images[[1, 2, 3, 5, 6]])
        assert (
            not joined["image"][~joined["mask"]].any()
            and not joined["label"][~joined["mask"]].any()
        )
    assert damaged.count == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for number, line in zip((0, 4), lines, strict=True):
        assert line.startswith(
            f"damaged data in photos, split train, shard {SHARD}, record {number} ("
        )
        assert line.endswith("): it is left out")


def test_one_more_than_allowed_ends_it_and_all_are_named(one_of_each):
    damaged = DamagedRecords("photos", 2)
    message = message_of(
        list, data.eval_batches(damaged_view(one_of_each[1], {0, 4, 6}), 2, damaged=damaged)
    )
    assert "photos has more damaged records than --max_bad_records=2: " in message
    assert [f"record {number} (" in message for number in range(7)] == [
        n in (0, 4, 6) for n in range(7)
    ]


def test_what_a_checkpoint_lists_counts_and_is_not_said_again(capsys):
    damage = data.Damage("train", SHARD, 3, "a reason")
    first, second = DamagedRecords("photos", 1), DamagedRecords("photos", 1)
    first.add([damage, damage._replace(reason="in other words")], "gone")
    assert (
        capsys.readouterr().err
        == f"damaged data in photos, split train, shard {SHARD}, record 3 (a reason): gone\n"
    )
    second.add(json.loads(json.dumps(first.listed)))
    second.add([damage], "gone")
    second.agree()
    assert (second.count, capsys.readouterr().err) == (1, "")
    assert "record 4 (" in message_of(second.add, [damage._replace(record=4)])


# The order of uses


@given(
    st.integers(1, 40),
    st.integers(0, 200),
    st.integers(0, 30),
    st.integers(0, 2**33),
    st.booleans(),
)
def test_order_of_uses_is_that_of_the_passes_laid_end_to_end(
    population, first, count, seed, reshuffle
):
    uses = np.arange(first, first + count)
    passes = range((first + count) // population + 1)
    stream = np.concatenate(
        [data.epoch_order(population, seed, number if reshuffle else 0) for number in passes]
    )
    np.testing.assert_array_equal(
        data.order_of_uses(population, uses, seed, reshuffle=reshuffle), stream[uses]
    )


def test_order_of_uses_keeps_the_shape():
    uses = np.arange(12).reshape(3, 4)
    chosen = data.order_of_uses(5, uses, 1)
    assert chosen.shape == (3, 4)
    assert sorted(chosen.ravel()[:5]) == sorted(chosen.ravel()[5:10]) == list(range(5))


# Evaluation


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 9, 20])
def test_eval_batches_of_records_count_each_once(two_shards, batch_size):
    data_dir, images, labels = two_shards
    batches = list(data.eval_batches(data.open_records("photos", "train", [data_dir]), batch_size))
    assert len(batches) == -(-9 // batch_size)
    joined = {
        name: np.concatenate([batch[name] for batch in batches])
        for name in ("image", "label", "mask")
    }
    assert joined["mask"].tolist() == [True] * 9 + [False] * (len(batches) * batch_size - 9)
    np.testing.assert_array_equal(joined["image"][:9], images)
    np.testing.assert_array_equal(joined["label"][:9], labels)
    assert not joined["image"][9:].any()
    assert not joined["label"][9:].any()


def test_damage_reaches_who_evaluates(tmp_path):
    write(tmp_path, [FILES["jpeg"], b"no image", FILES["png"]])
    batches = data.eval_batches(data.open_records("photos", "train", [tmp_path]), 1)
    assert next(batches)["mask"].all()
    assert "record 1 (" in message_of(next, batches)


def test_eval_batches_read_ahead_but_not_far(two_shards):
    """No more than three batches wait in memory, however slow the network is."""
    records, asked = data.open_records("photos", "train", [two_shards[0]]), []

    class Watched:
        image_shape = records.image_shape

        def __len__(self):
            return len(records)

        def read(self, indices):
            asked.append(indices[0])
            return records.read(indices)

    batches = data.eval_batches(Watched(), 1)
    next(batches)
    batches.close()  # waits for the reader
    assert asked == [0, 1, 2]
