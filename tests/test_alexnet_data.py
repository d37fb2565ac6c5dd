"""Which images a step of AlexNet sees, who reads them, and what happens to them on their way into
conv1.
"""

import contextlib
import functools
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common.damage import DamagedRecords
from common.data import Examples, Records, epoch_order, open_records, split_sizes
from PIL import Image

from alexnet import data
from common import builders
from common.errors import DataError, UserError

ROOT = Path(__file__).parents[1]


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
    shape = shape or images[0].shape
    return builders.write_prepared(
        data_dir, name, "1.0.0", pairs, shape, map(str, range(classes)), keep_order=True
    )


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=95)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The data_dir of `photos`: 23 JPEGs of 256x256 pixels, each of another colour, in `train` and
    `validation`.
    """
    data_dir, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    colors = random.integers(40, 216, (23, 1, 1, 3))
    images = np.uint8(colors + random.integers(-30, 31, (23, 256, 256, 3)))
    write(
        data_dir,
        "photos",
        [jpeg(image) for image in images],
        shape=(256, 256, 3),
        splits=("train", "validation"),
    )
    return str(data_dir)


def splits_of(dataset, data_dir, **settings):
    defaults = dict(train_size=0, validation_size=0, crop_size=32, seed=0)
    return data.load_splits(dataset, str(data_dir), **(defaults | settings))


def numbered(count) -> Examples:
    """Example i: label i % 10, every pixel i % 256."""
    images = np.broadcast_to(
        np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 4, 4, 3)
    )
    return Examples(
        np.ascontiguousarray(images), np.arange(count, dtype=np.int32) % 10, 10, "numbers"
    )


# Which examples


def test_cifar10_is_held_in_memory(cifar10):
    """Its 10,000 test images here, because they are quicker to decode."""
    assert split_sizes("cifar10", [cifar10]) == {"train": 50_000, "test": 10_000}
    train, validation, test = splits_of(
        "cifar10", cifar10, train_split="test", validation_size=1000
    )
    assert (len(train), len(validation), len(test), train.num_classes) == (9000, 1000, 10_000, 10)
    assert {type(examples) for examples in (train, validation, test)} == {Examples}
    assert test.images.shape == (10_000, 32, 32, 3)
    np.testing.assert_array_equal(validation.images, test.images[9000:])
    few, held_out, _ = splits_of(
        "cifar10", cifar10, train_size=7, validation_size=9, train_split="test[:100]"
    )
    np.testing.assert_array_equal(few.images, test.images[:7])
    np.testing.assert_array_equal(held_out.images, test.images[91:100])
    # The numbers that everybody normalizes CIFAR-10 with are those of the training images; these
    # differ a little.
    mean_image, covariance = data.statistics(test)
    np.testing.assert_allclose(
        mean_image.mean(axis=(0, 1)) / 255, [0.4914, 0.4822, 0.4465], atol=0.005
    )
    np.testing.assert_allclose(
        np.sqrt(np.diag(covariance)) / 255, [0.2470, 0.2435, 0.2616], atol=0.004
    )


def test_large_images_stay_on_disk(photos):
    """And a set without `test` is tested on `validation`."""
    train, validation, test = splits_of(
        "photos", photos, crop_size=227, validation_size=5, train_size=10
    )
    assert {type(examples) for examples in (train, validation, test)} == {Records}
    assert (len(train), len(validation), len(test)) == (10, 5, 23)
    assert {stretch.split for stretch in test.stretches} == {"validation"}
    whole = open_records("photos", "train", [photos])
    np.testing.assert_array_equal(train.read(np.arange(10))[0], whole.read(np.arange(10))[0])
    np.testing.assert_array_equal(
        validation.read(np.arange(5))[0], whole.read(np.arange(18, 23))[0]
    )
    train, _, test = splits_of(
        "photos", photos, crop_size=256, train_split="train[3:]", test_split="train[:3]"
    )
    assert (len(train), len(test)) == (20, 3)


@pytest.mark.parametrize(
    ("size", "limit"),
    [(64, Examples), (65, Records)],
)
def test_the_limit_between_memory_and_disk(tmp_path, size, limit):
    write(tmp_path, "sized", np.zeros((2, size, size, 3), np.uint8))
    assert type(splits_of("sized", tmp_path)[0]) is limit


def test_what_does_not_fit_is_refused(tmp_path, photos):
    for images, words in (
        (np.zeros((2, 32, 32, 1), np.uint8), "32x32 pixels and 1 channels"),
        (np.zeros((2, 40, 31, 3), np.uint8), "--crop_size=32 .* those of set have 40x31 pixels"),
    ):
        write(tmp_path / str(images.shape), "set", images)
        with pytest.raises(DataError, match=words) as caught:
            splits_of("set", tmp_path / str(images.shape))
        assert "\n" not in str(caught.value)
    splits_of("photos", photos, crop_size=256)
    with pytest.raises(DataError, match="--crop_size=257 "):
        splits_of("photos", photos, crop_size=257)
    with pytest.raises(UserError, match="23 training examples; --validation_size=23 leaves 0"):
        splits_of("photos", photos, validation_size=23)
    with pytest.raises(UserError, match="fewer than --train_size=20"):
        splits_of("photos", photos, validation_size=5, train_size=20)
    with pytest.raises(UserError, match=r"no examples in --test_split=train\[5:5\]"):
        splits_of("photos", photos, test_split="train[5:5]")
    with pytest.raises(DataError, match=r"no split 'test'.*available: train, validation"):
        splits_of("photos", photos, test_split="test")
    with pytest.raises(UserError, match="batch_size=24 is larger than the training set"):
        data.steps_per_epoch(23, 24)
    assert data.steps_per_epoch(23, 5) == 4


def test_test_images_of_another_shape_are_refused(tmp_path, photos):
    write(tmp_path, "small", np.zeros((2, 32, 32, 3), np.uint8), splits=("train",))
    folder = write(tmp_path, "mixed", np.zeros((2, 32, 32, 3), np.uint8), shape=(32, 32, 3))
    test = write(
        tmp_path / "b",
        "mixed",
        np.zeros((2, 33, 32, 3), np.uint8),
        shape=(33, 32, 3),
        splits=("test",),
    )
    shard = "mixed-test.array_record-00000-of-00001"
    (folder / shard).write_bytes((test / shard).read_bytes())
    with pytest.raises(
        DataError, match=f"split test, .*{shard}, record 0 .an image of 33x32 pixels, not 32x32"
    ):
        splits_of("mixed", tmp_path)


def test_noise():
    train, validation, test = splits_of("fake", "", crop_size=227, validation_size=10_000, seed=3)
    assert (len(train), len(validation), len(test)) == (1024, 256, 256)
    assert train.image_shape == (256, 256, 3)
    assert splits_of("fake", "", crop_size=24)[0].image_shape == (32, 32, 3)
    images, labels = train.read(np.array([5, 0, 5]))
    assert (images.shape, images.dtype, labels.dtype) == ((3, 256, 256, 3), np.uint8, np.int32)
    np.testing.assert_array_equal(images[0], images[2])
    np.testing.assert_array_equal(train[5:][:1].read(np.array([0]))[0][0], images[0])
    others = [validation, test, splits_of("fake", "", crop_size=227, seed=4)[0]]
    for different in (images[1], *(examples.read(np.array([5]))[0][0] for examples in others)):
        assert np.abs(np.corrcoef(different.ravel(), images[0].ravel())[0, 1]) < 0.02
    # A uniform variable of 256 values: mean 127.5, variance (256^2 - 1) / 12.
    assert abs(images[0].mean() - 127.5) < 6 * np.sqrt((256**2 - 1) / 12 / images[0].size)
    mean_image, covariance = data.statistics(train)
    assert mean_image.shape == (256, 256, 3)
    np.testing.assert_allclose(mean_image, 127.5)
    np.testing.assert_allclose(np.cov(images[0].reshape(-1, 3).T), covariance, atol=100)
    _, labels = splits_of("fake", "", crop_size=24)[0].read(np.arange(1024))
    assert 0 <= labels.min() < 20 and 980 < labels.max() < 1000


# In which order


def test_every_example_comes_once_in_an_epoch_each_use_with_its_own_draw():
    examples = numbered(40)
    batches = [data.training_batch(examples, step, batch_size=4, seed=1) for step in range(20)]
    order = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches])
    assert sorted(order[:40]) == sorted(order[40:]) == list(range(40))
    assert (order[:40] != order[40:]).any() and (order[:40] != np.arange(40)).any()
    np.testing.assert_array_equal(order % 10, np.concatenate([batch["label"] for batch in batches]))
    draws = np.concatenate([batch["draw"] for batch in batches])
    assert draws.dtype == np.uint32
    np.testing.assert_array_equal(draws, np.arange(1, 81))


def test_an_epoch_has_no_remainder():
    """Ten examples in batches of three: the tenth opens the fourth batch, and the next pass
    follows.
    """
    images = [
        data.training_batch(numbered(10), step, batch_size=3, seed=2)["image"][:, 0, 0, 0]
        for step in range(10)
    ]
    passes = np.concatenate(images).reshape(3, 10)
    np.testing.assert_array_equal(np.sort(passes), np.tile(np.arange(10), (3, 1)))


def same(batch, expected) -> None:
    assert batch.keys() == expected.keys() == {"image", "label", "draw"}
    for name in expected:
        assert type(batch[name]) is np.ndarray
        assert batch[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(batch[name], expected[name])


@pytest.mark.parametrize(
    ("source", "num_workers"),
    [
        ("photos", 0),
        ("photos", 1),
        ("photos", 3),
        ("fake", 0),
        ("fake", 1),
        ("memory", 0),
        ("memory", 3),
    ],
)
def test_any_number_of_workers_gives_the_same_batches(photos, source, num_workers):
    examples = numbered(30) if source == "memory" else splits_of(source, photos, crop_size=227)[0]
    settings = dict(batch_size=7, seed=5)
    stream = data.training_batches(examples, first_step=11, num_workers=num_workers, **settings)
    with contextlib.closing(stream) as batches:
        for step in range(11, 18):
            same(next(batches), data.training_batch(examples, step, **settings))
        workers = multiprocessing.active_children()
        assert len(workers) == (0 if source == "memory" else num_workers)
    assert not multiprocessing.active_children()


def test_workers_end_when_nobody_asks_for_a_second_batch(photos):
    train, _, _ = splits_of("photos", photos, crop_size=227)
    batches = data.training_batches(train, first_step=0, batch_size=4, seed=0, num_workers=3)
    next(batches)
    del batches
    deadline = time.monotonic() + 20
    while multiprocessing.active_children():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damage_reaches_the_main_process_as_one_line(tmp_path, num_workers):
    images = [jpeg(np.full((256, 256, 3), 9 * i, np.uint8)) for i in range(10)]
    write(tmp_path, "photos", [*images, b"no image"], shape=(256, 256, 3))
    train, _, _ = splits_of("photos", tmp_path, crop_size=227)
    with contextlib.closing(
        data.training_batches(train, first_step=0, batch_size=1, seed=0, num_workers=num_workers)
    ) as batches:
        with pytest.raises(
            DataError, match=r"split train, shard .*, record 10 \(neither JPEG nor PNG"
        ) as caught:
            for _ in range(11):
                next(batches)
        assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damage_that_is_allowed_reaches_the_main_process_and_no_batch(
    tmp_path, num_workers, capsys
):
    """Whoever reads, in whatever batches: record 0 stands for 10, the last, and 5 for 3 and 4."""
    images = [jpeg(np.full((256, 256, 3), 9 * i, np.uint8)) for i in range(10)]
    images[3:5] = b"no image", images[4][: len(images[4]) // 2]
    write(tmp_path, "photos", [*images, b"no image"], shape=(256, 256, 3))
    train, _, _ = splits_of("photos", tmp_path, crop_size=227)
    for batch_size, hosts in ((1, 1), (4, 1), (4, 2)):
        damaged = DamagedRecords("photos", 3)
        rows = [slice(h * batch_size // hosts, (h + 1) * batch_size // hosts) for h in range(hosts)]
        settings = dict(
            first_step=0, batch_size=batch_size, seed=0, num_workers=num_workers, damaged=damaged
        )
        seen = []
        for mine in rows:
            with contextlib.closing(data.training_batches(train, rows=mine, **settings)) as batches:
                taken = [next(batches) for _ in range(-(-11 // batch_size))]
                assert {frozenset(batch) for batch in taken} == {
                    frozenset(("image", "label", "draw"))
                }
                seen.append([batch["image"][:, 0, 0, 0] for batch in taken])
        pixels = np.concatenate([np.concatenate(parts) for parts in zip(*seen, strict=True)])[:11]
        uses = epoch_order(11, 0, 0)
        np.testing.assert_array_equal(
            pixels, 9 * np.array([{3: 5, 4: 5, 10: 0}.get(i, i) for i in uses])
        )
        assert [damage[2] for damage in damaged.listed] == [3, 4, 10]
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 3 and all(
            line.endswith("the next intact record stands for it") for line in lines
        )


def test_statistics_leave_out_what_is_damaged(tmp_path, capsys):
    images = [np.full((70, 70, 3), 9 * i, np.uint8) for i in range(5)]
    write(tmp_path, "photos", [images[0], b"no image", *images[2:]], shape=(70, 70, 3))
    train, _, _ = splits_of("photos", tmp_path)
    with pytest.raises(DataError, match="record 1 "):
        data.statistics(train)
    mean_image, covariance = data.statistics(train, max_bad_records=1)
    np.testing.assert_allclose(mean_image, np.mean([0, 18, 27, 36]), rtol=1e-6)
    np.testing.assert_allclose(covariance, np.var([0, 18, 27, 36]), rtol=1e-6)
    assert "record 1 (neither JPEG nor PNG): it is left out" in capsys.readouterr().err


def test_a_worker_that_is_killed_is_reported_in_words(photos):
    train, _, _ = splits_of("photos", photos, crop_size=227)
    with contextlib.closing(
        data.training_batches(train, first_step=0, batch_size=4, seed=0, num_workers=1)
    ) as batches:
        next(batches)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(
            UserError,
            match=r"a process that reads data was ended \(.*exit code -9\): out of memory",
        ) as caught:
            for _ in range(20):
                next(batches)
        assert "\n" not in str(caught.value)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


READER = """
import contextlib, multiprocessing, os, signal, sys, time
from alexnet import data
interrupted = []  # as in common/launch.py, no handler raises in the middle of a read
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"SIGTERM\\n"))  # print may be in the middle of a print
signal.signal(signal.SIGINT, lambda *_: interrupted.append(True))
train, _, _ = data.load_splits("photos", sys.argv[1], train_size=0, validation_size=0, crop_size=227, seed=0)
with contextlib.closing(data.training_batches(train, first_step=0, batch_size=4, seed=0, num_workers=2)) as batches:
    next(batches)
    print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
    while not interrupted:
        next(batches)
        time.sleep(0.01)
    print("SIGINT", flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the table of processes")
@pytest.mark.parametrize("ending", ["interrupted", "killed"])
def test_signals_are_for_the_main_process_alone(photos, ending):
    """Ctrl-C goes to all processes of a terminal, a scheduler's SIGTERM to all of a job: workers go
    on until they are ended.
    """
    command = [sys.executable, "-c", READER, photos]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes) as reader:
        try:
            workers = [int(number) for number in reader.stdout.readline().split()]
            assert len(workers) == 2
            os.killpg(reader.pid, signal.SIGTERM)
            assert reader.stdout.readline() == "SIGTERM\n"
            time.sleep(0.3)
            assert all(map(is_alive, workers))
            if ending == "interrupted":
                os.killpg(reader.pid, signal.SIGINT)
                printed, complaints = reader.communicate(timeout=30)
                assert printed == "SIGINT\n"
                assert "Traceback" not in complaints
                assert reader.returncode == 0
            else:
                reader.kill()
                reader.wait(timeout=30)
            deadline = time.monotonic() + 20
            while any(map(is_alive, workers)):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        except BaseException:
            os.killpg(reader.pid, signal.SIGKILL)
            raise


# Statistics


def test_statistics_of_examples_in_memory():
    images = np.random.default_rng(0).integers(0, 256, (3000, 5, 40, 3), np.uint8)
    images[..., 1] = images[..., 0] // 2 + 7
    mean_image, covariance = data.statistics(Examples(images, np.zeros(3000, np.int32), 1, "some"))
    assert (mean_image.dtype, covariance.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(mean_image, images.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(
        covariance, np.cov(images.reshape(-1, 3).T.astype(np.float64), bias=True), rtol=1e-9
    )


def test_statistics_of_records_are_measured_once(photos, monkeypatch, capsys):
    train, _, _ = splits_of("photos", photos, crop_size=227, validation_size=3)
    images, _ = train.read(np.arange(20))
    measured = data.statistics(train)
    assert "mean image of photos" in capsys.readouterr().err
    np.testing.assert_allclose(
        measured.mean_image, images.mean(axis=0, dtype=np.float64), rtol=1e-6
    )
    np.testing.assert_allclose(
        measured.covariance,
        np.cov(images.reshape(-1, 3).T.astype(np.float64), bias=True),
        rtol=1e-9,
    )

    def refuse(*_):
        raise AssertionError("the records were read again")

    with monkeypatch.context() as patch:
        patch.setattr(Records, "read", refuse)
        for mine, again in zip(measured, data.statistics(train), strict=True):
            np.testing.assert_array_equal(mine, again)
    other = data.statistics(splits_of("photos", photos, crop_size=227, validation_size=4)[0])
    assert (other.mean_image != measured.mean_image).any()


def test_statistics_that_come_with_a_set(tmp_path):
    folder = write(tmp_path, "photos", np.zeros((3, 70, 80, 3), np.uint8))
    train, _, test = splits_of("photos", tmp_path)
    mean_image, covariance = np.full((70, 80, 3), 7.0, np.float32), np.diag([1.0, 2.0, 3.0])
    np.savez(
        folder / "statistics.npz",
        train_mean_image=mean_image,
        train_covariance=covariance,
        train_count=3,
    )
    for part in (train, train[1:]):
        np.testing.assert_array_equal(data.statistics(part).mean_image, mean_image)
        np.testing.assert_array_equal(data.statistics(part).covariance, covariance)
    np.testing.assert_array_equal(data.statistics(test).mean_image, 0)  # of this split it has none
    np.savez(
        folder / "statistics.npz",
        train_mean_image=mean_image[:, :70],
        train_covariance=covariance,
        train_count=3,
    )
    with pytest.raises(
        DataError, match=r"statistics.npz is of other images \(\(70, 70, 3\), not \(70, 80, 3\)\)"
    ):
        data.statistics(train)
    (folder / "statistics.npz").write_bytes(b"PK half a file")
    with pytest.raises(DataError, match=r"statistics.npz is damaged") as caught:
        data.statistics(train)
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
    with pytest.raises(
        DataError, match=r"statistics.npz is damaged \(Object arrays cannot be loaded"
    ):
        data.statistics(train)
    assert not (tmp_path / "sprung").exists()
    trap[0].__reduce__()[0](*trap[0].__reduce__()[1])  # what loading its pickle would call
    assert (tmp_path / "sprung").exists()


# On the device


def some_statistics(height=12, width=10, seed=0) -> data.Statistics:
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(3, 3)) * 30
    return data.Statistics(
        random.uniform(60, 180, (height, width, 3)).astype(np.float32), mixing @ mixing.T
    )


def some_images(count=6, height=12, width=10, seed=1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def preparing(statistics, **settings):
    defaults = dict(
        crop_size=8, scaling="mean_image", augmentation="crop_flip", color_pca=False, pad=0, seed=0
    )
    return jax.jit(data.prepare_function(statistics, **(defaults | settings)))


def scaled(images, statistics, scaling) -> np.ndarray:
    """All pixels of `images` as the network gets them, in float64."""
    mean_image = statistics.mean_image.astype(np.float64)
    if scaling == "mean_image":
        return images - mean_image
    return (images - mean_image.mean(axis=(0, 1))) / np.sqrt(np.diag(statistics.covariance))


@pytest.mark.parametrize("scaling", ["mean_image", "standardized"])
def test_the_centre_crop(scaling):
    statistics, images = some_statistics(), some_images()
    expected = scaled(images, statistics, scaling)[:, 2:10, 1:9]
    for augmentation, pad in (
        ("crop_flip", 3),
        ("resized_crop_flip", 0),
        ("none", 0),
    ):  # none of which is for evaluation
        prepare = preparing(
            statistics, scaling=scaling, augmentation=augmentation, pad=pad, color_pca=True
        )
        out = prepare(images)
        assert (out.shape, out.dtype) == ((6, 8, 8, 3), np.float32)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-4)
    trained = preparing(statistics, scaling=scaling, augmentation="none", pad=2)(
        images, np.arange(1, 7, dtype=np.uint32)
    )
    np.testing.assert_allclose(trained, expected, rtol=1e-5, atol=1e-4)


def test_the_ten_views():
    """Section 4.1: 'the four corner patches and the center patch as well as their horizontal
    reflections'.
    """
    statistics, images = some_statistics(), some_images()
    whole = scaled(images, statistics, "mean_image")
    patches = [
        whole[:, :8, :8],
        whole[:, :8, 2:],
        whole[:, 2:10, 1:9],
        whole[:, 4:, :8],
        whole[:, 4:, 2:],
    ]
    expected = [*patches, *(patch[:, :, ::-1] for patch in patches)]
    assert len(expected) == data.VIEWS
    prepare = data.prepare_function(
        statistics,
        crop_size=8,
        scaling="mean_image",
        augmentation="none",
        color_pca=True,
        pad=0,
        seed=0,
    )
    traced = jax.jit(prepare)
    for view in range(data.VIEWS):
        np.testing.assert_allclose(
            jax.jit(functools.partial(prepare, view=view))(images), expected[view], atol=1e-4
        )
        np.testing.assert_allclose(traced(images, view=jnp.int32(view)), expected[view], atol=1e-4)


@pytest.mark.parametrize("pad", [0, 2])
@pytest.mark.parametrize("scaling", ["mean_image", "standardized"])
def test_random_crops_are_all_the_crops_equally_often(scaling, pad):
    statistics, image = some_statistics(7, 7), some_images(1, 7, 7)
    whole = np.pad(
        scaled(image, statistics, scaling)[0], ((pad, pad), (pad, pad), (0, 0))
    )  # the mean became 0
    places = 7 + 2 * pad - 6 + 1
    crops = [
        whole[top : top + 6, left : left + 6] for top in range(places) for left in range(places)
    ]
    candidates = np.array([*crops, *(crop[:, ::-1] for crop in crops)])
    count = 100 * len(candidates)
    images = np.broadcast_to(image, (count, 7, 7, 3))
    out = preparing(statistics, crop_size=6, scaling=scaling, pad=pad)(
        images, np.arange(1, count + 1, dtype=np.uint32)
    )
    matches = np.array(
        [np.abs(out - candidate).max(axis=(1, 2, 3)) < 1e-3 for candidate in candidates]
    )
    assert (matches.sum(axis=0) == 1).all()  # each result is one of them
    assert np.abs(matches.sum(axis=1) - 100).max() < 6 * np.sqrt(100)  # six standard deviations


@pytest.mark.parametrize("augmentation", ["crop_flip", "resized_crop_flip"])
def test_a_use_of_an_image_looks_the_same_in_any_batch(augmentation):
    statistics, images = some_statistics(), some_images(8)
    prepare = preparing(statistics, augmentation=augmentation, color_pca=True)
    draws = np.array([3, 1, 4, 10, 5, 9, 2**32 - 1, 6], np.uint32)
    together = np.asarray(prepare(images, draws))
    np.testing.assert_allclose(
        prepare(images[::-1], draws[::-1])[::-1], together, rtol=1e-5, atol=1e-4
    )
    for number in range(8):
        alone = prepare(images[number : number + 1], draws[number : number + 1])
        np.testing.assert_allclose(alone[0], together[number], rtol=1e-5, atol=1e-4)
    same_image = np.broadcast_to(images[:1], images.shape)
    drawn = np.asarray(prepare(same_image, draws))
    assert all(np.abs(drawn[0] - other).max() > 0.1 for other in drawn[1:])
    other_seed = preparing(statistics, augmentation=augmentation, color_pca=True, seed=1)
    assert np.abs(np.asarray(other_seed(images, draws)) - together).max() > 0.1


def test_crops_mirror_images_and_colours_are_drawn_apart():
    """Colour noise or not, the same crop and mirror image."""
    statistics, images, draws = (
        some_statistics(),
        some_images(50),
        np.arange(1, 51, dtype=np.uint32),
    )
    plain, colored = (
        np.asarray(preparing(statistics, color_pca=pca)(images, draws)) for pca in (False, True)
    )
    difference = colored - plain
    np.testing.assert_allclose(
        difference, np.broadcast_to(difference[:, :1, :1], difference.shape), atol=1e-3
    )
    assert (np.abs(difference[:, 0, 0]).max(axis=1) > 0.01).all()


@pytest.mark.parametrize("scaling", ["mean_image", "standardized"])
def test_the_colour_noise_has_a_hundredth_of_the_covariance(scaling):
    """sum_i p_i a_i s_i with s_i^2 = lambda_i and a_i ~ N(0, 0.1^2) has mean 0 and covariance 0.01
    C, and is Gaussian.
    """
    statistics, count = some_statistics(2, 2), 40_000
    images = np.full((count, 2, 2, 3), 100, np.uint8)
    prepare = preparing(
        statistics, crop_size=1, scaling=scaling, augmentation="none", color_pca=True
    )
    noise = np.asarray(prepare(images, np.arange(1, count + 1, dtype=np.uint32)), np.float64)[
        :, 0, 0
    ]
    noise -= scaled(images[:1], statistics, scaling)[0, 0, 0]
    if scaling == "standardized":
        noise *= np.sqrt(np.diag(statistics.covariance))
    whitened = noise @ np.linalg.inv(np.linalg.cholesky(0.01 * statistics.covariance)).T
    assert np.abs(whitened.mean(axis=0)).max() < 6 / np.sqrt(count)
    assert np.abs(np.cov(whitened.T) - np.eye(3)).max() < 6 * np.sqrt(2 / count)
    assert np.abs((whitened**4).mean(axis=0) - 3).max() < 6 * np.sqrt(
        96 / count
    )  # the fourth moment of a Gaussian


def test_color_axes_are_the_principal_components():
    covariance = some_statistics().covariance
    axes = data.color_axes(covariance)
    np.testing.assert_allclose(axes @ axes.T, covariance, rtol=1e-9)
    products = axes.T @ axes  # orthogonal, of length sqrt(lambda)
    np.testing.assert_allclose(
        products, np.diag(np.linalg.eigvalsh(covariance)), atol=1e-8 * np.trace(covariance)
    )
    np.testing.assert_allclose(
        data.color_axes(np.ones((3, 3)))[:, 2], 1, rtol=1e-6
    )  # grey images: one component
    assert (axes[np.abs(axes).argmax(axis=0), range(3)] > 0).all()


# Random regions


def regions(count, size=64):
    """(count, 4): height, width, top and left of regions, read off images of coordinates in the
    middle of the result, which is
    enlarged: by linear interpolation coordinates remain what they are.
    """
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    ramps = jnp.asarray(np.stack([y, x], axis=-1))
    keys = jax.vmap(jax.random.key)(jnp.arange(count))
    results = np.asarray(
        jax.jit(jax.vmap(lambda key: data.resized_crop(key, ramps, size)))(keys), np.float64
    )
    a, b = size // 4, size - size // 4
    slopes = np.stack(
        [results[:, b, a, 0] - results[:, a, a, 0], results[:, a, b, 1] - results[:, a, a, 1]],
        axis=1,
    ) / (b - a)
    corners = (
        np.stack([results[:, a, a, 0], results[:, a, a, 1]], axis=1) + 0.5 - (a + 0.5) * slopes
    )
    return np.concatenate([slopes * size, corners], axis=1)


def torchvision_regions(count, size=64, seed=0):
    """The same by torchvision's loop: heights, widths, tops and lefts."""
    random, found = np.random.default_rng(seed), []
    for _ in range(count):
        for _ in range(10):
            area = size * size * random.uniform(0.08, 1.0)
            aspect = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
            width, height = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 0 < width <= size and 0 < height <= size:
                top, left = (
                    random.integers(0, size - height + 1),
                    random.integers(0, size - width + 1),
                )
                break
        else:
            height, width, top, left = size, size, 0, 0
        found.append((height, width, top, left))
    return np.array(found, np.float64)


def test_random_regions_are_distributed_as_torchvisions():
    ours, theirs = regions(2000), torchvision_regions(2000)
    np.testing.assert_allclose(ours, np.round(ours), atol=0.01)  # whole pixels
    ours = np.round(ours)
    height, width, top, left = ours.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 64).all() and (left + width <= 64).all()
    assert height.max() == width.max() == 64
    for name, measure in {
        "area": lambda r: r[:, 0] * r[:, 1] / 64**2,
        "aspect": lambda r: np.log(r[:, 1] / r[:, 0]),
        "place": lambda r: (r[:, 2] + 0.5) / (64 - r[:, 0] + 1),
        "places": lambda r: (
            (r[:, 2] + 0.5) / (64 - r[:, 0] + 1) * (r[:, 3] + 0.5) / (64 - r[:, 1] + 1)
        ),
    }.items():
        for quantile in (
            0.05,
            0.25,
            0.5,
            0.75,
            0.95,
        ):  # within what 2,000 draws can tell, six standard deviations
            at = np.quantile(measure(theirs), quantile)
            share = (measure(ours) < at).mean() / 2 + (measure(ours) <= at).mean() / 2
            expected = (measure(theirs) < at).mean() / 2 + (measure(theirs) <= at).mean() / 2
            assert abs(share - expected) < 6 * np.sqrt(2 * 0.25 / 2000), (name, quantile)
    assert 0.07 < (height * width).min() / 64**2 < 0.1
    assert 0.7 < (width / height).min() < 0.78 and 1.28 < (width / height).max() < 1.42


def test_a_random_region_is_resized_as_pytorch_does(torch):
    """Inside; at the border of the region PyTorch sees nothing beyond it."""
    images = np.random.default_rng(0).uniform(0, 255, (9, 64, 64, 3)).astype(np.float32)
    sizes = np.round(regions(9)).astype(int)
    resized_crop = jax.jit(
        lambda number, image: data.resized_crop(jax.random.key(number), image, 32)
    )
    for number, (height, width, top, left) in enumerate(sizes):
        ours = np.asarray(resized_crop(number, images[number]))
        region = torch.tensor(images[number, top : top + height, left : left + width]).permute(
            2, 0, 1
        )[None]
        theirs = torch.nn.functional.interpolate(
            region, (32, 32), mode="bilinear", antialias=True, align_corners=False
        )
        np.testing.assert_allclose(
            ours[2:-2, 2:-2], theirs[0].permute(1, 2, 0).numpy()[2:-2, 2:-2], atol=0.05
        )
    assert (sizes[:, :2] < 32).any() and (sizes[:, :2] > 32).any()  # both enlarged and reduced


def test_where_no_region_fits_the_largest_in_the_middle_is_taken():
    """Of 256x8 pixels: 8 wide and round(8 / (3/4)) = 11 high, from row (256 - 11) // 2 = 122."""
    rows = jnp.broadcast_to(jnp.arange(256.0)[:, None, None], (256, 8, 1))
    for seed in range(5):
        out = np.asarray(data.resized_crop(jax.random.key(seed), rows, 11))
        np.testing.assert_allclose(
            out[..., 0], np.broadcast_to(122.0 + np.arange(11)[:, None], (11, 11)), atol=1e-3
        )


def test_resized_crops_are_scaled_and_mirrored():
    """A constant image less its constant mean is constant; columns rise or fall, as often."""
    statistics = data.Statistics(np.full((32, 32, 3), 10, np.float32), np.diag([4.0, 9.0, 16.0]))
    images = np.broadcast_to(np.arange(32, dtype=np.uint8)[None, None, :, None], (400, 32, 32, 3))
    draws = np.arange(1, 401, dtype=np.uint32)
    settings = dict(crop_size=24, augmentation="resized_crop_flip")
    prepare = preparing(statistics, **settings)
    out = np.asarray(prepare(images, draws))
    rising = out[:, 12, 16, 0] > out[:, 12, 8, 0]
    assert abs(rising.sum() - 200) < 6 * np.sqrt(100)
    standardized = np.asarray(
        preparing(statistics, scaling="standardized", **settings)(images, draws)
    )
    np.testing.assert_allclose(standardized, out / [2, 3, 4], rtol=1e-4, atol=1e-4)
    constant = np.full_like(images, 30)
    np.testing.assert_allclose(prepare(constant, draws), 20, rtol=1e-5)
