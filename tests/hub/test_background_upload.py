"""Test that an upload that fails in any way is told, and that the next one still happens."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_lm.errors import HfLmError
from hf_lm.hub import background_upload
from hf_lm.hub.background_upload import BackgroundUploader
from hf_lm.recipe import HubRecipe


def checkpoint(folder: Path, step: int) -> Path:
    """A checkpoint with one file that is published."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until the thread has done something."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the thread has ended"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("a defect\nof a library"), "step-4 was not uploaded: RuntimeError: a defect"),
        (OSError("the disk"), "the disk"),
        (HfLmError("the Hub said no"), "the Hub said no"),
    ],
)
def test_an_upload_that_fails_is_told_and_the_next_one_happens(
    error: Exception, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded, told = list[str](), list[str]()

    def publish(folder: Path, recipe: HubRecipe, *, tag: str, **keys: Any) -> None:
        if tag == "step-4":
            raise error
        uploaded.append(tag)

    monkeypatch.setattr(background_upload, "publish", publish)
    uploader = BackgroundUploader(
        tmp_path / "staging",
        HubRecipe(),
        write_card=lambda folder, step: None,
        retry_command="hf-lm publish run",
        notify=told.append,
    )
    uploader.submit(checkpoint(tmp_path, 4))
    wait_for(lambda: told)
    uploader.submit(checkpoint(tmp_path, 8))
    wait_for(lambda: uploaded)
    uploader.close()
    assert uploaded == ["step-8"]
    (said,) = told
    assert said.startswith(line)
    assert "\n" not in said
