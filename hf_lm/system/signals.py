"""Signals: deferred while training, raised as errors otherwise.

Before training, and after it, the first signal ends a run at once. While it trains, the first one
is noted: all processes agree on it behind a step, save and leave together. The second is the
operating system's to act on, at once; the checkpoint before is whole.
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
from hf_lm.system.processes import end_with_launcher, launched

# SIGUSR1 is how SLURM announces the end of a job, SIGHUP how a terminal or a launcher goes.
HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


REPEATABLE_SIGNALS = (signal.SIGTERM, signal.SIGINT)


FORWARDED = 2.0  # seconds in which a launcher sends on the signal that its processes got as well


class Signals:
    """The first signal that came; 0 is none."""

    def __init__(self) -> None:
        self.received, self.time = 0, 0.0

    def note(self, number: int, frame: FrameType | None) -> None:
        """The first signal waits for the step; the second does not."""
        if not self.received:
            self.received, self.time = number, time.monotonic()
            return
        forwarded = launched() and time.monotonic() - self.time < FORWARDED
        if number in REPEATABLE_SIGNALS and not forwarded:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Leave at once, by what no library takes for bad input."""
        self.received = number
        raise KeyboardInterrupt


SIGNALS = Signals()  # of this process, as the handlers are


@contextmanager
def defer_signals() -> Iterator[Signals]:
    """Note signals, meanwhile; one that came before and was lost in a finalizer counts."""
    if SIGNALS.received:
        raise KeyboardInterrupt
    try:
        with signal_handlers(SIGNALS.note):
            yield SIGNALS
    except BaseException:
        SIGNALS.received = 0
        raise


@contextmanager
def signals_as_errors() -> Iterator[None]:
    """Let a signal end this process as an error does, so that all it holds is let go.

    Raises:
        StoppedError: one did.
    """
    SIGNALS.received = 0
    with signal_handlers(SIGNALS.stop):
        try:
            end_with_launcher()
            yield
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
    """Handle signals in a way, meanwhile, but those that are ignored, as under nohup."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in HANDLED_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def default_signal_handlers() -> AbstractContextManager[None]:
    """Leave signals to the operating system, meanwhile.

    Processes find each other in C, and where one is gone the others wait there for minutes: a
    handler in Python would not be called.
    """
    return signal_handlers(signal.SIG_DFL)


def ignore_signals(then: Callable[[int], object] | None, number: int) -> None:
    """Begin a worker of a DataLoader: what is sent to a whole group is its main process's to heed.

    Args:
        then: how it begins otherwise.
        number: of the worker.
    """
    for heeded in HANDLED_SIGNALS:
        signal.signal(heeded, signal.SIG_IGN)
    if then is not None:
        then(number)
