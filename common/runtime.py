"""What a run sets up in its process: stop signals, messages that may be lost, the allocator, XLA
and JAX settings, and which messages of libraries are muted.
"""

import contextlib
import ctypes
import io
import logging
import os
import platform
import resource
import signal
import sys
import threading
from pathlib import Path

import jax
from jax._src import xla_bridge  # nothing public says whether JAX has started

from common.errors import UserError
from common.parallel import FIXED_PARTS

STOP_SIGNALS = (
    *(signal.SIGTERM, signal.SIGINT),
    *(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU),
)


@contextlib.contextmanager
def stop_signals():
    """Yields stop_requested() -> None, or the number of the first of STOP_SIGNALS. A SIGTERM or
    SIGINT after it ends the process at once; the others come more than once from the system itself,
    when a terminal is closed or for each second above a limit. One that was ignored when the
    program started (nohup) stays ignored.

    Python runs signal handlers between bytecodes of the main thread, which a compilation can block
    for a minute. So another thread reads the numbers from the pipe that the interpreter's C handler
    writes to.
    """
    received = []
    numbers = [n for n in STOP_SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)

    def watch():
        while number := os.read(read_end, 1)[0]:
            if number not in numbers:
                continue
            if received:
                if number in (signal.SIGTERM, signal.SIGINT):
                    os._exit(128 + number)
                continue
            received.append(number)
            name = signal.Signals(number).name
            message = f"{name}: finishing this step and saving; SIGTERM or SIGINT stops at once."
            print(message, file=sys.stderr, flush=True)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    old_wakeup = signal.set_wakeup_fd(write_end)
    old_handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: installed by C code
        signal.set_wakeup_fd(old_wakeup)
        os.write(write_end, b"\0")  # ends the watcher
        watcher.join()
        os.close(write_end)
        os.close(read_end)


class _Lossy(io.FileIO):
    """A file without a reader, a full or a closed one takes everything, and nothing waits."""

    def write(self, content) -> int:
        try:
            return super().write(content) or len(content)  # None where it would wait
        except OSError:
            return len(content)


def lossy(stream: io.TextIOBase | None, own: io.TextIOBase | None) -> io.TextIOBase:
    """A `stream` of messages where what cannot be written is lost, and the program goes on: the
    terminal was closed, the reader of a pipe has ended, the disk is full. A character that its
    encoding lacks is escaped.

    Args:
      own: what the process started with; another stream, as in a notebook, is left alone.
    """
    for descriptor in range(3):  # what is not open gets no other file's number
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if stream is None:
        return open(os.devnull, "w")
    if stream is not own:
        return stream
    file = io.BufferedWriter(_Lossy(stream.fileno(), "w", closefd=False))
    options = dict(encoding=stream.encoding, errors="backslashreplace", line_buffering=True)
    return io.TextIOWrapper(file, **options)


# What the programs here are written for.
JAX_OPTIONS = {
    "jax_disable_jit": False,
    "jax_enable_x64": False,
    "jax_numpy_rank_promotion": "allow",
    "jax_numpy_dtype_promotion": "standard",
    "jax_default_matmul_precision": None,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_transfer_guard": "allow",
}


def ignore_jax_environment() -> None:
    """Resets what the environment sets of JAX_OPTIONS, and says so: the settings of a run are its
    flags, and the same flags give the same result.
    """
    for name, ours in JAX_OPTIONS.items():
        if os.environ.get(name.upper()) and jax.config.values[name] != ours:
            given = f"{name.upper()}={os.environ[name.upper()]}"
            print(f"warning: {given} is ignored; unset it to silence this", file=sys.stderr)
            jax.config.update(name, ours)


def keep_freed_memory() -> None:
    """Makes glibc reuse freed memory instead of returning it to the system, and in huge pages.

    A train step on a CPU allocates and frees hundreds of megabytes; each 4 KiB page that the system
    hands out again costs a page fault and is zeroed. XLA's threads allocate too, so that
    setting it for the main thread alone is not enough.

    LENET_ALEXNET_KEEP_MEMORY=0 in the environment leaves memory as it is.
    """
    if platform.libc_ver()[0] != "glibc" or os.environ.get("LENET_ALEXNET_KEEP_MEMORY") == "0":
        return
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    trim_threshold, mmap_max, arena_max, huge_page = -1, -4, -8, 14  # from malloc.h and mman.h
    libc.mallopt(mmap_max, 0)  # large blocks come from the heap too,
    libc.mallopt(arena_max, 1)  # the same heap in every thread,
    libc.mallopt(trim_threshold, -1)  # which is never trimmed
    # Grow the heap once; its pages take no memory before they are used.
    size, page = _reservable_bytes(), 2**21
    if block := libc.malloc(size):
        start = -(-block // page) * page
        libc.madvise(start, (block + size - start) // page * page, huge_page)
        libc.free(block)


def _reservable_bytes() -> int:
    """Half of the memory, of the machine or of the control group; but a quarter of the addresses
    that a limit leaves: what is not allocated by malloc, as stacks of threads, needs some too.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    sizes = [os.sysconf("SC_PHYS_PAGES") * page // 2]
    if limit := control_group_limit():
        sizes.append(limit // 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * page
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            sizes.append(max(limit - used, 0) // 4)
    return min(sizes)


def control_group_limit(
    groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """The least memory in bytes that this process's control group, or one above it, may use; None
    without a limit. Both versions of control groups (man 7 cgroups).
    """
    limits = []
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            top, file = root, "memory.max"
        elif "memory" in controllers.split(","):
            top, file = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = top / name.lstrip("/")
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # absent, or "max"
                limits.append(int((folder / file).read_text()))
    return min(limits, default=None)


def use_deterministic_reductions() -> None:
    """Restricts XLA to what gives the same bits in every run, on any number of devices.

    On a GPU XLA otherwise picks what is fastest; a setting in the user's XLA_FLAGS wins. On a CPU
    it splits the sums of a large product among its threads, one for each core or device, whichever
    are more: here their number is fixed.

    Raises UserError if JAX has started in this process, as in a notebook: it would be too late.
    """
    if os.environ.get("NPROC") != str(FIXED_PARTS) and xla_bridge.backends_are_initialized():
        raise UserError("--reduction=fixed must be set before JAX starts: restart this Python.")
    given = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_deterministic_ops" not in given:
        os.environ["XLA_FLAGS"] = f"{given} --xla_gpu_deterministic_ops=true".strip()
    os.environ["NPROC"] = str(FIXED_PARTS)  # what XLA takes for the number of cores


def use_compilation_cache() -> None:
    """Keeps compiled programs across runs, so that a resume starts in seconds. The user's
    JAX_COMPILATION_CACHE_DIR wins.
    """
    if not jax.config.jax_compilation_cache_dir:
        try:
            caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            cache = caches / "lenet-alexnet" / "jax"
            cache.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError):  # JAX would warn of a read-only home at every program
            return
        jax.config.update("jax_compilation_cache_dir", str(cache))
    # By default, JAX does not cache the programs of a small network.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def mute_library_logs() -> None:
    """Mutes the logs of libraries: Orbax logs a failed write with its traceback, and the same error
    is raised here, where it becomes one line.
    """
    logging.getLogger().setLevel(logging.CRITICAL)
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def mute_orbax_tracebacks() -> None:
    """Mutes the tracebacks that follow a failed write of a checkpoint, which is reported already:
    Orbax closes the event loop of the writes beside it, and each would print one from TensorStore's
    thread.
    """

    def unless_loop_closed(report):
        def hook(*arguments):  # (type, error, traceback), or one object that has them
            error = arguments[1] if len(arguments) > 1 else arguments[0].exc_value
            if not (type(error) is RuntimeError and str(error) == "Event loop is closed"):
                report(*arguments)

        return hook

    sys.excepthook = unless_loop_closed(sys.excepthook)
    sys.unraisablehook = unless_loop_closed(sys.unraisablehook)
    threading.excepthook = unless_loop_closed(threading.excepthook)


@contextlib.contextmanager
def hidden(module: str):
    """Within it a module that is not imported yet cannot be: for a library that imports another
    one, at great cost, for what is not used here.
    """
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # Python's own way to have `import` raise ModuleNotFoundError
    try:
        yield
    finally:
        del sys.modules[module]
