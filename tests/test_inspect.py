"""The report on runs and studies: its numbers, its pictures, and a stranger's text in it."""

import base64
import io
import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.spatial
import scipy.special
from PIL import Image

import lenet.network
from common import launch, runtime
from common.errors import UserError
from scripts.faults.releases import GOLDEN, write_noise10
from scripts.inspect import __main__ as tool
from scripts.inspect import about, examples, opened, page, pixels, seen, slides, studied
from scripts.inspect.parts import Bar, Cell, Drawing, Gallery, Grid, Item, Subject, Table, percent
from scripts.report.results import RESULTS

ROOT = Path(__file__).parents[1]
HOSTILE = "<script>alert('$x_1$')</script>\" onload=\x1b[31m\u202e\ud800&amp;"

# ---- what a network makes of images


def test_mistakes_come_most_confident_first():
    logits = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]])
    assert seen.mistakes(logits, np.array([0, 0, 0, 1])).tolist() == [2, 1]
    # of RBF units, whose probabilities all round to 1
    far = -np.array([[0.0, 80.0, 90.0], [0.0, 95.0, 90.0], [40.0, 300.0, 0.0]])
    assert seen.mistakes(far, np.array([1, 1, 1])).tolist() == [1, 0, 2]


def test_bars_tell_the_label_from_the_others():
    """Of NumPy's numbers, as sets have them."""
    run = SimpleNamespace(name_of=str)
    found = examples.bars(run, np.array([0.2, 0.7, 0.1]), np.int32(0))
    assert [(bar.words, bar.is_true) for bar in found] == [
        ("1", False),
        ("0 *", True),
        ("2", False),
    ]
    figure = slides.gallery(
        Gallery("n", "t", "", [Item(np.zeros((4, 4, 1), np.uint8), ("a",), bars=found)])
    )
    colors = [bar.get_facecolor()[:3] for axes in figure.axes for bar in axes.patches]
    assert len(colors) == 3 and colors[0] == colors[2] != colors[1]


def test_the_confusion_matrix_counts():
    true, said = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 0, 0, 2])
    assert seen.confusion_matrix(said, true, 3).tolist() == [[1, 1, 0], [0, 1, 0], [2, 0, 1]]


def test_neighbors_are_those_of_scipy():
    random = np.random.default_rng(0)
    features, query = random.normal(size=(200, 30)), random.normal(size=30)
    distances = scipy.spatial.distance.cdist(features, query[None])[:, 0]
    places, found = zip(*seen.neighbors(features, query, 7), strict=True)
    assert list(places) == distances.argsort()[:7].tolist()
    np.testing.assert_allclose(found, np.sort(distances)[:7])


@pytest.mark.parametrize(
    ("shape", "places"), [((28, 28, 1), 28), ((32, 32, 3), 32), ((96, 96, 3), 16)]
)
def test_occlusion_finds_the_pixel_that_matters(shape, places):
    image = np.random.default_rng(0).integers(0, 200, shape).astype(np.uint8)
    y, x = shape[0] // 2, shape[1] // 4
    image[y, x] = 255

    found = seen.occlusion(lambda images: (images[:, y, x] == 255).all(axis=-1) * 0.9, image)
    assert found.shares.shape == (places, places) and found.shares.max() == 0.9
    for row, column in np.ndindex(found.shares.shape):
        center = np.array([row, column]) * found.step + (found.step - 1) // 2
        corner = center - found.side // 2
        is_covered = ((corner <= (y, x)) & ((y, x) < corner + found.side)).all()
        assert found.shares[row, column] == (0 if is_covered else 0.9)
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    fill = np.median(border, axis=0) if shape[-1] == 1 else image.mean(axis=(0, 1)).round()
    assert (found.worst[y, x] == fill.astype(np.uint8)).all()
    changed = (found.worst != image).any(axis=-1)
    assert changed.sum() <= found.side**2 and changed[y, x]


@pytest.mark.commands
def test_responses_are_those_of_the_loaded_network():
    trained = lenet.network.load(GOLDEN / "lenet_deck")
    images = np.random.default_rng(0).integers(0, 256, (300, 28, 28, 1)).astype(np.uint8)
    logits, features = seen.respond(trained, images, "f6")
    probabilities = scipy.special.softmax(logits, axis=1)
    np.testing.assert_allclose(probabilities, trained.predict(images), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(features, trained.activations(images)["f6"], rtol=1e-4, atol=1e-5)


# ---- pictures


def test_weights_are_gray_where_they_are_zero():
    kernels = np.zeros((2, 2, 1, 3))
    kernels[0, 0, 0, 0], kernels[1, 1, 0, 0], kernels[1, 0, 0, 1] = 0.5, -0.25, -7
    first, second, empty = pixels.of_weights(kernels)[..., 0]
    assert first.tolist() == [[255, 128], [128, 64]]
    assert second.tolist() == [[128, 128], [0, 128]] and (empty == 128).all()


def test_a_mosaic_holds_its_tiles_and_transparent_gaps():
    tiles = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 3)).astype(np.uint8)
    whole = pixels.mosaic(tiles, columns=3)
    assert whole.shape == (2 * 5 - 1, 3 * 4 - 1, 4)
    assert (whole[5:9, 4:7, :3] == tiles[4]).all() and (whole[5:9, 4:7, 3] == 255).all()
    assert not whole[4].any() and not whole[:, 3].any() and not whole[5:, 8:].any()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_small_picture_is_kept_to_the_pixel(channels):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels)).astype(np.uint8)
    start, content = pixels.data_uri(image).split(",")
    assert start == "data:image/png;base64"
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    assert (decoded.reshape(image.shape) == image).all()


def test_a_large_photograph_is_reduced():
    photo = np.random.default_rng(0).integers(0, 256, (256, 512, 3)).astype(np.uint8)
    small = pixels.reduced(photo)
    assert small.shape == (80, 160, 3)
    assert pixels.data_uri(small).startswith("data:image/jpeg;base64,")


def test_units_lie_as_the_codes_do():
    assert [pixels.columns_of(n) for n in (84, 120, 256, 4096, 13)] == [7, 10, 16, 64, 4]


def test_percent_does_not_round_up_to_certainty():
    assert [percent(share) for share in (1, 0.9996, 0.999, 0)] == [
        ">99.9%",
        ">99.9%",
        "99.9%",
        "0.0%",
    ]


# ---- what is published


def test_published_errors_are_those_of_the_readmes():
    words = (ROOT / "lenet/README.md").read_text() + (ROOT / "alexnet/README.md").read_text()
    words += (ROOT / "README.md").read_text()
    for (network, preset), published in about.PUBLISHED.items():
        errors = [float(re.match(r"[\d.]+", text)[0]) for text in published.errors.values()]
        if preset.startswith("cifar"):  # named after their errors
            assert preset == f"cifar{errors[0]:.0f}"
            continue
        for error in errors:
            assert re.search(rf"(?<![\d.]){error}\b", words), (network, preset, error)


# ---- the page


class Read(HTMLParser):
    """A page's elements, with their attributes, and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def named(self, *tags: str) -> list[dict]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def check(html: str) -> Read:
    """That a page loads and runs nothing, and can be read without seeing it."""
    found = Read(html)
    assert not found.named("script", "iframe", "object", "embed", "link", "form", "base")
    assert not [a for _, a in found.elements if any(name.startswith("on") for name in a)]
    policies = [meta["content"] for meta in found.named("meta") if "http-equiv" in meta]
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'")
    assert "script-src" not in policies[0] and "http" not in policies[0]
    images = found.named("img")
    assert all(re.match(r"data:image/(png|jpeg|svg\+xml);base64,", img["src"]) for img in images)
    assert all("alt" in image for image in images)
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [link["href"] for link in found.named("a")]
    assert links and all(link[0] == "#" and link[1:] in ids for link in links)
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(deeper <= level + 1 for level, deeper in itertools.pairwise(levels))
    assert len(found.named("main")) == len(found.named("nav")) == len(found.named("header")) == 1
    assert all("scope" in head for head in found.named("th"))
    labels = [each.get("aria-labelledby") for each in found.named("section")]
    assert any(labels) and set(filter(None, labels)) <= set(ids)
    return found


def hostile() -> Subject:
    """A subject in which every text is a stranger's."""
    image = np.zeros((8, 8, 1), np.uint8)
    item = Item(image, (HOSTILE,), HOSTILE, (Bar(HOSTILE, 0.5, True),), name="c1")
    parts = [
        Table("table", HOSTILE, HOSTILE, (HOSTILE, HOSTILE), [(HOSTILE, HOSTILE)]),
        Table("folded", HOSTILE, "", (), [("command", HOSTILE)], folded=True),
        Grid(
            "grid", HOSTILE, HOSTILE, HOSTILE, (HOSTILE,), [(HOSTILE, [Cell(HOSTILE, 0.5, True)])]
        ),
        Gallery("gallery", HOSTILE, HOSTILE, [item]),
        Gallery("wide", HOSTILE, HOSTILE, [item], wide=True),
        Drawing("drawing", HOSTILE, HOSTILE, HOSTILE, b"<svg/>", b""),
    ]
    return Subject("name", HOSTILE, HOSTILE, parts, [HOSTILE])


def test_a_strangers_text_stays_text():
    html = page.render([hostile(), hostile()._replace(name="main")])
    found = check(html)
    assert "<script>alert('$x_1$')</script>\" onload=" in found.text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202a-\u202e\u2066-\u2069]", html)
    alts = {image["alt"] for image in found.named("img")}
    assert len(alts) == 1 and "alert" in alts.pop()


@pytest.mark.commands
def test_a_strangers_text_is_drawn_as_it_stands(tmp_path):
    assert slides.write([hostile()], tmp_path / "figures") == 7
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    stems = {"grid", "gallery", "wide_c1"}
    assert names == {f"{stem}.{form}" for stem in stems for form in ("svg", "png")} | {
        "drawing.svg"
    }
    for stem in stems:
        root = ElementTree.parse(tmp_path / "figures" / f"{stem}.svg")
        assert not [e for e in root.iter() if e.tag.endswith("script")]
        assert "alert('$x_1$')" in "".join(root.getroot().itertext())
        Image.open(tmp_path / "figures" / f"{stem}.png").load()


def test_names_in_a_report_are_unique():
    names = tool.names_of(("a/run", "b/run", "c/other one", "d/ö"))
    assert names == ["run_1", "run_2", "other-one_3", "_4"]
    names = tool.names_of(("x/run_2", "a/run", "b/run"))
    assert len(set(names)) == 3
    assert tool.names_of(("a/run", "c/other one")) == ["run", "other-one"]


# ---- studies


def test_a_study_shows_its_figure_and_verdict():
    folder = studied.folder_of("c3_table")
    assert folder == RESULTS / "c3_table" and studied.folder_of(str(folder)) == folder
    subject = studied.subject(folder, "c3_table")
    study = json.loads((folder / "study.json").read_text())
    found = check(page.render([subject]))
    for words in (study["question"], study["command"], study["comparisons"][0]["sentence"]):
        assert " ".join(words.split()) in " ".join(found.text.split())
    (figure,) = (part for part in subject.parts if part.kind == "drawing")
    assert figure.svg == (folder / "figure.svg").read_bytes() and not subject.missing


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"arms": 1}', '{"arms": {}, "metric": "epochs"}']
)
def test_what_is_no_study_is_refused(tmp_path, text):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(UserError, match=r"study\.json"):
        studied.subject(tmp_path, "study")


@pytest.mark.parametrize("odd", [None, 5, [], {}, [None], {"a": None}, "a"])
def test_odd_studies_are_shown_or_refused(tmp_path, odd):
    study = json.loads((RESULTS / "c3_table" / "study.json").read_text())
    for name in study:
        (tmp_path / "study.json").write_text(json.dumps(study | {name: odd}))
        try:
            check(page.render([studied.subject(tmp_path, "study")]))
        except UserError as error:
            assert "study.json" in str(error)


def test_a_figure_that_is_a_link_is_not_followed(tmp_path):
    shutil.copy(RESULTS / "c3_table" / "study.json", tmp_path)
    (tmp_path / "figure.svg").symlink_to(RESULTS / "c3_table" / "figure.svg")
    subject = studied.subject(tmp_path, "study")
    assert "figure.svg" in subject.missing[0]
    assert not [part for part in subject.parts if part.kind == "drawing"]


def test_a_folder_without_a_study_is_none(tmp_path):
    for target in (str(tmp_path), "no_such_study", "../results/c3_table/study.json", "~"):
        assert studied.folder_of(target) is None


# ---- the command


@pytest.fixture
def few_examples(monkeypatch):
    """Reports look at 200 digits of each split, to save time."""
    monkeypatch.setattr(opened, "TEST_PX", 200 * 28 * 28)
    monkeypatch.setattr(opened, "TRAIN_PX", 200 * 28 * 28)


@pytest.fixture
def inspect(monkeypatch, capsys):
    """inspect(*arguments): the command here: its exit code, output and errors."""
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(runtime, "use_compilation_cache", lambda: None)

    def run(*arguments):
        argv = ["inspect", *map(str, arguments)]
        code = launch.run_tool(tool.define_flags, tool.main, argv, ("[RUN_OR_STUDY ...]",))
        return code, *capsys.readouterr()

    return run


def finished(folder: Path, name: str, **result) -> Path:
    """A copy of a golden run with a result.json."""
    shutil.copytree(GOLDEN / name, folder)
    made = {"command": "python -m lenet.train --preset=paper --dataset=mnist10k", "seed": 0}
    (folder / "result.json").write_text(json.dumps(made | result))
    return folder


@pytest.mark.parametrize(
    "odd", [None, 5, -1e308, 10**30, True, [], {}, [[1]], {"a": None}, HOSTILE]
)
def test_odd_results_do_no_harm(tmp_path, odd):
    trained = lenet.network.load(GOLDEN / "lenet_deck")
    names = [*about.MEASURES, "command", "commit", "version", "machine", "versions"]
    names += ["wall_time_s", "images_per_s", "state_sha256", "num_test_examples"]
    names += ["num_train_examples", "confusion_matrix", "class_names"]
    result = dict.fromkeys(names, odd)
    run = opened.Run(tmp_path, "lenet", trained, result)
    made = about.what_was_run(run), about.errors(run), about.confusions(run, None)
    parts = [part for part in made if part is not None]
    check(page.render([Subject("run", "run", about.summary(run), parts, [])]))


@pytest.mark.slow
def test_a_run_that_is_not_finished(inspect, tmp_path):
    out = tmp_path / "report.html"
    assert inspect(GOLDEN / "lenet_deck", f"--out={out}")[0] == 0
    html = out.read_text()
    found = check(html)
    assert len(html) < 3_000_000 and "not finished" in found.text
    expected = json.loads((GOLDEN / "lenet_deck" / "expected.json").read_text())
    error = re.search(r"([\d,]+) of 2,000 test examples: ([\d.]+)% error", found.text)
    assert float(error[2]) == pytest.approx(expected["evaluation_then"]["error_pct"], abs=0.2)
    matrix = re.findall(r"<td[^>]*>(\d+)</td>", html.partition(">Confusion matrix</h3>")[2])
    counts = np.array(matrix[:100], int).reshape(10, 10)
    assert counts.sum() == 2000 and counts.sum() - np.trace(counts) == int(error[1])
    for heading in ("Curves", "Mistakes", "C3's connections", "Feature maps", "Occlusion map"):
        assert heading in found.text
    assert html.count(">X</td>") == 60  # of Table I


@pytest.mark.slow
def test_a_finished_run_with_a_picture_of_ones_own(inspect, tmp_path, few_examples):
    digits = np.zeros((28, 28), np.uint8)
    digits[4:24, 12:16] = 255
    Image.fromarray(digits).save(tmp_path / "one.png")
    run = finished(
        tmp_path / "run",
        "lenet_paper",
        test_error_pct=1.25,
        commit=HOSTILE,
        confusion_matrix=[[1] * 10] * 10,
        machine={HOSTILE: 1},
        versions=3,
    )
    flags = f"--image={tmp_path / 'one.png'}", f"--out={tmp_path / 'a.html'}"
    code, out, err = inspect(run, *flags, f"--figures={tmp_path / 'figures'}")
    assert (code, err) == (0, "") and "a.html" in out
    found = check((tmp_path / "a.html").read_text())
    assert "0.95 ± 0.1%" in found.text and "1.25%" in found.text
    assert "cannot be compared" in found.text and "--train_size=8000" in found.text
    assert "the nearest code, that of" in found.text
    trained = lenet.network.load(run)
    (said,) = trained.classify(digits[None])
    assert f"one.pngsays {said}:" in re.sub(r"\s", "", found.text).replace("says", "says ")
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert names >= {"curves", "confusion_matrix", "mistakes", "top5", "kernels", "c3_table"}
    assert names >= {"picture", "feature_maps_c1", "feature_maps_f6", "occlusion", "neighbors"}
    for path in (tmp_path / "figures").iterdir():
        Image.open(path).load() if path.suffix == ".png" else ElementTree.parse(path)


@pytest.mark.slow
def test_a_run_without_its_data_and_one_with_it(inspect, tmp_path, monkeypatch, few_examples):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    run, out = GOLDEN / "alexnet_cifar18", tmp_path / "report.html"
    assert inspect(run, f"--out={out}")[0] == 0
    found = check(out.read_text())
    assert "not at hand" in found.text and "noise10" in found.text
    assert "The kernels of conv1" in found.text and "Curves" in found.text
    assert "Mistakes" not in found.text and "Feature maps" not in found.text
    write_noise10(tmp_path / "sets")
    code, *_ = inspect(run, "c3_table", f"--data_dir={tmp_path / 'sets'}", f"--out={out}")
    assert code == 0
    found = check(out.read_text())
    assert "not at hand" not in found.text
    for words in ("Mistakes", "Feature maps", "Nearest neighbors in the space of pool3", "Verdict"):
        assert words in found.text


def test_what_is_refused(inspect, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for arguments, named, expected in (
        ([], "runs/first", 2),
        ([tmp_path / "empty"], "config.json", 2),
        ([tmp_path / "absent"], "absent", 2),
        (["c3_table", f"--out={tmp_path}/report.pdf"], ".html", 2),
        (["c3_table", "--image=digit.png"], "--image", 2),
        (["c3_table", f"--out={tmp_path}/none/report.html"], "none", 2),
        (["c3_table", f"--figures={tmp_path}/file"], "--figures", 74),
    ):
        code, out, err = inspect(*arguments)
        assert code == expected and named in err and len(err.splitlines()) == 1 and not out
    assert not list(tmp_path.glob("*.html"))


def test_a_run_without_weights_or_an_image_that_is_none(inspect, tmp_path):
    run, out = tmp_path / "run", f"--out={tmp_path / 'report.html'}"
    shutil.copytree(GOLDEN / "lenet_deck", run)
    (tmp_path / "image.png").write_text("no image")
    Image.new("L", (60, 50), 200).save(tmp_path / "blank.png")
    shutil.rmtree(run / "checkpoints")
    for arguments in (
        [run],
        [GOLDEN / "lenet_deck", f"--image={tmp_path / 'image.png'}"],
        [GOLDEN / "lenet_deck", f"--image={tmp_path / 'absent.png'}"],
        [GOLDEN / "lenet_deck", f"--image={tmp_path / 'blank.png'}"],
    ):
        code, _, err = inspect(*arguments, out)
        assert code in (2, 65, 74) and len(err.splitlines()) == 1
        assert Path(str(arguments[-1])).name in err
    assert not (tmp_path / "report.html").exists()


# ---- in a browser


@pytest.mark.slow
def test_the_report_in_a_browser(browser, contrasts, inspect, tmp_path, few_examples):
    out = tmp_path / "report.html"
    assert inspect(GOLDEN / "lenet_paper", "c3_table", f"--out={out}")[0] == 0
    backgrounds = set()
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            opened = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            requests, messages = [], []
            opened.on("request", lambda request, found=requests: found.append(request.url))
            opened.on("console", lambda message, found=messages: found.append(message.text))
            opened.goto(out.as_uri())
            assert [url for url in requests if not url.startswith("data:")] == [out.as_uri()]
            assert messages == []
            assert opened.evaluate("document.documentElement.scrollWidth") <= width
            assert opened.evaluate("[...document.images].every(i => i.complete && i.naturalWidth)")
            backgrounds.add(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
            found = contrasts(opened)
            assert found and found[0][1] >= 4.5, found[:3]
            opened.keyboard.press("Tab")
            assert opened.evaluate("document.activeElement.className") == "skip"
            opened.keyboard.press("Enter")
            opened.keyboard.press("Tab")  # to the first table, which scrolls where it is wide
            assert opened.evaluate("document.activeElement.getAttribute('role')") == "group"
            opened.close()
    assert len(backgrounds) == 2
