"""Append to log.jsonl, read it, and truncate it on resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hf_lm.system.files import json_safe


def line_of(row: Mapping[str, Any]) -> str:
    """A row as one line of strict JSON."""
    return json.dumps(json_safe(row), ensure_ascii=False, allow_nan=False)
