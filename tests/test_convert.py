"""AlexNet's weights from other programs, and a run's weights for them (scripts.convert)."""

import json
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from jax import export
from PIL import Image

import alexnet
from common import launch
from common.errors import DataError, UserError
from scripts import runs
from scripts.convert import __main__ as convert
from scripts.convert.exporting import escaped, export_run
from scripts.convert.importing import import_weights
from scripts.convert.layouts import LAYERS, LAYOUTS
from scripts.convert.reading import opened

CLASSES = 7
ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
RUNS = ("lenet_deck", "lenet_paper", "alexnet_cifar18")
SIZES = {"conv1": 11, "conv2": 5, "conv3": 3, "conv4": 3, "conv5": 3}


# ---- weights as torchvision and Caffe have them


def weights_of(layout: str) -> dict[str, np.ndarray]:
    """Random ones, by the other program's names and in its shapes."""
    random, arrays = np.random.default_rng(0), {}
    maps = (3, 64, 192, 384, 256, 256) if layout == "torchvision" else (3, 96, 256, 384, 384, 256)
    shapes = {"fc6": (4096, 9216), "fc7": (4096, 4096), "fc8": (CLASSES, 4096)}
    for number, (layer, size) in enumerate(SIZES.items()):
        inputs, outputs = maps[number : number + 2]
        shapes[layer] = (outputs, inputs // groups_of(layout, layer), size, size)
    for layer in LAYERS:
        name, shape = LAYOUTS[layout].names[layer], shapes[layer]
        deviation = np.float32(np.sqrt(2 / np.prod(shape[1:])))
        arrays[f"{name}.weight"] = deviation * random.standard_normal(shape, np.float32)
        arrays[f"{name}.bias"] = random.standard_normal(shape[0], np.float32) / 10
    return arrays


def groups_of(layout: str, layer: str) -> int:
    return 2 if layout != "torchvision" and layer in ("conv2", "conv4", "conv5") else 1


def scores_of(torch, layout: str, arrays: dict, images: np.ndarray, mean_image) -> np.ndarray:
    """What the other program gives for (B, 256, 256, 3) RGB images, before the softmax."""
    functional, names = torch.nn.functional, LAYOUTS[layout].names
    x = images.transpose(0, 3, 1, 2).astype(np.float32)
    if layout == "torchvision":
        mean, deviation = (
            [[[each]] for each in three] for three in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        x = ((x[:, :, 16:240, 16:240] / 255 - mean) / deviation).astype(np.float32)
    else:
        x = (x[:, ::-1] - mean_image)[:, :, 14:241, 14:241]
    x = torch.tensor(np.ascontiguousarray(x))

    def weight_and_bias(layer):
        return (torch.tensor(arrays[f"{names[layer]}.{kind}"]) for kind in ("weight", "bias"))

    def normalize(x):
        return functional.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

    strides = {"conv1": 4}
    first = 2 if layout == "torchvision" else 0
    paddings = {"conv1": first, "conv2": 2, "conv3": 1, "conv4": 1, "conv5": 1}
    for layer in SIZES:
        options = dict(stride=strides.get(layer, 1), padding=paddings[layer])
        options["groups"] = groups_of(layout, layer)
        x = torch.relu(functional.conv2d(x, *weight_and_bias(layer), **options))
        if layer in ("conv1", "conv2"):
            x = normalize(x) if layout == "caffe" else x
            x = functional.max_pool2d(x, 3, 2)
            x = normalize(x) if layout == "caffenet" else x
    x = functional.max_pool2d(x, 3, 2).flatten(1)
    for layer in ("fc6", "fc7"):
        x = torch.relu(functional.linear(x, *weight_and_bias(layer)))
    return functional.linear(x, *weight_and_bias("fc8")).numpy()


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_import_scores_as_the_other_program(layout, torch, images, tmp_path):
    arrays, mean_image = weights_of(layout), None
    if layout == "torchvision":
        file, mean_file = tmp_path / "weights.safetensors", None
        safetensors.numpy.save_file(arrays, file)
    else:
        file, mean_file = tmp_path / "weights.npz", tmp_path / "mean.npy"
        np.savez(file, **arrays)
        mean_image = np.random.default_rng(2).uniform(90, 140, (3, 256, 256)).astype(np.float32)
        np.save(mean_file, mean_image)
    chosen = "auto" if layout != "caffenet" else layout
    told = import_weights(file, tmp_path / "run", chosen, (), mean_file)
    assert ("--layout=caffenet" in told) == (layout == "caffe")  # whose names and shapes it has
    expected = scores_of(torch, layout, arrays, images, mean_image)
    trained = alexnet.load(tmp_path / "run")
    network = trained.network
    found = np.asarray(network.logits(trained.params, network.prepare(images)))
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()
    assert expected.std() > 0.1  # or nothing would have been compared


@pytest.fixture(scope="module")
def torchvision_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("torchvision") / "alexnet.safetensors"
    safetensors.numpy.save_file(weights_of("torchvision"), file)
    return file


@pytest.fixture(scope="module")
def imported(torchvision_file, tmp_path_factory):
    """The run folder that the command makes."""
    workdir = tmp_path_factory.mktemp("imported") / "run"
    run("scripts.convert", "import", torchvision_file, workdir)
    return workdir


def run(module: str, *words, expected: int = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", module, *map(str, words)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == expected, found.stderr
    return found


@pytest.mark.slow
def test_the_tools_take_an_imported_run(imported, images, tmp_path):
    """predict, inspect, train, and export, whose card says that nothing was measured."""
    picture = tmp_path / "noise.png"
    Image.fromarray(images[0]).save(picture)
    said = json.loads(run("scripts.predict", f"--workdir={imported}", picture, "--json").stdout)
    expected = alexnet.load(imported).predict(images[:1])[0]
    assert said["predictions"][0]["label"] == int(expected.argmax())
    assert said["predictions"][0]["probability"] == pytest.approx(expected.max(), rel=1e-4)
    report = tmp_path / "report.html"
    run("scripts.inspect", imported, f"--out={report}", f"--image={picture}")
    assert "scripts.convert import" in re.sub("<[^>]*>", "", report.read_text())
    ended = run("alexnet.train", f"--workdir={imported}", "--preset=torchvision")
    assert "complete" in ended.stderr + ended.stdout
    run("scripts.convert", "export", imported, tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "Accuracy not measured" in card and "123.675, 116.280, 103.530" in card


@pytest.mark.nightly
def test_a_head_is_trained_on_an_import(imported, tmp_path):
    """--init_from: all but the head stays as it was, bit by bit."""
    flags = ["--preset=torchvision", "--dataset=fake", "--train_size=4", "--num_epochs=1"]
    flags += ["--batch_size=2", "--validation_size=2", "--noten_crop", "--freeze=all_but_head"]
    run("alexnet.train", f"--workdir={tmp_path}/run", f"--init_from={imported}", *flags)
    before, after = alexnet.load(imported).params, alexnet.load(tmp_path / "run").params
    for layer in LAYERS:
        same = np.array_equal(before[layer]["kernel"], after[layer]["kernel"])
        assert same == (layer != "fc8"), layer


# ---- files that do not fit


def saved(path: Path, arrays: dict) -> Path:
    safetensors.numpy.save_file(arrays, path) if path.suffix == ".safetensors" else np.savez(
        path, **arrays
    )
    return path


SMALL = {"features.0.weight": np.ones((64, 3, 11, 11), np.float32)}


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
def test_what_does_not_fit_is_named(ending, tmp_path):
    bias = {"classifier.6.bias": np.zeros(10, np.float32)}
    int32 = "I32" if ending == ".safetensors" else "int32"
    for name, arrays, named in (
        ("others", {"layer1.weight": np.zeros(3, np.float32)}, "layer1.weight"),
        ("nothing", {"empty": np.zeros(0, np.float32)}, "empty"),
        ("classes", SMALL | {"classifier.6.bias": np.zeros(30_000, np.float32)}, "22,000"),
        ("scalar", SMALL | {"classifier.6.bias": np.array(3, np.float32)}, "classifier.6"),
        ("missing", SMALL | bias, "features.3.weight"),
        ("more", SMALL | bias | {"more.weight": np.zeros(3, np.float32)}, "more.weight"),
        ("shape", bias | {"features.0.weight": np.zeros((64, 3, 11, 10), np.float32)}, "11, 10"),
        ("type", bias | {"features.0.weight": np.zeros((64, 3, 11, 11), np.int32)}, int32),
    ):
        file = saved(tmp_path / f"{name}{ending}", arrays)
        with pytest.raises(DataError) as raised:
            import_weights(file, tmp_path / "run", "auto", (), None)
        assert named in str(raised.value), name
    assert not (tmp_path / "run").exists()


def npz_entry(header: bytes) -> bytes:
    """An .npy file of this header and no values."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def test_hostile_and_damaged_files(tmp_path):
    whole = saved(tmp_path / "whole.safetensors", SMALL).read_bytes()
    huge = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n"
    pickled = npz_entry(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n")
    blank_header = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" " * 1000
    for name, content in (
        ("cut.safetensors", whole[:1000]),
        ("cut_early.safetensors", whole[:5]),
        ("noise.safetensors", b"\xff" * 64),
        ("long_header.safetensors", struct.pack("<Q", 2**40) + whole[8:]),
        ("no_zip.npz", b"PK" + bytes(100)),
        ("huge.npz", {"features.0.weight.npy": npz_entry(huge)}),
        ("header.npz", {"features.0.weight.npy": npz_entry(b"__import__('os').getcwd()\n")}),
        ("pickled.npz", {"features.0.weight.npy": pickled}),
        ("many.npz", {f"{number}.npy": pickled for number in range(1001)}),
        ("brackets.npz", {"features.0.weight.npy": npz_entry(b"((((\n")}),
        ("list.npz", {"features.0.weight.npy": npz_entry(b"{[]: 1}\n")}),
        ("minus.npz", {"features.0.weight.npy": npz_entry(b"-" * 9000 + b"1\n")}),
        ("blank.npz", {"features.0.weight.npy": blank_header}),
    ):
        file = tmp_path / name
        if isinstance(content, dict):
            with zipfile.ZipFile(file, "w") as archive:
                for entry, data in content.items():
                    archive.writestr(entry, data)
        else:
            file.write_bytes(content)
        with pytest.raises(DataError, match=name):
            import_weights(file, tmp_path / "run", "auto", (), None)
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_cut_while_it_is_read(tmp_path):
    file = saved(tmp_path / "weights.npz", SMALL)
    with opened(file) as weights:
        content = file.read_bytes()
        file.write_bytes(content[:500] + bytes(len(content) - 500))
        with pytest.raises(DataError, match="damaged"):
            weights.read("features.0.weight")


def test_wrong_words(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(launch.runtime, "keep_freed_memory", lambda: None)
    pickle, latin, target = (tmp_path / name for name in ("alexnet.pth", "latin.txt", "out"))
    pickle.write_bytes(b"x")
    latin.write_bytes(b"caf\xe9")
    for words, named in (
        (("import", pickle, target), ".safetensors"),
        (("import", tmp_path / "no.npz", target), "no.npz"),
        (("export", tmp_path / "nothing", target), "nothing"),
        (("move", pickle, target), "move"),
        (("import", pickle, target, "--step=5"), "--step"),
        (("export", pickle, target, "--layout=caffe"), "--layout"),
        (("import", pickle, target, f"--class_names={latin}"), "latin.txt"),
        (("import", pickle, target, "--class_names=none.txt"), "none.txt"),
    ):
        argv = ["convert", *map(str, words)]
        code = launch.run_tool(convert.define_flags, convert.main, argv, convert.WORDS)
        errors = capsys.readouterr().err
        assert code == 2 and named in errors and len(errors.splitlines()) == 1, words
    assert not target.exists()


@pytest.mark.slow
def test_other_arguments_that_do_not_fit(torchvision_file, tmp_path):
    mean_image = tmp_path / "mean.npy"
    np.save(mean_image, np.zeros((3, 256, 256), np.float32))
    poisoned = weights_of("torchvision") | {"classifier.6.bias": np.full(CLASSES, np.nan, "f4")}
    nan = saved(tmp_path / "nan.safetensors", poisoned)
    used = tmp_path / "used"
    used.mkdir()
    (used / "notes.txt").write_text("mine")
    for arguments, named in (
        ((torchvision_file, tmp_path / "run", "auto", ("a", "b"), None), "class_names"),
        ((torchvision_file, tmp_path / "run", "auto", ("a",) * CLASSES, None), "class_names"),
        ((torchvision_file, tmp_path / "run", "auto", (), mean_image), "mean_image"),
        ((torchvision_file, tmp_path / "run", "caffe", (), None), "bvlc_alexnet"),
        ((nan, tmp_path / "run", "auto", (), None), "classifier.6.bias"),
        ((torchvision_file, used, "auto", (), None), "used"),
    ):
        with pytest.raises(UserError, match=named):
            import_weights(*arguments)
    assert not (tmp_path / "run").exists()
    assert [path.name for path in used.iterdir()] == ["notes.txt"]


# ---- export


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_an_export_gives_what_the_run_gives(name, tmp_path):
    run("scripts.convert", "export", GOLDEN / name, tmp_path / "exported")
    trained = runs.load_run(GOLDEN / name)
    weights = safetensors.numpy.load_file(tmp_path / "exported" / "model.safetensors")
    for layer, arrays in trained.params.items():
        for parameter, array in arrays.items():
            assert np.array_equal(weights[f"{layer}.{parameter}"], array)
    program = (tmp_path / "exported" / "predict.jax_export").read_bytes()
    assert bytes(ROOT) not in program  # as locations in the code would be
    predict = export.deserialize(bytearray(program))
    shape = trained.network.image_shapes[0]
    for count in (1, 5):
        images = np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)
        found = predict.call(weights, images)
        assert np.abs(found - trained.predict(images)).max() <= 1e-6
    assert "stablehlo" in predict.mlir_module()
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "Accuracy not measured" in card  # the run was interrupted
    for layer, arrays in trained.params.items():
        for parameter, array in arrays.items():
            assert f"{layer}.{parameter} | {' x '.join(map(str, array.shape))} |" in card


@pytest.mark.slow
def test_a_run_in_bfloat16_is_exported(tmp_path):
    shutil.copytree(GOLDEN / "alexnet_cifar18", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(
        json.dumps(config | {"compute_dtype": "bfloat16"})
    )
    run("scripts.convert", "export", tmp_path / "run", tmp_path / "exported")
    assert (tmp_path / "exported" / "predict.jax_export").is_file()


def test_nothing_is_overwritten_and_markdown_is_escaped(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something"):
        export_run(GOLDEN / "lenet_deck", tmp_path, None)
    assert escaped("a|b <script> [x](y) `c` &lt;\n") == r"a\|b \<script\> \[x\](y) \`c\` \&lt;\\n"
