import pytest
from threadpoolctl import threadpool_info

from medsynth_server.workers import worker_pool


def blas_threads(_: int) -> list[int]:
    """How many threads this process' BLAS libraries have."""
    import numpy  # noqa: F401 - a worker loads it with its first work
    import scipy.linalg  # noqa: F401 - it brings a BLAS of its own

    return [
        library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
    ]


def test_a_worker_keeps_to_its_own_core(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    with worker_pool(2) as workers:
        found = list(workers.map(blas_threads, range(2)))
    assert all(threads and set(threads) == {1} for threads in found)
