"""`scripts.predict`: what is on pictures that people have."""

import io
import json
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import alexnet
import lenet
from common import examples, flags, launch, runtime
from common.errors import DataError, UserError
from common.images import MAX_PIXELS
from lenet import space_displacement
from lenet.config import Config
from lenet.data import DIGITS
from lenet.network import assemble
from scripts import predict, predict_string
from scripts.pictures import FORMATS, find_pictures, fitted, has_digit, read_picture

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
WORDS = ("PICTURE", "[PICTURE ...]")
EXIF_ORIENTATION = 274


@pytest.fixture
def photo() -> Image.Image:
    """40 wide and 30 high; every pixel another color."""
    y, x = np.mgrid[:30, :40]
    return Image.fromarray(np.stack([6 * x, 8 * y, 3 * (x + y)], axis=-1).astype(np.uint8))


@pytest.fixture
def named(monkeypatch, capsys):
    """named(workdir, *arguments) -> (exit code, output, errors) of scripts.predict here."""
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(runtime, "use_compilation_cache", lambda: None)

    def run(workdir, *arguments):
        argv = ["predict", f"--workdir={workdir}", *map(str, arguments)]
        code = launch.run_tool(predict.define_flags, predict.main, argv, WORDS)
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_read(kind, photo, tmp_path):
    path = tmp_path / "no_ending"
    photo.save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
    found = read_picture(path, 3)
    atol = 12 if kind == "JPEG" else 0
    np.testing.assert_allclose(found.astype(int), np.asarray(photo), atol=atol)
    gray = read_picture(path, 1)
    assert gray.shape == (30, 40, 1)
    np.testing.assert_allclose(gray[..., 0].astype(int), np.asarray(photo.convert("L")), atol=atol)


def test_a_picture_is_as_a_viewer_shows_it(photo, tmp_path):
    rotated = Image.Exif()
    rotated[EXIF_ORIENTATION] = 6
    photo.save(tmp_path / "rotated.png", exif=rotated)
    with Image.open(tmp_path / "rotated.png") as image:
        expected = ImageOps.exif_transpose(image)
    assert expected.size == (30, 40)
    np.testing.assert_array_equal(read_picture(tmp_path / "rotated.png", 3), expected)
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    assert (read_picture(tmp_path / "clear.png", 3) == 255).all()
    deep = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4096
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "deep.png", 1)[..., 0], deep // 256)
    photo.save(tmp_path / "two.jpg", "MPO", save_all=True, append_images=[photo.resize((8, 6))])
    assert read_picture(tmp_path / "two.jpg", 3).shape == (30, 40, 3)  # not its preview


def test_what_is_no_picture_is_refused(photo, tmp_path):
    other = photo.transpose(Image.Transpose.ROTATE_180)
    photo.save(tmp_path / "pages.tiff", save_all=True, append_images=[other])
    photo.save(tmp_path / "animated.webp", save_all=True, append_images=[other])
    photo.save(tmp_path / "photo.gif")
    photo.save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("a picture")
    (tmp_path / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "float.tiff")
    names = ["pages.tiff", "animated.webp", "photo.gif", "cut.png", "empty.png", "text.png"]
    for name in [*names, "script.eps", "float.tiff", "absent.png", "zero\0byte"]:
        with pytest.raises(DataError, match=name.split("\0")[0]):
            read_picture(tmp_path / name, 3)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    side = int(MAX_PIXELS**0.5) + 1
    header = io.BytesIO()
    Image.new("1", (8, 8)).save(header, "png")
    content = bytearray(header.getvalue())
    content[16:24] = side.to_bytes(4) * 2  # of its first chunk
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    (tmp_path / "huge.png").write_bytes(content)
    with pytest.raises(DataError, match=r"huge\.png.*pixels"):
        read_picture(tmp_path / "huge.png", 1)


def test_a_folder_is_its_pictures_by_name(photo, tmp_path, capsys):
    for name in ("b/2.PNG", "b/1.jpg", "a.tif", ".hidden.png", "__MACOSX/c.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo.save(tmp_path / name, "png")
    found = [str(tmp_path / name) for name in ("a.tif", "b/1.jpg", "b/2.PNG")]
    assert list(find_pictures([str(tmp_path), "-"])) == [*found, "-"]
    assert capsys.readouterr().err.startswith(f"{tmp_path}: left out")  # notes.txt
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none"):
        list(find_pictures([str(tmp_path / "none")]))


def test_a_picture_becomes_what_the_set_stores(photo):
    """Of the stored size: as it is; else its center, as scripts.prepare_data makes it."""
    network = alexnet.load(GOLDEN / "alexnet_cifar18").network
    stored = np.asarray(photo.resize((32, 32)))
    assert fitted(stored, network) is stored
    found = fitted(np.asarray(photo), network)
    center = photo.crop((5, 0, 35, 30)).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found, center)
    network = network._replace(image_shapes=((20, 60, 3),))  # a set of one size, not square
    box = (0, 30 / 2 - 40 / 6, 40, 30 / 2 + 40 / 6)
    center = photo.resize((60, 20), Image.Resampling.BICUBIC, box=box)
    np.testing.assert_array_equal(fitted(np.asarray(photo), network), center)


def test_only_pictures_of_the_training_sets_size_are_taken_as_they_are():
    network = lenet.load(GOLDEN / "lenet_deck").network
    assert network.image_shapes == ((28, 28, 1), (32, 32, 1))
    assert not has_digit(network, "auto", (28, 28, 1)) and has_digit(network, "auto", (32, 32, 1))
    assert fitted(np.zeros((32, 32, 1), np.uint8), network, "off").shape == (28, 28, 1)


@pytest.mark.commands
def test_lenet_names_digits_as_it_does_in_an_evaluation(named, tmp_path):
    trained = lenet.load(GOLDEN / "lenet_deck")
    images = np.random.default_rng(0).integers(0, 256, (300, 28, 28), np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number:03}.png")
    code, out, _ = named(GOLDEN / "lenet_deck", tmp_path, "--json", "--top_k=2")
    found = [json.loads(line) for line in out.splitlines()]
    expected = trained.predict(images)
    assert code == 0
    assert [Path(each["file"]).name for each in found] == [f"{i:03}.png" for i in range(300)]
    for each, probabilities in zip(found, expected, strict=True):
        labels = np.argsort(-probabilities)[:2]
        assert [row["label"] for row in each["predictions"]] == labels.tolist()
        assert [row["name"] for row in each["predictions"]] == [str(label) for label in labels]
        values = [row["probability"] for row in each["predictions"]]
        np.testing.assert_allclose(values, probabilities[labels], rtol=1e-4)


@pytest.mark.slow
def test_alexnet_takes_one_crop_or_ten(named, photo, tmp_path):
    trained = alexnet.load(GOLDEN / "alexnet_cifar18")
    photo.resize((32, 32)).save(tmp_path / "photo.png")
    stored = np.asarray(photo.resize((32, 32)))[None]
    views = [trained.network.prepare(stored, view=view) for view in range(10)]
    logits = np.stack([trained.network.logits(trained.params, view)[0] for view in views])
    of_each = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
    for crops, expected in (("center", trained.predict(stored)[0]), ("ten", of_each.mean(axis=0))):
        code, out, _ = named(
            GOLDEN / "alexnet_cifar18", tmp_path / "photo.png", "--json", f"--crops={crops}"
        )
        found = json.loads(out)["predictions"]
        assert code == 0 and len(found) == 5
        labels = [row["label"] for row in found]
        np.testing.assert_allclose(
            [row["probability"] for row in found], expected[labels], rtol=1e-4
        )
        assert expected[labels].min() >= np.delete(expected, labels).max()


@pytest.mark.commands
def test_the_bad_ones_of_many_are_named_and_the_rest_is_done(named, tmp_path):
    seven = np.zeros((60, 50), np.uint8)
    seven[10:14, 10:40] = seven[10:50, 36:40] = 255
    Image.fromarray(seven).save(tmp_path / "a_seven.png")
    Image.new("L", (60, 50), 200).save(tmp_path / "b_blank.png")
    (tmp_path / "c_text.jpg").write_text("no picture")
    (tmp_path / "d\x1b[31m.png").write_text("no picture")
    Image.fromarray(255 - seven).save(tmp_path / "e_$inverted.png")
    shown = tmp_path / "shown.png"
    code, out, errors = named(GOLDEN / "lenet_deck", tmp_path, f"--show={shown}")
    assert code == DataError.exit_code
    first, last = out.splitlines()
    assert first.split(": ")[1] == last.split(": ")[1]  # the same digit
    assert all(name in errors for name in ("b_blank.png", "c_text.jpg", "3 of 5"))
    assert "\x1b" not in errors and "Traceback" not in errors
    with Image.open(shown) as image:
        assert image.format == "PNG"
    code, out, errors = named(GOLDEN / "lenet_deck", tmp_path / "b_blank.png")
    assert (code, out, errors.count("\n")) == (DataError.exit_code, "", 1)
    assert "b_blank.png" in errors


@pytest.fixture
def picture_of_line(tmp_path):
    """Three test digits, 24 pixels apart, white on black: 28 rows."""
    images = examples.load("mnist10k", "test", [DIGITS]).images[..., 0]
    line = np.concatenate([image[:, 2:26] for image in images[[3, 700, 1500]]], axis=1)
    Image.fromarray(line).save(tmp_path / "line.png")
    return tmp_path / "line.png"


@pytest.mark.commands
def test_a_line_of_digits_is_read(named, picture_of_line, tmp_path):
    run, shown = GOLDEN / "lenet_paper", tmp_path / "shown.png"
    line = np.asarray(Image.open(picture_of_line))
    (digits,) = space_displacement.read(lenet.load(run), line[None, ..., None])
    code, out, errors = named(run, "--string", "--json", picture_of_line, f"--show={shown}")
    found = json.loads(out)
    assert (code, errors) == (0, "") and found["file"] == str(picture_of_line)
    assert found["string"] == "".join(str(digit.label) for digit in digits)
    for each, digit in zip(found["digits"], digits, strict=True):
        assert (each["label"], each["name"]) == (digit.label, str(digit.label))
        assert each["probability"] == pytest.approx(digit.probability, rel=1e-4)
        assert (each["left"], each["right"]) == (max(digit.left, 0), min(digit.left + 32, 72))
    with Image.open(shown) as image:
        assert image.format == "PNG"
    code, out, _ = named(run, "--string", picture_of_line)
    assert code == 0 and out.startswith(f"{picture_of_line}: {found['string']} (")


@pytest.mark.commands
def test_the_bad_lines_of_many_are_named(named, picture_of_line, tmp_path):
    Image.new("L", (90, 50), 200).save(tmp_path / "blank.png")
    Image.new("L", (90, 28), 0).save(tmp_path / "black.png")
    Image.fromarray(np.eye(28, 9000, dtype=np.uint8)).save(tmp_path / "long.png")
    (tmp_path / "text\x1b.png").write_text("no picture")
    code, out, errors = named(GOLDEN / "lenet_deck", "--string", tmp_path)
    assert code == DataError.exit_code and len(out.splitlines()) == 2
    assert "black.png: no digits" in out
    assert all(name in errors for name in ("blank.png", "long.png", "text", "3 of 5"))
    assert "\x1b" not in errors and "Traceback" not in errors


@pytest.mark.commands
@pytest.mark.parametrize(
    ("run", "arguments", "named_in_it"),
    [
        ("alexnet_cifar18", ["--string", "x.png"], "AlexNet"),
        ("lenet_deck", ["--string", "--crops=ten", "x.png"], "--crops"),
        ("lenet_deck", ["--string", "--top_k=2", "x.png"], "--top_k"),
        ("lenet_deck", ["--string", "absent.png"], "absent.png"),
        ("lenet_deck", ["--crops=ten", "x.png"], "--crops"),
        ("alexnet_cifar18", ["--digit=on", "x.png"], "--digit"),
        ("lenet_deck", ["--show=x.svg", "x.png"], "--show"),
        ("lenet_deck", ["--show=absent/x.png", "x.png"], "absent"),
        ("lenet_deck", [""], "''"),
        ("lenet_deck", ["--top_k=0", "x.png"], "top_k"),
        ("lenet_deck", [], "PICTURE"),
        ("lenet_deck", ["--step=7", "x.png"], "7"),
        ("absent", ["x.png"], "absent"),
        ("lenet_deck", ["absent.png"], "absent.png"),
    ],
)
def test_wrong_use_is_one_line(run, arguments, named_in_it, named):
    code, out, errors = named(GOLDEN / run, *arguments)
    assert code in (UserError.exit_code, DataError.exit_code)
    assert out == "" and named_in_it in errors and errors.count("\n") == 1


def test_a_string_is_for_networks_of_digits():
    of_letters = assemble(flags.from_preset(Config, "deck", "--dataset=letters"), 26)
    with pytest.raises(UserError, match=r"letters.*--digit=on"):
        predict_string.require_digits(of_letters, "auto")
    predict_string.require_digits(of_letters, "on")
    in_color = assemble(flags.from_preset(Config, "deck"), 10, in_channels=3)
    with pytest.raises(UserError):
        predict_string.require_digits(in_color, "on")


@pytest.mark.commands
def test_a_run_without_a_checkpoint_is_one_line(named, tmp_path, photo):
    shutil.copytree(GOLDEN / "lenet_deck", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    photo.save(tmp_path / "photo.png")
    code, out, errors = named(tmp_path / "run", tmp_path / "photo.png")
    assert code != 0 and out == "" and str(tmp_path / "run") in errors
    assert errors.count("\n") == 1


@pytest.mark.commands
def test_one_picture_on_standard_input():
    digit = io.BytesIO()
    Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save(digit, "png")
    command = [sys.executable, "-m", "scripts.predict", "--workdir=tests/golden/lenet_deck"]
    done = subprocess.run([*command, "-"], cwd=ROOT, input=digit.getvalue(), capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith(b"-: ") and not done.stderr
    done = subprocess.run([*command, "-"], cwd=ROOT, input=b"", capture_output=True)
    assert done.returncode == DataError.exit_code and done.stderr.count(b"\n") == 1
