"""`scripts.prepare_data` for published sets: from a server, from a folder, without a network."""

import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import io
import json
import os
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import filelock
import numpy as np
import pytest
from rich import console

from common.errors import INTERRUPTED, LockedError
from common.examples import load
from common.prepared import split_sizes
from scripts import prepare_data
from scripts.prepare import download, published, qmnist

ROOT = Path(__file__).resolve().parents[1]
RANDOM = np.random.default_rng(0)
ARRAYS = {  # the IDX files' prefix -> images, labels
    prefix: (
        RANDOM.integers(0, 256, (count, 28, 28), np.uint8),
        RANDOM.integers(0, 10, count).astype(np.uint8),
    )
    for prefix, count in (("train", 40), ("t10k", 10))
}


def idx_gz(values: np.ndarray) -> bytes:
    """Bytes, or big-endian int32."""
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    kind = {1: 0x08, 4: 0x0C}[values.dtype.itemsize]
    content = bytes([0, 0, kind, values.ndim]) + sizes + values.tobytes()
    return gzip.compress(content, mtime=0)


FILES = {
    f"{prefix}-{kind}-ubyte.gz": idx_gz(values)
    for prefix, arrays in ARRAYS.items()
    for kind, values in zip(("images-idx3", "labels-idx1"), arrays, strict=True)
}
LARGEST = "train-images-idx3-ubyte.gz"  # the first one requested


def corrupt(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends `server.files`, with ranges if `server.resumes`, at most `server.cut_after` bytes."""

    def do_GET(self):
        requested = self.headers.get("Range")
        self.server.requests.append((self.path, requested))
        content = self.server.files.get(self.path.rpartition("/")[2])
        if content is None:
            self.send_error(404)
            return
        start = int(requested[len("bytes=") : -1]) if requested and self.server.resumes else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.cut_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.requests = dict(FILES), []
        server.cut_after, server.resumes = None, True
        server.address = f"http://127.0.0.1:{server.server_port}/some/folder"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def replace_files(monkeypatch, dataset: str, files: dict[str, bytes]) -> None:
    """Publishes these files instead of the real ones."""
    facts = {name: (len(file), hashlib.sha256(file).hexdigest()) for name, file in files.items()}
    replaced = dataclasses.replace(published.PUBLISHED_SETS[dataset], files=facts)
    monkeypatch.setitem(published.PUBLISHED_SETS, dataset, replaced)


@pytest.fixture(autouse=True)
def small_mnist(tmp_path, monkeypatch):
    """mnist of 50 images instead of 70,000, and no data of this machine; the data_dir."""
    replace_files(monkeypatch, "mnist", FILES)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "sets"


def assert_stored(data_dir: Path, dataset: str, split: str, images, labels) -> None:
    """In the order of TFDS's own builders."""
    digests = [hashlib.md5(f"{split}{index}".encode()).digest() for index in range(len(labels))]
    order = sorted(range(len(labels)), key=digests.__getitem__)
    examples = load(dataset, split, [data_dir])
    np.testing.assert_array_equal(examples.images, images[order])
    np.testing.assert_array_equal(examples.labels, labels[order])


def assert_prepared(data_dir: Path) -> None:
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = ARRAYS[prefix]
        assert_stored(data_dir, "mnist", split, images[..., None], labels)


def files_below(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return sorted(str(path.relative_to(folder)) for path in files)


def one_error(capsys) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.endswith("\n") and error.count("\n") == 1
    return error


def write_files(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


# ---- downloads


def test_download_then_nothing_to_do(server, small_mnist, capsys):
    assert prepare_data.main(["--dataset=mnist", f"--mirror={server.address}"]) == 0
    assert_prepared(small_mnist)
    output, error = capsys.readouterr()
    assert error == ""
    for name in FILES:  # plain lines: this is not a terminal
        assert f"\n{name}: " in f"\n{output}"
    assert f"--dataset=mnist --data_dir={small_mnist}\n" in output
    assert not [name for name in files_below(small_mnist) if name.endswith(".part")]
    assert sorted(server.requests) == [(f"/some/folder/{name}", None) for name in sorted(FILES)]

    before = {name: (small_mnist / name).stat().st_mtime_ns for name in files_below(small_mnist)}
    server.requests.clear()
    assert prepare_data.main([f"--mirror={server.address}"]) == 0
    assert str(small_mnist / "mnist" / "3.0.1") in capsys.readouterr().out
    assert server.requests == []
    for name, time_ns in before.items():
        assert (small_mnist / name).stat().st_mtime_ns == time_ns


def test_progress_bar_on_a_terminal(server, small_mnist, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def on_terminal(stderr):
        return console.Console(file=terminal, force_terminal=True, width=120)

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for module in (download, published):
        monkeypatch.setattr(module, "Console", on_terminal)
    assert prepare_data.main([f"--mirror={server.address}"]) == 0
    assert LARGEST in terminal.getvalue() and "━" in terminal.getvalue()  # of the download
    assert "100%" in terminal.getvalue()  # of the records
    assert_prepared(small_mnist)


def test_another_file_on_the_server_is_refused_and_deleted(server, small_mnist, capsys):
    server.files[LARGEST] = corrupt(FILES[LARGEST])
    assert prepare_data.main([f"--mirror={server.address}"]) == 65
    assert LARGEST in one_error(capsys)
    assert files_below(small_mnist) == []


def test_a_corrupt_earlier_download_is_replaced(server, small_mnist):
    write_files(small_mnist / "downloads" / "mnist", {LARGEST: b"\0" * len(FILES[LARGEST])})
    assert prepare_data.main([f"--mirror={server.address}"]) == 0
    assert_prepared(small_mnist)


@pytest.mark.parametrize("resumes", [True, False])
def test_a_transfer_that_was_cut_off_is_resumed(server, small_mnist, capsys, resumes):
    server.cut_after, server.resumes = 5000, resumes
    assert prepare_data.main([f"--mirror={server.address}"]) == 74
    assert LARGEST in one_error(capsys)
    part = f"downloads/mnist/{LARGEST}.part"
    assert files_below(small_mnist) == [part]
    assert (small_mnist / part).read_bytes() == FILES[LARGEST][:5000]
    server.cut_after = None
    server.requests.clear()
    assert prepare_data.main([f"--mirror={server.address}"]) == 0
    assert server.requests[0] == (f"/some/folder/{LARGEST}", "bytes=5000-")
    assert part not in files_below(small_mnist)
    assert_prepared(small_mnist)


def test_another_process_is_downloading(server, small_mnist, capsys):
    folder = small_mnist / "downloads" / "mnist"
    part = write_files(folder, {f"{LARGEST}.part": FILES[LARGEST][:9]}) / f"{LARGEST}.part"
    with filelock.FileLock(folder / ".lock"):
        assert prepare_data.main([f"--mirror={server.address}"]) == LockedError.exit_code
        assert str(folder) in one_error(capsys) and part.read_bytes() == FILES[LARGEST][:9]
    assert prepare_data.main([f"--mirror={server.address}"]) == 0
    assert_prepared(small_mnist)


def test_a_file_that_the_server_does_not_have(server, small_mnist, capsys):
    del server.files[LARGEST]
    assert prepare_data.main([f"--mirror={server.address}"]) == 74
    message = one_error(capsys)
    assert "404" in message and "mnist10k" in message
    assert files_below(small_mnist) == []


@pytest.mark.commands
def test_without_a_network_one_line_within_ten_seconds(tmp_path):
    """The real command and the real table of files; nothing listens on port 9."""
    environment = os.environ | {"TFDS_DATA_DIR": str(tmp_path / "nothing")}
    command = [sys.executable, "-m", "scripts.prepare_data", "--mirror=http://127.0.0.1:9"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (74, "", 1)
    for part in ("127.0.0.1:9", "--dataset=mnist10k", "--data_dir", "--source"):
        assert part in done.stderr
    assert not (tmp_path / "nothing").exists()
    # The rest of the ten seconds is for starting Python and importing TFDS.
    assert download.SILENCE_S <= download.ANSWER_S <= 8


def test_a_silent_server_times_out(capsys, monkeypatch):
    monkeypatch.setattr(download, "SILENCE_S", 0.2)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        assert prepare_data.main([f"--mirror=http://127.0.0.1:{port}"]) == 74
    assert f":{port}" in one_error(capsys)


def test_name_resolution_times_out(capsys, monkeypatch):
    released = threading.Event()

    def hang(*_, **__):
        released.wait()  # for ever, if it were waited for
        raise socket.gaierror("no name server")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(download, "ANSWER_S", 0.2)
    assert prepare_data.main([]) == 74
    released.set()
    assert "storage.googleapis.com" in one_error(capsys)


def test_an_interrupt(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(published, "download", interrupt)
    assert prepare_data.main([]) == 130
    assert capsys.readouterr().err == f"{INTERRUPTED}\n"


# ---- files of a folder, and other sets


def test_downloaded_files_of_a_folder(tmp_path, small_mnist):
    source = write_files(tmp_path / "by_hand")
    assert prepare_data.main([f"--source={source}", f"--data_dir={tmp_path / 'chosen'}"]) == 0
    assert_prepared(tmp_path / "chosen")
    assert files_below(source) == sorted(FILES)
    assert not small_mnist.exists()


@pytest.mark.parametrize("damage", ["missing", "changed", "longer"])
def test_a_folder_with_a_wrong_file_is_refused(tmp_path, small_mnist, capsys, damage):
    name = "t10k-labels-idx1-ubyte.gz"
    wrong = {"changed": corrupt(FILES[name]), "longer": FILES[name] + b"\0"}
    source = write_files(tmp_path / "by_hand", FILES | {name: wrong.get(damage, b"")})
    if damage == "missing":
        (source / name).unlink()
    assert prepare_data.main([f"--source={source}"]) == 65
    message = one_error(capsys)
    assert str(source / name) in message
    assert f"https://storage.googleapis.com/cvdf-datasets/mnist/{name}" in message
    assert not small_mnist.exists()


def test_a_subset_of_emnist(tmp_path, small_mnist, monkeypatch):
    # As published: transposed, and `letters` labeled from 1.
    images, labels = ARRAYS["t10k"][0], np.arange(1, 11, dtype=np.uint8)
    with zipfile.ZipFile(tmp_path / "gzip.zip", "w") as archive:
        for split in ("train", "test"):
            name = f"gzip/emnist-letters-{split}-{{}}-ubyte.gz"
            archive.writestr(name.format("images-idx3"), idx_gz(images.transpose(0, 2, 1)))
            archive.writestr(name.format("labels-idx1"), idx_gz(labels))
    files = {"gzip.zip": (tmp_path / "gzip.zip").read_bytes()}
    replace_files(monkeypatch, "emnist/letters", files)
    assert prepare_data.main(["--dataset=emnist/letters", f"--source={tmp_path}"]) == 0
    assert (small_mnist / "emnist" / "letters" / "4.0.0" / "dataset_info.json").exists()
    assert_stored(small_mnist, "emnist/letters", "train", images[..., None], labels - 1)
    assert load("emnist/letters", "train", [small_mnist]).num_classes == 26


def test_cifar10(server, small_mnist, monkeypatch):
    """30 + 6 images in an archive of the official layout."""
    buffer, random = io.BytesIO(), np.random.default_rng(0)
    images = random.integers(0, 256, (36, 32, 32, 3), np.uint8)
    labels = random.integers(0, 10, 36).astype(np.uint8)
    planes = images.transpose(0, 3, 1, 2).reshape(36, 3072)
    batches = np.split(np.concatenate([labels[:, None], planes], axis=1), 6)
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, batch in zip(names, batches, strict=True):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = batch.size
            archive.addfile(member, io.BytesIO(batch.tobytes()))
    (name,) = published.PUBLISHED_SETS["cifar10"].files
    server.files[name] = buffer.getvalue()
    replace_files(monkeypatch, "cifar10", {name: buffer.getvalue()})
    assert prepare_data.main(["--dataset=cifar10", f"--mirror={server.address}"]) == 0
    assert_stored(small_mnist, "cifar10", "train", images[:30], labels[:30])
    assert_stored(small_mnist, "cifar10", "test", images[30:], labels[30:])
    names = (small_mnist / "cifar10" / "3.0.2" / "label.labels.txt").read_text().split()
    assert names[:2] == ["airplane", "automobile"]


# ---- QMNIST, in imitation: 50 test digits for 60,000, of which 10 are MNIST's

LOST_IMAGES = RANDOM.integers(0, 256, (40, 28, 28), np.uint8)
QMNIST_LABELS = np.concatenate(  # class, series, writer, ...: big-endian int32
    [RANDOM.integers(0, 10, (50, 1)), RANDOM.integers(1000, 300_000, (50, 7))], axis=1
).astype(">i4")
QMNIST_FILES = {
    "qmnist-test-images-idx3-ubyte.gz": idx_gz(np.concatenate([ARRAYS["t10k"][0], LOST_IMAGES])),
    "qmnist-test-labels-idx2-int.gz": idx_gz(QMNIST_LABELS),
}
MNIST_TRAIN = {  # 50 digits, as many as in QMNIST_FILES
    "train-images-idx3-ubyte.gz": idx_gz(LOST_IMAGES.repeat(2, axis=0)[:50]),
    "train-labels-idx1-ubyte.gz": idx_gz(np.arange(50, dtype=np.uint8) % 10),
}
QMNIST_TRAIN = {
    "qmnist-train-images-idx3-ubyte.gz": idx_gz(LOST_IMAGES.repeat(2, axis=0)[30:]),
    "qmnist-train-labels-idx2-int.gz": idx_gz(QMNIST_LABELS[::-1]),
}


@pytest.fixture
def small_qmnist(monkeypatch):
    monkeypatch.setattr(qmnist, "NUM_EXAMPLES", 50)
    monkeypatch.setattr(qmnist, "NUM_KNOWN", 10)


@pytest.mark.parametrize("train", [{}, MNIST_TRAIN, QMNIST_TRAIN, MNIST_TRAIN | QMNIST_TRAIN])
def test_qmnist_in_the_files_order(train, tmp_path, small_mnist, small_qmnist):
    source = write_files(tmp_path / "by_hand", QMNIST_FILES | train)
    assert prepare_data.main(["--dataset=qmnist", f"--source={source}"]) == 0
    expected = {
        "test": (ARRAYS["t10k"][0], QMNIST_LABELS[:10, 0]),
        "test50k": (LOST_IMAGES, QMNIST_LABELS[10:, 0]),
    }
    if QMNIST_TRAIN.keys() <= train.keys():  # before MNIST's
        expected["train"] = LOST_IMAGES.repeat(2, axis=0)[30:], QMNIST_LABELS[::-1, 0]
    elif train:
        expected["train"] = LOST_IMAGES.repeat(2, axis=0)[:50], np.arange(50) % 10
    assert split_sizes("qmnist", [small_mnist]).keys() == expected.keys()
    for split, (images, labels) in expected.items():
        found = load("qmnist", split, [small_mnist])
        np.testing.assert_array_equal(found.images[..., 0], images)
        np.testing.assert_array_equal(found.labels, labels)
    # Nothing to do, and no folder needed.
    assert prepare_data.main(["--dataset=qmnist"]) == 0


def test_training_digits_that_come_later_are_not_ignored(
    tmp_path, small_mnist, small_qmnist, capsys
):
    source = write_files(tmp_path / "by_hand", QMNIST_FILES)
    command = ["--dataset=qmnist", f"--source={source}"]
    assert prepare_data.main(command) == 0 == prepare_data.main(command)
    for name, content in MNIST_TRAIN.items():
        (source / name).write_bytes(content)
    capsys.readouterr()
    assert prepare_data.main(command) == 65 and "training" in one_error(capsys)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"qmnist-test-labels-idx2-int.gz": None}, "qmnist-test-labels-idx2-int.gz"),
        ({"qmnist-test-images-idx3-ubyte.gz": None}, "qmnist-test-images-idx3-ubyte.gz"),
        (
            {"qmnist-test-labels-idx2-int.gz": idx_gz(QMNIST_LABELS[:49])},
            "qmnist-test-labels-idx2-int.gz",
        ),
        (
            {"qmnist-test-labels-idx2-int.gz": gzip.compress(b"\0\0\x0c\x01\0\0\0\x01\0")},
            "qmnist-test-labels-idx2-int.gz",
        ),
        (
            {"qmnist-test-images-idx3-ubyte.gz": FILES["t10k-images-idx3-ubyte.gz"]},
            "qmnist-test-images-idx3-ubyte.gz",
        ),
        (QMNIST_TRAIN | {"qmnist-train-labels-idx2-int.gz": None}, "qmnist-train-labels"),
    ],
)
def test_other_files_than_qmnists_are_refused(
    files, named, tmp_path, small_mnist, small_qmnist, capsys
):
    files = {name: file for name, file in (QMNIST_FILES | files).items() if file is not None}
    source = write_files(tmp_path / "by_hand", files)
    assert prepare_data.main(["--dataset=qmnist", f"--source={source}"]) == 65
    assert named in one_error(capsys)
    assert not small_mnist.exists()


def test_mnist10k_needs_no_preparation(small_mnist, capsys):
    assert prepare_data.main(["--dataset=mnist10k"]) == 0
    assert "mnist10k" in capsys.readouterr().out
    assert not small_mnist.exists()


# ---- mistakes


def test_a_folder_that_cannot_be_written(server, tmp_path, capsys):
    (tmp_path / "a_file").write_text("not a folder")
    arguments = [f"--mirror={server.address}", f"--data_dir={tmp_path / 'a_file'}"]
    assert prepare_data.main(arguments) == 74
    message = one_error(capsys)
    assert str(tmp_path / "a_file") in message and "--data_dir" in message


@pytest.mark.parametrize("content", [None, {"name": "mnist", "fileFormat": "tfrecord"}])
def test_a_folder_that_is_incomplete_or_in_another_format(small_mnist, capsys, content):
    folder = small_mnist / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    if content:
        (folder / "dataset_info.json").write_text(json.dumps(content))
    assert prepare_data.main([]) == 65
    assert str(folder) in one_error(capsys)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--dataset=cifar100"], "allowed: mnist10k, mnist, fashion_mnist, kmnist, cifar10"),
        (["--dataset=emnist"], "emnist/balanced"),
        (["--datset=mnist"], "did you mean --dataset"),
        (["--help=perhaps"], "--help"),
        (["--data_dir"], "data_dir"),
        (["mnist"], "'mnist'"),
        (["--mirror=ftp://somewhere"], "--mirror=ftp://somewhere"),
        (["--dataset=qmnist"], "--source=DIR"),
        (["--dataset=qmnist", "--mirror=http://somewhere"], "--mirror"),
        (["--dataset=mnist10k", "--source=files"], "--source"),
        (["--source=files", "--mirror=http://somewhere"], "--mirror"),
    ],
)
def test_wrong_flags(arguments, named, small_mnist, capsys):
    assert prepare_data.main(arguments) == 2
    assert named in one_error(capsys)
    assert not small_mnist.exists()


def test_help_lists_the_flags_and_the_sets(capsys):
    assert prepare_data.main(["--help"]) == 0
    output = capsys.readouterr().out
    for flag in ("dataset", "data_dir", "source", "mirror", "record_format", "num_workers"):
        assert f"--{flag}" in output
    assert all(dataset in output for dataset in prepare_data.DATASETS)
