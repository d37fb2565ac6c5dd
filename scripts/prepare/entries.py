"""The files of a source: of a folder, or inside tar files, which are not extracted."""

import os
import tarfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from common.errors import DataError

OFFICIAL_TARS = ("train", "val")  # ILSVRC2012_img_*.tar
_SYSTEM = ("__macosx", "@eadir", "thumbs.db", "desktop.ini", "lost+found", "$recycle.bin")
_SYSTEM += ("system volume information",)

# Why something is no entry.
LOOP = "symbolic links that lead back to a folder above"
NO_FILE = "links that lead nowhere, and other things that are no files"


class File(NamedTuple):
    """An image of the source: `size` bytes at byte `offset` of the file at `path`; `name` is
    relative to the source, `printable`.
    """

    name: str
    path: str
    offset: int
    size: int
    label: int = -1


def printable(name: str) -> str:
    """The name of a file as text that can be printed and stored in lines of UTF-8: bytes that are
    not UTF-8, and line breaks, as escapes such as \\xe9, and so a backslash as two.
    """
    text = name.replace("\\", "\\\\").encode(errors="surrogateescape")
    text = text.decode(errors="backslashreplace")
    breaks = ("Cc", "Zl", "Zp")  # control characters, separators of lines and paragraphs
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in breaks else char
        for char in text
    )


def read(file: File) -> bytes:
    """The content. Raises ValueError if the file has become shorter."""
    with open(file.path, "rb") as stream:
        stream.seek(file.offset)
        content = stream.read(file.size)
    if len(content) < file.size:
        raise ValueError(f"ends after {len(content):,} of {file.size:,} bytes")
    return content


def entries(source: Path, left_out: dict[str, list[str]]) -> Iterator[File]:
    """Every file, and every folder under a name that ends in a slash; of hidden folders nothing
    more. What is no entry is added to `left_out`: a reason -> names.

    Raises DataError if there is no such source; OSError, tarfile.TarError.
    """
    if source.is_dir():
        tars = official_tars(source)
        if not tars:
            yield from _folder_entries(source, left_out)
    elif source.is_file():
        tars = [("", source)]
    else:
        raise DataError(f"--source={source} is neither a folder nor a tar file")
    for prefix, path in tars:
        with tarfile.open(path, "r:") as archive:
            yield from _tar_entries(archive, str(path), prefix, 0, left_out)


def official_tars(source: Path) -> list[tuple[str, Path]]:
    """("train/" or "val/", the tar file) of those of OFFICIAL_TARS that are in a folder."""
    official = {folder: source / f"ILSVRC2012_img_{folder}.tar" for folder in OFFICIAL_TARS}
    return [(f"{folder}/", path) for folder, path in official.items() if path.is_file()]


def _folder_entries(folder: Path, left_out: dict[str, list[str]]) -> Iterator[File]:
    def fail(error: OSError):
        raise error

    real = {str(folder): {os.path.realpath(folder)}}  # place -> where it and those above really are
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        prefix = "" if place == str(folder) else f"{Path(place).relative_to(folder).as_posix()}/"
        above, entered = real.pop(place), []
        for name in folders:
            path = os.path.join(place, name)
            target = os.path.realpath(path)
            if target in above:
                left_out[LOOP].append(printable(prefix + name))
                continue
            yield File(f"{prefix}{name}/", "", 0, 0)
            if not is_hidden(name):
                real[path] = above | {target}
                entered.append(name)
        folders[:] = entered
        for name in names:
            path = os.path.join(place, name)
            if os.path.isfile(path):
                yield File(prefix + name, path, 0, os.path.getsize(path))
            else:
                left_out[NO_FILE].append(printable(prefix + name))


def _tar_entries(
    archive: tarfile.TarFile, path: str, prefix: str, start: int, left_out: dict[str, list[str]]
) -> Iterator[File]:
    """Where the members lie in the file at `path`, in which `archive` begins at byte `start`; inner
    tars count as folders. What is no file is added to `left_out`.
    """
    files = {}
    for member in archive:
        inside = "/".join(part for part in member.name.split("/") if part not in ("", "."))
        name = prefix + inside
        if member.isdir():
            if inside:  # else the archive's own folder, as in `tar cf x.tar .`
                yield File(f"{name}/", "", 0, 0)
        elif member.isfile() and name.endswith(".tar"):
            folder = name.removesuffix(".tar") + "/"
            yield File(folder, "", 0, 0)
            with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as inner:
                yield from _tar_entries(inner, path, folder, start + member.offset_data, left_out)
        elif member.isfile():
            files[member.name] = member
            yield File(name, path, start + member.offset_data, member.size)
        elif member.islnk() and member.linkname in files:  # a file before it, by another name
            content = files[member.linkname]
            yield File(name, path, start + content.offset_data, content.size)
        else:
            left_out[NO_FILE].append(printable(name))


def is_hidden(name: str) -> bool:
    """Whether an operating system or a file manager made this, such as __MACOSX or ._x.jpg."""
    return (name.startswith(".") and name != "..") or name.lower() in _SYSTEM
