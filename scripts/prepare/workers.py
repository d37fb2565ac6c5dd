"""Worker processes that end with their parent, and Ctrl-C handled by the parent alone."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait

from common.errors import UserError


@contextlib.contextmanager
def worker_pool(num_workers: int, advice: str) -> Iterator[ProcessPoolExecutor]:
    """Processes that end at once when the body raises and when this process is killed. Raises
    UserError, with the advice, if one of them is killed.
    """
    context = multiprocessing.get_context("spawn")  # JAX has threads: no fork
    reader, writer = context.Pipe(duplex=False)
    with reader, writer, ProcessPoolExecutor(num_workers, context, _end_with, (reader,)) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            writer.close()
            raise UserError(
                f"a worker process was killed, perhaps out of memory; {advice}"
            ) from error
        except BaseException:
            writer.close()
            raise


def _end_with(parent: Connection) -> None:
    """Ends this worker as soon as the other end of the pipe is closed."""

    def watch() -> None:
        wait([parent])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def interrupt_noted() -> Iterator[list]:
    """Yields a list that Ctrl-C appends to; raises KeyboardInterrupt at the end of the body if it
    did. An exception could be raised in a callback of the garbage collector and be lost.
    """
    interrupted = []
    handler = signal.signal(signal.SIGINT, lambda *_: interrupted.append("Ctrl-C"))
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, handler)
    if interrupted:
        raise KeyboardInterrupt


@contextlib.contextmanager
def interrupt_blocked() -> Iterator[None]:
    """Holds back Ctrl-C, which a terminal sends to the whole process group. Processes started in
    the body inherit this and never receive it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
