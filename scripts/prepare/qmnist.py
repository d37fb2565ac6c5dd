"""QMNIST (Yadav, Bottou 2019): MNIST rebuilt from NIST's digits, with all 60,000 test digits."""

from pathlib import Path

import numpy as np

from common.errors import DataError, UserError
from scripts.prepare.published import prepared_before, read_idx, write_published

NAME, VERSION = "qmnist", "1.0.0"
ADDRESS = "https://github.com/facebookresearch/qmnist"
TEST_FILES = "qmnist-test-images-idx3-ubyte.gz", "qmnist-test-labels-idx2-int.gz"
TRAIN_FILES = (  # the first pair that is there; the digits of both are the same, in the same order
    ("qmnist-train-images-idx3-ubyte.gz", "qmnist-train-labels-idx2-int.gz"),
    ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
)
NUM_EXAMPLES = 60_000  # in each of the pairs
NUM_KNOWN = 10_000  # MNIST's test digits, the first of the test files; the others were lost


def prepare_qmnist(data_dir: Path, source: str) -> Path:
    """Prepares QMNIST in `<data_dir>/qmnist/1.0.0/`, in the files' order, unless it is there;
    returns that folder.

    Its splits are `test`, MNIST's 10,000 test digits; `test50k`, the 50,000 lost ones; and `train`
    if `source` has the files of QMNIST's or MNIST's training digits.

    Raises:
      DataError: a file is missing, corrupt, or not QMNIST's; or the set lacks training digits that
        `source` has.
      StorageError: `data_dir` cannot be written.
      UserError: no source.
    """
    folder = Path(source).expanduser()
    train = next((pair for pair in TRAIN_FILES if source and (folder / pair[0]).is_file()), None)
    if prepared := prepared_before(data_dir, NAME, VERSION):
        if train and not any(prepared.glob(f"{NAME}-train.*")):
            raise DataError(f"{prepared} was made without training digits; delete that folder")
        return prepared
    if not source:
        raise UserError(f"--dataset={NAME} needs --source=DIR with the files of {ADDRESS}")
    images, labels = read_pair(folder, *TEST_FILES)
    splits = {
        "test": (images[:NUM_KNOWN], labels[:NUM_KNOWN]),
        "test50k": (images[NUM_KNOWN:], labels[NUM_KNOWN:]),
    }
    if train:
        splits["train"] = read_pair(folder, *train)
    else:
        print(f"{folder} has no training digits, only those of test and test50k")
    return write_published(
        data_dir,
        NAME,
        VERSION,
        splits,
        tuple("0123456789"),
        keep_order=True,
        description="QMNIST: MNIST rebuilt from NIST's digits, with the lost test digits.",
        homepage=ADDRESS,
    )


def read_pair(folder: Path, image_file: str, label_file: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28, 1) uint8 and labels (N,) 0 to 9, in the files' order. Raises DataError.

    A row of extended labels is the class, NIST's series, the writer, the digit's index for this
    writer, NIST's class code, its global index, and two numbers without a use here.
    """
    arrays = []
    for name in (image_file, label_file):
        try:
            arrays.append(read_idx((folder / name).read_bytes(), name))
        except OSError as error:
            raise DataError(
                f"cannot read {folder / name} ({error.strerror}); the file is at {ADDRESS}"
            ) from error
    images, labels = arrays
    if images.shape != (NUM_EXAMPLES, 28, 28) or images.dtype != np.uint8:
        raise DataError(f"{folder / image_file} lacks {NUM_EXAMPLES:,} images: {images.shape}")
    if labels.shape not in ((NUM_EXAMPLES,), (NUM_EXAMPLES, 8)):
        raise DataError(f"{folder / label_file} lacks {NUM_EXAMPLES:,} labels: {labels.shape}")
    return images[..., None], labels.reshape(NUM_EXAMPLES, -1)[:, 0]
