"""Reading by PyTorch's DataLoader, and saving by torch.save."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch


class Items(torch.utils.data.Dataset):
    """The examples of anything that has a length and `read`, one at a time."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int):
        images, labels = self.examples.read(np.array([index]))
        return torch.from_numpy(images[0]), int(labels[0])


class Batches(Items):
    """The same, a batch at once."""

    def __getitems__(self, indices: list[int]):
        images, labels = self.examples.read(np.array(indices))
        return torch.from_numpy(images), torch.from_numpy(labels)


class Shuffled(torch.utils.data.Sampler):
    """Shuffled epochs without end: at the end of one the loader would wait for its workers."""

    def __init__(self, count: int):
        self.count = count

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(self.count).tolist()


def as_read(batch):
    """Collates nothing; a function of a module, since workers are sent it by name."""
    return batch


LOADERS = {  # form -> (the data set, how its examples become a batch)
    "DataLoader": (Items, None),
    "DataLoader, a batch at once": (Batches, as_read),
}


def loader_batches(form: str, examples, batch_size: int, num_workers: int) -> Iterator:
    """Shuffled batches without end, by DataLoader."""
    options = dict(multiprocessing_context="spawn", persistent_workers=True) if num_workers else {}
    items, collate = LOADERS[form]
    yield from torch.utils.data.DataLoader(
        items(examples),
        batch_size,
        sampler=Shuffled(len(examples)),
        num_workers=num_workers,
        collate_fn=collate,
        drop_last=True,
        **options,
    )


def shuffled(images: np.ndarray, labels: np.ndarray, batch_size: int, num_batches: int) -> list:
    """The first batches of a shuffled epoch, chosen at once: faster than one by one."""
    order = torch.randperm(len(images))[: num_batches * batch_size]
    chosen = [torch.from_numpy(array).index_select(0, order) for array in (images, labels)]
    return list(zip(*(array.split(batch_size) for array in chosen), strict=True))


def save_and_load(path: Path, arrays: list[np.ndarray]) -> tuple[float, float, float]:
    """Seconds until torch.save returns, until all is saved (the same), and of torch.load."""
    tensors = [torch.tensor(array) for array in arrays]
    path.unlink(missing_ok=True)  # before the clock starts, as ours removes its folder
    start = time.perf_counter()
    torch.save(tensors, path)
    saved = time.perf_counter()
    torch.load(path, weights_only=True)
    return saved - start, saved - start, time.perf_counter() - saved
