"""`scripts.prepare_data --dataset=NAME --source=DIR`: sets of one's own, from folders of images as
people have them, and from IDX files.
"""

import concurrent.futures
import contextlib
import gzip
import io
import itertools
import os
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.examples import load
from common.prepared import PreparedSet
from common.records import open_records
from scripts import prepare_data
from scripts.prepare import imagenet
from scripts.prepare.idx import find_pairs
from scripts.prepare.layouts import (
    BELOW,
    HIDDEN,
    OUTSIDE,
    TEST_UNLABELED,
    _validation_wnids,
    find_images,
)

ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def threads(num_workers: int, advice: str):
    """What worker processes do, done in this process."""
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        yield pool


@pytest.fixture(autouse=True)
def in_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "worker_pool", threads)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def image_file(color=(200, 30, 40), size=(90, 70), file_format="JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    mode = "L" if isinstance(color, int) else "RGB" if len(color) == 3 else "RGBA"
    Image.new(mode, size, color).save(buffer, file_format, **options)
    return buffer.getvalue()


IMAGE = image_file()


def tree(folder: Path, *names: str) -> Path:
    """Files of those names, images unless their ending says otherwise."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(IMAGE if path.suffix.lower() in (".jpg", ".jpeg", ".png") else b"text")
    return folder


def prepare(folder: Path, source: Path, *flags: str, dataset="pets") -> int:
    arguments = [f"--dataset={dataset}", f"--source={source}", f"--data_dir={folder / 'sets'}"]
    return prepare_data.main([*arguments, "--num_workers=1", *flags])


def labels_of(folder: Path, split: str, dataset="pets") -> list[str]:
    """The class names of the records of a split, sorted."""
    records = open_records(dataset, split, [folder / "sets"])
    return sorted(records.class_names[label] for label in records.read(np.arange(len(records)))[1])


def one_error(capsys) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    return error


# ---- what systems leave behind


def test_hidden_and_system_files_are_no_class(tmp_path, capsys):
    hidden = "train/.ipynb_checkpoints/x.jpg", "train/cat/._1.jpg", "__MACOSX/train/cat/._1.jpg"
    hidden += "train/@eaDir/1.jpg", "train/lost+found/1.jpg", "train/dog/.thumbs/1.jpg"
    hidden += "train/cat/Thumbs.db", "desktop.ini", "train/dog/.DS_Store"
    seen = [f"{split}/{name}/1.jpg" for split in ("train", "val") for name in ("cat", "dog")]
    assert prepare(tmp_path, tree(tmp_path / "tree", *hidden, *seen)) == 0
    output = capsys.readouterr().out
    assert f"{len(hidden)} hidden" in output
    assert labels_of(tmp_path, "train") == labels_of(tmp_path, "validation") == ["cat", "dog"]
    found = find_images(tmp_path / "tree")
    assert len(found.left_out[HIDDEN]) == len(hidden)
    assert "__MACOSX" in found.left_out[HIDDEN]


@pytest.mark.parametrize("link", ["train/train", "train/cat/again", "train/cat/self.jpg", "loop"])
def test_links_that_loop_are_named(tmp_path, capsys, link):
    source = tree(tmp_path / "tree", "train/cat/1.jpg", "train/dog/1.jpg", "test/cat/1.jpg")
    target = {"train/train": "../train", "train/cat/again": "../cat", "loop": "."}
    os.symlink(target.get(link, "self.jpg"), source / link)
    assert prepare(tmp_path, source) == 0
    assert link in capsys.readouterr().out
    assert labels_of(tmp_path, "train") == ["cat", "dog"]


def test_a_tar_file_of_the_folder_itself(tmp_path):
    """`tar cf tree.tar .`"""
    source = tree(tmp_path / "tree", "a/1.jpg", "b/1.jpg", ".DS_Store")
    with tarfile.open(tmp_path / "tree.tar", "w") as archive:
        archive.add(source, ".")
    found = find_images(tmp_path / "tree.tar")
    assert found.class_names == ("a", "b") and found.left_out == {HIDDEN: [".DS_Store"]}


# ---- layouts


@pytest.fixture
def tiny_imagenet(tmp_path) -> Path:
    """Tiny ImageNet as downloaded, with two classes."""
    root, wnids = tmp_path / "tiny-imagenet-200", ("n01443537", "n02124075")
    for wnid in wnids:
        tree(root, *(f"train/{wnid}/images/{wnid}_{i}.JPEG" for i in range(4)))
        (root / f"train/{wnid}/{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t62\n")
    tree(root, *(f"val/images/val_{i}.JPEG" for i in range(3)), "words.txt", "wnids.txt")
    tree(root, *(f"test/images/test_{i}.JPEG" for i in range(3)))
    lines = [f"val_{i}.JPEG\t{wnids[i > 0]}\t0\t0\t62\t62\n" for i in range(3)]
    (root / "val/val_annotations.txt").write_text("".join(lines))
    return root


def test_tiny_imagenet_as_downloaded(tmp_path, tiny_imagenet, capsys):
    assert prepare(tmp_path, tiny_imagenet, "--size=64") == 0
    assert labels_of(tmp_path, "train") == ["n01443537"] * 4 + ["n02124075"] * 4
    assert labels_of(tmp_path, "validation") == ["n01443537"] + ["n02124075"] * 2
    output = capsys.readouterr().out
    assert f"3 {TEST_UNLABELED}" in output and "test/images/test_0.JPEG" in output
    rows = [line.split() for line in output.splitlines()]
    assert ["n02124075", "4", "2"] in rows and ["all", "2", "classes", "8", "3"] in rows
    assert load("pets", "train", [tmp_path / "sets"]).image_shape == (64, 64, 3)


def test_tiny_imagenets_classes_are_wnids_and_a_line_says_so(tmp_path, tiny_imagenet, capsys):
    """Its words.txt is not read: labels go by name, and ImageNet's are wnids too."""
    assert prepare(tmp_path, tiny_imagenet) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "words.txt is not" in line)
    assert "n01443537" in line
    (tiny_imagenet / "words.txt").unlink()
    assert prepare(tmp_path, tiny_imagenet, dataset="wordless") == 0
    assert "words.txt" not in capsys.readouterr().out


def test_tiny_imagenet_as_imagenet(tmp_path, tiny_imagenet):
    """Labels are the ranks among the 1,000 synsets."""
    assert prepare(tmp_path, tiny_imagenet, dataset="imagenet_256") == 0
    records = open_records("imagenet_256", "train", [tmp_path / "sets"])
    assert (records.num_classes, set(records.read(np.arange(8))[1])) == (1000, {1, 285})


def test_annotations_beside_class_folders_label_nothing(tmp_path):
    """As of Tiny ImageNet whose val/ was sorted into folders: a name may be in several."""
    tree(
        tmp_path,
        *(f"{split}/{c}/{i}.jpg" for split in ("train", "val") for c in "ab" for i in "01"),
    )
    (tmp_path / "val/val_annotations.txt").write_text("0.jpg\tb\n1.jpg\ta\n")
    found = find_images(tmp_path, all_synsets=False)
    labels = {file.name: found.class_names[file.label] for file in found.splits["validation"]}
    assert len(labels) == 4 and all(name.split("/")[1] == label for name, label in labels.items())


@pytest.mark.parametrize("place", ["val", "val/images", "ILSVRC2012_img_val"])
def test_imagenets_validation_files_have_its_labels_beside_its_classes(tmp_path, place):
    tree(tmp_path, *(f"train/n01440764/{i}.jpg" for i in range(3)), "train/n02124075/1.jpg")
    tree(tmp_path, f"{place}/ILSVRC2012_val_00000293.JPEG")
    found = find_images(tmp_path, all_synsets=False)
    (file,) = found.splits["validation"]
    assert found.class_names[file.label] == _validation_wnids()[292] == "n01440764"


def test_files_named_like_imagenets_stay_in_ones_own_classes(tmp_path):
    name = "ILSVRC2012_val_0000000{}.JPEG"
    tree(
        tmp_path, *(f"{split}/cat/{name.format(i)}" for i, split in enumerate(("train", "val"), 1))
    )
    tree(
        tmp_path, *(f"{split}/dog/{name.format(i)}" for i, split in enumerate(("train", "val"), 3))
    )
    found = find_images(tmp_path, all_synsets=False)
    assert found.class_names == ("cat", "dog")
    assert [len(files) for files in found.splits.values()] == [2, 2]


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (["train", "test"], ["train", "test"]),
        (["train", "valid"], ["train", "validation"]),
        (["train", "validation", "test"], ["train", "validation", "test"]),
        (["Training", "Testing"], ["train", "test"]),
        (["train/train", "val/val"], ["train", "validation"]),  # unpacked into folders
        (["data/train", "data/val"], ["train", "validation"]),
        (["test/train", "test/test"], ["train", "test"]),  # the outer `test` is not a split
    ],
)
def test_names_of_splits(tmp_path, folders, splits):
    names = [f"{folder}/{name}/1.jpg" for folder in folders for name in ("cat", "dog")]
    source = tree(tmp_path / "tree", *names)
    assert prepare(tmp_path, source) == 0
    for folder, split in zip(folders, splits, strict=True):
        assert labels_of(tmp_path, split) == ["cat", "dog"], folder
    assert set(PreparedSet("pets", [tmp_path / "sets"]).shard_lengths) == set(splits)


def test_the_test_share_is_stratified_and_drawn_by_the_seed(tmp_path, capsys):
    names = [
        f"{name}/{i}.jpg"
        for name, count in (("a", 50), ("b", 10), ("c", 1), ("d", 2))
        for i in range(count)
    ]
    source = tree(tmp_path / "tree", *names)

    def drawn(*flags: str) -> set[str]:
        return {f.name for f in draw(*flags).splits["test"]}

    def draw(share: float, seed: int):
        return prepare_data.draw_test_split(find_images(source), share, seed)

    found = draw(0.2, 0)
    counts = np.bincount([file.label for file in found.splits["test"]], minlength=4)
    assert counts.tolist() == [10, 2, 0, 1]
    assert sorted(f.name for files in found.splits.values() for f in files) == sorted(names)
    assert drawn(0.2, 0) == drawn(0.2, 0) != drawn(0.2, 1)
    assert prepare(tmp_path, source, "--size=8") == 0
    output = capsys.readouterr().out
    assert "--test_share=0.2" in output and "--seed=0" in output
    assert "no image in test: c" in output
    assert len(labels_of(tmp_path, "test")) == 13
    assert prepare(tmp_path, source, "--size=8", "--seed=1") == 65  # another set
    assert prepare(tmp_path, source, "--size=8", "--test_share=0", dataset="all") == 0
    assert labels_of(tmp_path, "train", "all") == sorted(name[0] for name in names)


def test_a_share_of_a_source_that_has_a_test_split_is_refused(tmp_path, capsys):
    source = tree(tmp_path / "tree", "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg")
    assert prepare(tmp_path, source, "--test_share=0.5") == 2
    assert "--test_share=0.5" in one_error(capsys)
    assert prepare(tmp_path, source, "--seed=1") == 2
    assert "--seed=1" in one_error(capsys)


@pytest.mark.parametrize(
    ("names", "named"),
    [
        # A split that would come out empty, or without the classes of train.
        (["train/a/1.jpg", "val/1.jpg"], "val"),
        (["train/a/1.jpg", "valid/readme.txt"], "valid"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/images/1.jpg"], "val"),
        (["train/cat/1.jpg", "train/dog/1.jpg", "val/cats/1.jpg", "val/dogs/1.jpg"], "cats"),
        # Most of it would be left out.
        (["train/a/1.jpg", "train/b/1.jpg", "1.jpg", "2.jpg", "3.jpg"], OUTSIDE),
        (["train/a/1.jpg", *(f"train/a/{i}.bmp" for i in range(3))], "bmp"),
        (["train/a/1.jpg", *(f"train/a/thumbnails/{i}.jpg" for i in range(3))], BELOW),
        # Right but for one folder.
        (["flowers/rose/1.jpg", "flowers/tulip/1.jpg", "docs/figure.png"], "flowers"),
        (["train/a/1.jpg", "train/b/1.jpg", "train/old/a/1.jpg", "train/old/b/1.jpg"], "train/old"),
        (["one/a/1.jpg", "one/b/1.jpg", "two/a/1.jpg", "two/b/1.jpg"], "one"),
        (["train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg"], "val and valid"),
        (["train/a/1.jpg", "train/b/notes.txt"], "train/b"),
        (["only/1.jpg", "only/2.jpg"], "only"),
        (["1.jpg", "2.jpg"], "1.jpg"),
        (["a.txt"], "--source"),
    ],
)
def test_a_source_that_is_not_right_is_refused_by_name(tmp_path, capsys, names, named):
    assert prepare(tmp_path, tree(tmp_path / "tree", *names)) == 65
    assert named in one_error(capsys)
    assert not (tmp_path / "sets").exists()


def test_most_files_corrupt(tmp_path, capsys):
    source = tree(tmp_path / "tree", "a/1.jpg", "b/1.jpg", "b/2.jpg")
    for i in range(5):
        (source / f"a/corrupt{i}.jpg").write_bytes(b"not an image")
    assert prepare(tmp_path, source, "--test_share=0") == 65
    assert "5 of 8" in capsys.readouterr().err
    assert not (tmp_path / "sets" / "pets" / "1.0.0").exists()


def test_a_class_of_one_split_is_named(tmp_path, capsys):
    names = ("train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg", "val/dogs/1.jpg")
    assert prepare(tmp_path, tree(tmp_path / "tree", *names)) == 0
    output = capsys.readouterr().out
    assert "no image in train: dogs" in output and "no image in validation: dog\n" in output


def test_numbers_sort_as_numbers(tmp_path):
    names = [f"{i}/1.jpg" for i in range(12)] + ["other/1.jpg"]
    expected = (*map(str, range(12)), "other")
    assert find_images(tree(tmp_path, *names)).class_names == expected


def test_a_number_of_more_digits_than_python_reads(tmp_path, tiny_imagenet):
    """In a file of labels; folders cannot have such names."""
    long, labels = "1" * 5000, tiny_imagenet / "val/val_annotations.txt"
    labels.write_text(labels.read_text().replace("n01443537", long) + f"x.JPEG\t{long}\n")
    assert find_images(tiny_imagenet, all_synsets=False).class_names[0] == long


# ---- names


@pytest.mark.parametrize(
    "name", [b"caf\xe9", b"two\nlines", b"two\\nlines", "Käse ü".encode(), b"a[1] %s 'x'"]
)
def test_names_of_folders(tmp_path, name, capsys):
    """Names that are not UTF-8 get escapes, as does what would break a line."""
    source = tree(tmp_path / "tree", "train/b/1.jpg", "test/b/1.jpg")
    for split in (b"train", b"test"):
        folder = os.path.join(os.fsencode(source), split, name)
        os.mkdir(folder)
        Path(os.fsdecode(os.path.join(folder, b"\xff.jpg"))).write_bytes(IMAGE)
    Path(os.fsdecode(os.path.join(folder, b"\xfe.jpg"))).write_bytes(b"corrupt")
    Path(os.fsdecode(os.path.join(folder, b"\xfe.txt"))).write_bytes(b"left out")
    assert prepare(tmp_path, source) == 0
    output = capsys.readouterr().out.encode().decode()
    text = name.replace(b"\\", b"\\\\").decode(errors="backslashreplace")
    expected = text.replace("\n", "\\n")
    assert expected in output
    assert labels_of(tmp_path, "test") == labels_of(tmp_path, "train") == sorted(["b", expected])


@pytest.mark.commands
def test_names_of_paths(tmp_path):
    """The real command, with worker processes."""
    source = tree(tmp_path / "a[1] 'b' %", *(f"{c}/{i}.jpg" for c in "aä" for i in range(2)))
    strange = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9"))
    os.symlink(source, strange)
    command = [sys.executable, "-m", "scripts.prepare_data", "--dataset=pets", "--size=16"]
    command += [f"--source={source}", f"--data_dir={tmp_path / 'a[1] %'}"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert load("pets", "train", [tmp_path / "a[1] %"]).class_names == ("a", "ä")
    for flag in ("--data_dir", "--source"):  # the last one of two counts
        refused = [*command, f"{flag}={strange}"]
        done = subprocess.run(refused, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and flag in done.stderr


@pytest.mark.commands
def test_a_pipe_whose_reader_has_ended_is_no_fault_of_the_folder(tmp_path):
    source = tree(tmp_path / "tree", *(f"{c}/{i}.jpg" for c in "ab" for i in range(2)))
    command = [sys.executable, "-m", "scripts.prepare_data", "--dataset=pets", "--size=16"]
    command += [f"--source={source}", f"--data_dir={tmp_path / 'sets'}"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


# ---- images


def test_small_sets_are_stored_without_loss(tmp_path):
    source = tmp_path / "digits"
    digits = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
    for i, digit in enumerate(digits):
        (source / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(digit).save(source / f"{i % 2}/{i}.png")
    flags = "--size=28", "--grey", "--test_share=0"
    assert prepare(tmp_path, source, *flags, dataset="mine") == 0
    examples = load("mine", "train", [tmp_path / "sets"])
    assert examples.image_shape == (28, 28, 1)
    found = {
        image.tobytes(): label
        for image, label in zip(examples.images, examples.labels, strict=True)
    }
    assert found == {digit.tobytes(): i % 2 for i, digit in enumerate(digits)}


def test_photos_are_upright_and_transparent_parts_white(tmp_path):
    exif, photo = Image.Exif(), Image.new("RGB", (96, 96), (250, 0, 0))
    photo.paste((0, 0, 250), (0, 0, 96, 48))  # stored with the blue half above, red below
    exif[0x0112] = 3  # turned by 180 degrees
    for name, label in (("a/1.jpg", "turned"), ("b/1.png", "transparent")):
        (tmp_path / "tree" / name).parent.mkdir(parents=True)
        if label == "turned":
            photo.save(tmp_path / "tree" / name, exif=exif)
        else:
            (tmp_path / "tree" / name).write_bytes(image_file((0, 0, 0, 0), file_format="PNG"))
    assert prepare(tmp_path, tmp_path / "tree", "--test_share=0", "--size=96") == 0
    images, labels = open_records("pets", "train", [tmp_path / "sets"]).read(np.arange(2))
    turned, transparent = images[np.argsort(labels)]
    assert turned[10, 48, 0] > 200 > 100 > turned[10, 48, 2]  # red above
    assert turned[90, 48, 2] > 200 > 100 > turned[90, 48, 0]
    assert transparent.min() > 250


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + bytes(array)
    )


def test_idx_files(tmp_path, capsys):
    random, source = np.random.default_rng(0), tmp_path / "files"
    source.mkdir()
    images = random.integers(0, 256, (30, 20, 20), np.uint8)
    labels = (np.arange(30) % 3 + 1).astype(np.uint8)  # from 1, as in EMNIST
    (source / "my-images-idx3-ubyte").write_bytes(idx(images))
    (source / "my-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    assert (
        prepare_data.main([f"--source={source}", f"--data_dir={tmp_path}", "--dataset=mine"]) == 0
    )
    train, test = (load("mine", split, [tmp_path]) for split in ("train", "test"))
    assert (len(train), len(test), train.image_shape) == (24, 6, (20, 20, 1))
    assert train.class_names == ("1", "2", "3")
    found = {
        image.tobytes(): label + 1
        for part in (train, test)
        for image, label in zip(part.images, part.labels, strict=True)
    }
    assert found == {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert np.bincount(test.labels).tolist() == [2, 2, 2]
    assert ["all", "3", "classes", "24", "6"] in map(
        str.split, capsys.readouterr().out.splitlines()
    )
    arguments = [f"--source={source}", f"--data_dir={tmp_path}"]
    assert prepare_data.main([*arguments, "--dataset=mine"]) == 0
    assert "already" in capsys.readouterr().out
    assert prepare_data.main([*arguments, "--dataset=mine", "--seed=1"]) == 65
    assert prepare_data.main([*arguments, "--dataset=large", "--size=28"]) == 0
    assert load("large", "train", [tmp_path]).image_shape == (28, 28, 1)
    (source / "other-images.idx3-ubyte").write_bytes(idx(images))
    capsys.readouterr()
    assert prepare_data.main([*arguments, "--dataset=more"]) == 65
    assert "other-images" in one_error(capsys)


def test_idx_files_name_their_split_before_or_after_the_kind(tmp_path):
    names = {
        "train": ("images-idx3-ubyte", "labels-idx1-ubyte"),
        "test": ("images-test-idx3-ubyte", "labels-test-idx1-ubyte"),
        "validation": ("val.images.idx3-ubyte.gz", "val.labels.idx1-ubyte.gz"),
    }
    for name in itertools.chain(*names.values()):
        (tmp_path / name).touch()
    expected = {split: tuple(tmp_path / name for name in pair) for split, pair in names.items()}
    assert find_pairs(tmp_path) == expected


def test_gray_idx_files_keep_their_size(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 20, 30, 3), np.uint8)
    (tmp_path / "images-idx4-ubyte").write_bytes(idx(images))
    (tmp_path / "labels-idx1-ubyte").write_bytes(idx(np.arange(6, dtype=np.uint8) % 2))
    arguments = [f"--source={tmp_path}", f"--data_dir={tmp_path}", "--dataset=mine", "--grey"]
    assert prepare_data.main(arguments) == 0
    assert load("mine", "train", [tmp_path]).image_shape == (20, 30, 1)


def test_equal_images_in_two_splits_or_of_two_classes_are_named(tmp_path, capsys):
    """Equal images are found by their pixels; of files that could not be read nothing is said."""
    colors = {f"train/{name}/{i}.png": (9 * i, 50, ord(name)) for name in "ab" for i in range(4)}
    colors |= {f"val/{name}/{i}.png": (9 * i, 90, ord(name)) for name in "ab" for i in range(4)}
    colors |= {"val/a/in_train.png": colors["train/a/1.png"]}
    colors |= {"train/b/as_a.png": colors["train/a/2.png"]}
    colors |= {"train/b/again.png": colors["train/b/3.png"]}  # worth no word
    for name, color in colors.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        # Other bytes, the same pixels.
        options = {"compress_level": 0} if name == "val/a/in_train.png" else {}
        content = image_file(color, (8, 8), "PNG", **options)
        (tmp_path / "tree" / name).write_bytes(content)
    for split in "train", "val":
        (tmp_path / "tree" / split / "a" / "empty.png").write_bytes(b"")
    assert prepare(tmp_path, tmp_path / "tree", "--size=8") == 0
    lines = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("equal images")
    ]
    splits, classes = (line.replace(" = ", " ").split() for line in lines)
    assert {"1,", "splits:", "train/a/1.png", "val/a/in_train.png"} < set(splits)
    assert {"1,", "classes:", "train/a/2.png", "train/b/as_a.png"} < set(classes)
    images, labels = np.arange(8 * 9, dtype=np.uint8).reshape(8, 3, 3), np.arange(8) % 2
    for split, chosen in ("train", [0, 1, 2, 3, 4]), ("test", [5, 6, 3]):
        content = idx(images[chosen]), idx(labels[chosen].astype(np.uint8))
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(content[0])
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(content[1])
    arguments = [f"--source={tmp_path}", f"--data_dir={tmp_path}", "--dataset=digits"]
    assert prepare_data.main(arguments) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("equal")]
    (line,) = lines
    assert "in two splits: 1, " in line
    assert line.endswith("train-images-idx3-ubyte, image 00000003")
    assert "test-images-idx3-ubyte, image 00000002 = " in line


# ---- names of sets


@pytest.mark.parametrize(
    ("dataset", "flags", "exit_code", "named"),
    [
        ("fashion-mnist", [], 2, "--dataset=fashion_mnist"),
        ("emnist", [], 2, "emnist/balanced"),
        ("fake", [], 2, "fake"),
        ("a-b", [], 2, "did you mean --dataset=a_b?"),
        ("my-digits", [], 2, "did you mean --dataset=my_digits?"),
        ("my photos", [], 2, "did you mean --dataset=my_photos?"),
        ("2024", [], 2, "begins with a letter"),
        ("../pets", [], 2, "../pets"),
        ("imagenet_256", [], 2, "--dataset=NAME"),
        ("imagenet_256", ["--size=28"], 2, "--size"),
        ("mnist", ["--grey"], 2, "--grey"),
        ("pets", ["--size=28", "--record_format=raw"], 2, "--record_format"),
        ("pets", ["--mirror=http://a"], 2, "--mirror"),
        ("pets", ["--test_share=1"], 2, "test_share"),
        ("pets", ["--test_share=nan"], 2, "test_share"),
    ],
)
def test_wrong_flags(tmp_path, capsys, dataset, flags, exit_code, named):
    source = tree(tmp_path / "tree", "a/1.jpg", "b/1.jpg")
    arguments = [f"--dataset={dataset}", f"--source={source}", f"--data_dir={tmp_path / 'sets'}"]
    assert prepare_data.main([*arguments, *flags]) == exit_code
    assert named in one_error(capsys)
    assert not (tmp_path / "sets").exists()


def test_a_data_dir_that_is_a_link_to_nothing_or_blank_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.symlink("gone", tmp_path / "sets")
    source = tree(tmp_path / "tree", "a/1.jpg", "b/1.jpg", "b/2.jpg")
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx/images-idx3-ubyte").write_bytes(idx(np.zeros((4, 8, 8), np.uint8)))
    (tmp_path / "idx/labels-idx1-ubyte").write_bytes(idx(np.array([0, 1, 0, 1], np.uint8)))
    for folder in (source, tmp_path / "idx"):
        flags = ["--dataset=pets", f"--source={folder}", f"--data_dir={tmp_path / 'sets'}"]
        assert prepare_data.main(flags) == 74
        assert f"{tmp_path}/sets is a link to gone, which does not exist" in one_error(capsys)
    assert not (tmp_path / "gone").exists()
    for blank in (" ", "sets "):
        flags = ["--dataset=pets", f"--source={source}", f"--data_dir={blank}"]
        assert prepare_data.main(flags) == 2
        assert "--data_dir" in one_error(capsys)
    assert not os.path.exists(" ") and not os.path.exists("sets ")


def test_an_own_name_needs_a_source(capsys):
    assert prepare_data.main(["--dataset=pets"]) == 2
    assert "--source=DIR" in one_error(capsys)


@pytest.mark.parametrize(
    ("source", "data_dir", "dataset"),
    [
        ("photos", "photos", "pets"),
        ("photos", "photos", "cat"),  # the name of a class
        ("photos", "photos/cat", "pets"),
        ("photos", "photos/new/sets", "pets"),
        ("photos", "link", "pets"),  # to photos
        ("link", "photos", "pets"),
        ("sets/pets", "sets", "pets"),
        ("sets/pets/raw", "sets", "pets"),
        ("sets/pets/1.0.0", "sets", "pets"),
        ("sets/pets/1.0.0.unfinished", "sets", "pets"),
    ],
)
def test_a_set_in_its_source_or_the_other_way_round_is_refused(
    tmp_path, capsys, source, data_dir, dataset
):
    os.symlink("photos", tmp_path / "link")
    tree(tmp_path / source.replace("link", "photos"), "cat/1.jpg", "cat/2.jpg", "dog/1.jpg")
    before = sorted(tmp_path.rglob("*"))
    flags = [f"--source={tmp_path / source}", f"--data_dir={tmp_path / data_dir}"]
    assert prepare_data.main([f"--dataset={dataset}", *flags, "--num_workers=1"]) == 2
    assert "--source" in (error := one_error(capsys)) and "--data_dir" in error
    assert sorted(tmp_path.rglob("*")) == before


def test_a_source_beside_the_set_or_of_named_files_is_not_refused(tmp_path):
    """In the same data_dir; IDX files and tars are found by their names, whatever lies beside."""
    sources = [tree(tmp_path / "photos", "cat/1.jpg", "cat/2.jpg", "dog/1.jpg")]
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(tmp_path / "photos", ".")
    sources += [tmp_path / "photos.tar", tmp_path]
    (tmp_path / "images-idx3-ubyte").write_bytes(idx(np.zeros((4, 8, 8), np.uint8)))
    (tmp_path / "labels-idx1-ubyte").write_bytes(idx(np.array([0, 1, 0, 1], np.uint8)))
    for number, source in enumerate(sources):
        flags = [f"--dataset=pets{number}", f"--source={source}", f"--data_dir={tmp_path}"]
        for _ in range(2):
            assert prepare_data.main(flags) == 0


def test_another_set_of_that_name(tmp_path, capsys, write_set):
    """The newest version would be read."""
    folder = write_set(tmp_path / "sets", "pets", np.zeros((4, 8, 8, 3), np.uint8))
    folder.rename(folder.with_name("4.0.1"))
    assert prepare(tmp_path, tree(tmp_path / "tree", "a/1.jpg", "b/1.jpg")) == 65
    assert "4.0.1" in one_error(capsys)


def test_sets_beside_each_other(tmp_path):
    source = tree(tmp_path / "tree", "a/1.jpg", "b/1.jpg", "a/2.jpg", "b/2.jpg")
    for name in ("one", "two"):
        assert prepare(tmp_path, source, "--size=16", dataset=name) == 0
    assert len(load("one", "train", [tmp_path / "sets"])) == 2
    assert len(load("two", "test", [tmp_path / "sets"])) == 2
