"""The number of threads of matrix products in fits on the host."""

from threadpoolctl import threadpool_limits

# Multiplications per step below which threads cost more than they save. On two cores one thread was faster up
# to 5,000 examples x 384 features x 100 classes, and 20 times faster on busy cores.
_SMALL = 200_000_000


def threads_for(num_products: int) -> threadpool_limits:
    """A context in which BLAS and LAPACK use one thread, if a step of a fit has few multiplications.

    L-BFGS calls them many times per step on small matrices, and each call waits for all threads. Larger fits
    keep the number of threads.
    """
    return threadpool_limits(limits=1 if num_products < _SMALL else None, user_api="blas")
