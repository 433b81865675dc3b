"""A pool of workers that do not outlive the command that started them."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from threadpoolctl import threadpool_limits


@contextmanager
def worker_pool(
    workers: int, begin: Callable[..., None] | None = None, *arguments: object
) -> Iterator[Executor]:
    """Start workers, each of which calls `begin(*arguments)` first; they end with the block.

    A single worker is a thread of this process: another process would have to load everything
    anew. A block that ends by an error does not wait for the work that was not begun.
    """
    pool: Executor
    if workers == 1:
        pool = ThreadPoolExecutor(1, initializer=partial(_begin_thread, begin, *arguments))
    else:
        # A fresh interpreter for each worker: forking a process that holds threads is unsafe.
        context = multiprocessing.get_context("spawn")
        ready = partial(_begin_process, begin, *arguments)
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=ready)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _begin_process(begin: Callable[..., None] | None, *arguments: object) -> None:
    _end_with_parent()
    # There are as many workers as cores: OpenBLAS' own threads would spin on the others'. The
    # variable holds for a library that is not loaded yet, the limit for one that is.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    threadpool_limits(1, user_api="blas")
    _begin_thread(begin, *arguments)


def _begin_thread(begin: Callable[..., None] | None, *arguments: object) -> None:
    if begin is not None:
        begin(*arguments)


def _end_with_parent() -> None:
    """End this worker when its parent dies: a pool's workers would wait for work for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
