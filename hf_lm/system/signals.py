"""Signals: deferred while training, raised as errors otherwise.

Before and after training, the first signal ends a run immediately. During training, the first
signal is only recorded: all processes agree on it after a step, save a checkpoint and stop
together. A second signal ends the process immediately; the previous checkpoint is valid.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

from hf_lm.errors import StoppedError
from hf_lm.system.launch import end_with_launcher, launched

# SLURM announces the end of a job with SIGUSR1. A closed terminal or launcher sends SIGHUP, or
# SIGBREAK on Windows, which lacks the other two.
NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGBREAK")
HANDLED_SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
REPEATABLE_SIGNALS = (signal.SIGTERM, signal.SIGINT)  # a second one ends the process
FORWARD_SECONDS = 2.0  # a launcher forwards a signal that its processes received themselves


class Signals:
    """The first signal that this process received.

    Attributes:
        received: the number of the signal; 0 if there was none.
        time: when it came, on the monotonic clock, in seconds.
    """

    def __init__(self) -> None:
        self.received, self.time = 0, 0.0

    def record(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal during training: record the first, and end the process at the second."""
        if not self.received:
            self.received, self.time = number, time.monotonic()
            return
        forwarded = launched() and time.monotonic() - self.time < FORWARD_SECONDS
        if number in REPEATABLE_SIGNALS and not forwarded:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal outside training: raise an exception that libraries do not catch."""
        self.received = number
        raise KeyboardInterrupt


SIGNALS = Signals()  # one per process, like the signal handlers


def raise_lost_signal() -> None:
    """Raise the exception of a signal again if a library has swallowed it.

    Python drops an exception in a finalizer, and wraps one in `__set_name__` in a RuntimeError,
    which matplotlib catches while it is imported.

    Raises:
        KeyboardInterrupt: a signal came before.
    """
    if SIGNALS.received:
        raise KeyboardInterrupt


@contextmanager
def defer_signals() -> Iterator[Signals]:
    """Record signals instead of acting on them.

    Yields:
        The record of the signals.

    Raises:
        KeyboardInterrupt: a signal came before.
    """
    raise_lost_signal()
    try:
        with signal_handlers(SIGNALS.record):
            yield SIGNALS
    except BaseException:
        SIGNALS.received = 0
        raise


@contextmanager
def signals_as_errors() -> Iterator[None]:
    """Turn a signal into an error, so that locks and temporary files are released.

    Raises:
        StoppedError: a signal came.
    """
    SIGNALS.received = 0
    with signal_handlers(SIGNALS.interrupt):
        try:
            end_with_launcher()
            yield
            raise_lost_signal()
        except StoppedError:
            raise
        except BaseException as error:
            if SIGNALS.received or isinstance(error, KeyboardInterrupt):
                raise StoppedError(SIGNALS.received or signal.SIGINT) from None
            raise
        finally:
            SIGNALS.received = 0


@contextmanager
def signal_handlers(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers,
) -> Iterator[None]:
    """Install a handler for all handled signals, and restore the earlier handlers afterwards.

    Signals that are ignored stay ignored, as under nohup. Outside the main thread, where Python
    cannot install handlers, nothing changes.
    """
    earlier_handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in HANDLED_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                earlier_handlers[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier_handler in earlier_handlers.items():
            signal.signal(number, earlier_handler)


def default_signal_handlers() -> AbstractContextManager[None]:
    """Let the operating system handle signals while processes connect to each other.

    They connect in C code. If one process is gone, the others wait there for minutes, and Python
    would not call a handler.
    """
    return signal_handlers(signal.SIG_DFL)


def ignore_signals(initialize: Callable[[int], object] | None, worker: int) -> None:
    """Initialize a data-loader worker that ignores signals.

    The main process handles the signals that are sent to the process group.

    Args:
        initialize: the `worker_init_fn` to call afterwards.
        worker: the number of the worker.
    """
    for number in HANDLED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if initialize is not None:
        initialize(worker)
