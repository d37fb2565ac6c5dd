"""scripts/prepare_data.py: from a server on this machine, from a folder, and without a network."""

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
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from rich import console

from common import builders
from common.examples import load
from scripts import prepare_data

ROOT = Path(__file__).resolve().parents[1]
RANDOM = np.random.default_rng(0)
ARRAYS = {  # the IDX files' prefix -> images, labels
    "train": (
        RANDOM.integers(0, 256, (40, 28, 28), np.uint8),
        RANDOM.integers(0, 10, 40).astype(np.uint8),
    ),
    "t10k": (
        RANDOM.integers(0, 256, (10, 28, 28), np.uint8),
        RANDOM.integers(0, 10, 10).astype(np.uint8),
    ),
}


def official_files() -> dict[str, bytes]:
    files = {}
    for prefix, (images, labels) in ARRAYS.items():
        for name, values in (
            (f"{prefix}-images-idx3-ubyte.gz", images),
            (f"{prefix}-labels-idx1-ubyte.gz", labels),
        ):
            header = (
                b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
            )
            files[name] = gzip.compress(header + values.tobytes(), mtime=0)
    return files


FILES = official_files()
LARGEST = "train-images-idx3-ubyte.gz"  # the first that is asked for


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends `server.files`, also from the middle; `server.broken_after` bytes at most if that is
    set.
    """

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        content = self.server.files.get(self.path.rpartition("/")[2])
        if content is None:
            self.send_error(404)
            return
        start = (
            int((self.headers.get("Range") or "bytes=0-")[len("bytes=") : -1])
            if self.server.resumes
            else 0
        )
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.broken_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.requests, server.broken_after, server.resumes = (
            dict(FILES),
            [],
            None,
            True,
        )
        server.address = f"http://127.0.0.1:{server.server_port}/some/folder"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def small_mnist(tmp_path, monkeypatch):
    """mnist with 50 images in place of 70,000, and nothing of the machine's own data."""
    facts = {
        name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in FILES.items()
    }
    monkeypatch.setitem(
        builders.PUBLISHED_SETS,
        "mnist",
        dataclasses.replace(builders.PUBLISHED_SETS["mnist"], files=facts),
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "sets"


def assert_prepared(data_dir: Path) -> None:
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = ARRAYS[prefix]
        order = sorted(
            range(len(labels)), key=lambda index: hashlib.md5(f"{split}{index}".encode()).digest()
        )
        examples = load("mnist", split, [data_dir])
        np.testing.assert_array_equal(examples.images, images[order][..., None])
        np.testing.assert_array_equal(examples.labels, labels[order])


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def one_line(capsys) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.endswith("\n")
    assert "Traceback" not in error
    return error


def test_download_end_to_end(server, small_mnist, capsys):
    assert prepare_data.main(["--dataset=mnist", f"--mirror={server.address}"]) == 0
    assert_prepared(small_mnist)
    output, error = capsys.readouterr()
    assert error == ""
    lines = output.splitlines()
    for name in FILES:
        assert any(
            line.startswith(f"{name}: ") for line in lines
        )  # plain lines: this is no terminal
    assert lines[-1] == f"mnist is ready: --dataset=mnist --data_dir={small_mnist}"
    assert not [name for name in files_below(small_mnist) if name.endswith(".part")]
    assert sorted(path for path, _ in server.requests) == sorted(
        f"/some/folder/{name}" for name in FILES
    )


def test_a_second_time_nothing_is_done(server, small_mnist, capsys):
    assert prepare_data.main([f"--mirror={server.address}"]) == 0
    before = {name: (small_mnist / name).stat().st_mtime_ns for name in files_below(small_mnist)}
    server.requests.clear()
    capsys.readouterr()
    assert prepare_data.main([f"--mirror={server.address}"]) == 0
    assert (
        capsys.readouterr().out
        == f"mnist is already prepared in {small_mnist / 'mnist' / '3.0.1'}\n"
    )
    assert server.requests == []
    assert {
        name: (small_mnist / name).stat().st_mtime_ns for name in files_below(small_mnist)
    } == before


def test_progress_bar_on_a_terminal(server, small_mnist, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(
        prepare_data,
        "Console",
        lambda stderr: console.Console(file=terminal, force_terminal=True, width=120),
    )
    assert prepare_data.main([f"--mirror={server.address}"]) == 0
    assert LARGEST in terminal.getvalue()
    assert "━" in terminal.getvalue()
    assert "100%" in terminal.getvalue()  # the bar of the writing
    assert_prepared(small_mnist)


def test_downloaded_files_from_a_folder(tmp_path, small_mnist, capsys):
    source = tmp_path / "by_hand"
    source.mkdir()
    for name, content in FILES.items():
        (source / name).write_bytes(content)
    assert prepare_data.main([f"--source={source}", f"--data_dir={tmp_path / 'chosen'}"]) == 0
    assert_prepared(tmp_path / "chosen")
    assert files_below(source) == sorted(FILES)
    assert not small_mnist.exists()


def test_a_sub_set_of_emnist(tmp_path, small_mnist, monkeypatch):
    images, labels = (
        ARRAYS["t10k"][0],
        np.arange(1, 11, dtype=np.uint8),
    )  # labels of `letters` as published: from 1
    with zipfile.ZipFile(tmp_path / "gzip.zip", "w") as archive:
        for split in ("train", "test"):
            for kind, values in (
                ("images-idx3", images.transpose(0, 2, 1)),
                ("labels-idx1", labels),
            ):
                header = (
                    b"\0\0\x08"
                    + bytes([values.ndim])
                    + struct.pack(f">{values.ndim}I", *values.shape)
                )
                archive.writestr(
                    f"gzip/emnist-letters-{split}-{kind}-ubyte.gz",
                    gzip.compress(header + values.tobytes()),
                )
    content = (tmp_path / "gzip.zip").read_bytes()
    files = {"gzip.zip": (len(content), hashlib.sha256(content).hexdigest())}
    monkeypatch.setitem(
        builders.PUBLISHED_SETS,
        "emnist/letters",
        dataclasses.replace(builders.PUBLISHED_SETS["emnist/letters"], files=files),
    )
    assert prepare_data.main(["--dataset=emnist/letters", f"--source={tmp_path}"]) == 0
    assert (small_mnist / "emnist" / "letters" / "4.0.0" / "dataset_info.json").exists()
    examples = load("emnist/letters", "train", [small_mnist])
    order = np.argsort(examples.labels)
    np.testing.assert_array_equal(examples.labels[order], range(10))
    np.testing.assert_array_equal(examples.images[order], images[..., None])
    assert examples.num_classes == 26


@pytest.mark.parametrize("way", ["server", "folder"])
def test_cifar10(way, server, tmp_path, small_mnist, monkeypatch, capsys):
    """30 + 4 images in an archive of the official layout; the order of the records is that of
    TFDS's builder.
    """
    arrays = {}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
        for seed, name in enumerate(names):
            random = np.random.default_rng(seed)
            images, labels = (
                random.integers(0, 256, (6, 32, 32, 3), np.uint8),
                random.integers(0, 10, 6).astype(np.uint8),
            )
            content = np.concatenate(
                [labels[:, None], images.transpose(0, 3, 1, 2).reshape(6, 3072)], axis=1
            ).tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
            arrays.setdefault(name.partition("_")[0], []).append((images, labels))
    name, content = "cifar-10-binary.tar.gz", buffer.getvalue()
    published = builders.PUBLISHED_SETS["cifar10"]
    assert list(published.files) == [name]
    facts = {name: (len(content), hashlib.sha256(content).hexdigest())}
    monkeypatch.setitem(
        builders.PUBLISHED_SETS, "cifar10", dataclasses.replace(published, files=facts)
    )
    if way == "server":
        server.files[name] = content
        arguments = [f"--mirror={server.address}"]
    else:
        (tmp_path / name).write_bytes(content)
        arguments = [f"--source={tmp_path}"]
    assert prepare_data.main(["--dataset=cifar10", *arguments]) == 0
    assert capsys.readouterr().out.endswith(
        f"cifar10 is ready: --dataset=cifar10 --data_dir={small_mnist}\n"
    )
    for split, key in (("train", "data"), ("test", "test")):
        images, labels = (np.concatenate(parts) for parts in zip(*arrays[key], strict=True))
        order = sorted(
            range(len(labels)), key=lambda index: hashlib.md5(f"{split}{index}".encode()).digest()
        )
        examples = load("cifar10", split, [small_mnist])
        np.testing.assert_array_equal(examples.images, images[order])
        np.testing.assert_array_equal(examples.labels, labels[order])
    folder = small_mnist / "cifar10" / "3.0.2"
    assert (folder / "label.labels.txt").read_text().split()[:2] == ["airplane", "automobile"]
    if way == "server":
        server.files[name] = content[:-1] + bytes([content[-1] ^ 1])
        assert (
            prepare_data.main(["--dataset=cifar10", f"--data_dir={tmp_path / 'other'}", *arguments])
            == 65
        )
        assert "is not the published file" in one_line(capsys)


@pytest.mark.parametrize("damage", ["missing", "changed", "longer"])
def test_a_folder_with_a_wrong_file_is_refused(tmp_path, small_mnist, capsys, damage):
    source = tmp_path / "by_hand"
    source.mkdir()
    for name, content in FILES.items():
        (source / name).write_bytes(content)
    name = "t10k-labels-idx1-ubyte.gz"
    if damage == "missing":
        (source / name).unlink()
    else:
        content = FILES[name]
        (source / name).write_bytes(
            content + b"\0" if damage == "longer" else content[:-1] + bytes([content[-1] ^ 1])
        )
    assert prepare_data.main([f"--source={source}"]) == 65
    message = one_line(capsys)
    assert str(source / name) in message
    assert f"https://storage.googleapis.com/cvdf-datasets/mnist/{name}" in message
    assert not small_mnist.exists()


def test_a_server_with_another_file_is_refused_and_nothing_stays(server, small_mnist, capsys):
    content = bytearray(FILES[LARGEST])
    content[100] ^= 1
    server.files[LARGEST] = bytes(content)
    assert prepare_data.main([f"--mirror={server.address}"]) == 65
    assert "is not the published file" in one_line(capsys)
    assert files_below(small_mnist) == []


def test_a_damaged_earlier_download_is_fetched_again(server, small_mnist):
    folder = small_mnist / "downloads" / "mnist"
    folder.mkdir(parents=True)
    (folder / LARGEST).write_bytes(b"\0" * len(FILES[LARGEST]))
    assert prepare_data.main([f"--mirror={server.address}"]) == 0
    assert_prepared(small_mnist)


@pytest.mark.parametrize("resumes", [True, False])
def test_a_broken_transfer_goes_on_where_it_stopped(server, small_mnist, capsys, resumes):
    server.broken_after, server.resumes = 5000, resumes
    assert prepare_data.main([f"--mirror={server.address}"]) == 74
    assert one_line(capsys)
    part = f"downloads/mnist/{LARGEST}.part"
    assert files_below(small_mnist) == [part]
    assert (small_mnist / part).read_bytes() == FILES[LARGEST][:5000]
    server.broken_after = None
    server.requests.clear()
    assert prepare_data.main([f"--mirror={server.address}"]) == 0
    assert server.requests[0] == (f"/some/folder/{LARGEST}", "bytes=5000-")
    assert part not in files_below(small_mnist)
    assert_prepared(small_mnist)


def test_a_file_the_server_does_not_have(server, small_mnist, capsys):
    del server.files[LARGEST]
    assert prepare_data.main([f"--mirror={server.address}"]) == 74
    message = one_line(capsys)
    assert "404" in message
    assert "mnist10k" in message
    assert files_below(small_mnist) == []


def test_without_a_network_one_line_within_ten_seconds(tmp_path):
    """The real command and the real table of files; nobody listens on port 9."""
    environment = os.environ | {"TFDS_DATA_DIR": str(tmp_path / "nothing")}
    command = [
        sys.executable,
        "-m",
        "scripts.prepare_data",
        "--dataset=mnist",
        "--mirror=http://127.0.0.1:9",
    ]
    start = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30
    )
    assert time.monotonic() - start < 10
    assert (done.returncode, done.stdout) == (74, "")
    assert done.stderr.count("\n") == 1
    for part in ("Connection refused", "--dataset=mnist10k", "--data_dir", "--source"):
        assert part in done.stderr
    assert not (tmp_path / "nothing").exists()


def test_time_limits_keep_within_ten_seconds():
    # 2 s are left for starting Python and importing TFDS.
    assert prepare_data.SILENCE_S <= prepare_data.ANSWER_S <= 8


def test_a_server_that_never_answers_is_given_up(small_mnist, capsys, monkeypatch):
    monkeypatch.setattr(prepare_data, "SILENCE_S", 0.2)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        assert prepare_data.main([f"--mirror=http://127.0.0.1:{listener.getsockname()[1]}"]) == 74
    message = one_line(capsys)
    assert "timed out" in message
    assert "mnist10k" in message


def test_name_resolution_that_hangs_is_given_up(small_mnist, capsys, monkeypatch):
    released = threading.Event()

    def hang(*_, **__):
        released.wait(5)
        raise socket.gaierror("no name server")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(prepare_data, "ANSWER_S", 0.2)
    start = time.monotonic()
    assert prepare_data.main([]) == 74
    assert time.monotonic() - start < 2
    released.set()
    message = one_line(capsys)
    assert "storage.googleapis.com" in message
    assert "no answer within 0.2 s" in message


def test_a_folder_that_cannot_be_written(server, tmp_path, capsys):
    (tmp_path / "a_file").write_text("in the way")
    assert (
        prepare_data.main([f"--mirror={server.address}", f"--data_dir={tmp_path / 'a_file'}"]) == 74
    )
    message = one_line(capsys)
    assert "cannot write below" in message
    assert "--data_dir" in message


def test_another_format_in_the_place_is_refused(small_mnist, capsys):
    folder = small_mnist / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(
        json.dumps({"name": "mnist", "fileFormat": "tfrecord"})
    )
    assert prepare_data.main([]) == 65
    assert "another format than array_record" in one_line(capsys)


def test_mnist10k_needs_no_preparation(small_mnist, capsys):
    assert prepare_data.main(["--dataset=mnist10k"]) == 0
    assert "embedded" in capsys.readouterr().out
    assert not small_mnist.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--dataset=cifar100"],
            "--dataset=cifar100 is unknown; allowed: mnist10k, mnist, fashion_mnist, kmnist, cifar10, emnist/byclass",
        ),
        (["--dataset=emnist"], "emnist/balanced"),
        (["--datset=mnist"], "Did you mean: dataset"),
        (["--help=perhaps"], "--help"),
        (["--data_dir"], "data_dir"),
        (["mnist"], "unexpected argument 'mnist'"),
        (["--mirror=ftp://somewhere"], "must begin with http:// or https://"),
    ],
)
def test_wrong_flags(arguments, message, small_mnist, capsys):
    assert prepare_data.main(arguments) == 2
    assert message in one_line(capsys)
    assert not small_mnist.exists()


def test_help_lists_the_flags_and_the_sets(capsys):
    assert prepare_data.main(["--help"]) == 0
    output = capsys.readouterr().out
    for part in (
        "--dataset",
        "--data_dir",
        "--source",
        "--mirror",
        "emnist/balanced",
        "fashion_mnist",
    ):
        assert part in output


def test_interrupt(small_mnist, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_data, "download", interrupt)
    assert prepare_data.main([]) == 130
    assert "goes on from here" in one_line(capsys)
