"""`scripts.prepare_data --dataset=imagenet_256` and the modules behind it: generated images, and a
sample of real ones.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import filelock
import numpy as np
import pytest
import simplejpeg
import tensorflow_datasets as tfds
from PIL import Image

from common.errors import INTERRUPTED, DataError, LockedError, StorageError
from common.examples import load
from common.prepared import find
from common.records import open_records
from scripts import prepare_data
from scripts.prepare import imagenet
from scripts.prepare.encode import RECORD_FORMATS, Form, center_square
from scripts.prepare.entries import read
from scripts.prepare.layouts import OTHER_ENDING, _validation_wnids, find_images, synsets

ROOT = Path(__file__).resolve().parents[1]
# The command with four files a shard. A worker says so before it writes one, and waits while the
# folder has a file "hold N" with N at most the shard's number.
SMALL_SHARDS = """
import os, sys, time
from pathlib import Path
from scripts import prepare_data
from scripts.prepare import imagenet

imagenet.IMAGES_PER_SHARD = 4
FOLDER, write = Path(__file__).parent, imagenet._write_shard

def hold_and_write(work, name, *more):
    number = int(name.partition("array_record-")[2][:5])
    (FOLDER / f"at work {os.getpid()}").touch()
    while any(int(path.name.split()[1]) <= number for path in FOLDER.glob("hold *")):
        time.sleep(0.01)
    write(work, name, *more)

if __name__ == "__main__":
    imagenet._write_shard = hold_and_write
    sys.exit(prepare_data.main(sys.argv[1:]))
"""
TENCH, TIGER = "n01440764", "n02129604"
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="finds processes in /proc"
)


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@contextlib.contextmanager
def threads(num_workers: int, advice: str):
    """What worker processes do, done in this process."""
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        yield pool


@pytest.fixture(scope="module", autouse=True)
def in_this_process():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagenet, "worker_pool", threads)
        yield


@pytest.fixture
def sample() -> tarfile.TarFile:
    """The tar of 300 real images, `imagenet_sample/val/<wnid>/*.JPEG`."""
    path = Path(os.environ.get("TFDS_DATA_DIR", "."), "..", "imagenet_sample.tar")
    if not path.exists():
        pytest.skip("no imagenet_sample.tar beside $TFDS_DATA_DIR")
    with tarfile.open(path) as archive:
        yield archive


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    """Smooth random colors: noise would not survive JPEG."""
    height, width, *channels = shape
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, *channels), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR))


def encode(image: np.ndarray | Image.Image, file_format: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    quality = {"quality": 95} if file_format == "JPEG" else {}
    image.save(buffer, file_format, **quality | options)
    return buffer.getvalue()


def write_tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def some_images(names) -> dict[str, bytes]:
    return {name: encode(pixels(70 + i, 90, 3, seed=i)) for i, name in enumerate(names)}


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            add(archive, name, content)
    return buffer.getvalue()


def png(image: np.ndarray, color_type: int, size: tuple[int, int] | None = None) -> bytes:
    """A PNG file of (H, W, C) uint16, written by hand; `size` is what its header says."""
    width, height = size or image.shape[1::-1]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in image)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines, level=0)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def files_of(folder: Path) -> dict[str, bytes]:
    # A .npz file is a zip file, which may contain times.
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".npz"}


def records(folder: Path, split: str) -> list[dict]:
    decoders = {"image": tfds.decode.SkipDecoding()}
    return list(tfds.builder_from_directory(folder).as_data_source(split, decoders=decoders))


def prepare(tree: Path, data_dir: Path, record_format: str = "jpeg", num_workers: int = 1) -> Path:
    folder = data_dir / imagenet.NAME / imagenet.VERSION
    imagenet.prepare(find_images(tree), folder, Form(record_format), num_workers)
    return folder


# ---- preprocessing


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys's kernel with a = -1/2."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def resampling_matrix(length: int, side: int) -> np.ndarray:
    """(256, length): how the central `side` of `length` pixels become 256; the kernel widens when
    it downsamples.
    """
    scale = side / 256
    centers = (length - side) / 2 + (np.arange(256) + 0.5) * scale
    weights = cubic((np.arange(length) + 0.5 - centers[:, None]) / max(scale, 1))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    "size", [(375, 500), (501, 334), (256, 700), (90, 120), (257, 256), (600, 1)]
)
def test_rescaling_and_cropping_against_numpy(size):
    # The kernel overshoots, and nothing is to be clipped.
    image = np.random.default_rng(0).integers(64, 192, (*size, 3), np.uint8)
    rows, columns = (resampling_matrix(length, min(size)) for length in size)
    expected = np.einsum("yh,xw,hwc->yxc", rows, columns, image, optimize=True)
    found = center_square(encode(image, "PNG"))
    assert (found.shape, found.dtype) == ((256, 256, 3), np.uint8)
    assert np.abs(found - expected).max() < 1.3  # rounded after each direction


def test_the_center_of_the_rescaled_image_is_cropped():
    image = np.random.default_rng(0).integers(0, 256, (512, 768, 3), np.uint8)
    rescaled = np.asarray(Image.fromarray(image).resize((384, 256), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(center_square(encode(image, "PNG")), rescaled[:, 64:320])
    image = image[:256, :256]  # already of the right size
    np.testing.assert_array_equal(center_square(encode(image, "PNG")), image)


def test_gray_becomes_three_equal_channels():
    image = np.random.default_rng(0).integers(0, 256, (256, 256), np.uint8)
    for content in (encode(image, "PNG"), encode(pixels(256, 256), "JPEG")):
        gray = np.asarray(Image.open(io.BytesIO(content)))[..., None]
        np.testing.assert_array_equal(center_square(content), np.repeat(gray, 3, axis=2))


def test_cmyk_is_not_inverted():
    for cmyk, rgb in (
        ((0, 255, 255, 0), (255, 0, 0)),
        ((255, 255, 0, 0), (0, 0, 255)),
        ((0, 0, 0, 204), (51, 51, 51)),
    ):
        content = encode(Image.new("CMYK", (300, 256), cmyk))
        assert Image.open(io.BytesIO(content)).mode == "CMYK"
        assert b"Adobe" in content  # which stores the inverse
        assert np.abs(center_square(content).astype(int) - rgb).max() <= 3


@pytest.mark.parametrize(("color_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png_with_16_bits_and_transparency(color_type, channels):
    random = np.random.default_rng(color_type)
    image = random.integers(0, 1 << 16, (256, 256, channels)).astype(np.uint16)
    expected = image[..., : 3 if channels > 2 else 1] // 256  # without the transparency
    expected = np.broadcast_to(expected, (256, 256, 3))
    np.testing.assert_array_equal(center_square(png(image, color_type)), expected)


def test_gray_png_of_16_bits_as_a_viewer_shows_it():
    """Also where the file names a transparent level, which Pillow reports for it."""
    levels = np.linspace(0, 65535, 256 * 256).astype(np.uint16).reshape(256, 256)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "png", transparency=7)
    found = center_square(buffer.getvalue(), Form(grey=True, as_shown=True))
    np.testing.assert_array_equal(found[..., 0], levels // 256)


def test_palette():
    indices = np.arange(65536).reshape(256, 256).astype(np.uint8)
    image = Image.fromarray(indices, "L").convert("P")
    image.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
    found = center_square(encode(image, "PNG", transparency=b"\0\7"))
    np.testing.assert_array_equal(found[0], [(i, 255 - i, 7) for i in range(256)])


def test_exif_orientation_is_ignored():
    exif, image = Image.Exif(), pixels(256, 300, 3)
    exif[0x0112] = 6  # rotate by 90 degrees
    rotated = center_square(encode(image, exif=exif))
    np.testing.assert_array_equal(rotated, center_square(encode(image)))


TRUNCATED_JPEG = encode(pixels(300, 300, 3))[:-800]
TWO_PIXELS = np.zeros((2, 2, 3), np.uint16)
CORRUPT = {  # name: (content, what the reason must contain)
    "truncated.JPEG": (TRUNCATED_JPEG, "truncated"),
    "empty.JPEG": (b"", "empty"),
    "text.JPEG": (b"<html>not found</html>", "JPEG"),
    "gif.png": (encode(pixels(9, 9), "GIF"), "PNG"),
    "huge.png": (png(TWO_PIXELS, 2, size=(10_000, 9_000)), "89,478,485"),
    "enormous.png": (png(TWO_PIXELS, 2, size=(60_000, 60_000)), "89,478,485"),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_images_are_refused(name):
    content, reason = CORRUPT[name]
    with pytest.raises(Exception, match=reason):
        center_square(content)


# ---- the source


def test_synsets():
    names = list(synsets())
    assert len(names) == 1000 and names == sorted(names)
    # The usual indices: tench, dalmatian, tiger, toilet tissue.
    wnids = ("n01440764", "n02110341", "n02129604", "n15075141")
    assert [names.index(wnid) for wnid in wnids] == [0, 251, 292, 999]
    assert synsets()["n02129604"] == "tiger"
    official = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()
    assert names == sorted(official)
    assert sorted(_validation_wnids()) == sorted(names * 50)


def test_a_subset_keeps_the_index_of_each_class(tmp_path):
    labels = {
        "train/n02129604/b.jpg": 292,
        "train/n15075141/c.PNG": 999,
        "train/n01440764/d.jpeg": 0,
        "val/n02129604/a.JPEG": 292,
    }
    source = find_images(write_tree(tmp_path, dict.fromkeys(labels, b"-")))
    assert {name: len(files) for name, files in source.splits.items()} == {
        "train": 3,
        "validation": 1,
    }
    files = source.splits["train"] + source.splits["validation"]
    assert {file.name: file.label for file in files} == labels
    assert (len(source.class_names), source.left_out) == (1000, {})


@pytest.mark.parametrize("prefix", ["", "flowers/", "train/"])
@pytest.mark.parametrize("in_a_tar", [True, False])
def test_a_tree_with_other_classes(tmp_path, prefix, in_a_tar):
    names = ("tulip/1.jpg", "rose/1.jpg", "aster/1.png", "aster/note.txt")
    tree = {f"{prefix}{name}": b"-" for name in names}
    if in_a_tar:
        (tmp_path / "tree.tar").write_bytes(tar_of(tree))
    else:
        write_tree(tmp_path / "tree.tar", tree)
    source = find_images(tmp_path / "tree.tar")
    assert source.class_names == ("aster", "rose", "tulip")
    found = {file.name.removeprefix(prefix): file.label for file in source.splits["train"]}
    assert found == {"aster/1.png": 0, "rose/1.jpg": 1, "tulip/1.jpg": 2}
    assert list(source.splits) == ["train"]
    assert source.left_out == {OTHER_ENDING: [f"{prefix}aster/note.txt"]}


def test_the_official_tars(tmp_path):
    """A tar of one tar per class, and flat validation files, whose labels are those at the start of
    Caffe's val.txt.
    """
    train, outer = {}, {}
    for wnid in ("n01440764", "n02129604"):
        inner = {f"{wnid}_{i}.JPEG": f"{wnid} {i}".encode() for i in range(3)}
        outer[f"{wnid}.tar"] = tar_of(inner)
        train |= {f"train/{wnid}/{name}": content for name, content in inner.items()}
    validation = {
        f"ILSVRC2012_val_{number:08d}.JPEG": f"{number}".encode()
        for number in (3, 1, 2, 5, 4, 50_000)
    }
    tars = {"train": tar_of(outer), "val": tar_of(validation)}
    write_tree(tmp_path, {f"ILSVRC2012_img_{name}.tar": tar for name, tar in tars.items()})
    source = find_images(tmp_path)
    found = {file.name: read(file) for file in source.splits["train"]}
    assert found == train
    labels = {file.name[6:15]: file.label for file in source.splits["train"]}
    assert labels == {"n01440764": 0, "n02129604": 292}
    labels = {read(file): file.label for file in source.splits["validation"]}
    assert len(labels) == 6
    assert [labels[str(number).encode()] for number in range(1, 6)] == [65, 970, 230, 809, 516]
    # One tar alone, and the validation files extracted but not sorted into classes.
    assert find_images(tmp_path / "ILSVRC2012_img_train.tar").splits.keys() == {"train"}
    files = {f"val/{name}": content for name, content in validation.items()}
    extracted = find_images(write_tree(tmp_path / "extracted", files)).splits["validation"]
    assert {read(file): file.label for file in extracted} == labels


def test_the_order_is_shuffled_and_reproducible(tmp_path):
    write_tree(tmp_path, {f"class{i % 3}/{i:03d}.jpg": b"-" for i in range(300)})
    files = find_images(tmp_path).splits["train"]
    assert len({file.name for file in files}) == 300
    assert find_images(tmp_path).splits["train"] == files != sorted(files)
    counts = np.bincount([file.label for file in files[:90]], minlength=3)
    assert counts.min() >= 15  # a random sample: 30 each, with a standard deviation of 4


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["train/n01440764/a.JPEG", "train/n99999999/a.JPEG"], "n99999999"),
        (["n01440764/a.JPEG", "cats/a.JPEG"], "cats"),
        (["train/n01440764/a.JPEG", "train/n02129604/readme.txt"], "train/n02129604"),
        (["train/n01440764/a.JPEG", "val/n01440764/b.JPEG", "val/n02129604/"], "val/n02129604"),
        (["one/train/a/1.jpg", "two/train/a/1.jpg"], "one/train and two/train"),
        (["a.jpg", "b.jpg"], "--source="),
        (["val/ILSVRC2012_val_00050001.JPEG"], "ILSVRC2012_val_00050001.JPEG"),
    ],
)
def test_folders_that_are_not_a_source(tmp_path, names, named):
    for name in names:
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        else:
            write_tree(tmp_path, {name: b"-"})
    with pytest.raises(DataError, match=rf"^[^\n]*{named}[^\n]*$"):
        find_images(tmp_path)


@pytest.mark.parametrize(
    "damage",
    ["none", "text", "compressed", "cut in a member", "cut in an inner tar", "empty class"],
)
def test_tar_files_that_are_not_a_source(tmp_path, damage):
    inner = tar_of({"a.JPEG": bytes(5000)})
    second = tar_of({}) if damage == "empty class" else inner
    content = tar_of({"n01440764.tar": inner, "n02129604.tar": second})
    contents = {
        "none": b"",
        "text": b"no tar" * 1000,
        "compressed": zlib.compress(content, wbits=31),
        "cut in a member": tar_of({"n01440764/a.JPEG": bytes(5000)})[:3000],
        "cut in an inner tar": content[:12_000],
        "empty class": content,
    }
    (tmp_path / "source.tar").write_bytes(contents[damage])
    named = "n02129604" if damage == "empty class" else r"source\.tar"
    with pytest.raises(DataError, match=rf"^[^\n]*{named}[^\n]*$"):
        find_images(tmp_path / "source.tar")


# ---- the set


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """11 + 3 images of two classes, and the corrupt ones in train."""
    names = [f"train/{'n01440764' if i % 3 else 'n15075141'}/{i}.JPEG" for i in range(11)]
    names += [f"val/n15075141/{i}.JPEG" for i in range(3)]
    corrupt = {f"train/n01440764/{name}": content for name, (content, _) in CORRUPT.items()}
    return write_tree(tmp_path_factory.mktemp("tree"), some_images(names) | corrupt)


@pytest.fixture(scope="module")
def prepared_as(tree, tmp_path_factory):
    """record format -> the folder of the set, written by two workers, four files per shard."""

    @functools.cache
    def prepared_as(record_format: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(imagenet, "IMAGES_PER_SHARD", 4)
            return prepare(tree, tmp_path_factory.mktemp("sets"), record_format, 2)

    return prepared_as


@pytest.fixture(params=RECORD_FORMATS)
def prepared(request, prepared_as) -> tuple[Path, str]:
    return prepared_as(request.param), request.param


def decode(content: bytes, record_format: str) -> np.ndarray:
    if record_format == "raw":
        return np.frombuffer(content, np.uint8).reshape(256, 256, 3)
    return np.asarray(Image.open(io.BytesIO(content)))


def test_records_are_the_images_of_the_source(prepared, tree):
    folder, record_format = prepared
    tolerance = 2 if record_format == "jpeg" else 0  # of 255: quality 95 is nearly lossless here
    for split, place, num_images in (("train", "train", 11), ("validation", "val", 3)):
        paths = tree.glob(f"{place}/*/[0-9]*.JPEG")
        expected = {path: center_square(path.read_bytes()).astype(int) for path in paths}
        found = records(folder, split)
        assert len(found) == len(expected) == num_images
        for record in found:
            image = decode(record["image"], record_format)
            distances = {path: np.abs(image - array).mean() for path, array in expected.items()}
            path = min(distances, key=distances.get)
            assert distances[path] <= tolerance
            assert record["label"] == (0 if path.parent.name == "n01440764" else 999)
            del expected[path]


def test_jpeg_records_have_quality_95(prepared):
    folder, record_format = prepared
    contents = [record["image"] for record in records(folder, "train")]
    if record_format == "raw":
        assert {len(content) for content in contents} == {256 * 256 * 3}
        return
    # The standard's table K.1 begins 16 11 10 16 24; quality 95 divides it by ten (libjpeg's
    # jpeg_quality_scaling).
    image = Image.open(io.BytesIO(contents[0]))
    assert image.quantization[0][:5] == [2, 1, 1, 2, 2]
    np.testing.assert_array_equal(simplejpeg.decode_jpeg(contents[0]), np.asarray(image))


def test_all_readers_return_the_same_images(prepared):
    folder, record_format = prepared
    raw, data_dirs = records(folder, "train"), [folder.parents[1]]
    expected = [decode(record["image"], record_format) for record in raw]
    opened = open_records("imagenet_256", "train", data_dirs)
    images, labels = opened.read(np.arange(11))
    assert opened.num_classes == 1000
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(labels, [record["label"] for record in raw])
    by_tfds = tfds.builder_from_directory(folder).as_data_source("train[1:]")
    assert len(by_tfds) == 10
    np.testing.assert_array_equal(by_tfds[0]["image"], expected[1])
    if record_format == "jpeg":
        loaded = load("imagenet_256", "train", data_dirs).images
        np.testing.assert_array_equal(loaded, expected)


def test_statistics_are_those_of_the_stored_images(prepared):
    folder, record_format = prepared
    with np.load(folder / "statistics.npz", allow_pickle=False) as statistics:
        assert len(statistics) == 6
        for split, num_images in (("train", 11), ("validation", 3)):
            contents = [record["image"] for record in records(folder, split)]
            images = np.stack([decode(content, record_format) for content in contents])
            images = images.astype(np.float64)
            assert statistics[f"{split}_count"] == num_images
            mean, covariance = statistics[f"{split}_mean_image"], statistics[f"{split}_covariance"]
            assert (mean.dtype, covariance.dtype) == (np.float32, np.float64)
            np.testing.assert_array_equal(mean, images.mean(axis=0).astype(np.float32))
            expected = np.cov(images.reshape(-1, 3).T, bias=True)
            np.testing.assert_allclose(covariance, expected, rtol=1e-10)


def test_files_of_the_set(prepared):
    folder, _ = prepared
    names = {f"imagenet_256-train.array_record-{i:05d}-of-00005" for i in range(5)}
    names.add("imagenet_256-validation.array_record-00000-of-00001")
    names |= {"damaged.txt", "dataset_info.json", "features.json", "label.labels.txt"}
    assert {path.name for path in folder.iterdir()} == names | {"source.json", "statistics.npz"}
    assert {path.name for path in folder.parent.iterdir()} == {"1.0.0", ".lock"}
    assert (folder / "label.labels.txt").read_text().split() == list(synsets())
    info = json.loads((folder / "dataset_info.json").read_text())
    assert (info["name"], info["version"]) == ("imagenet_256", "1.0.0")
    assert info["fileFormat"] == "array_record"
    assert sum(map(int, info["splits"][0]["shardLengths"])) == 11
    for split in info["splits"]:
        sizes = [path.stat().st_size for path in folder.glob(f"*-{split['name']}.array_record*")]
        assert sum(sizes) >= int(split["numBytes"])  # not compressed again
    lines = [line.split("\t") for line in (folder / "damaged.txt").read_text().splitlines()]
    assert [name for name, _ in lines] == sorted(f"train/n01440764/{name}" for name in CORRUPT)
    for name, reason in lines:
        assert CORRUPT[name.rpartition("/")[2]][1] in reason


def assert_same_set(a: Path, b: Path) -> None:
    assert files_of(a) == files_of(b)
    with np.load(a / "statistics.npz") as first, np.load(b / "statistics.npz") as second:
        assert first.keys() == second.keys()
        for key in first:
            np.testing.assert_array_equal(first[key], second[key])


def test_one_worker_writes_the_same_bytes(prepared, tree, tmp_path, monkeypatch):
    folder, record_format = prepared
    monkeypatch.setattr(imagenet, "IMAGES_PER_SHARD", 4)
    assert_same_set(folder, prepare(tree, tmp_path, record_format, num_workers=1))


def test_the_bytes_are_those_of_sets_prepared_before(tmp_path):
    """SHA-256 of what alexnet/imagenet.py wrote, from which these modules come."""
    colors = np.array([[7, 0, 255], [1, 2, 3], [0, 128, 64]], np.uint16) << 8
    images = {
        f"{name}.png": png(np.broadcast_to(color, (2, 2, 3)), 2)
        for name, color in zip(("train/b/1", "train/a/2", "val/a/3"), colors, strict=True)
    }
    tree = write_tree(tmp_path / "tree", images | {"train/a/empty.png": b""})
    found = {
        name: hashlib.sha256(content).hexdigest()[:16]
        for name, content in files_of(prepare(tree, tmp_path, "raw")).items()
    }
    assert found == {
        "damaged.txt": "2f220a20d6b78d49",
        "dataset_info.json": "864d2b64906156bd",
        "features.json": "909b7418b32598d6",
        "imagenet_256-train.array_record-00000-of-00001": "8f6a8e6ea64d051d",
        "imagenet_256-validation.array_record-00000-of-00001": "4fec718002dbeab9",
        "label.labels.txt": "911169ddaaf146af",
        "source.json": "71c790e7ce253ca2",
    }


def test_a_shard_of_corrupt_files_only(tmp_path, monkeypatch):
    """The set is readable, whichever shard has no records."""
    monkeypatch.setattr(imagenet, "IMAGES_PER_SHARD", 1)
    corrupt = {"a/x.jpg": b"x", "a/y.jpg": b"y"}
    images = some_images(f"a/{i}.jpg" for i in range(3))
    folder = prepare(write_tree(tmp_path / "tree", images | corrupt), tmp_path)
    assert len(records(folder, "train")) == 3
    assert len(load("imagenet_256", "train", [tmp_path])) == 3


def test_no_path_in_a_tar_leads_out_of_it(tmp_path):
    """Nothing is extracted: a name is only a name; a hard link to a file before it is that file,
    and other links are left out.
    """
    (tmp_path / "secret.jpg").write_bytes(encode(pixels(70, 90, 3)))
    with tarfile.open(tmp_path / "source.tar", "w") as archive:
        for name, content in some_images(["train/../a.jpg", "train/b/1.jpg"]).items():
            add(archive, name, content)
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            for name, target in (("link", tmp_path / "secret.jpg"), ("same", "train/b/1.jpg")):
                link = tarfile.TarInfo(f"train/b/{name}{kind.decode()}.jpg")
                link.type, link.linkname = kind, str(target)
                archive.addfile(link)
    folder = prepare(tmp_path / "source.tar", tmp_path / "sets")
    written = records(folder, "train")
    assert sorted(record["label"] for record in written) == [0, 1, 1]
    assert len({record["image"] for record in written}) == 2
    found = {path.name for path in tmp_path.rglob("*") if path.parent != folder}
    assert found == {"secret.jpg", "source.tar", "sets", "imagenet_256", "1.0.0", ".lock"}
    assert not (folder / "damaged.txt").exists()


def test_no_readable_file(tmp_path):
    corrupt = {"val/a/1.jpg": b"x", "val/a/2.jpg": b""}
    write_tree(tmp_path / "tree", some_images(["train/a/1.jpg"]) | corrupt)
    with pytest.raises(DataError, match=r"validation .*val/a/\d.jpg"):
        prepare(tmp_path / "tree", tmp_path)
    assert not [path for path in (tmp_path / "imagenet_256").iterdir() if path.is_dir()]


def test_another_process_at_work(tmp_path):
    write_tree(tmp_path / "tree", some_images(["a/1.jpg"]))
    (tmp_path / "imagenet_256").mkdir()
    lock = filelock.FileLock(tmp_path / "imagenet_256" / ".lock")
    with lock, pytest.raises(LockedError, match="imagenet_256"):
        prepare(tmp_path / "tree", tmp_path)


def test_a_full_disk(tmp_path):
    files = find_images(write_tree(tmp_path, some_images(["a/1.jpg"]))).splits["train"]
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))  # bytes: half of a raw image
    try:
        with pytest.raises(StorageError, match="shard"):
            imagenet._write_shard(tmp_path, "shard", files, Form("raw"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not (tmp_path / "shard").exists()


# ---- the command


@pytest.mark.commands
def test_the_command_on_real_images(sample, tmp_path):
    """36 images of the sample, gray ones among them, and a corrupt one, from a tar file."""
    members = sample.getmembers()
    contents = {member.name: sample.extractfile(member).read() for member in members}
    modes = {name: Image.open(io.BytesIO(content)).mode for name, content in contents.items()}
    gray = [name for name, mode in modes.items() if mode == "L"]
    assert (len(contents), len(gray)) == (300, 11)
    chosen = {name: contents[name] for name in [*gray[:2], *list(contents)[::9]]}
    corrupt = "imagenet_sample/val/n01440764/corrupt.JPEG"
    (tmp_path / "some.tar").write_bytes(tar_of(chosen | {corrupt: TRUNCATED_JPEG}))
    command = [sys.executable, "-m", "scripts.prepare_data", "--dataset=imagenet_256"]
    command += [f"--source={tmp_path / 'some.tar'}", f"--data_dir={tmp_path / 'sets'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert corrupt in done.stderr and done.stderr.count("\n") == 1
    folder = tmp_path / "sets" / "imagenet_256" / "1.0.0"
    first, progress, *table, last = done.stdout.splitlines()
    assert f"{len(chosen) + 1} files of validation, 1,000 classes" in first
    assert [str(len(chosen))] in [line.split()[3:] for line in table if "all" in line]
    assert progress.startswith(f"{len(chosen) + 1} of {len(chosen) + 1} files, ")
    assert f"{len(chosen)} images in validation" in last and str(folder / "damaged.txt") in last
    examples = load("imagenet_256", "validation", [tmp_path / "sets"])
    wnids = [list(synsets())[label] for label in examples.labels]
    assert sorted(wnids) == sorted(name.split("/")[2] for name in chosen)
    without_color = [np.ptp(image.astype(int), axis=-1).max() == 0 for image in examples.images]
    assert sum(without_color) >= 2
    assert without_color[wnids.index(gray[0].split("/")[2])]


class Preparation:
    """Starts the command with SMALL_SHARDS in `folder`, with two workers; kills what is left."""

    def __init__(self, folder: Path, tree: Path):
        self.folder, self.tree, self.started = folder, tree, []
        self.set = folder / "sets" / imagenet.NAME / imagenet.VERSION
        self.work = self.set.with_name(f"{imagenet.VERSION}.unfinished")
        (folder / "small_shards.py").write_text(SMALL_SHARDS)

    def start(self, hold: int | None = None) -> subprocess.Popen:
        """Shards from the number `hold` on are not written."""
        for old in [*self.folder.glob("hold *"), *self.folder.glob("at work *")]:
            old.unlink()
        if hold is not None:
            (self.folder / f"hold {hold}").touch()
        command = [sys.executable, self.folder / "small_shards.py", "--dataset=imagenet_256"]
        command += ["--num_workers=2", f"--source={self.tree}", f"--data_dir={self.folder}/sets"]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def wait(self, condition) -> None:
        """For something that happens while the command runs, however long that takes."""
        while not condition():
            assert self.started[-1].poll() is None, self.started[-1].communicate()
            time.sleep(0.01)

    def shards(self) -> list[Path]:
        return list(self.work.glob(f"{imagenet.NAME}-*"))

    def workers(self) -> list[int]:
        """Both, once they have reached a shard."""
        self.wait(lambda: len(list(self.folder.glob("at work *"))) == 2)
        return [int(path.name.split()[-1]) for path in self.folder.glob("at work *")]


@pytest.fixture
def preparation(tmp_path, tree):
    preparation = Preparation(tmp_path, tree)
    yield preparation
    for process in preparation.started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for child in map(int, children) for found in (child, *descendants(child))]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(pids: list[int]) -> None:
    while any(map(is_running, pids)):
        time.sleep(0.01)


@needs_proc
@pytest.mark.slow
def test_killed_and_resumed(preparation, prepared_as):
    killed = preparation.start(hold=1)
    preparation.wait(preparation.shards)
    workers = preparation.workers()
    killed.kill()
    killed.communicate()
    wait_for_end(workers)
    written = {path.name: path.stat().st_mtime_ns for path in preparation.shards()}
    assert len(written) == 1
    assert not (preparation.work / "dataset_info.json").exists()
    with pytest.raises(DataError):
        find("imagenet_256", [preparation.folder / "sets"])
    arguments = [f"--source={preparation.tree}", "--record_format=raw"]
    assert run(preparation.folder, *arguments) == 65

    output, _ = (resumed := preparation.start()).communicate()
    assert resumed.returncode == 0
    assert "11 images in train" in output
    folder = preparation.set
    assert {name: (folder / name).stat().st_mtime_ns for name in written} == written
    assert_same_set(folder, prepared_as("jpeg"))
    assert not preparation.work.exists()


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("moment", ["workers start", "first shard"])
def test_ctrl_c(preparation, moment):
    process = preparation.start(hold=0 if moment == "workers start" else 1)
    preparation.wait(lambda: len(descendants(process.pid)) >= 3)  # with Python's resource tracker
    if moment == "first shard":
        preparation.wait(preparation.shards)
    workers = descendants(process.pid)
    for pid in workers:
        status = Path(f"/proc/{pid}/status").read_text()
        masks = [int(status.partition(key)[2].split()[0], 16) for key in ("SigBlk:", "SigIgn:")]
        assert (masks[0] | masks[1]) >> (signal.SIGINT - 1) & 1
    os.killpg(process.pid, signal.SIGINT)  # to all of them, as a terminal does
    _, error = process.communicate()  # it does not wait for the rest
    assert (process.returncode, error.splitlines()[-1]) == (130, INTERRUPTED)
    assert "Traceback" not in error
    wait_for_end(workers)


@needs_proc
@pytest.mark.slow
def test_a_killed_worker(preparation):
    process = preparation.start(hold=0)
    workers = preparation.workers()
    os.kill(workers[0], signal.SIGKILL)
    _, error = process.communicate()
    assert (process.returncode, error.count("\n")) == (2, 1)
    assert error.startswith("error: ") and "--num_workers" in error
    wait_for_end(workers)


def run(tmp_path, *arguments) -> int:
    data_dir = f"--data_dir={tmp_path / 'sets'}"
    return prepare_data.main(["--dataset=imagenet_256", data_dir, *arguments])


def one_error(capsys) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_a_second_run_does_nothing_or_is_refused(tmp_path, capsys):
    tree = write_tree(
        tmp_path / "tree",
        some_images(f"{TENCH}/1.jpg {TENCH}/2.jpg {TIGER}/readme.txt {TIGER}/3.jpg".split()),
    )
    assert run(tmp_path, f"--source={tree}") == 0
    assert f"{TIGER}/readme.txt" in capsys.readouterr().out  # left out
    folder = tmp_path / "sets" / "imagenet_256" / "1.0.0"
    before = files_of(folder)
    for arguments in ([f"--source={tree}"], []):
        assert run(tmp_path, *arguments) == 0
        assert str(folder) in capsys.readouterr().out
    assert run(tmp_path, f"--source={tree}", "--record_format=raw") == 65
    assert "--record_format=jpeg" in one_error(capsys)
    write_tree(tree, {f"{TENCH}/3.jpg": b"another"})
    assert run(tmp_path, f"--source={tree}") == 65
    assert str(folder) in one_error(capsys)
    assert files_of(folder) == before


@pytest.mark.parametrize(
    ("dataset", "arguments", "exit_code", "named"),
    [
        ("imagenet_256", [], 2, "--source"),
        ("imagenet_256", ["--source=nowhere"], 65, "--source=nowhere"),
        ("imagenet_256", ["--source=.", "--mirror=http://a"], 2, "--mirror"),
        ("imagenet_256", ["--source=.", "--record_format=png"], 2, "jpeg|raw"),
        ("imagenet_256", ["--source=.", "--num_workers=-1"], 2, "num_workers"),
        ("mnist", ["--num_workers=2"], 2, "--num_workers"),
    ],
)
def test_wrong_flags(dataset, arguments, exit_code, named, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))
    assert prepare_data.main([f"--dataset={dataset}", *arguments]) == exit_code
    assert named in one_error(capsys)
    assert not (tmp_path / "sets").exists()


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    write_tree(tmp_path, some_images([f"tree/{TENCH}/1.jpg"]) | {"sets": b"not a folder"})
    assert run(tmp_path, f"--source={tmp_path / 'tree'}") == 74
    assert "--data_dir" in one_error(capsys)
