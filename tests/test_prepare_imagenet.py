"""alexnet/imagenet.py and `scripts.prepare_data --dataset=imagenet_256`: generated images, and a
sample of real ones.
"""

import contextlib
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

from alexnet import imagenet
from common.errors import DataError, LockedError, StorageError
from common.examples import load
from common.prepared import find
from common.records import open_records
from scripts import prepare_data

ROOT = Path(__file__).resolve().parents[1]
RAW = {"image": tfds.decode.SkipDecoding()}
# The command with another size of shards and the arguments that follow.
SMALL_SHARDS = "import sys; from alexnet import imagenet; imagenet.IMAGES_PER_SHARD = 4; from scripts import prepare_data; "
SMALL_SHARDS += "sys.exit(prepare_data.main(sys.argv[1:]))"


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def sample() -> tarfile.TarFile:
    """The tar of 300 real images, `imagenet_sample/val/<wnid>/*.JPEG`."""
    path = Path(os.environ.get("TFDS_DATA_DIR", "."), "..", "imagenet_sample.tar")
    if not path.exists():
        pytest.skip("no imagenet_sample.tar beside $TFDS_DATA_DIR")
    with tarfile.open(path) as archive:
        yield archive


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    """Smooth random colours: noise would differ after JPEG."""
    height, width, *channels = shape
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, *channels), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR))


def encode(image: np.ndarray | Image.Image, file_format: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, file_format, **({"quality": 95} if file_format == "JPEG" else {}) | options)
    return buffer.getvalue()


def write_tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def some_images(names, **kwargs) -> dict[str, bytes]:
    return {name: encode(pixels(70 + i, 90, 3, seed=i), **kwargs) for i, name in enumerate(names)}


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


def png(image: np.ndarray, colour_type: int, size: tuple[int, int] | None = None) -> bytes:
    """A PNG file by hand, of (H, W, C) uint16; `size` is what its header says."""
    width, height = size or image.shape[1::-1]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in image)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines)),
    ]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in [*chunks, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".npz"
    }  # a zip holds times


def records(folder: Path, split: str) -> list[dict]:
    return list(tfds.builder_from_directory(folder).as_data_source(split, decoders=RAW))


# ------------------------------------------------------------------------------------------------------
# preprocessing


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys's kernel with a = -1/2."""
    x = np.abs(x)
    return np.where(
        x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0)
    )


def resampling_matrix(length: int, side: int) -> np.ndarray:
    """(256, length): how the central `side` of `length` pixels become 256; the kernel widens when
    it shrinks.
    """
    scale = side / 256
    centers = (length - side) / 2 + (np.arange(256) + 0.5) * scale
    weights = cubic((np.arange(length) + 0.5 - centers[:, None]) / max(scale, 1))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    "size", [(375, 500), (501, 334), (256, 700), (90, 120), (257, 256), (600, 1)]
)
def test_rescaling_and_crop_against_numpy(size):
    image = np.random.default_rng(0).integers(
        64, 192, (*size, 3), np.uint8
    )  # the kernel overshoots; nothing is to be clipped
    rows, columns = (resampling_matrix(length, min(size)) for length in size)
    expected = np.einsum("yh,xw,hwc->yxc", rows, columns, image, optimize=True)
    found = imagenet.center_256(encode(image, "PNG"))
    assert (found.shape, found.dtype) == ((256, 256, 3), np.uint8)
    assert np.abs(found - expected).max() < 1.3  # rounded after each direction


def test_the_shorter_side_becomes_256_and_the_middle_stays():
    image = np.random.default_rng(0).integers(0, 256, (512, 768, 3), np.uint8)
    rescaled = np.asarray(Image.fromarray(image).resize((384, 256), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(imagenet.center_256(encode(image, "PNG")), rescaled[:, 64:320])


def test_an_image_of_the_right_size_stays_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    np.testing.assert_array_equal(imagenet.center_256(encode(image, "PNG")), image)


def test_grey_becomes_three_equal_channels():
    image = np.random.default_rng(0).integers(0, 256, (256, 256), np.uint8)
    for content in (encode(image, "PNG"), encode(pixels(256, 256), "JPEG")):
        found = imagenet.center_256(content)
        expected = np.asarray(Image.open(io.BytesIO(content)))
        for channel in range(3):
            np.testing.assert_array_equal(found[..., channel], expected)


def test_cmyk_is_not_inverted():
    for cmyk, rgb in (
        ((0, 255, 255, 0), (255, 0, 0)),
        ((255, 255, 0, 0), (0, 0, 255)),
        ((0, 0, 0, 204), (51, 51, 51)),
    ):
        content = encode(Image.new("CMYK", (300, 256), cmyk))
        assert Image.open(io.BytesIO(content)).mode == "CMYK"
        assert b"Adobe" in content  # which stores the inverse
        assert np.abs(imagenet.center_256(content).astype(int) - rgb).max() <= 3


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png_with_16_bits_and_transparency(colour_type, channels):
    image = (
        np.random.default_rng(colour_type)
        .integers(0, 1 << 16, (256, 256, channels))
        .astype(np.uint16)
    )
    expected = image[..., : 3 if channels > 2 else 1] // 256  # without the transparency
    np.testing.assert_array_equal(
        imagenet.center_256(png(image, colour_type)), np.broadcast_to(expected, (256, 256, 3))
    )


def test_palette():
    image = Image.fromarray(
        np.arange(65536, dtype=np.uint16).reshape(256, 256).astype(np.uint8), "L"
    ).convert("P")
    image.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
    found = imagenet.center_256(encode(image, "PNG", transparency=b"\0\7"))
    np.testing.assert_array_equal(found[0], [(i, 255 - i, 7) for i in range(256)])


def test_orientation_in_exif_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image = pixels(256, 300, 3)
    np.testing.assert_array_equal(
        imagenet.center_256(encode(image, exif=exif)), imagenet.center_256(encode(image))
    )


HALF_A_JPEG = encode(pixels(300, 300, 3))[:-800]
DAMAGED = {
    "truncated.JPEG": (HALF_A_JPEG, "truncated"),
    "empty.JPEG": (b"", "an empty file"),
    "text.JPEG": (b"<html>not found</html>", "neither JPEG nor PNG"),
    "gif.png": (encode(pixels(9, 9), "GIF"), "neither JPEG nor PNG"),
    "huge.png": (
        png(np.zeros((2, 2, 3), np.uint16), 2, size=(10_000, 9_000)),
        "more than 89,478,485 pixels",
    ),
    "enormous.png": (
        png(np.zeros((2, 2, 3), np.uint16), 2, size=(60_000, 60_000)),
        "more than 89,478,485 pixels",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_cannot_be_read(name):
    content, reason = DAMAGED[name]
    with pytest.raises(Exception, match=reason):
        imagenet.center_256(content)


# ----------------------------------------------------------------------------------------------------------
# the source


def test_synsets():
    names = imagenet.synsets()
    assert len(names) == 1000
    assert list(names) == sorted(names)
    ranks = {wnid: rank for rank, wnid in enumerate(names)}
    # As everybody counts them: tench, dalmatian, tiger, toilet tissue.
    assert [ranks[wnid] for wnid in ("n01440764", "n02110341", "n02129604", "n15075141")] == [
        0,
        251,
        292,
        999,
    ]
    assert names["n02129604"] == "tiger"
    official = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()
    assert sorted(names) == sorted(official)


def test_a_subset_keeps_the_index_of_each_class(tmp_path):
    names = [
        "val/n02129604/a.JPEG",
        "train/n02129604/b.jpg",
        "train/n15075141/c.PNG",
        "train/n01440764/d.jpeg",
    ]
    source = imagenet.find_images(write_tree(tmp_path, dict.fromkeys(names, b"-")))
    assert {file.name: file.label for file in source.splits["train"]} == {
        names[1]: 292,
        names[2]: 999,
        names[3]: 0,
    }
    assert {file.name: file.label for file in source.splits["validation"]} == {names[0]: 292}
    assert len(source.class_names) == 1000
    assert source.left_out == []


@pytest.mark.parametrize("prefix", ["", "flowers/", "train/"])
@pytest.mark.parametrize("in_a_tar", [True, False])
def test_a_tree_with_other_classes(tmp_path, prefix, in_a_tar):
    tree = {
        f"{prefix}{name}": b"-"
        for name in ("tulip/1.jpg", "rose/1.jpg", "aster/1.png", "aster/note.txt")
    }
    if in_a_tar:
        (tmp_path / "tree.tar").write_bytes(tar_of(tree))
    else:
        write_tree(tmp_path / "tree.tar", tree)
    source = imagenet.find_images(tmp_path / "tree.tar")
    assert source.class_names == ("aster", "rose", "tulip")
    found = {file.name.removeprefix(prefix): file.label for file in source.splits["train"]}
    assert found == {"aster/1.png": 0, "rose/1.jpg": 1, "tulip/1.jpg": 2}
    assert list(source.splits) == ["train"]
    assert source.left_out == [f"{prefix}aster/note.txt"]


def test_the_official_tars(tmp_path):
    """A tar of a tar a class, and flat validation files whose labels are those that Caffe's val.txt
    begins with.
    """
    train = {
        f"{wnid}/{wnid}_{i}.JPEG": f"{wnid} {i}".encode()
        for wnid in ("n01440764", "n02129604")
        for i in range(3)
    }
    inner = {}
    for name, content in train.items():
        inner.setdefault(name[:9] + ".tar", {})[name[10:]] = content
    validation = {
        f"ILSVRC2012_val_{number:08d}.JPEG": f"{number}".encode()
        for number in (3, 1, 2, 5, 4, 50_000)
    }
    files = {
        "ILSVRC2012_img_train.tar": tar_of({name: tar_of(files) for name, files in inner.items()})
    }
    write_tree(tmp_path, files | {"ILSVRC2012_img_val.tar": tar_of(validation)})
    source = imagenet.find_images(tmp_path)
    found = {file.name: imagenet._read(file) for file in source.splits["train"]}
    assert found == {f"train/{name}": content for name, content in train.items()}
    assert {(file.name[6:15], file.label) for file in source.splits["train"]} == {
        ("n01440764", 0),
        ("n02129604", 292),
    }
    labels = {imagenet._read(file): file.label for file in source.splits["validation"]}
    assert len(labels) == 6
    assert [labels[str(number).encode()] for number in range(1, 6)] == [65, 970, 230, 809, 516]
    # One tar alone, and the validation files unpacked but not sorted into classes.
    assert imagenet.find_images(tmp_path / "ILSVRC2012_img_train.tar").splits.keys() == {"train"}
    unpacked = write_tree(
        tmp_path / "unpacked", {f"val/{name}": content for name, content in validation.items()}
    )
    assert {
        imagenet._read(file): file.label
        for file in imagenet.find_images(unpacked).splits["validation"]
    } == labels


def test_official_validation_labels_are_50_of_each_class():
    assert sorted(imagenet._validation_wnids()) == sorted(list(imagenet.synsets()) * 50)


def test_the_order_is_shuffled_and_always_the_same(tmp_path):
    write_tree(tmp_path, {f"class{i % 3}/{i:03d}.jpg": b"-" for i in range(300)})
    files = imagenet.find_images(tmp_path).splits["train"]
    assert len({file.name for file in files}) == 300
    assert imagenet.find_images(tmp_path).splits["train"] == files
    counts = np.bincount([file.label for file in files[:90]], minlength=3)
    assert counts.min() >= 15  # a fair sample: 30 each, with a deviation of 4
    assert files != sorted(files)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train/n01440764/a.JPEG", "train/n99999999/a.JPEG"],
            "n99999999 .* is none of the 1,000 synsets",
        ),
        (["n01440764/a.JPEG", "cats/a.JPEG"], "cats .* is none of the 1,000 synsets"),
        (
            ["train/n01440764/a.JPEG", "train/n02129604/readme.txt"],
            "class folder train/n02129604 .* has no images",
        ),
        (["train/n01440764/a.JPEG", "val/n02129604/"], None),  # an empty folder is made below
        (
            ["train/n01440764/a.JPEG", "train/n02129604/images/a.JPEG"],
            "class folder train/n02129604 .* has no images",
        ),
        (
            ["train/n01440764/images/a.JPEG", "train/n02129604/images/a.JPEG"],
            "its images lie in train/n01440764/images and",
        ),
        (
            ["one/train/a/1.jpg", "two/train/a/1.jpg"],
            "its images lie in one/train/a and two/train/a",
        ),
        (["a.jpg", "b.jpg"], "it has no such files"),
        (["val/ILSVRC2012_val_00050001.JPEG"], "numbered from 1 to 50,000"),
    ],
)
def test_folders_that_are_no_source(tmp_path, names, message):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (tmp_path / name).mkdir()
            write_tree(tmp_path, {"val/n01440764/b.JPEG": b"-"})
            message = "class folder val/n02129604 .* has no images"
        else:
            (tmp_path / name).write_bytes(b"-")
    with pytest.raises(DataError, match=message) as caught:
        imagenet.find_images(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    ["none", "text", "compressed", "cut in a member", "cut in an inner tar", "empty class"],
)
def test_files_that_are_no_source(tmp_path, damage):
    inner = tar_of({"a.JPEG": bytes(5000)})
    content = tar_of(
        {"n01440764.tar": inner, "n02129604.tar": tar_of({}) if damage == "empty class" else inner}
    )
    contents = {
        "none": b"",
        "text": b"no tar" * 1000,
        "compressed": zlib.compress(content, wbits=31),
        "cut in a member": tar_of({"n01440764/a.JPEG": bytes(5000)})[:3000],
        "cut in an inner tar": content[:12_000],
        "empty class": content,
    }
    (tmp_path / "source.tar").write_bytes(contents[damage])
    message = (
        "class folder n02129604 .* has no images"
        if damage == "empty class"
        else "damaged or compressed"
    )
    with pytest.raises(DataError, match=message) as caught:
        imagenet.find_images(tmp_path / "source.tar")
    assert "\n" not in str(caught.value)


def test_no_source_at_all(tmp_path):
    with pytest.raises(DataError, match="neither a folder nor a tar file"):
        imagenet.find_images(tmp_path / "nothing")


# -------------------------------------------------------------------------------------------------------------
# the set


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """11 + 3 images of two classes, and the damaged ones in train."""
    names = [f"train/{'n01440764' if i % 3 else 'n15075141'}/{i}.JPEG" for i in range(11)]
    names += [f"val/n15075141/{i}.JPEG" for i in range(3)]
    damaged = {f"train/n01440764/{name}": content for name, (content, _) in DAMAGED.items()}
    return write_tree(tmp_path_factory.mktemp("tree"), some_images(names) | damaged)


@pytest.fixture(scope="module", params=imagenet.RECORD_FORMATS)
def prepared(request, tree, tmp_path_factory) -> tuple[Path, str, list[imagenet.Shard]]:
    """(folder, record format, shards), written by two workers, four files a shard."""
    folder = tmp_path_factory.mktemp(request.param) / "imagenet_256" / "1.0.0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagenet, "IMAGES_PER_SHARD", 4)
        return (
            folder,
            request.param,
            imagenet.prepare(imagenet.find_images(tree), folder, request.param, 2),
        )


def decode(content: bytes, record_format: str) -> np.ndarray:
    if record_format == "raw":
        return np.frombuffer(content, np.uint8).reshape(256, 256, 3)
    return np.asarray(Image.open(io.BytesIO(content)))


def test_records_are_the_images_of_the_source(prepared, tree):
    folder, record_format, _ = prepared
    for split, place, num_images in (("train", "train", 11), ("validation", "val", 3)):
        expected = {}
        for path in sorted(tree.glob(f"{place}/*/[0-9]*.JPEG")):
            expected[path] = imagenet.center_256(path.read_bytes()).astype(int)
        found = records(folder, split)
        assert len(found) == len(expected) == num_images
        for record in found:
            image = decode(record["image"], record_format)
            distances = {path: np.abs(image - array).mean() for path, array in expected.items()}
            path = min(distances, key=distances.get)
            assert distances[path] <= (
                2 if record_format == "jpeg" else 0
            )  # of 255: quality 95 is nearly lossless here
            assert record["label"] == (0 if path.parent.name == "n01440764" else 999)
            del expected[path]


def test_records_are_read_by_tfds_too(prepared):
    folder, record_format, _ = prepared
    source = tfds.builder_from_directory(folder).as_data_source("train[1:]")
    raw = records(folder, "train")
    assert len(source) == 10
    np.testing.assert_array_equal(source[0]["image"], decode(raw[1]["image"], record_format))


def test_a_jpeg_record_has_quality_95_and_decodes_alike_everywhere(prepared):
    folder, record_format, _ = prepared
    if record_format == "raw":
        assert {len(record["image"]) for record in records(folder, "train")} == {256 * 256 * 3}
        return
    content = records(folder, "train")[0]["image"]
    image = Image.open(io.BytesIO(content))
    # The standard's table K.1 begins 16 11 10 16 24; quality 95 divides by ten (libjpeg's
    # jpeg_quality_scaling).
    assert image.quantization[0][:5] == [2, 1, 1, 2, 2]
    np.testing.assert_array_equal(simplejpeg.decode_jpeg(content), np.asarray(image))


def test_the_projects_readers_read_it(prepared):
    folder, record_format, _ = prepared
    raw = records(folder, "train")
    opened = open_records("imagenet_256", "train", [folder.parents[1]])
    images, labels = opened.read(np.arange(11))
    assert opened.num_classes == 1000
    np.testing.assert_array_equal(
        images, [decode(record["image"], record_format) for record in raw]
    )
    np.testing.assert_array_equal(labels, [record["label"] for record in raw])
    if record_format == "jpeg":
        np.testing.assert_array_equal(
            load("imagenet_256", "train", [folder.parents[1]]).images, images
        )


def test_statistics_are_those_of_the_stored_images(prepared):
    folder, record_format, _ = prepared
    with np.load(folder / "statistics.npz", allow_pickle=False) as statistics:
        assert len(statistics) == 6
        for split, num_images in (("train", 11), ("validation", 3)):
            images = np.stack(
                [decode(record["image"], record_format) for record in records(folder, split)]
            ).astype(np.float64)
            assert statistics[f"{split}_count"] == num_images
            mean_image, covariance = (
                statistics[f"{split}_mean_image"],
                statistics[f"{split}_covariance"],
            )
            assert (mean_image.dtype, covariance.dtype) == (np.float32, np.float64)
            np.testing.assert_array_equal(mean_image, images.mean(axis=0).astype(np.float32))
            np.testing.assert_allclose(
                covariance, np.cov(images.reshape(-1, 3).T, bias=True), rtol=1e-10
            )


def test_files_of_the_set(prepared):
    folder, _, shards = prepared
    for shard in shards:
        assert (folder / shard.name).stat().st_size >= shard.num_bytes  # not compressed once more
    names = [f"imagenet_256-train.array_record-{i:05d}-of-00005" for i in range(5)]
    names.append("imagenet_256-validation.array_record-00000-of-00001")
    assert [shard.name for shard in shards] == names
    others = {
        "damaged.txt",
        "dataset_info.json",
        "features.json",
        "label.labels.txt",
        "source.json",
        "statistics.npz",
    }
    assert {path.name for path in folder.iterdir()} == {*names, *others}
    assert [path.name for path in folder.parent.iterdir()] == ["1.0.0"]
    assert (folder / "label.labels.txt").read_text().split() == list(imagenet.synsets())
    info = json.loads((folder / "dataset_info.json").read_text())
    assert (info["name"], info["version"], info["fileFormat"]) == (
        "imagenet_256",
        "1.0.0",
        "array_record",
    )
    assert sum(map(int, info["splits"][0]["shardLengths"])) == 11


def test_damaged_files_are_listed(prepared):
    folder, _, shards = prepared
    lines = [line.split("\t") for line in (folder / "damaged.txt").read_text().splitlines()]
    assert [name for name, _ in lines] == sorted(f"train/n01440764/{name}" for name in DAMAGED)
    for name, reason in lines:
        assert DAMAGED[name.rpartition("/")[2]][1] in reason
    assert sorted(pair for shard in shards for pair in shard.damaged) == [
        tuple(line) for line in lines
    ]


def test_one_worker_writes_the_same_bytes(prepared, tree, tmp_path, monkeypatch):
    folder, record_format, _ = prepared
    monkeypatch.setattr(imagenet, "IMAGES_PER_SHARD", 4)
    again = tmp_path / "1.0.0"
    imagenet.prepare(imagenet.find_images(tree), again, record_format, 1)
    assert files_of(again) == files_of(folder)
    with np.load(folder / "statistics.npz") as first, np.load(again / "statistics.npz") as second:
        for key in first:
            np.testing.assert_array_equal(first[key], second[key])


def test_a_shard_of_damaged_files_only(tmp_path, monkeypatch):
    """The set is still read, whichever shard has no records."""
    monkeypatch.setattr(imagenet, "IMAGES_PER_SHARD", 1)
    write_tree(
        tmp_path / "tree",
        some_images(f"a/{i}.jpg" for i in range(3)) | {"a/x.jpg": b"x", "a/y.jpg": b"y"},
    )
    imagenet.prepare(
        imagenet.find_images(tmp_path / "tree"), tmp_path / "imagenet_256" / "1.0.0", "jpeg", 1
    )
    assert len(records(tmp_path / "imagenet_256" / "1.0.0", "train")) == 3
    assert len(load("imagenet_256", "train", [tmp_path])) == 3


def test_no_path_in_a_tar_leads_out_of_it(tmp_path):
    """Nothing is unpacked: a name is only a name, and a link an empty file."""
    (tmp_path / "secret.jpg").write_bytes(encode(pixels(70, 90, 3)))
    with tarfile.open(tmp_path / "source.tar", "w") as archive:
        for name, content in some_images(["train/../a.jpg", "train/b/1.jpg"]).items():
            add(archive, name, content)
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"train/b/link{kind.decode()}.jpg")
            link.type, link.linkname = kind, str(tmp_path / "secret.jpg")
            archive.addfile(link)
    folder = tmp_path / "sets" / "imagenet_256" / "1.0.0"
    imagenet.prepare(imagenet.find_images(tmp_path / "source.tar"), folder, "jpeg", 1)
    assert sorted(record["label"] for record in records(folder, "train")) == [0, 1]
    found = {path.name for path in tmp_path.rglob("*") if path.parent != folder}
    assert found == {"secret.jpg", "source.tar", "sets", "imagenet_256", "1.0.0"}
    assert sorted(
        line.split("\t")[0] for line in (folder / "damaged.txt").read_text().splitlines()
    ) == [
        "train/b/link1.jpg",
        "train/b/link2.jpg",
    ]


def test_no_readable_file(tmp_path):
    write_tree(
        tmp_path / "tree",
        some_images(["train/a/1.jpg"]) | {"val/a/1.jpg": b"x", "val/a/2.jpg": b""},
    )
    with pytest.raises(
        DataError, match=r"none of the 2 files of validation can be read, such as val/a/\d.jpg \("
    ):
        imagenet.prepare(
            imagenet.find_images(tmp_path / "tree"), tmp_path / "imagenet_256" / "1.0.0", "jpeg", 1
        )
    assert not [path for path in (tmp_path / "imagenet_256").iterdir() if path.is_dir()]


def test_another_process_at_work(tmp_path):
    write_tree(tmp_path / "tree", some_images(["a/1.jpg"]))
    (tmp_path / "imagenet_256").mkdir()
    with (
        filelock.FileLock(tmp_path / "imagenet_256" / ".lock"),
        pytest.raises(LockedError, match="another process"),
    ):
        imagenet.prepare(
            imagenet.find_images(tmp_path / "tree"), tmp_path / "imagenet_256" / "1.0.0", "jpeg", 1
        )


def test_a_full_disk(tmp_path):
    write_tree(tmp_path, some_images(["a/1.jpg"]))
    files, old = (
        imagenet.find_images(tmp_path).splits["train"],
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))  # bytes: half of a raw image
    try:
        with pytest.raises(StorageError, match="cannot write"):
            imagenet._write_shard(tmp_path, "shard", files, "raw")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not (tmp_path / "shard").exists()


# ---------------------------------------------------------------------------------------------------------
# the command


def test_the_command_on_real_images(sample, tmp_path):
    """35 images of the sample, two of its grey ones among them, and a damaged one, from a tar file."""
    members = sample.getmembers()
    contents = {member.name: sample.extractfile(member).read() for member in members}
    grey = [
        name for name, content in contents.items() if Image.open(io.BytesIO(content)).mode == "L"
    ]
    assert (len(contents), len(grey)) == (300, 11)
    chosen = {name: contents[name] for name in [*grey[:2], *list(contents)[::9]]}
    damaged = "imagenet_sample/val/n01440764/damaged.JPEG"
    (tmp_path / "some.tar").write_bytes(tar_of(chosen | {damaged: HALF_A_JPEG}))
    command = [
        sys.executable,
        "-m",
        "scripts.prepare_data",
        "--dataset=imagenet_256",
        f"--source={tmp_path / 'some.tar'}",
    ]
    environment = os.environ | {"TFDS_DATA_DIR": str(tmp_path / "sets")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stderr.startswith(f"damaged: {damaged} (image file is truncated")
    assert done.stderr.count("\n") == 1
    first, *_, progress, last = done.stdout.splitlines()
    assert first.endswith(f"some.tar: {len(chosen) + 1} files of validation, 1,000 classes")
    assert progress.startswith(f"{len(chosen) + 1} of {len(chosen) + 1} files, ")
    folder = tmp_path / "sets" / "imagenet_256" / "1.0.0"
    assert (
        f"{len(chosen)} images in validation, 1 damaged file, listed in {folder / 'damaged.txt'}; "
        in last
    )
    examples = load("imagenet_256", "validation", [tmp_path / "sets"])
    assert len(examples) == len(chosen)
    wnids = [list(imagenet.synsets())[label] for label in examples.labels]
    assert sorted(wnids) == sorted(name.split("/")[2] for name in chosen)
    without_colour = [np.ptp(image.astype(int), axis=-1).max() == 0 for image in examples.images]
    assert sum(without_colour) >= 2
    assert without_colour[wnids.index(grey[0].split("/")[2])]


@pytest.fixture
def start(tmp_path):
    """Starts the command on 24 large images, four a shard, with two workers; ends whatever is left
    of it.
    """
    image = encode(pixels(1800, 1800, 3))
    write_tree(tmp_path / "tree", {f"{name}/{i}.jpg": image for name in "ab" for i in range(12)})
    started = []

    def start_in(folder: str = "sets") -> subprocess.Popen:
        command = [
            sys.executable,
            "-c",
            SMALL_SHARDS,
            "--dataset=imagenet_256",
            f"--source={tmp_path / 'tree'}",
        ]
        command += [f"--data_dir={tmp_path / folder}", "--num_workers=2"]
        options = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "start_new_session": True,
        }
        started.append(subprocess.Popen(command, cwd=ROOT, **options))
        return started[-1]

    yield start_in
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def descendants(pid: int) -> list[int]:
    children = [
        int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]
    return children + [pid for child in children for pid in descendants(child)]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, timeout_s: float = 30.0):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_killed_and_resumed(tmp_path, start):
    work = tmp_path / "sets" / "imagenet_256" / "1.0.0.unfinished"
    killed = start()
    wait_until(lambda: list(work.glob("imagenet_256-*")))
    workers = descendants(killed.pid)
    assert len(workers) >= 2
    killed.kill()
    killed.communicate(timeout=20)
    wait_until(lambda: not any(map(running, workers)))
    finished = {path.name: path.stat().st_mtime_ns for path in work.glob("imagenet_256-*")}
    assert 1 <= len(finished) < 6
    assert not (work / "dataset_info.json").exists()
    with pytest.raises(DataError, match="not found"):
        find("imagenet_256", [tmp_path / "sets"])

    refused = prepare_data.main(
        [
            "--dataset=imagenet_256",
            f"--source={tmp_path / 'tree'}",
            f"--data_dir={tmp_path / 'sets'}",
            "--record_format=raw",
        ]
    )
    assert refused == 65

    resumed, whole = start(), start("whole")
    for process in (resumed, whole):
        output, error = process.communicate(timeout=60)
        assert (process.returncode, error) == (0, "")
        assert "24 images in train, no damaged files" in output
    folder = tmp_path / "sets" / "imagenet_256" / "1.0.0"
    assert {name: (folder / name).stat().st_mtime_ns for name in finished} == finished
    assert files_of(folder) == files_of(tmp_path / "whole" / "imagenet_256" / "1.0.0")
    assert not work.exists()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("moment", ["workers start", "first shard"])
def test_ctrl_c(tmp_path, moment, start):
    process = start()
    if moment == "workers start":
        wait_until(lambda: len(descendants(process.pid)) >= 2)
    else:
        wait_until(lambda: list((tmp_path / "sets").glob("imagenet_256/*/imagenet_256-*")))
    workers = descendants(process.pid)
    for pid in workers:
        blocked = Path(f"/proc/{pid}/status").read_text().partition("SigBlk:")[2].split()[0]
        ignored = Path(f"/proc/{pid}/status").read_text().partition("SigIgn:")[2].split()[0]
        assert (int(blocked, 16) | int(ignored, 16)) >> (signal.SIGINT - 1) & 1
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, error = process.communicate(timeout=20)
    shards = list((tmp_path / "sets").glob("imagenet_256/*/imagenet_256-*"))
    if (
        moment == "first shard" and process.returncode == 0
    ):  # a quick machine was through with all six before it heard
        assert error == "" and len(shards) == 6
    else:
        assert (process.returncode, error) == (
            130,
            "interrupted; the same command goes on from here.\n",
        )
        assert len(shards) < 6 or moment == "first shard"  # the rest is not waited for
    wait_until(lambda: not any(map(running, workers)), 5)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_a_worker_that_is_killed(tmp_path, start):
    process = start()
    work = tmp_path / "sets" / "imagenet_256" / "1.0.0.unfinished"
    wait_until(lambda: list(work.glob(".imagenet_256-*.tmp")))
    workers = [
        pid
        for pid in descendants(process.pid)
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(workers[0], signal.SIGKILL)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 2
    assert error.startswith("error: a worker process was killed")
    assert error.count("\n") == 1
    wait_until(lambda: not any(map(running, workers)), 5)


def run(tmp_path, *arguments) -> int:
    return prepare_data.main(
        ["--dataset=imagenet_256", f"--data_dir={tmp_path / 'sets'}", *arguments]
    )


def one_error(capsys) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_a_second_start_does_nothing_or_is_refused(tmp_path, capsys):
    tree = write_tree(tmp_path / "tree", some_images(["a/1.jpg", "b/2.jpg", "b/readme.txt"]))
    assert run(tmp_path, f"--source={tree}") == 0
    assert "left out: 1 other file, such as b/readme.txt" in capsys.readouterr().out
    before = files_of(tmp_path / "sets" / "imagenet_256" / "1.0.0")
    for arguments in ([f"--source={tree}"], []):
        assert run(tmp_path, *arguments) == 0
        assert "already prepared" in capsys.readouterr().out
    assert run(tmp_path, f"--source={tree}", "--record_format=raw") == 65
    assert "was made with --record_format=jpeg" in one_error(capsys)
    write_tree(tree, {"a/3.jpg": b"another"})
    assert run(tmp_path, f"--source={tree}") == 65
    assert "another source, or one that has changed" in one_error(capsys)
    assert files_of(tmp_path / "sets" / "imagenet_256" / "1.0.0") == before


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--dataset=imagenet_256"], 2, "needs --source"),
        (
            ["--dataset=imagenet_256", "--source=nowhere"],
            65,
            "nowhere is neither a folder nor a tar file",
        ),
        (
            ["--dataset=imagenet_256", "--source=.", "--mirror=http://a"],
            2,
            "--mirror has no meaning with --dataset=imagenet_256",
        ),
        (["--dataset=imagenet_256", "--source=.", "--record_format=png"], 2, "jpeg|raw"),
        (["--dataset=imagenet_256", "--source=.", "--num_workers=-1"], 2, "num_workers"),
        (
            ["--dataset=mnist", "--num_workers=2"],
            2,
            "--num_workers has no meaning with --dataset=mnist",
        ),
    ],
)
def test_wrong_flags(arguments, exit_code, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))
    assert prepare_data.main(arguments) == exit_code
    assert message in one_error(capsys)
    assert not (tmp_path / "sets").exists()


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    write_tree(tmp_path, some_images(["tree/a/1.jpg"]) | {"sets": b"a file in the way"})
    assert run(tmp_path, f"--source={tmp_path / 'tree'}") == 74
    assert "cannot write below" in one_error(capsys)
