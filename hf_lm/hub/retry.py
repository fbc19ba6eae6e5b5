"""Retry Hub requests with backoff, honouring Retry-After."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx2
from huggingface_hub import get_session, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    OfflineModeIsEnabled,
)

T = TypeVar("T")


RETRY_STATUS = {408, 409, 412, 425, 429, 500, 502, 503, 504}  # what the next try may find otherwise


DEADLINE = 900.0  # seconds in which a try begins


API_DEADLINE = 15.0  # the same, before training


READ_TIMEOUT = 60.0  # seconds without a byte, after which a connection counts as cut


def retry(attempt: Callable[[], T], *, deadline: float) -> T:
    """What an attempt returns, tried again while the Hub is busy or out of reach.

    Args:
        attempt: that may be made again.
        deadline: seconds in which a try begins.
    """
    ends, wait = time.monotonic() + deadline, 1.0
    while True:
        get_session().timeout = min(READ_TIMEOUT, deadline)  # the client's own is none at all
        try:
            return attempt()
        except Exception as error:
            pause = max(retry_after(error), wait * random.uniform(0.5, 1.0))
            if not is_transient(error) or time.monotonic() + pause > ends:
                raise
        time.sleep(pause)
        wait = min(2 * wait, 60.0)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_transient(error: BaseException) -> bool:
    """Whether the next try may go better."""
    for cause in causes(error):
        if isinstance(cause, HfHubHTTPError):
            return cause.response is not None and cause.response.status_code in RETRY_STATUS
        if isinstance(cause, OfflineModeIsEnabled):  # a ConnectionError that no waiting ends
            return False
        if isinstance(cause, (httpx2.TransportError, json.JSONDecodeError, ConnectionError)):
            return True
    return False


def retry_after(error: BaseException) -> float:
    """The seconds that the Hub asks to wait (RFC 9110, Retry-After)."""
    for cause in causes(error):
        response = getattr(cause, "response", None)
        text = response.headers.get("Retry-After", "") if response is not None else ""
        if text.isdigit():
            return float(text)
        with suppress(ValueError):
            return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


def safe_error_message(error: BaseException) -> str:
    """An error on one line, not longer than a person reads, without the token."""
    status = next((c for c in causes(error) if isinstance(c, HfHubHTTPError)), None)
    message = (status.server_message if status else None) or str(error) or type(error).__name__
    code = f"{status.response.status_code} " if status and status.response is not None else ""
    line = " ".join(f"{code}{message}".split())
    return line.replace(get_token() or "\0", "***")[:300]  # in this order: no half of it is left
