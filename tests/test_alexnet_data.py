"""Which images a step of AlexNet sees, and the statistics of a training set."""

import contextlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet.config import Config
from alexnet.data import (
    load_splits,
    remarks,
    require_first_batch,
    training_batch,
    training_batches,
)
from alexnet.image_statistics import statistics
from alexnet.noise import Noise
from common.errors import DataError, UserError
from common.examples import Examples
from common.order import epoch_order
from common.prepared import split_sizes
from common.records import DamagedRecords, Records, open_records
from scripts.prepare import builders


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lenet-alexnet"


@pytest.fixture(scope="module")
def cifar10() -> str:
    """The data_dir that holds all of CIFAR-10, prepared."""
    data_dir = os.environ.get("TFDS_DATA_DIR")
    if not data_dir or not list(Path(data_dir).glob("cifar10/*/dataset_info.json")):
        pytest.skip(
            "$TFDS_DATA_DIR holds no cifar10: python -m scripts.prepare_data --dataset=cifar10"
        )
    return data_dir


def write(data_dir, name, images, *, classes=10, shape=None, splits=("train", "test")) -> Path:
    pairs = {split: [(image, i % classes) for i, image in enumerate(images)] for split in splits}
    shape, names = shape or images[0].shape, map(str, range(classes))
    return builders.write_prepared(data_dir, name, "1.0.0", pairs, shape, names, keep_order=True)


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=95)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The data_dir of `photos`: 23 JPEGs of 256x256 pixels, each of another color, in `train` and
    `validation`.
    """
    data_dir, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    colors = random.integers(40, 216, (23, 1, 1, 3))
    images = np.uint8(colors + random.integers(-30, 31, (23, 256, 256, 3)))
    files, splits = [jpeg(image) for image in images], ("train", "validation")
    write(data_dir, "photos", files, shape=(256, 256, 3), splits=splits)
    return str(data_dir)


def splits_of(dataset, data_dir, **settings):
    damaged = settings.pop("damaged", None)
    places = dict(dataset=dataset, data_dir=str(data_dir))
    defaults = dict(validation_size=0, track="test", schedule="constant", crop_size=32)
    return load_splits(Config(**places, **(defaults | settings)), damaged)


def numbered(count) -> Examples:
    """Example i: label i % 10, every pixel i % 256."""
    images = np.tile(np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1), (1, 4, 4, 3))
    return Examples(images, np.arange(count, dtype=np.int32) % 10, 10, "numbers")


# Which examples


@pytest.mark.commands
def test_cifar10_is_held_in_memory(cifar10):
    """Its 10,000 test images here, because they are quicker to decode."""
    assert split_sizes("cifar10", [cifar10]) == {"train": 50_000, "test": 10_000}
    settings = dict(train_split="test", validation_size=1000)
    train, validation, test = splits_of("cifar10", cifar10, **settings)
    assert (len(train), len(validation), len(test), train.num_classes) == (9000, 1000, 10_000, 10)
    assert {type(examples) for examples in (train, validation, test)} == {Examples}
    assert test.images.shape == (10_000, 32, 32, 3)
    assert test.class_names[:2] == ("airplane", "automobile")
    np.testing.assert_array_equal(validation.images, test.images[9000:])
    settings = dict(train_size=7, validation_size=9, train_split="test[:100]")
    few, held_out, _ = splits_of("cifar10", cifar10, **settings)
    np.testing.assert_array_equal(few.images, test.images[:7])
    np.testing.assert_array_equal(held_out.images, test.images[91:100])
    # The well-known numbers are those of the training images; these differ a little.
    mean_image, covariance = statistics(test)
    means, deviations = mean_image.mean(axis=(0, 1)) / 255, np.sqrt(np.diag(covariance)) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=0.005)
    np.testing.assert_allclose(deviations, [0.2470, 0.2435, 0.2616], atol=0.004)


def test_large_images_stay_on_disk(photos):
    """And a set without `test` is tested on `validation`."""
    damaged = DamagedRecords("photos", 2)
    settings = dict(crop_size=227, validation_size=5, train_size=10, damaged=damaged)
    train, validation, test = splits_of("photos", photos, **settings)
    for examples in (train, validation, test):
        assert type(examples) is Records and examples.damaged is damaged
    assert (len(train), len(validation), len(test)) == (10, 5, 23)
    assert {part.split for part in test.slices} == {"validation"}
    whole = open_records("photos", "train", [photos])
    for examples, indices in ((train, np.arange(10)), (validation, np.arange(18, 23))):
        images, _ = examples.read(np.arange(len(examples)))
        np.testing.assert_array_equal(images, whole.read(indices)[0])
    settings = dict(crop_size=256, train_split="train[3:]", test_split="train[:3]")
    train, _, test = splits_of("photos", photos, **settings)
    assert (len(train), len(test)) == (20, 3)


@pytest.mark.parametrize(("size", "kind"), [(64, Examples), (65, Records)])
def test_the_limit_between_memory_and_disk(tmp_path, size, kind):
    write(tmp_path, "sized", np.zeros((2, size, size, 3), np.uint8))
    assert type(splits_of("sized", tmp_path)[0]) is kind


def test_what_does_not_fit_is_refused(tmp_path, photos):
    write(tmp_path, "set", np.zeros((2, 40, 31, 4), np.uint8))
    with pytest.raises(DataError, match="set have 40x31 pixels and 4 channels") as caught:
        splits_of("set", tmp_path)
    assert "\n" not in str(caught.value)
    for error, named, settings in (
        (UserError, "--validation_size=23 ", dict(validation_size=23)),
        (UserError, "--train_size=20", dict(validation_size=5, train_size=20)),
        (UserError, r"--test_split=train\[5:5\]", dict(test_split="train[5:5]")),
        (DataError, "'test'.* train, validation", dict(test_split="test")),
    ):
        with pytest.raises(error, match=named):
            splits_of("photos", photos, **settings)


DROPS = dict(schedule="epochs", drop_epochs="30,60")


@pytest.mark.parametrize(
    ("shape", "settings", "named"),
    [
        ((256, 256, 3), dict(crop_size=32), ["--crop_size=32 is 1/64 ", "--size=32"]),
        ((64, 64, 3), dict(crop_size=32), ["--crop_size=32 is 1/4 "]),
        ((256, 256, 3), dict(crop_size=227), []),
        ((32, 32, 3), dict(crop_size=24), []),
        ((28, 40, 3), dict(crop_size=32), ["padded to 32x32"]),
        ((32, 32, 1), dict(crop_size=32), ["--mirror=always"]),
        ((32, 32, 1), dict(crop_size=32, mirror="never"), []),
        ((32, 32, 1), dict(crop_size=32, augmentation="none"), []),
        ((32, 32, 3), dict(crop_size=32, **DROPS, num_epochs=30), ["--drop_epochs=30,60"]),
        ((32, 32, 3), dict(crop_size=32, **DROPS, num_epochs=31), []),
    ],
)
def test_what_the_network_does_not_see_is_said(shape, settings, named):
    lines = remarks(Config(dataset="fake", **settings), shape)
    assert len(lines) == bool(named) and all(each in lines[0] for each in named)


def test_what_is_scored_in_place_of_test_is_said(tmp_path, photos):
    write(tmp_path, "sized", np.zeros((2, 32, 32, 3), np.uint8))
    for dataset, folder, settings, num_lines in (
        ("photos", photos, {}, 1),
        ("photos", photos, dict(test_split="train[:3]"), 0),
        ("sized", tmp_path, {}, 0),
    ):
        config = Config(dataset=dataset, data_dir=str(folder), crop_size=32, **settings)
        lines = remarks(config, (32, 32, 3))
        assert len(lines) == num_lines and all("photos" in line for line in lines)


@pytest.mark.commands
def test_the_embedded_digits(tmp_path):
    train, validation, test = splits_of("mnist10k", tmp_path, validation_size=1000)
    assert (len(train), len(validation), len(test)) == (7000, 1000, 2000)
    mean_image, covariance = statistics(train[:50])
    assert (mean_image.shape, covariance.shape) == ((28, 28, 1), (1, 1))
    np.testing.assert_allclose(covariance[0, 0], train.images[:50].var())


def test_a_set_without_anything_to_score_is_refused(tmp_path):
    write(tmp_path, "train_only", np.zeros((2, 32, 32, 3), np.uint8), splits=["train"])
    with pytest.raises(DataError, match="--test_share"):
        splits_of("train_only", tmp_path)


def test_test_images_of_another_shape_are_refused(tmp_path):
    folder = write(tmp_path, "mixed", np.zeros((2, 32, 32, 3), np.uint8))
    other = write(tmp_path / "b", "mixed", np.zeros((2, 33, 32, 3), np.uint8))
    shard = "mixed-test.array_record-00000-of-00001"
    (folder / shard).write_bytes((other / shard).read_bytes())
    with pytest.raises(DataError, match=f"split test, .*{shard}, record 0 .*33x32 pixels"):
        splits_of("mixed", tmp_path)


def test_noise():
    settings = dict(crop_size=227, validation_size=10_000)
    train, validation, test = splits_of("fake", "", **settings, seed=3)
    assert (len(train), len(validation), len(test)) == (1024, 256, 256)
    assert train.image_shape == (256, 256, 3)
    assert splits_of("fake", "", crop_size=24)[0].image_shape == (32, 32, 3)
    images, labels = train.read(np.array([5, 0, 5]))
    assert (images.shape, images.dtype, labels.dtype) == ((3, 256, 256, 3), np.uint8, np.int32)
    np.testing.assert_array_equal(images[0], images[2])
    np.testing.assert_array_equal(train[5:][:1].read(np.array([0]))[0][0], images[0])
    others = [validation, test, splits_of("fake", "", **settings, seed=4)[0]]
    for different in (images[1], *(examples.read(np.array([5]))[0][0] for examples in others)):
        assert np.abs(np.corrcoef(different.ravel(), images[0].ravel())[0, 1]) < 0.02
    # A uniform variable of 256 values: mean 127.5, variance (256^2 - 1) / 12.
    assert abs(images[0].mean() - 127.5) < 6 * np.sqrt((256**2 - 1) / 12 / images[0].size)
    mean_image, covariance = statistics(train)
    assert mean_image.shape == (256, 256, 3)
    np.testing.assert_allclose(mean_image, 127.5)
    np.testing.assert_allclose(np.cov(images[0].reshape(-1, 3).T), covariance, atol=100)
    _, labels = splits_of("fake", "", crop_size=24)[0].read(np.arange(1024))
    assert 0 <= labels.min() < 20 and 980 < labels.max() < 1000


# In which order


def test_every_example_comes_once_in_an_epoch_each_use_with_its_own_draw():
    examples = numbered(40)
    batches = [training_batch(examples, step, batch_size=4, seed=1) for step in range(20)]
    order = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches])
    assert sorted(order[:40]) == sorted(order[40:]) == list(range(40))
    assert (order[:40] != order[40:]).any() and (order[:40] != np.arange(40)).any()
    np.testing.assert_array_equal(order % 10, np.concatenate([batch["label"] for batch in batches]))
    draws = np.concatenate([batch["draw"] for batch in batches])
    assert draws.dtype == np.uint32
    np.testing.assert_array_equal(draws, np.arange(1, 81))


def test_an_epoch_has_no_remainder():
    """Ten examples in batches of three: the tenth begins the fourth batch, the next epoch
    follows.
    """
    batches = [training_batch(numbered(10), step, batch_size=3, seed=2) for step in range(10)]
    epochs = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches]).reshape(3, 10)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(10), (3, 1)))


@pytest.mark.parametrize("source", ["photos", "fake", "memory"])
def test_batches_are_a_function_of_seed_and_step_for_any_number_of_threads(photos, source):
    """And each process of several reads its own rows of them."""
    examples = numbered(30) if source == "memory" else splits_of(source, photos, crop_size=227)[0]
    order = np.concatenate([epoch_order(len(examples), 5, epoch) for epoch in range(9)])
    for num_threads in (0, 1, 3):
        for rows in (slice(None), slice(2, 6)):
            settings = dict(first_step=11, batch_size=7, seed=5, rows=rows)
            stream = training_batches(examples, num_threads=num_threads, **settings)
            with contextlib.closing(stream) as batches:
                for step in range(11, 15):
                    uses, batch = np.arange(7 * step, 7 * step + 7)[rows], next(batches)
                    images, labels = examples.read(order[uses])
                    expected = {"image": images, "label": labels, "draw": np.uint32(1 + uses)}
                    assert batch.keys() == expected.keys()
                    for name in expected:
                        assert batch[name].dtype == expected[name].dtype
                        np.testing.assert_array_equal(batch[name], expected[name])


# Damage


@pytest.fixture
def damaged_photos(tmp_path):
    """Eleven images, each of one gray (9 i) and readable but for 3, 4 and the last."""
    images = [jpeg(np.full((256, 256, 3), 9 * i, np.uint8)) for i in range(10)]
    images[3:5] = b"no image", images[4][: len(images[4]) // 2]
    write(tmp_path, "photos", [*images, b"no image"], shape=(256, 256, 3))
    return tmp_path


@pytest.mark.parametrize("num_threads", [0, 2])
def test_damage_that_is_not_allowed(damaged_photos, num_threads):
    train, _, _ = splits_of("photos", damaged_photos, crop_size=227)
    settings = dict(first_step=0, batch_size=1, seed=0, num_threads=num_threads)
    place = np.flatnonzero(np.isin(epoch_order(11, 0, 0), [3, 4, 10]))[0]
    with contextlib.closing(training_batches(train, **settings)) as batches:
        for _ in range(place):
            next(batches)
        record = epoch_order(11, 0, 0)[place]
        with pytest.raises(DataError, match=rf"split train, shard .*, record {record} \("):
            next(batches)
    with pytest.raises(DataError, match=r"split train, shard .*, record "):
        require_first_batch(train, 11, 0)


@pytest.mark.parametrize("num_threads", [0, 2])
@pytest.mark.parametrize(("batch_size", "hosts"), [(1, 1), (4, 1), (4, 2)])
def test_damage_that_is_allowed_reaches_no_batch(
    damaged_photos, batch_size, hosts, num_threads, capsys
):
    """Whoever reads, in whatever batches: 0 stands in for 10, the last, and 5 for 3 and 4."""
    damaged = DamagedRecords("photos", 3)
    train, _, _ = splits_of("photos", damaged_photos, crop_size=227, damaged=damaged)
    require_first_batch(train, 11, 0)
    assert damaged.count == 0  # checked, but not used
    parts = []
    for host in range(hosts):
        rows = slice(host * batch_size // hosts, (host + 1) * batch_size // hosts)
        settings = dict(batch_size=batch_size, seed=0, num_threads=num_threads, rows=rows)
        with contextlib.closing(training_batches(train, first_step=0, **settings)) as batches:
            taken = [next(batches) for _ in range(-(-11 // batch_size))]
        parts.append([batch["image"][:, 0, 0, 0] for batch in taken])
    pixels = np.concatenate([np.concatenate(rows) for rows in zip(*parts, strict=True)])[:11]
    expected = [{3: 5, 4: 5, 10: 0}.get(i, i) for i in epoch_order(11, 0, 0).tolist()]
    np.testing.assert_array_equal(pixels, 9 * np.array(expected))
    assert [record for _, _, record, _ in damaged.listed] == [3, 4, 10]
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_damage_is_counted_when_its_batch_is_used(damaged_photos):
    """What was read ahead counts nowhere: a checkpoint lists what the steps before it met."""
    damaged = DamagedRecords("photos", 3)
    train, _, _ = splits_of("photos", damaged_photos, crop_size=227, damaged=damaged)
    is_bad = np.isin(epoch_order(11, 0, 0), [3, 4, 10])
    settings = dict(first_step=0, batch_size=1, seed=0, num_threads=2)
    with contextlib.closing(training_batches(train, **settings)) as batches:
        for count in np.cumsum(is_bad):
            next(batches)
            assert damaged.count == count


# Statistics


def assert_statistics_of(images: np.ndarray, measured) -> None:
    mean_image, covariance = measured
    assert (mean_image.dtype, covariance.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(mean_image, images.mean(axis=0, dtype=np.float64), rtol=1e-6)
    expected = np.cov(images.reshape(-1, 3).T.astype(np.float64), bias=True)
    np.testing.assert_allclose(covariance, expected, rtol=1e-9)


def test_statistics_of_examples_in_memory():
    images = np.random.default_rng(0).integers(0, 256, (3000, 5, 40, 3), np.uint8)
    images[..., 1] = images[..., 0] // 2 + 7
    examples = Examples(images, np.zeros(3000, np.int32), 1, "some")
    assert_statistics_of(images, statistics(examples))


def test_statistics_of_records_are_measured_once(photos, monkeypatch, capsys):
    train, _, _ = splits_of("photos", photos, crop_size=227, validation_size=3)
    images, _ = train.read(np.arange(20))
    measured = statistics(train)
    assert "photos" in capsys.readouterr().err  # a progress bar
    assert_statistics_of(images, measured)
    with monkeypatch.context() as patch:
        patch.setattr(Records, "read_into", lambda *_: pytest.fail("the records were read again"))
        for mine, again in zip(measured, statistics(train), strict=True):
            np.testing.assert_array_equal(mine, again)
    other = statistics(splits_of("photos", photos, crop_size=227, validation_size=4)[0])
    assert (other.mean_image != measured.mean_image).any()


@pytest.mark.parametrize("num_threads", [0, 3])
def test_statistics_skip_what_is_damaged(tmp_path, capsys, num_threads):
    images = [np.full((70, 70, 3), 9 * i, np.uint8) for i in range(5)]
    write(tmp_path, "photos", [images[0], b"no image", *images[2:]], shape=(70, 70, 3))
    with pytest.raises(DataError, match="record 1 "):
        statistics(splits_of("photos", tmp_path)[0], num_threads)
    damaged = DamagedRecords("photos", 1)
    train, _, _ = splits_of("photos", tmp_path, damaged=damaged)
    mean_image, covariance = statistics(train, num_threads)
    np.testing.assert_allclose(mean_image, np.mean([0, 18, 27, 36]), rtol=1e-6)
    np.testing.assert_allclose(covariance, np.var([0, 18, 27, 36]), rtol=1e-6)
    assert "record 1 (" in capsys.readouterr().err
    assert damaged.count == 0  # whether it is met here depends on the cache


def test_statistics_that_come_with_a_set(tmp_path):
    folder = write(tmp_path, "photos", np.zeros((3, 70, 80, 3), np.uint8))
    train, _, test = splits_of("photos", tmp_path)
    mean_image, covariance = np.full((70, 80, 3), 7.0, np.float32), np.diag([1.0, 2.0, 3.0])
    path, arrays = folder / "statistics.npz", dict(train_covariance=covariance, train_count=3)
    np.savez(path, train_mean_image=mean_image, **arrays)
    for part in (train, train[1:]):
        np.testing.assert_array_equal(statistics(part).mean_image, mean_image)
        np.testing.assert_array_equal(statistics(part).covariance, covariance)
    np.testing.assert_array_equal(statistics(test).mean_image, 0)  # the file has none of this split
    np.savez(path, train_mean_image=mean_image[:, :70], **arrays)
    with pytest.raises(DataError, match=r"statistics.npz .*\(70, 70, 3\), not \(70, 80, 3\)"):
        statistics(train)
    path.write_bytes(b"PK half a file")
    with pytest.raises(DataError, match=r"statistics\.npz") as caught:
        statistics(train)
    assert "\n" not in str(caught.value)


class Trap:
    """Leaves a file behind where its pickle is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_statistics_are_no_way_to_run_a_program(tmp_path):
    folder = write(tmp_path, "photos", np.zeros((3, 70, 80, 3), np.uint8))
    train, _, _ = splits_of("photos", tmp_path)
    trap = np.array([Trap(tmp_path / "sprung")])
    np.savez(folder / "statistics.npz", train_mean_image=trap, train_covariance=trap, train_count=3)
    with pytest.raises(DataError, match=r"statistics\.npz"):
        statistics(train)
    assert not (tmp_path / "sprung").exists()
    trap[0].__reduce__()[0](*trap[0].__reduce__()[1])  # what loading its pickle would call
    assert (tmp_path / "sprung").exists()


def test_all_kinds_of_examples_have_one_interface(photos):
    """So that no caller asks which kind it has."""
    for examples in (numbered(9), Noise(range(9), (4, 4, 3), 0), splits_of("photos", photos)[0]):
        part, mask = examples[2:5], np.ones(3, bool)
        images, labels = np.empty((3, *part.image_shape), np.uint8), np.empty(3, np.int32)
        assert (len(part), part.name, part.num_classes) == (3, examples.name, examples.num_classes)
        assert not part.read_into(np.arange(3), images, labels, mask) and mask.all()
        for mine, read in zip((images, labels), examples.read(np.arange(2, 5)), strict=True):
            np.testing.assert_array_equal(mine, read)
        assert part.class_names is None or len(part.class_names) == part.num_classes
        assert part.damaged is examples.damaged
