"""Figures as PNG files, drawn here or in another process. Imports no JAX."""

import io
import pickle
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from vit_registers.errors import DataError, UserError

DPI = 130


def save_png(figure: Figure, path: Path) -> None:
    """Draws the figure and writes it to `path`. Raises DataError where the folder cannot be written to."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    for artist in figure.findobj(Text):  # a name between dollar signs is no formula; labels of ticks are
        if "$" in artist.get_text() and "mathdefault" not in artist.get_text():
            artist.set_parse_math(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # of a name, drawn as a box
        figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", facecolor="white")
    try:
        path.write_bytes(buffer.getvalue())
    except OSError as error:
        raise DataError(f"{path.parent} cannot be written to: {error.strerror}") from None


@contextmanager
def in_background() -> Iterator[Callable[[Figure, Path], None]]:
    """A function like `save_png` that returns at once: another process draws while this one computes.

    The pictures are complete once the context ends. An error of a picture is raised by the next call, or at
    the end. The other process ends with its standard input, so also if this one is killed. Threads may share
    the function.
    """
    # A worker of multiprocessing would import the main module, and with it JAX.
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
    pipe = subprocess.PIPE
    # In a session of its own, ctrl-C does not reach it, and it prints no stack trace.
    worker = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, start_new_session=True)
    pending: list[Future[None]] = []
    pool = ThreadPoolExecutor(1)  # writing to the process waits until the picture before is drawn

    def ask(figure: Figure, path: Path) -> None:
        assert worker.stdin is not None and worker.stdout is not None
        try:
            worker.stdin.write(pickle.dumps((figure, path)))
            worker.stdin.flush()
            error = pickle.load(worker.stdout)
        except (BrokenPipeError, EOFError):
            raise UserError(
                f"the process that draws pictures ended with code {worker.wait()} at {path}"
            ) from None
        if error is not None:
            raise error

    def draw(figure: Figure, path: Path) -> None:
        for future in list(pending):
            if future.done():
                future.result()
        pending.append(pool.submit(ask, figure, path))

    try:
        yield draw
        for future in pending:
            future.result()
    except BaseException:
        worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        worker.communicate()


def serve() -> None:
    """Draws pickled pairs of a figure and a path from the standard input, until it ends.

    Answers each with a pickled None, or the error.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # to end without a message once nobody reads the answers
    while True:
        answer: Exception | None = None
        try:
            save_png(*pickle.load(sys.stdin.buffer))
        except EOFError:
            return
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = error
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()
