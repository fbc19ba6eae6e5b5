"""A stranger's checkpoint runs nothing, reads nothing outside its folder, and is refused."""

import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from trainers import stopped, trainer_of

from hf_lm.checkpoints.manifest import MANIFEST, file_digest, manifest_text, read_manifest, verify
from hf_lm.checkpoints.store import CheckpointStore
from hf_lm.errors import CheckpointError, HfLmError, MismatchError

PICKLES = (
    *("optimizer.pt", "rng_state.pth", "rng_state_0.pth", "scheduler.pt", "scaler.pt"),
    *("training_args.bin", "pytorch_model.bin", "custom_checkpoint_0.pkl", "x.npy"),
)


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with one checkpoint, of step 3."""
    folder = tmp_path_factory.mktemp("genuine")
    stopped(folder, {}, 4)
    return folder


@pytest.fixture
def crafted(genuine: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a copy of it, with some of its JSON changed, and seals that."""

    def craft(name: str = "", **changes: Any) -> Path:
        folder = Path(shutil.copytree(genuine, tmp_path / "run"))
        checkpoint = folder / "checkpoint-3"
        if name:
            path = checkpoint / name
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        seal(checkpoint)
        return checkpoint

    return craft


def seal(checkpoint: Path) -> None:
    """Make a manifest for what lies there, as a stranger who knows the format would."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    del manifest["sha256"]
    names = [path.name for path in checkpoint.iterdir() if path.name != MANIFEST]
    manifest["files"] = {name: file_digest(checkpoint / name) for name in names}
    (checkpoint / MANIFEST).write_text(manifest_text(manifest))


class Canary:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_a_valid_crafted_checkpoint_is_read(crafted: Callable[..., Path]) -> None:
    checkpoint = crafted()
    assert CheckpointStore(checkpoint.parent).latest_valid() == checkpoint
    trainer = trainer_of(checkpoint.parent, {})
    trainer.train_from(checkpoint)
    assert trainer.state.global_step == 9


@pytest.mark.promise("S3")
@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_is_not_run_and_not_accepted_as_a_file(
    name: str, crafted: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = crafted()
    (checkpoint / name).write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    for sealing in (False, True):
        if sealing:
            seal(checkpoint)
        assert list(verify(checkpoint))
        with pytest.raises(CheckpointError):
            CheckpointStore(checkpoint.parent).latest_valid()
    assert not (tmp_path / "canary").exists()


@pytest.mark.promise("S3")
@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "optimizer.safetensors"])
def test_a_pickle_with_a_checkpoint_file_name_is_not_run(
    name: str, crafted: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = crafted()
    (checkpoint / name).write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    seal(checkpoint)
    with pytest.raises(CheckpointError, match=r"checkpoint-3: was not written by hf_lm"):
        trainer_of(checkpoint.parent, {}).train_from(
            CheckpointStore(checkpoint.parent).latest_valid()
        )
    assert not (tmp_path / "canary").exists()


@pytest.mark.promise("S4")
@pytest.mark.parametrize("kind", ["link", "pipe", "device", "folder"])
def test_only_regular_files_of_the_checkpoint_are_opened(
    kind: str, crafted: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = crafted()
    path = checkpoint / "model.safetensors"
    outside = tmp_path / "outside.safetensors"
    path.rename(outside)
    make = {
        "link": lambda: path.symlink_to(outside),
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
    }
    make[kind]()
    signal.alarm(5)
    try:
        assert any("model.safetensors" in line for line in verify(checkpoint))
    finally:
        signal.alarm(0)


@pytest.mark.promise("S4")
@pytest.mark.parametrize("name", ["../outside.json", "/etc/hostname", "sub/x.json", ".x.json", ""])
def test_a_manifest_that_names_a_path_outside_is_invalid(
    name: str, crafted: Callable[..., Path]
) -> None:
    checkpoint = crafted()
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    del manifest["sha256"]
    manifest["files"][name] = {"size": 0, "sha256": ""}
    (checkpoint / MANIFEST).write_text(manifest_text(manifest))
    assert read_manifest(checkpoint) is None


@pytest.mark.promise("S4")
def test_an_index_of_shards_is_not_accepted(crafted: Callable[..., Path]) -> None:
    checkpoint = crafted()
    weights = {"weight_map": {"a": "../../outside/evil.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(weights))
    seal(checkpoint)
    assert list(verify(checkpoint))


@pytest.mark.promise("S5")
def test_the_best_model_is_only_loaded_from_the_run_directory(
    crafted: Callable[..., Path], tmp_path: Path
) -> None:
    evil = tmp_path / "evil"
    checkpoint = crafted("trainer_state.json", best_model_checkpoint=str(evil), best_global_step=3)
    shutil.copytree(checkpoint, evil)
    weights = {name: value * 0 for name, value in load_file(evil / "model.safetensors").items()}
    save_file(weights, evil / "model.safetensors")
    axis = {"load_best_model_at_end": True, "eval_steps": 3}
    trainer = trainer_of(checkpoint.parent, axis)
    trainer.train_from(checkpoint)
    assert trainer.state.best_model_checkpoint != str(evil)
    assert all(weight.abs().sum() > 0 for weight in trainer.model.parameters() if weight.ndim == 2)


@pytest.mark.promise("77", "S5")
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("trainer_state.json", {"best_global_step": "../../evil"}),
        ("trainer_state.json", {"best_global_step": True}),
        ("trainer_state.json", {"global_step": "3"}),
        ("trainer_state.json", {"global_step": None}),
        ("trainer_state.json", {"epoch": []}),
        ("trainer_state.json", {"log_history": {}}),
        ("trainer_state.json", {"unknown": 1}),
        ("trainer_state.json", {"stateful_callbacks": {"EarlyStoppingCallback": 3}}),
        (
            "trainer_state.json",
            {"stateful_callbacks": {"EarlyStoppingCallback": {"attributes": {"on_log": "x"}}}},
        ),
        ("state.json", {"ranks": []}),
        ("state.json", {"ranks": [{}]}),
        ("state.json", {"schedule": "soon"}),
        ("state.json", {"schedule": "3"}),
        ("state.json", {"schedule": []}),
        ("state.json", {"logged_step": 3.0}),
        ("state.json", {"ended": 0}),
        ("state.json", {"seconds": "3"}),
        ("state.json", {"left_out": True}),
        ("state.json", {"guard": {"counts": {}}}),
        ("state.json", {"seconds": "soon"}),
    ],
)
def test_an_invalid_state_is_reported_in_one_line(
    name: str, changes: dict[str, Any], crafted: Callable[..., Path]
) -> None:
    checkpoint = crafted(name, **changes)
    trainer = trainer_of(checkpoint.parent, {"early_stopping_patience": 3, "eval_steps": 3})
    with pytest.raises(HfLmError, match=r"checkpoint-3: ") as caught:
        trainer.train_from(CheckpointStore(checkpoint.parent).latest_valid())
    assert caught.value.exit_code in (CheckpointError.exit_code, MismatchError.exit_code)
    assert len(caught.value.problems) == 1


@pytest.mark.promise("77", "S5")
@pytest.mark.parametrize(("key", "value"), [("loss", "0"), ("python", {}), ("numpy", [])])
def test_a_number_of_another_type_is_refused(
    key: str, value: Any, crafted: Callable[..., Path], genuine: Path
) -> None:
    state = json.loads((genuine / "checkpoint-3" / "state.json").read_text())
    checkpoint = crafted("state.json", ranks=[{**state["ranks"][0], key: value}])
    with pytest.raises(CheckpointError, match=rf"checkpoint-3: .* state.json: {key} is "):
        trainer_of(checkpoint.parent, {}).train_from(checkpoint)
