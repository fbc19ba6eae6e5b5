"""A whole run with a fault at any call that changes its folder; then the same command again.

A crash comes at every call, but for those that make no difference: the files are the same before an
fsync as behind it, and what is secured changes by nothing else. An error comes at every eighth,
other ones for each kind; HF_LM_FAULTS=all has everything come at every call.
"""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from faults import CRASH, UNTRACED

from hf_lm.checkpoints.manifest import verify
from hf_lm.checkpoints.store import NAME
from hf_lm.errors import EXIT_IO
from recipes import TINY, merged, write_corpus

pytestmark = pytest.mark.slow

SUPPORT = Path(__file__).parents[1] / "support"
ALL = os.environ.get("HF_LM_FAULTS") == "all"
AT_ONCE = 2  # runs
NAMES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "serialize_file")
SMALLER = {
    "tokenizer.train.vocab_size": 300,
    "data.block_size": 8,
    "model.n_layer": 1,
    "training.max_steps": 3,
    "training.tokens_per_step": 32,
    "training.logging_steps": 1,
    "training.eval_steps": 3,
    "training.save_steps": 1,
    "evaluation.max_blocks": 4,
    "evaluation.max_new_tokens": 1,
}


class Ended(NamedTuple):
    """How a run has ended: its exit code, the call the fault came at, and its lines on stderr."""

    code: int
    hit: str
    lines: list[str]


class Server:
    """A process that has imported everything, and does each run in a fork of itself."""

    def __init__(self, arguments: list[str], **variables: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SUPPORT / "faults.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        )

    def answer(self) -> Any:
        """Its next line."""
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def run(self, case: dict[str, Any]) -> Ended:
        """A run, with the fault of the case."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        lines = self.answer()
        return Ended(**lines, lines=Path(case["prints"][1]).read_text().splitlines())

    def close(self) -> None:
        """End it."""
        self.process.communicate(timeout=60)


class Bench:
    """A recipe, what an unbroken run of it leaves, and servers to try it on."""

    def __init__(self, path: Path) -> None:
        self.path, self.started = path, dict[str, list[Server]]()
        write_corpus(path / "corpus")
        (path / "recipe.json").write_text(json.dumps(merged(TINY, SMALLER)), encoding="utf-8")

    def arguments(self, folder: Path) -> list[str]:
        """Of the command of a run."""
        return [str(self.path / "recipe.json"), "--set", f"output_dir={folder}"]

    def servers(self, level: str) -> list[Server]:
        """Those of a level; each does an unbroken run as it starts."""
        if level not in self.started:
            preload = {"LD_PRELOAD": build_preload(self.path)} if level == "native" else {}
            folders = [self.path / f"whole-{level}-{number}" for number in range(AT_ONCE)]
            self.started[level] = [Server(self.arguments(path), **preload) for path in folders]
            assert [server.answer() for server in self.started[level]] == [0] * AT_ONCE
            assert {weights(path) for path in folders} == {weights(self.whole)}
        return self.started[level]

    @property
    def whole(self) -> Path:
        """The folder of an unbroken run."""
        return next(self.path.glob("whole-*-0"))

    def case(self, name: str, **fault: Any) -> dict[str, Any]:
        """What a server is told of a run with a fault."""
        aside = self.path / f"{name}-aside"
        aside.mkdir()
        return {
            "arguments": self.arguments(self.path / name),
            "folder": str(self.path / name),
            "aside": str(aside),
            "prints": [str(self.path / f"{name}.{kind}") for kind in ("stdout", "stderr")],
            **fault,
        }

    def go_on(self, server: Server, case: dict[str, Any], hit: str, *, rows: bool) -> list[str]:
        """The same command again, without a fault; what is wrong before and behind it."""
        folder = Path(case["folder"])
        safe_error_message = (
            Path(case["prints"][0]).read_text() if Path(case["prints"][0]).exists() else ""
        )
        unsaved = set(
            re.findall(r"(checkpoint-\d+) was not written, checkpoint-\d+ was", safe_error_message)
        )
        wrong = unverified(folder, hit)
        again = server.run({**case, "level": "none"})
        if again.code:
            wrong.append(f"again: exit {again.code}: {again.lines[-9:]}")
        else:
            wrong += differences(folder, self.whole, log=rows, without=unsaved)
        if not wrong:
            shutil.rmtree(folder)
        return wrong

    def sweep(
        self, level: str, fault: str, *, start: int = 1, step: int = 1, **options: Any
    ) -> tuple[list[str], int]:
        """The fault at some calls of a run, until a run has no more.

        Returns:
            What is wrong, and how many calls were tried.
        """
        numbers, over, wrong = itertools.count(start, step), threading.Event(), list[str]()
        crash = fault in ("crash", "power", "contents")
        options = {"level": level, "fault": fault, "lasts": False, "passes": [], **options}

        def work(server: Server) -> int:
            tried = 0
            while not over.is_set():
                number = next(numbers)
                name = f"{level}-{fault}-{'lasts' if options['lasts'] else 'once'}-{number}"
                case = self.case(name, number=number, **options)
                ended = server.run(case)
                if not ended.hit:
                    over.set()
                    break
                tried += 1
                fine = ended.code == CRASH if crash else is_told(ended)
                found = [] if fine else [f"exit {ended.code}: {ended.lines[-9:]}"]
                found += self.go_on(server, case, ended.hit, rows=crash)
                wrong.extend(f"{name} ({ended.hit}): {line}" for line in found)
            return tried

        servers = self.servers(level)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return wrong, sum(pool.map(work, servers))


def build_preload(folder: Path) -> str:
    """The library of faults.c."""
    library = folder / "faults.so"
    command = [
        "gcc",
        "-shared",
        "-fPIC",
        "-O1",
        "-o",
        str(library),
        str(SUPPORT / "faults.c"),
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return str(library)


def weights(folder: Path) -> bytes:
    """The bytes of the finished model."""
    return (folder / "model" / "model.safetensors").read_bytes()


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of the log, without what depends on the clock."""
    timed = ("seconds", "tokens_per_second", "mfu")
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def is_told(ended: Ended) -> bool:
    """Whether an error is said in a line or a few, unless nothing but a row of the log is lost.

    Before anything is written it is a folder that cannot be written to, and exit 2.
    """
    if "Traceback" in "".join(ended.lines) or len(ended.lines) > 3:
        return False
    if ended.code == 2:
        return "cannot be written to" in ended.lines[0]
    return ended.code == 0 or (ended.code == EXIT_IO and bool(ended.lines))


def unverified(folder: Path, hit: str) -> list[str]:
    """What is wrong with what has the name of a checkpoint, and whether the older one is there."""
    found = [path for path in sorted(folder.glob("checkpoint-*")) if NAME.fullmatch(path.name)]
    wrong = [f"{path.name}: {line}" for path in found for line in verify(path)]
    during = re.search(r"\.partial-checkpoint-(\d+)", hit)
    older = int(during[1]) - 1 if during else 0
    if older and folder / f"checkpoint-{older}" not in found:
        wrong.append(f"checkpoint-{older} is gone; there are {[path.name for path in found]}")
    return wrong


def differences(
    folder: Path, whole: Path, *, log: bool, without: Set[str] = frozenset()
) -> list[str]:
    """How the end of a broken run differs from that of a whole one.

    One checkpoint more may be left, by a crash before the last one was deleted, and those be
    missing that the run said it could not write.
    """
    left, files = (
        {str(path.relative_to(top)) for path in top.rglob("*")} for top in (folder, whole)
    )
    files = {path for path in files if path.split("/")[0] not in without}
    more = sorted(path for path in left - files if not NAME.fullmatch(path.split("/")[0]))
    wrong = [f"left: {more}"] if more else []
    wrong += [f"missing: {sorted(files - left)}"] if files - left else []
    wrong += [] if weights(folder) == weights(whole) else ["the model is another"]
    return wrong + (["the log is another"] if log and rows(folder) != rows(whole) else [])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A bench for all tests here."""
    made = Bench(tmp_path_factory.mktemp("faults"))
    yield made
    for server in itertools.chain(*made.started.values()):
        server.close()


@pytest.mark.promise("T2")
@pytest.mark.parametrize(
    ("fault", "step", "passes"),
    [("crash", 1, ["fsync"]), ("power", 1, [*NAMES]), ("contents", 3, ["fsync"])],
)
def test_a_crash_at_any_call_of_a_run_loses_nothing(
    fault: str, step: int, passes: list[str], bench: Bench
) -> None:
    options = {} if ALL else {"step": step, "passes": passes}
    wrong, tried = bench.sweep("python", fault, **options)
    assert wrong == []
    assert tried > 20


ERRORS = [
    pytest.param(kind, lasts, id=f"{kind} {'from then on' if lasts else 'once'}")
    for kind, lasts in itertools.product(("ENOSPC", "EIO"), (False, True))
]


@pytest.mark.promise("71", "73")
@pytest.mark.parametrize(("level", "step"), [("python", 8), ("native", 16)])
@pytest.mark.parametrize(("fault", "lasts"), ERRORS)
def test_an_error_at_any_call_of_a_run_is_told_and_loses_nothing(
    fault: str, lasts: bool, level: str, step: int, bench: Bench
) -> None:
    start = 1 + (["ENOSPC", "EIO"].index(fault) + 2 * lasts) * step // 4
    places = {} if ALL else {"start": start, "step": step}
    wrong, tried = bench.sweep(level, fault, lasts=lasts, **places)
    assert wrong == []
    assert tried > {"python": 12, "native": 8}[level]


@pytest.mark.promise("T2")
def test_a_crash_at_any_native_call_of_a_run_loses_nothing(bench: Bench) -> None:
    wrong, tried = bench.sweep("native", "crash", step=1 if ALL else 3)
    assert wrong == []
    assert tried > 50


KILL = "signal=KILL"
TRACED = [  # system calls, a path that one of them is on, and the fault
    ("rename,renameat,renameat2", ".partial-checkpoint-1", KILL),
    ("rename,renameat,renameat2", ".status.json", KILL),
    ("rename,renameat,renameat2", ".model", KILL),
    ("fsync", ".partial-checkpoint-2/optimizer.safetensors", KILL),
    ("fsync", ".model/model.safetensors", "error=ENOSPC"),
    ("openat", ".partial-checkpoint-2/state.json", "error=ENOSPC"),
    ("write", ".partial-checkpoint-3/manifest.json", "error=ENOSPC"),
    ("write", "log.jsonl", KILL),
    ("openat", ".recipe.json", "error=ENOSPC"),
    ("rename,renameat,renameat2", ".model/model.safetensors", "error=ENOSPC"),
    ("openat", ".model/tokenizer.json", "error=ENOSPC"),
]


@pytest.mark.promise("T2")
@pytest.mark.parametrize(("calls", "name", "fault"), TRACED)
def test_a_fault_at_a_system_call_loses_nothing(
    calls: str, name: str, fault: str, bench: Bench
) -> None:
    if shutil.which("strace") is None:  # CI may count on Python, gcc and git alone
        pytest.skip("needs strace")
    case = bench.case(f"strace-{calls.split(',')[0]}-{name.replace('/', '-')}", level="strace")
    said = bench.path / f"{Path(case['folder']).name}.said"
    case["strace"] = [
        *("-o", str(said), "-P", f"{case['folder']}/{name}"),
        *("-e", f"trace={calls}", "-e", f"inject={calls}:{fault}:when=1"),
    ]
    server = bench.servers("python")[0]
    ended = server.run(case)
    if ended.code == UNTRACED:  # as in most containers
        pytest.skip("ptrace is not permitted")
    assert ended.code == -signal.SIGKILL if fault == KILL else is_told(ended)
    for _ in range(100):  # strace may end a moment after what it watched
        if re.search("INJECTED|SIGKILL", said.read_text()):
            break
        time.sleep(0.05)
    assert re.search("INJECTED|SIGKILL", said.read_text())
    assert bench.go_on(server, case, name, rows=fault == KILL) == []


LIMITED = "import resource, runpy; resource.setrlimit(resource.{}, ({}, {})); "
RUN = "runpy.run_module('hf_lm.run', run_name='__main__', alter_sys=True)"


def command(bench: Bench, name: str, *, limit: tuple[str, int] | None = None) -> list[str]:
    """The command of a run, for an interpreter of its own."""
    arguments = bench.arguments(bench.path / name)
    if limit is None:
        return [sys.executable, "-m", "hf_lm.run", *arguments]
    return [sys.executable, "-c", LIMITED.format(limit[0], limit[1], limit[1]) + RUN, *arguments]


def complete(bench: Bench, name: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A run in an interpreter of its own, with variables changed or, where None, taken out."""
    changes = {"OMP_NUM_THREADS": "1", **options.pop("variables", {})}
    environment = {k: v for k, v in {**os.environ, **changes}.items() if v is not None}
    bench.servers("python")  # the text is prepared
    line = options.pop("line", command(bench, name))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 120}
    return subprocess.run(line, env=environment, check=False, **{**streams, **options})


@pytest.mark.promise("T12")
@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "optimizer.safetensors"])
def test_a_file_larger_than_is_allowed_is_told_and_loses_nothing(name: str, bench: Bench) -> None:
    bench.servers("python")
    size = (bench.whole / "checkpoint-3" / name).stat().st_size
    line = command(bench, f"fsize-{name}", limit=("RLIMIT_FSIZE", size - 1))
    done = complete(bench, f"fsize-{name}", line=line)
    assert done.returncode == EXIT_IO, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "File too large" in done.stderr
    case = bench.case(f"fsize-{name}")
    assert bench.go_on(bench.servers("python")[0], case, "", rows=False) == []


@pytest.mark.promise("104")
def test_sixty_four_open_files_are_enough(bench: Bench) -> None:
    done = complete(bench, "files", line=command(bench, "files", limit=("RLIMIT_NOFILE", 64)))
    assert done.returncode == 0 or len(done.stderr.splitlines()) == 1, done.stderr
    if done.returncode == 0:
        assert differences(bench.path / "files", bench.whole, log=True) == []


@pytest.mark.promise("104")
@pytest.mark.parametrize(
    ("name", "value"), [("HOME", None), ("HOME", "/missing"), ("TMPDIR", "/missing")]
)
def test_a_run_needs_no_home_and_no_folder_for_temporary_files(
    name: str, value: str | None, bench: Bench
) -> None:
    folder = f"without-{name}-{value is None}"
    done = complete(bench, folder, variables={name: value})
    assert done.returncode == 0, done.stderr
    assert differences(bench.path / folder, bench.whole, log=True) == []


@pytest.mark.promise("103")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_run_whose_streams_are_closed_trains_to_the_end(closed: str, bench: Bench) -> None:
    folder = f"closed-{closed.replace(' ', '')}"
    line = ["sh", "-c", f'exec "$@" {closed}', "sh", *command(bench, folder)]
    done = complete(bench, folder, line=line)
    assert done.returncode == 0, done.stderr
    assert differences(bench.path / folder, bench.whole, log=True) == []


@pytest.mark.promise("103")
def test_a_run_whose_reader_has_gone_trains_to_the_end(bench: Bench) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = complete(bench, "unread", stdout=writes)
    finally:
        os.close(writes)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert differences(bench.path / "unread", bench.whole, log=True) == []
