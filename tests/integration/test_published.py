"""Test publishing with the real client over HTTP, to a fake Hub that fails on request."""

import base64
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml
from fake_hub import Hub, serve

from recipes import TINY, merged, write_corpus

pytestmark = pytest.mark.slow

Run = Callable[..., CompletedProcess[str]]
FILES = {
    *("README.md", "recipe.json", "metrics.json", "provenance.json", "loss.png"),
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json"),
}
# `hf-lm` with short timeouts, so that tests with a silent Hub take seconds.
IMPATIENT_CLI = """
import sys
from hf_lm.hub import retry
retry.READ_TIMEOUT, retry.API_DEADLINE, retry.DEADLINE = 1.0, 3.0, 4.0
from hf_lm.cli import main
sys.exit(main(sys.argv[1:]))
"""


def published(hub: Hub, name: str = "tiny") -> set[str]:
    """Return the names of the files of a repository."""
    folder = hub.root / "models" / "USER" / name
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Serve a fake Hub; the environment has a token with write access."""
    with serve(tmp_path / "hub") as server:
        server.environment |= {"HF_TOKEN": "hf_writes", "HF_HOME": str(tmp_path / "home")}
        yield server


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run to its end."""
    base = tmp_path_factory.mktemp("trained")
    write_corpus(base / "corpus")
    (base / "recipe.json").write_text(json.dumps(TINY))
    subprocess.run([sys.executable, "-m", "hf_lm.run", base / "recipe.json"], check=True, cwd=base)
    return base / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Copy the finished run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def push(run: Path, hub: Hub, name: str = "USER/tiny", **changes: str | None) -> tuple[int, str]:
    """Publish a run with short timeouts; return the exit code and the output."""
    environment = {**os.environ, **hub.environment, **changes}
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT_CLI, "publish", run, "--set", f"hub.model_id={name}"],
        capture_output=True,
        text=True,
        timeout=60,
        env={key: value for key, value in environment.items() if value is not None},
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def wait_for_commit(hub: Hub, process: subprocess.Popen[bytes]) -> None:
    """Wait up to 60 seconds until a process has sent a commit."""
    end = time.monotonic() + 60
    while not any("/commit/" in request for request in hub.requests):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


def file_contents(folder: Path) -> dict[str, bytes]:
    """Read the files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.promise("T10")
def test_run_is_published_in_one_commit_without_private_data(
    write_recipe: Callable[..., Path], run_recipe: Run, tmp_path: Path, hub: Hub
) -> None:
    canaries = {
        "HF_TOKEN": "hf_writes",
        "CANARY": "canary-environment",
        "USER": "canary-user",
        "HOME": str(tmp_path / "canary-home"),
    }
    recipe = write_recipe(hub__model_id="USER/tiny", hub__push="end", hub__tags=["tiny"])
    (tmp_path / ".env").write_text("canary-dotenv")
    done = run_recipe(recipe, **{**hub.environment, **canaries})
    assert "/commit/" in done.stdout
    assert published(hub) == FILES
    assert hub.commits == ["models/USER/tiny: Model"]
    assert hub.private == {"USER/tiny"}
    folder = hub.root / "models" / "USER" / "tiny"
    assert file_contents(folder) == file_contents(tmp_path / "run" / "model")
    card = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    measured = {m["type"]: m["value"] for m in card["model-index"][0]["results"][0]["metrics"]}
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert measured == {key: metrics[key] for key in measured}
    host = os.uname().nodename
    words = [b"canary", str(tmp_path).encode(), *([host.encode()] if len(host) > 5 else [])]
    for body in bodies(hub):
        assert not [word for word in words if word in body]
        assert b"hf_writes" not in body
    run_files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path for path in run_files if b"hf_writes" in path.read_bytes()]
    before = len(hub.requests)
    run_recipe(recipe, **hub.environment)  # The run is complete, and the Hub has its files.
    assert not [request for request in hub.requests[before:] if "/commit/" in request]


def bodies(hub: Hub) -> Iterator[bytes]:
    """Yield the unpacked bodies of all requests, without headers, which contain the token."""
    for sent in hub.sent:
        body = sent.partition(b"\n\n")[2]
        body = gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body
        yield body
        if body.startswith(b'{"key":'):
            for line in map(json.loads, body.splitlines()):
                yield base64.b64decode(line["value"].get("content", ""))
    yield from hub.objects.values()


@pytest.mark.promise("S10")
def test_other_files_are_not_published_and_old_model_files_are_deleted(run: Path, hub: Hub) -> None:
    model = run / "model"
    (run / "outside.txt").write_text("outside")
    for name in (".env", "optimizer.pt", "training_args.bin", "notes.txt", "events.out.tfevents.1"):
        (model / name).write_text("private")
    (model / "vocab.json").symlink_to(run / "outside.txt")
    (model / "merges.txt").mkdir()
    os.mkfifo(model / "added_tokens.json")
    old = hub.root / "models" / "USER" / "tiny"
    old.mkdir(parents=True)
    hub.private.add("USER/tiny")
    for name in ("model-00001-of-00002.safetensors", "notes_of_the_author.txt"):
        (old / name).write_text("old")
    assert push(run, hub)[0] == 0
    assert published(hub) == {*FILES, "notes_of_the_author.txt"}
    assert len(hub.commits) == 1
    assert not (run / ".publish").exists()


@pytest.mark.promise("S8")
def test_file_that_contains_the_token_is_not_published(run: Path, hub: Hub) -> None:
    (run / "model" / "chat_template.jinja").write_text("{# hf_writes #}")
    code, output = push(run, hub)
    assert code == 6
    assert "chat_template.jinja: contains your token; nothing was uploaded" in output
    assert not hub.commits


REFUSED = {
    "no token": ({"HF_TOKEN": None}, "no token; run `hf auth login` or set HF_TOKEN"),
    "invalid token": ({"HF_TOKEN": "hf_bad"}, "401 Invalid user token"),
    "read-only token": ({"HF_TOKEN": "hf_reads"}, "the token is read-only"),
    "repository of another user": (
        {"name": "other/tiny"},
        "403 You have no rights under the namespace other",
    ),
    "offline mode": ({"HF_HUB_OFFLINE": "1"}, "offline mode"),
    "unencrypted endpoint": (
        {"HF_ENDPOINT": "http://example.com"},
        "your token would be sent unencrypted",
    ),
    "unknown host": ({"HF_ENDPOINT": "https://nowhere.invalid"}, "hub.model_id = "),
    "closed port": ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "hub.model_id = "),
}


@pytest.mark.promise("117")
def test_unreachable_hub_is_not_needed_if_all_files_are_cached(
    run: Path, hub: Hub, run_recipe: Run, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(run / "model", hub.root / "models" / "USER" / "base")
    recipe = write_recipe(model={"pretrained": "USER/base"}, tokenizer={}, output_dir="tuned")
    cached = {**hub.environment, "HF_HOME": str(tmp_path / "home")}
    assert "cannot be reached" not in run_recipe(recipe, "--check", **cached).stdout
    unreachable = {**cached, "HF_ENDPOINT": "http://127.0.0.1:9"}
    for offline in (None, "1"):
        before = len(hub.requests)
        done = run_recipe(recipe, "--check", **{**unreachable, "HF_HUB_OFFLINE": offline})
        assert ("note: the Hub cannot be reached" in done.stdout) == (offline is None)
        assert "Retrying" not in done.stderr
        assert len(hub.requests) == before


@pytest.mark.parametrize("case", REFUSED)
def test_missing_access_is_refused_before_the_upload(case: str, run: Path, hub: Hub) -> None:
    changes, expected = REFUSED[case]
    code, output = push(run, hub, **changes)
    assert code == 2
    assert expected in output
    assert len(output.splitlines()) == 1
    assert not hub.commits


@pytest.mark.promise("109")
def test_public_repository_is_refused_if_hub_private_is_true(run: Path, hub: Hub) -> None:
    (hub.root / "models" / "USER" / "tiny").mkdir(parents=True)
    code, output = push(run, hub)
    assert (code, hub.commits) == (2, [])
    assert "is public, but hub.private = true" in output


@pytest.mark.promise("108")
def test_access_is_checked_before_training(
    write_recipe: Callable[..., Path], run_recipe: Run, tmp_path: Path, hub: Hub
) -> None:
    recipe = write_recipe(hub__model_id="other/tiny", hub__push="end")
    for arguments in ((recipe,), (recipe, "--check")):
        done = run_recipe(*arguments, code=2 if len(arguments) == 1 else 0, **hub.environment)
    assert "other/tiny will be created on the Hub" in done.stdout
    done = run_recipe(recipe, code=2, **hub.environment)
    assert done.stderr.startswith('hub.model_id = "other/tiny": 403 ')
    assert not (tmp_path / "run" / "log.jsonl").exists()


TRANSIENT = {
    "commit by someone else": ("/commit/", [409, 412]),
    "too many requests": ("/commit/", [429, 500]),
    "unavailable": ("/commit/", [502, 503]),
    "gateway timeout": ("/preupload/", [504]),
    "storage unavailable": ("/lfs/", [500, 503]),
    "connection reset": ("/commit/", ["reset"]),
    "half a reply": ("/commit/", ["half"]),
    "no reply": ("/preupload/", ["silence"]),
    "storage connection reset": ("/lfs/", ["reset"]),
    "sign-in page of a network": ("/commit/", ["words"]),
    "lost reply": ("/commit/", ["lost"]),
}


@pytest.mark.parametrize("case", TRANSIENT)
def test_transient_fault_is_retried_and_leaves_one_commit(case: str, run: Path, hub: Hub) -> None:
    part, faults = TRANSIENT[case]
    hub.fail(part, *faults)
    code, output = push(run, hub)
    assert code == 0, output
    assert hub.commits == ["models/USER/tiny: Model"]
    assert published(hub) == FILES


PERMANENT = {
    "secrets found": ("/commit/", 400, "400 as scripted"),
    "invalid card": ("/validate-yaml", 400, "400 as scripted"),
    "access revoked": ("/commit/", 403, "403 as scripted"),
    "file too large": ("/lfs/", 413, "413"),
    "unavailable beyond the deadline": ("/commit/", 503, "503 as scripted"),
    "no reply beyond the deadline": ("/commit/", "silence", "timed out"),
    "connection reset beyond the deadline": ("/commit/", "reset", ""),
}


@pytest.mark.parametrize("case", PERMANENT)
def test_permanent_fault_names_the_command_that_tries_again(case: str, run: Path, hub: Hub) -> None:
    part, fault, expected = PERMANENT[case]
    hub.fail(part, *[fault] * 20)
    code, output = push(run, hub)
    assert code == 6
    assert expected in output
    assert len(output.splitlines()) == 1
    assert "MB)" in output
    assert f"`hf-lm publish {run} --set hub.model_id=USER/tiny` tries again" in output
    assert published(hub) == set()
    hub.script.clear()
    assert push(run, hub)[0] == 0
    assert published(hub) == FILES
    assert {path.name for path in (run / "model").iterdir()} == FILES


@pytest.mark.promise("T9")
def test_token_is_not_sent_to_a_redirect_target(run: Path, hub: Hub, tmp_path: Path) -> None:
    with serve(tmp_path / "elsewhere") as elsewhere:
        hub.fail("/commit/", elsewhere.url.replace("127.0.0.1", "localhost"))
        push(run, hub)
    assert elsewhere.requests
    assert not [sent for sent in elsewhere.sent if b"hf_writes" in sent]


@pytest.mark.promise("116")
def test_killed_upload_leaves_nothing_and_the_next_one_everything(run: Path, hub: Hub) -> None:
    hub.fail("/commit/", "silence")
    command = [sys.executable, "-m", "hf_lm.cli", "publish", str(run)]
    options = ["--set", "hub.model_id=USER/tiny"]
    process = subprocess.Popen([*command, *options], env={**os.environ, **hub.environment})
    wait_for_commit(hub, process)
    process.kill()
    process.wait()
    assert published(hub) == set()
    assert push(run, hub)[0] == 0
    assert published(hub) == FILES
    assert not (run / ".publish").exists()


@pytest.mark.promise("115")
def test_newest_checkpoint_is_uploaded_next_and_the_final_model_last(
    write_recipe: Callable[..., Path], run_recipe: Run, tmp_path: Path, hub: Hub
) -> None:
    """An upload takes longer than several steps, and training does not wait for it."""
    hub.fail("/commit/", 3.0, 503)
    changes = {"hub__model_id": "USER/tiny", "hub__push": "every_save", "training__save_steps": 1}
    run_recipe(write_recipe(**changes), **hub.environment)
    *checkpoints, final = hub.commits
    assert final == "models/USER/tiny: Model"
    assert hub.tags[0] == "step-1"
    assert [f"models/USER/tiny: Model at {tag}" for tag in hub.tags] == checkpoints
    assert len(checkpoints) < 8
    assert published(hub) == FILES
    assert not (tmp_path / "run" / ".publish").exists()


@pytest.mark.promise("115")
def test_failed_checkpoint_uploads_do_not_end_the_run_but_a_failed_final_one_does(
    write_recipe: Callable[..., Path], run_recipe: Run, tmp_path: Path, hub: Hub
) -> None:
    hub.fail("/commit/", *[400] * 20)
    changes = {"hub__model_id": "USER/tiny", "hub__push": "every_save"}
    done = run_recipe(write_recipe(**changes), code=6, **hub.environment)
    assert "note: USER/tiny: not uploaded" in done.stdout
    assert "tries again" in done.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"
    assert {path.name for path in (tmp_path / "run" / "model").iterdir()} == FILES


@pytest.mark.promise("115")
def test_stopped_run_does_not_wait_for_uploads_or_publish_its_model(
    write_recipe: Callable[..., Path], tmp_path: Path, hub: Hub
) -> None:
    hub.fail("/commit/", *["silence"] * 9)
    changes = {"hub__model_id": "USER/tiny", "hub__push": "every_save", "training__max_steps": 5000}
    recipe = write_recipe(**changes)
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_lm.run", recipe], env={**os.environ, **hub.environment}
    )
    wait_for_commit(hub, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=15) == 143
    assert published(hub) == set()


def test_reproduced_run_has_the_same_bits(
    write_recipe: Callable[..., Path], run_recipe: Run, tmp_path: Path, hub: Hub
) -> None:
    recipe = write_recipe(hub__model_id="USER/tiny", hub__push="end")
    run_recipe(recipe, **hub.environment)
    data = f"data.source={tmp_path / 'corpus'}"
    here = [*("--set", data), *("--set", f"output_dir={tmp_path / 'again'}")]
    reproduce = partial(run_recipe, "reproduce", "hub:USER/tiny", module="hf_lm.cli")
    done = reproduce(*here, **hub.environment)
    assert done.stdout.count("here: equal") == 4
    assert "weights        the same bits" in done.stdout
    other_seed = [*here[:2], *("--set", f"output_dir={tmp_path / 'other'}"), *("--set", "seed=1")]
    done = reproduce(*other_seed, "--json", **hub.environment)
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert result.keys() == {"run", "metrics", "same_weights", "notes"}
    assert (result["run"], result["same_weights"]) == (str(tmp_path / "other"), False)
    loss = json.loads((tmp_path / "other" / "metrics.json").read_text())["loss"]
    assert result["metrics"]["loss"]["here"] == loss != result["metrics"]["loss"]["published"]
    publish = partial(run_recipe, "publish", tmp_path / "run", "--json", module="hf_lm.cli")
    assert "/commit/" in json.loads(publish(**hub.environment).stdout)["url"]
    fine_tune = [*("--set", data), *("--set", f"output_dir={tmp_path / 'tuned'}")]
    run_recipe("hub:USER/tiny", "--from", "USER/tiny", *fine_tune, **hub.environment)
    tuned, first = (
        json.loads((tmp_path / name / "metrics.json").read_text())["loss"]
        for name in ("tuned", "run")
    )
    assert tuned < first


def test_recipe_from_the_hub_cannot_choose_output_dir_or_repository(
    write_recipe: Callable[..., Path], run_recipe: Run, tmp_path: Path, hub: Hub
) -> None:
    folder = hub.root / "models" / "USER" / "shared"
    folder.mkdir(parents=True)
    recipe = merged(TINY, {"hub": {"model_id": "USER/taken", "push": "end"}})
    recipe["output_dir"] = str(tmp_path / "taken")
    (folder / "recipe.json").write_text(json.dumps(recipe))
    write_recipe()
    here = (
        "--set",
        f"data.source={tmp_path / 'corpus'}",
        "--set",
        f"output_dir={tmp_path / 'run'}",
    )
    done = run_recipe("hub:USER/shared", *here, **hub.environment)
    assert "published" not in done.stdout
    assert not hub.commits
    assert not (tmp_path / "taken").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hub:USER/nobody", "hub:USER/nobody: 404"),
        ("hub:USER/bare", "has no recipe.json; it was not published by hf_lm"),
    ],
)
def test_missing_published_recipe_is_one_line(
    name: str, expected: str, run_recipe: Run, hub: Hub
) -> None:
    (hub.root / "models" / "USER" / "bare").mkdir(parents=True)
    done = run_recipe(name, code=2, **hub.environment)
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_unfinished_run_is_not_published(run: Path, hub: Hub) -> None:
    (run / "status.json").write_text('{"state": "stopped", "reason": "", "step": 4}')
    code, output = push(run, hub)
    assert code == 2
    assert "does not hold a finished run" in output
    assert not hub.requests
