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
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

T = TypeVar("T")

RETRY_STATUS = {408, 409, 412, 425, 429, 500, 502, 503, 504}  # a later request may succeed
DEADLINE = 900.0  # seconds in which a try may begin
API_DEADLINE = 15.0  # the same for requests before training
READ_TIMEOUT = 60.0  # seconds without a byte, after which a connection counts as cut


def retry(attempt: Callable[[], T], *, deadline: float) -> T:
    """Call a function again while the Hub is busy or cannot be reached.

    The pause doubles from 1 to 60 seconds with jitter, and is at least what the Hub asks for.

    Args:
        attempt: a request that may be repeated.
        deadline: the number of seconds in which a try may begin.

    Returns:
        What the function returns.

    Raises:
        Exception: the last error, if it is permanent or the deadline has passed.
    """
    ends, wait = time.monotonic() + deadline, 1.0
    while True:
        get_session().timeout = min(READ_TIMEOUT, deadline)  # The client has no timeout by default.
        try:
            return attempt()
        except Exception as error:
            pause = max(retry_after(error), wait * random.uniform(0.5, 1.0))
            if not is_transient(error) or time.monotonic() + pause > ends:
                raise
        time.sleep(pause)
        wait = min(2 * wait, 60.0)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_transient(error: BaseException) -> bool:
    """Return whether a later request may succeed."""
    for cause in causes(error):
        if isinstance(cause, HfHubHTTPError):
            return cause.response is not None and cause.response.status_code in RETRY_STATUS
        if isinstance(cause, OfflineModeIsEnabled):  # a ConnectionError that waiting does not end
            return False
        if isinstance(cause, (httpx2.TransportError, json.JSONDecodeError, ConnectionError)):
            return True
    return False


def retry_after(error: BaseException) -> float:
    """Return the seconds that the Hub asks to wait, or 0 (RFC 9110, Retry-After)."""
    for cause in causes(error):
        response = getattr(cause, "response", None)
        text = response.headers.get("Retry-After", "") if response is not None else ""
        if text.isdigit():
            return float(text)
        with suppress(ValueError):
            return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


def safe_error_message(error: BaseException) -> str:
    """Format an error on one line of at most 300 characters, without the token."""
    http_error = next((c for c in causes(error) if isinstance(c, HfHubHTTPError)), None)
    message = (http_error.server_message if http_error else None) or str(error)
    response = http_error.response if http_error else None
    status = f"{response.status_code} " if response is not None else ""
    line = " ".join(f"{status}{message or type(error).__name__}".split())
    # The token is replaced before the line is cut, so that no part of it remains.
    return line.replace(get_token() or "\0", "***")[:300]
