"""Messages about uploads never contain the token, and name a command that a shell can run."""

import shlex
from pathlib import Path

import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from hf_lm.errors import RecipeError
from hf_lm.hub.download import fetch_file
from hf_lm.hub.retry import is_transient, safe_error_message
from hf_lm.recipe import make_recipe
from hf_lm.run_dir.directory import RunDirectory
from hf_lm.workflows import publish
from recipes import TINY, merged


def test_an_error_is_one_line_without_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert (
        safe_error_message(ValueError("bad\n header hf_secret " + "x" * 400))
        == "bad header *** " + "x" * 285
    )
    assert "hf_s" not in safe_error_message(ValueError("x" * 296 + "hf_secret"))
    monkeypatch.delenv("HF_TOKEN")
    assert safe_error_message(ValueError("")) == "ValueError"


def test_a_reset_connection_is_retried_and_offline_mode_is_not() -> None:
    assert is_transient(ConnectionResetError())
    assert not is_transient(OfflineModeIsEnabled())
    assert not is_transient(ValueError())


def test_an_unreachable_hub_is_named_as_the_cause_of_a_missing_recipe() -> None:
    with pytest.raises(
        RecipeError, match=r"recipe\.json is not in the cache, and the Hub cannot be"
    ):
        fetch_file("hub:USER/none", "recipe.json")  # the tests run in offline mode


def test_the_retry_command_is_quoted_for_a_shell(tmp_path: Path) -> None:
    raw = merged(TINY, {"hub.model_id": "USER/tiny"})
    recipe = make_recipe(raw, tmp_path, name="recipe.json")
    words = shlex.split(publish.retry_command(RunDirectory(tmp_path / "my runs"), recipe))
    assert words[:2] == ["hf-lm", "publish"]
    assert words[2].endswith("my runs")
    assert words[3:] == ["--set", "hub.model_id=USER/tiny"]
