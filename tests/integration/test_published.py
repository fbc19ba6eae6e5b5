"""What is published, by the real client over HTTP, to a stand-in of the Hub that fails on order."""

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
# So that a Hub that stays silent is given up in seconds: what `publish` does, sooner.
IMPATIENT = """
import sys
from hf_lm import hub
from hf_lm.cli import main
hub.SILENCE, hub.ASKING, hub.DEADLINE = 1.0, 3.0, 4.0
sys.exit(main(sys.argv[1:]))
"""


def published(hub: Hub, name: str = "tiny") -> set[str]:
    """The files of a repository."""
    folder = hub.root / "models" / "USER" / name
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A stand-in that knows a token that may write."""
    with serve(tmp_path / "hub") as found:
        found.environment |= {"HF_TOKEN": "hf_writes", "HF_HOME": str(tmp_path / "home")}
        yield found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended."""
    base = tmp_path_factory.mktemp("trained")
    write_corpus(base / "corpus")
    (base / "recipe.json").write_text(json.dumps(TINY))
    subprocess.run([sys.executable, "-m", "hf_lm.run", base / "recipe.json"], check=True, cwd=base)
    return base / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def push(run: Path, hub: Hub, name: str = "USER/tiny", **changes: str | None) -> tuple[int, str]:
    """Publish a run impatiently; the exit code and what was said."""
    environment = {**os.environ, **hub.environment, **changes}
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT, "publish", run, "--set", f"hub.model_id={name}"],
        capture_output=True,
        text=True,
        timeout=60,
        env={key: value for key, value in environment.items() if value is not None},
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def digests(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.promise("T10")
def test_a_run_is_published_in_one_commit_and_nothing_else_leaves_the_machine(
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
    assert digests(folder) == digests(tmp_path / "run" / "model")
    card = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    measured = {m["type"]: m["value"] for m in card["model-index"][0]["results"][0]["metrics"]}
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert measured == {key: metrics[key] for key in measured}
    host = os.uname().nodename
    words = [b"canary", str(tmp_path).encode(), *([host.encode()] if len(host) > 5 else [])]
    for body in bodies(hub):
        assert not [word for word in words if word in body]
        assert b"hf_writes" not in body
    kept = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path for path in kept if b"hf_writes" in path.read_bytes()]
    before = len(hub.requests)
    run_recipe(recipe, **hub.environment)  # is complete, and finds nothing to send
    assert not [request for request in hub.requests[before:] if "/commit/" in request]


def bodies(hub: Hub) -> Iterator[bytes]:
    """What was sent, unpacked, without the headers that name the server and carry the token."""
    for sent in hub.sent:
        body = sent.partition(b"\n\n")[2]
        body = gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body
        yield body
        if body.startswith(b'{"key":'):
            for line in map(json.loads, body.splitlines()):
                yield base64.b64decode(line["value"].get("content", ""))
    yield from hub.objects.values()


@pytest.mark.promise("S10")
def test_strays_are_not_published_and_old_files_of_ours_go(run: Path, hub: Hub) -> None:
    model = run / "model"
    (run / "outside.txt").write_text("outside")
    for name in (".env", "optimizer.pt", "training_args.bin", "notes.txt", "events.out.tfevents.1"):
        (model / name).write_text("stray")
    (model / "vocab.json").symlink_to(run / "outside.txt")
    (model / "merges.txt").mkdir()
    os.mkfifo(model / "added_tokens.json")
    old = hub.root / "models" / "USER" / "tiny"
    old.mkdir(parents=True)
    hub.private.add("USER/tiny")
    for name in ("model-00001-of-00002.safetensors", "theirs.txt"):
        (old / name).write_text("old")
    assert push(run, hub)[0] == 0
    assert published(hub) == {*FILES, "theirs.txt"}
    assert len(hub.commits) == 1
    assert not (run / ".publish").exists()


@pytest.mark.promise("S8")
def test_a_file_that_holds_the_token_is_not_published(run: Path, hub: Hub) -> None:
    (run / "model" / "chat_template.jinja").write_text("{# hf_writes #}")
    code, said = push(run, hub)
    assert code == 6
    assert "chat_template.jinja: holds your token; nothing was uploaded" in said
    assert not hub.commits


REFUSED = {
    "108 no token": ({"HF_TOKEN": None}, "no token; `hf auth login` or set HF_TOKEN"),
    "108 bad token": ({"HF_TOKEN": "hf_bad"}, "401 Invalid user token"),
    "108 token that reads": ({"HF_TOKEN": "hf_reads"}, "the token may only read"),
    "109 of others": ({"name": "other/tiny"}, "403 You have no rights under the namespace other"),
    "117 offline": ({"HF_HUB_OFFLINE": "1"}, "offline mode"),
    "s15 in clear": ({"HF_ENDPOINT": "http://example.com"}, "would be sent your token in clear"),
    "113 no such host": ({"HF_ENDPOINT": "https://nowhere.invalid"}, "hub.model_id = "),
    "113 nobody there": ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "hub.model_id = "),
}


@pytest.mark.promise("117")
def test_a_hub_that_is_down_is_done_without_where_all_is_cached(
    run: Path, hub: Hub, run_recipe: Run, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(run / "model", hub.root / "models" / "USER" / "base")
    recipe = write_recipe(model={"pretrained": "USER/base"}, tokenizer={}, output_dir="tuned")
    cached = {**hub.environment, "HF_HOME": str(tmp_path / "home")}
    assert "does not answer" not in run_recipe(recipe, "--check", **cached).stdout
    nobody = {**cached, "HF_ENDPOINT": "http://127.0.0.1:9"}
    for offline in (None, "1"):
        before = len(hub.requests)
        done = run_recipe(recipe, "--check", **{**nobody, "HF_HUB_OFFLINE": offline})
        assert ("note: the Hub does not answer" in done.stdout) == (offline is None)
        assert "Retrying" not in done.stderr
        assert len(hub.requests) == before


@pytest.mark.parametrize("row", REFUSED)
def test_what_cannot_be_published_is_refused_before(row: str, run: Path, hub: Hub) -> None:
    changes, expected = REFUSED[row]
    code, said = push(run, hub, **changes)
    assert code == 2
    assert expected in said
    assert len(said.splitlines()) == 1
    assert not hub.commits


@pytest.mark.promise("109")
def test_a_public_repository_is_refused_where_private_was_asked(run: Path, hub: Hub) -> None:
    (hub.root / "models" / "USER" / "tiny").mkdir(parents=True)
    code, said = push(run, hub)
    assert (code, hub.commits) == (2, [])
    assert "is public, and hub.private = true" in said


@pytest.mark.promise("108")
def test_access_is_looked_for_before_anything_is_trained(
    write_recipe: Callable[..., Path], run_recipe: Run, tmp_path: Path, hub: Hub
) -> None:
    recipe = write_recipe(hub__model_id="other/tiny", hub__push="end")
    for arguments in ((recipe,), (recipe, "--check")):
        done = run_recipe(*arguments, code=2 if len(arguments) == 1 else 0, **hub.environment)
    assert "other/tiny will be made on the Hub" in done.stdout
    done = run_recipe(recipe, code=2, **hub.environment)
    assert done.stderr.startswith('hub.model_id = "other/tiny": 403 ')
    assert not (tmp_path / "run" / "log.jsonl").exists()


PASSING = {
    "111 another commit": ("/commit/", [409, 412]),
    "112 too many": ("/commit/", [429, 500]),
    "112 down": ("/commit/", [502, 503]),
    "112 slow": ("/preupload/", [504]),
    "112 storage": ("/lfs/", [500, 503]),
    "113 reset": ("/commit/", ["reset"]),
    "113 half a reply": ("/commit/", ["half"]),
    "113 silent": ("/preupload/", ["silence"]),
    "113 reset storage": ("/lfs/", ["reset"]),
    "113 another's words": ("/commit/", ["words"]),
    "114 lost reply": ("/commit/", ["lost"]),
}


@pytest.mark.parametrize("row", PASSING)
def test_what_passes_is_tried_again_and_ends_in_one_commit(row: str, run: Path, hub: Hub) -> None:
    part, faults = PASSING[row]
    hub.fail(part, *faults)
    code, said = push(run, hub)
    assert code == 0, said
    assert hub.commits == ["models/USER/tiny: Model"]
    assert published(hub) == FILES


LASTING = {
    "110 secrets found": ("/commit/", 400, "400 as scripted"),
    "110 bad card": ("/validate-yaml", 400, "400 as scripted"),
    "108 taken away": ("/commit/", 403, "403 as scripted"),
    "118 too large": ("/lfs/", 413, "413"),
    "112 down for long": ("/commit/", 503, "503 as scripted"),
    "113 silent for long": ("/commit/", "silence", "timed out"),
    "113 cut for long": ("/commit/", "reset", ""),
}


@pytest.mark.parametrize("row", LASTING)
def test_what_lasts_is_told_with_the_command_that_tries_again(
    row: str, run: Path, hub: Hub
) -> None:
    part, fault, expected = LASTING[row]
    hub.fail(part, *[fault] * 20)
    code, said = push(run, hub)
    assert code == 6
    assert expected in said
    assert len(said.splitlines()) == 1
    assert "MB)" in said
    assert f"`hf-lm publish {run} --set hub.model_id=USER/tiny` tries again" in said
    assert published(hub) == set()
    hub.script.clear()
    assert push(run, hub)[0] == 0
    assert published(hub) == FILES
    assert {path.name for path in (run / "model").iterdir()} == FILES


@pytest.mark.promise("T9")
def test_the_token_does_not_follow_a_redirect(run: Path, hub: Hub, tmp_path: Path) -> None:
    with serve(tmp_path / "elsewhere") as elsewhere:
        hub.fail("/commit/", elsewhere.url.replace("127.0.0.1", "localhost"))
        push(run, hub)
    assert elsewhere.requests
    assert not [sent for sent in elsewhere.sent if b"hf_writes" in sent]


@pytest.mark.promise("116")
def test_a_kill_while_it_uploads_leaves_nothing_and_the_next_try_all(
    run: Path, hub: Hub
) -> None:
    hub.fail("/commit/", "silence")
    command = [sys.executable, "-m", "hf_lm.cli", "publish", str(run)]
    given = ["--set", "hub.model_id=USER/tiny"]
    process = subprocess.Popen([*command, *given], env={**os.environ, **hub.environment})
    while not any("/commit/" in request for request in hub.requests):
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert published(hub) == set()
    assert push(run, hub)[0] == 0
    assert published(hub) == FILES
    assert not (run / ".publish").exists()


@pytest.mark.promise("115")
def test_the_newest_save_is_next_and_the_finished_model_last(
    write_recipe: Callable[..., Path], run_recipe: Run, tmp_path: Path, hub: Hub
) -> None:
    """An upload takes longer than several steps; training waits for none."""
    hub.fail("/commit/", 3.0, 503)
    given = {"hub__model_id": "USER/tiny", "hub__push": "every_save", "training__save_steps": 1}
    run_recipe(write_recipe(**given), **hub.environment)
    *saves, last = hub.commits
    assert last == "models/USER/tiny: Model"
    assert hub.tags[0] == "step-1"
    assert [f"models/USER/tiny: Model at {tag}" for tag in hub.tags] == saves
    assert len(saves) < 8
    assert published(hub) == FILES
    assert not (tmp_path / "run" / ".publish").exists()


@pytest.mark.promise("115")
def test_uploads_that_fail_end_no_run_but_the_last_one_is_told(
    write_recipe: Callable[..., Path], run_recipe: Run, tmp_path: Path, hub: Hub
) -> None:
    hub.fail("/commit/", *[400] * 20)
    given = {"hub__model_id": "USER/tiny", "hub__push": "every_save"}
    done = run_recipe(write_recipe(**given), code=6, **hub.environment)
    assert "note: USER/tiny: not uploaded" in done.stdout
    assert "tries again" in done.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"
    assert {path.name for path in (tmp_path / "run" / "model").iterdir()} == FILES


@pytest.mark.promise("115")
def test_a_signal_waits_for_no_upload_and_publishes_nothing_as_final(
    write_recipe: Callable[..., Path], tmp_path: Path, hub: Hub
) -> None:
    hub.fail("/commit/", *["silence"] * 9)
    given = {"hub__model_id": "USER/tiny", "hub__push": "every_save", "training__max_steps": 5000}
    recipe = write_recipe(**given)
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_lm.run", recipe], env={**os.environ, **hub.environment}
    )
    while not any("/commit/" in request for request in hub.requests):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=15) == 143
    assert published(hub) == set()


def test_a_published_recipe_runs_again_and_gives_the_same_bits(
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
    other = [*here[:2], *("--set", f"output_dir={tmp_path / 'other'}"), *("--set", "seed=1")]
    done = reproduce(*other, **hub.environment)
    assert "weights        other bits" in done.stdout
    there = [*("--set", data), *("--set", f"output_dir={tmp_path / 'tuned'}")]
    run_recipe("hub:USER/tiny", "--from", "USER/tiny", *there, **hub.environment)
    tuned, first = (
        json.loads((tmp_path / name / "metrics.json").read_text())["loss"]
        for name in ("tuned", "run")
    )
    assert tuned < first


def test_a_strangers_recipe_says_nothing_of_where_it_is_written_or_published(
    write_recipe: Callable[..., Path], run_recipe: Run, tmp_path: Path, hub: Hub
) -> None:
    folder = hub.root / "models" / "USER" / "theirs"
    folder.mkdir(parents=True)
    theirs = merged(TINY, {"hub": {"model_id": "USER/taken", "push": "end"}})
    theirs["output_dir"] = str(tmp_path / "taken")
    (folder / "recipe.json").write_text(json.dumps(theirs))
    write_recipe()
    here = (
        "--set",
        f"data.source={tmp_path / 'corpus'}",
        "--set",
        f"output_dir={tmp_path / 'run'}",
    )
    done = run_recipe("hub:USER/theirs", *here, **hub.environment)
    assert "published" not in done.stdout
    assert not hub.commits
    assert not (tmp_path / "taken").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hub:USER/nobody", "hub:USER/nobody: 404"),
        ("hub:USER/bare", "holds no recipe.json; it was not published by hf_lm"),
    ],
)
def test_a_recipe_that_is_not_there_is_told(
    name: str, expected: str, run_recipe: Run, hub: Hub
) -> None:
    (hub.root / "models" / "USER" / "bare").mkdir(parents=True)
    done = run_recipe(name, code=2, **hub.environment)
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_run_that_has_not_ended_is_not_published(run: Path, hub: Hub) -> None:
    (run / "status.json").write_text('{"state": "stopped", "reason": "", "step": 4}')
    code, said = push(run, hub)
    assert code == 2
    assert "holds no run that has ended" in said
    assert not hub.requests
