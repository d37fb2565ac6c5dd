"""Writes a data set as a TFDS array_record folder, without TensorFlow: downloads it, or converts
files of one's own, or ImageNet's.

    python -m scripts.prepare_data --dataset=mnist [--data_dir=DIR]
    python -m scripts.prepare_data --dataset=qmnist --source=DIR [--data_dir=DIR]
    python -m scripts.prepare_data --dataset=NAME --source=DIR [--size=28 --grey] [--data_dir=DIR]
    python -m scripts.prepare_data --dataset=imagenet_256 --source=DIR [--data_dir=DIR]

Downloads are verified by their published SHA-256; an interrupted run resumes where it stopped; the
folder appears only when it is complete. For qmnist, DIR has qmnist-test-images-idx3-ubyte.gz and
qmnist-test-labels-idx2-int.gz; the splits are test (10,000 digits, MNIST's) and test50k (the lost
ones), and train if DIR has QMNIST's or MNIST's training files too.

NAME is a new one, for a set of your own. DIR has train/<class>/ and val/<class>/ or test/<class>/
with JPEG or PNG files, Tiny ImageNet's folders, or <class>/ alone, of which --test_share=0.2 of
each class is drawn as the test split; a tar file of such folders works too. Or it has pairs of IDX
files such as train-images-idx3-ubyte and train-labels-idx1-ubyte. Each image is rotated as its EXIF
orientation says, rescaled to --size pixels on its shorter side and cropped to the center.

For imagenet_256, DIR has ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, or such folders,
named by wnids. Images get 256 pixels; EXIF orientation is ignored. All of ImageNet takes about 45
GB, 260 GB with --record_format=raw.

Hidden and system files are ignored. Corrupt files are printed, listed in damaged.txt and left out.
At the end stands what each split and class got, what was left out, and which images are equal to
the pixel though in two splits or of two classes.

Exit codes: 0 prepared (now or before), 2 wrong flags or a killed worker process, 65 wrong or
corrupt files, 74 no network or a folder that cannot be written, 75 another process is preparing the
same set, 130 interrupted.
"""

import functools
import os
import re
import sys
from pathlib import Path

import numpy as np
from absl import flags

from common import launch, provenance
from common.errors import DataError, UserError
from common.prepared import data_dirs
from common.refusals import suggestion
from scripts.prepare import imagenet, qmnist
from scripts.prepare.encode import PNG_MAX_SIZE, RECORD_FORMATS, Form
from scripts.prepare.entries import official_tars
from scripts.prepare.equal_images import equal_images
from scripts.prepare.idx import find_pairs, prepare_idx
from scripts.prepare.layouts import OTHER_ENDING, Source, draw_test_split, find_images, synsets
from scripts.prepare.published import PUBLISHED_SETS, cannot_write, prepare_published
from scripts.prepare.table import table
from scripts.progress import FileProgress

DATASETS = ("mnist10k", *PUBLISHED_SETS, qmnist.NAME, imagenet.NAME)
NEW_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
TEST_SHARE = 0.2  # where a source of one's own has neither a test nor a validation split
OWN_FLAGS = ("size", "grey", "test_share", "seed")
IMAGE_FLAGS = ("record_format", "num_workers")


def main(argv: list[str]) -> int:
    """Runs the command with the arguments after the program's name; returns its exit code."""
    return launch.run_tool(define_flags, prepare, ["prepare_data", *argv])


def define_flags(flag_values: flags.FlagValues) -> None:
    def define(definer, *arguments, **options) -> None:
        definer(*arguments, flag_values=flag_values, **options)

    dataset = f"The data set: {', '.join(DATASETS)}; or a new name, with --source."
    define(flags.DEFINE_string, "dataset", "mnist", dataset)
    data_dir = "Where to write it; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."
    define(flags.DEFINE_string, "data_dir", "", data_dir)
    source = "Folder or tar file of your own images, laid out as above; or the downloaded files."
    define(flags.DEFINE_string, "source", "", source)
    mirror = "The URL of another server's folder with the same files."
    define(flags.DEFINE_string, "mirror", "", mirror)
    size = f"A set of your own: pixels, both sides; up to {PNG_MAX_SIZE} stored as PNG. Default: "
    size += "256, for AlexNet; of IDX files their own. LeNet-5 takes 28 or 32."
    define(flags.DEFINE_integer, "size", None, size, lower_bound=1, upper_bound=4096)
    define(flags.DEFINE_boolean, "grey", False, "A set of your own: one channel, not RGB.")
    share = "Of each class of a source without test and validation images, the share to test on. "
    share += f"Default: {TEST_SHARE}; imagenet_256: 0."
    define(flags.DEFINE_float, "test_share", None, share, lower_bound=0, upper_bound=0.9)
    is_number = "--test_share must be a number."  # NaN is within all bounds
    flags.register_validator("test_share", lambda x: x == x, is_number, flag_values=flag_values)
    define(flags.DEFINE_integer, "seed", 0, "Draws the images of --test_share.", lower_bound=0)
    record_format = "Larger images: JPEG of quality 95, or uncompressed pixels, which load faster."
    define(flags.DEFINE_enum, "record_format", RECORD_FORMATS[0], RECORD_FORMATS, record_format)
    num_workers = "Processes that convert images; 0: one per core."
    define(flags.DEFINE_integer, "num_workers", 0, num_workers, lower_bound=0)


def prepare(flag_values: flags.FlagValues) -> None:
    """Prepares the set that the flags name."""
    dataset, source, mirror = flag_values.dataset, flag_values.source, flag_values.mirror
    own = dataset not in DATASETS
    if own:
        require_own_name(dataset, source)
    if mirror and not mirror.startswith(("http://", "https://")):
        raise UserError(f"--mirror={mirror} is not a URL; it must begin with http:// or https://")
    if mirror and source:
        raise UserError("--mirror does not apply to the files of --source; drop one of them")
    inapplicable = ["mirror"] if own or dataset in (imagenet.NAME, qmnist.NAME) else []
    inapplicable += ["size", "grey"] if dataset == imagenet.NAME else []
    inapplicable += ["source", "mirror"] if dataset == "mnist10k" else []
    if not own and dataset != imagenet.NAME:
        inapplicable += [*OWN_FLAGS, *IMAGE_FLAGS]
    for name in inapplicable:
        if flag_values[name].present:
            raise UserError(f"--{name} does not apply to --dataset={dataset}")
    data_dir = data_dirs(flag_values.data_dir)[0]
    text = str(data_dir)
    if not text.isprintable() or text != text.strip():  # bytes that are not UTF-8, too
        raise UserError(
            f"{text!a} cannot be a folder of sets: it has characters that cannot be printed, or "
            "blanks around it; choose another with --data_dir"
        )
    if dataset == "mnist10k":
        print("mnist10k is embedded in the project: nothing to prepare")
    elif own or dataset == imagenet.NAME:
        prepare_files(data_dir, flag_values, own)
    elif dataset == qmnist.NAME:
        qmnist.prepare_qmnist(data_dir, source)
    else:
        prepare_published(dataset, data_dir, source, mirror)


def require_own_name(dataset: str, source: str) -> None:
    """Raises UserError unless this can be the name of a new set."""
    taken = {name.partition("/")[0] for name in (*DATASETS, "fake")}
    if source and dataset not in taken and NEW_NAME.fullmatch(dataset):
        return
    close = suggestion(dataset, DATASETS)
    allowed = re.sub(r"\W+", "_", dataset)
    if source and not close and allowed not in taken and NEW_NAME.fullmatch(allowed):
        close = allowed
    raise UserError(
        f"--dataset={dataset} is unknown"
        + (f" (did you mean --dataset={close}?)" if close else "")
        + f"; allowed: {', '.join(DATASETS)}, and with --source=DIR a new name of letters, digits "
        "and underscores that begins with a letter"
    )


def prepare_files(data_dir: Path, flag_values: flags.FlagValues, own: bool) -> Path:
    """Prepares ImageNet, or a set of one's `own`, in `<data_dir>/<dataset>/1.0.0/`, unless it is
    there already; returns that folder.

    Raises:
      DataError, LockedError, StorageError: see `layouts.find_images` and `imagenet.prepare`.
      UserError: no source; or flags that do not apply to it.
    """
    dataset = flag_values.dataset
    prepared = data_dir / dataset / imagenet.VERSION
    if not flag_values.source and (prepared / "dataset_info.json").is_file():
        print(f"{dataset} is already prepared in {prepared}")
        return prepared
    if not flag_values.source:
        raise UserError(
            f"--dataset={dataset} needs --source=DIR: "
            "downloading ImageNet takes an account at image-net.org"
        )
    draw = functools.partial(with_test_split, flag_values=flag_values, own=own)
    source = Path(flag_values.source).expanduser()
    form = Form(flag_values.record_format)
    require_apart(source, prepared.parent)
    if own:
        form = own_form(flag_values)
        others = {path.parent for path in prepared.parent.rglob("dataset_info.json")}
        if others := {place for place in others - {prepared} if place.suffix != ".unfinished"}:
            raise DataError(f"{min(others)} is another {dataset}; choose another --dataset=NAME")
        if pairs := find_pairs(source):
            for name in IMAGE_FLAGS:
                if flag_values[name].present:
                    raise UserError(f"--{name} does not apply to IDX files")
            size, grey = flag_values.size, flag_values.grey
            return prepare_idx(data_dir, dataset, pairs, size, grey, draw)
    found = draw(find_images(source, all_synsets=not own))
    if not own and found.class_names != tuple(synsets()):
        raise UserError(
            f"--dataset={dataset} is for ImageNet, with folders named by wnids, and not for "
            f"{found.class_names[0]}; choose a name of your own: --dataset=NAME"
        )
    if own and len(found.class_names) < 2:
        raise DataError(f"{source} has a single class, {found.class_names[0]}; two are required")
    if any(name.rpartition("/")[2] == "words.txt" for name in found.left_out.get(OTHER_ENDING, ())):
        first = found.class_names[0]
        print(f"classes are named as their folders are, such as {first}; words.txt is not read")
    return write(found, prepared, form, flag_values.num_workers)


def require_apart(source: Path, folder: Path) -> None:
    """Raises UserError for a source inside the `folder` of the set, where writing may replace it,
    and for one that has this folder in it and is read with all its folders.
    """
    if not source.is_dir():
        return
    source, folder = (Path(os.path.realpath(path)) for path in (source, folder))
    is_inside = source != folder and source.is_relative_to(folder)
    has_it = folder.is_relative_to(source) and not official_tars(source) and not find_pairs(source)
    if is_inside or has_it:
        where = f"is in {folder}, where" if is_inside else f"has {folder} in it, where"
        raise UserError(
            f"--source={source} {where} the set would be written; choose another --data_dir"
        )


def own_form(flag_values: flags.FlagValues) -> Form:
    """How a set of one's own is stored. Raises UserError for a format that small images lack."""
    size = flag_values.size or Form().size
    if size > PNG_MAX_SIZE:
        record_format = flag_values.record_format
    elif flag_values["record_format"].present:
        raise UserError(f"--record_format does not apply to --size={size}: it is stored as PNG")
    else:
        record_format = "png"
    return Form(record_format, size, flag_values.grey, as_shown=True)


def with_test_split(found: Source, flag_values: flags.FlagValues, own: bool) -> Source:
    """`found`, or, if it has training images alone, a share of them as test images, which is
    said. Raises UserError if a share is asked for that cannot be.
    """
    if set(found.splits) != {"train"}:
        for name in ("test_share", "seed"):
            if flag_values[name].present:
                splits = " and ".join(found.splits)
                text = f"--{name}={flag_values[name].value}"
                raise UserError(f"{text} does not apply: the source has {splits}")
        return found
    share, seed = flag_values.test_share, flag_values.seed
    share = (TEST_SHARE if own else 0) if share is None else share
    if not share:
        if flag_values["seed"].present:
            raise UserError(f"--seed={seed} does not apply: no test images are drawn")
        return found
    print(f"no test images of its own: --test_share={share} of each class, drawn by --seed={seed}")
    return draw_test_split(found, share, seed)


def report_shard(progress: FileProgress, shard: imagenet.Shard) -> None:
    """Prints the corrupt files of a finished shard, and advances."""
    for name, reason in shard.damaged:
        progress.print(f"corrupt: {name} ({reason})")
    progress.advance(shard.count + len(shard.damaged), resumed=shard.resumed)


def write(found: Source, prepared: Path, form: Form, num_workers: int) -> Path:
    """Writes the set in the folder `prepared`, and prints what it has; returns the folder."""
    dataset, data_dir = prepared.parent.name, prepared.parents[1]
    sizes = ", ".join(f"{len(files):,} files of {split}" for split, files in found.splits.items())
    print(f"{sizes}, {len(found.class_names):,} classes; {described(form)}", flush=True)
    num_workers = num_workers or provenance.cores()
    try:
        num_files = sum(map(len, found.splits.values()))
        with FileProgress(dataset, num_files, sys.stdout) as progress:
            report = functools.partial(report_shard, progress)
            shards = imagenet.prepare(found, prepared, form, num_workers, report)
    except OSError as error:
        raise cannot_write(data_dir, error) from error
    if not shards:
        print(f"{dataset} is already prepared in {prepared}")
        return prepared
    corrupt = [name for shard in shards for name, _ in shard.damaged]
    digests = {
        split: np.concatenate([shard.digests for shard in shards if shard.split == split])
        for split in found.splits
    }
    print("\n".join([table(found, corrupt), *equal_images(found, digests)]))
    counts = dict.fromkeys(found.splits, 0)
    for shard in shards:
        counts[shard.split] += shard.count
    sizes = ", ".join(f"{count:,} images in {split}" for split, count in counts.items())
    listed = f", listed in {prepared / 'damaged.txt'}" if corrupt else ""
    print(
        f"{dataset} is ready: {sizes}, corrupt files: {len(corrupt):,}{listed}; "
        f"--dataset={dataset} --data_dir={data_dir}"
    )
    return prepared


def described(form: Form) -> str:
    """What is made of each image."""
    shown = "rotated as EXIF says" if form.as_shown else "EXIF orientation ignored"
    colors = "gray" if form.grey else "RGB"
    return f"{form.size}x{form.size} pixels, {colors}, {shown}, {form.record_format}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
