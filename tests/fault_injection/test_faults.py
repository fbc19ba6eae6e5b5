"""Make a fault at a call that changes the folder of a run, then run the same command again.

Crashes come at every call at which they make a difference: an fsync changes no file, and only an
fsync changes what a loss of power keeps. Errors come at every eighth call, at different calls for
each kind of error. With HF_LM_FAULTS=all, everything comes at every call.
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
NUM_SERVERS = 2  # runs at the same time
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
    """The end of a run: its exit code, the call that had the fault, and its lines on stderr."""

    code: int
    hit: str
    lines: list[str]


class Server:
    """A process with all imports done, which runs each recipe in a fork of itself."""

    def __init__(self, arguments: list[str], **variables: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SUPPORT / "faults.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        )

    def answer(self) -> Any:
        """Read the next line of its output."""
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def run(self, case: dict[str, Any]) -> Ended:
        """Run a recipe with the fault of a case."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        answer = self.answer()
        return Ended(**answer, lines=Path(case["prints"][1]).read_text().splitlines())

    def close(self) -> None:
        """End the process."""
        self.process.communicate(timeout=60)


class Bench:
    """A recipe, an uninterrupted run of it, and servers that run it with faults."""

    def __init__(self, path: Path) -> None:
        self.path, self.started = path, dict[str, list[Server]]()
        write_corpus(path / "corpus")
        (path / "recipe.json").write_text(json.dumps(merged(TINY, SMALLER)), encoding="utf-8")

    def arguments(self, folder: Path) -> list[str]:
        """Return the arguments of the command of a run."""
        return [str(self.path / "recipe.json"), "--set", f"output_dir={folder}"]

    def servers(self, level: str) -> list[Server]:
        """Return the servers of a level; each does an uninterrupted run when it starts."""
        if level not in self.started:
            preload = {"LD_PRELOAD": build_preload(self.path)} if level == "native" else {}
            folders = [self.path / f"whole-{level}-{number}" for number in range(NUM_SERVERS)]
            self.started[level] = [Server(self.arguments(path), **preload) for path in folders]
            assert [server.answer() for server in self.started[level]] == [0] * NUM_SERVERS
            assert {weights(path) for path in folders} == {weights(self.whole)}
        return self.started[level]

    @property
    def whole(self) -> Path:
        """The folder of an uninterrupted run."""
        return next(self.path.glob("whole-*-0"))

    def case(self, name: str, **fault: Any) -> dict[str, Any]:
        """Describe a run with a fault for a server."""
        aside = self.path / f"{name}-aside"
        aside.mkdir()
        return {
            "arguments": self.arguments(self.path / name),
            "folder": str(self.path / name),
            "aside": str(aside),
            "prints": [str(self.path / f"{name}.{kind}") for kind in ("stdout", "stderr")],
            **fault,
        }

    def run_again(
        self, server: Server, case: dict[str, Any], hit: str, *, compare_log: bool
    ) -> list[str]:
        """Run the same command without a fault; return problems before and after it."""
        folder = Path(case["folder"])
        output = Path(case["prints"][0])
        printed = output.read_text() if output.exists() else ""
        unsaved = set(re.findall(r"(checkpoint-\d+) was not written, checkpoint-\d+ was", printed))
        problems = checkpoint_problems(folder, hit)
        again = server.run({**case, "level": "none"})
        if again.code:
            problems.append(f"again: exit {again.code}: {again.lines[-9:]}")
        else:
            problems += differences(folder, self.whole, compare_log=compare_log, without=unsaved)
        if not problems:
            shutil.rmtree(folder)
        return problems

    def sweep(
        self, level: str, fault: str, *, start: int = 1, step: int = 1, **options: Any
    ) -> tuple[list[str], int]:
        """Make a fault at call after call, until a run has no more calls.

        Returns:
            One line per problem, and the number of calls that were tried.
        """
        numbers, over, problems = itertools.count(start, step), threading.Event(), list[str]()
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
                is_expected = ended.code == CRASH if crash else is_reported(ended)
                lines = [] if is_expected else [f"exit {ended.code}: {ended.lines[-9:]}"]
                lines += self.run_again(server, case, ended.hit, compare_log=crash)
                problems.extend(f"{name} ({ended.hit}): {line}" for line in lines)
            return tried

        servers = self.servers(level)
        with ThreadPoolExecutor(NUM_SERVERS) as pool:
            return problems, sum(pool.map(work, servers))


def build_preload(folder: Path) -> str:
    """Compile faults.c and return the library."""
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
    """Read the bytes of the finished model."""
    return (folder / "model" / "model.safetensors").read_bytes()


def rows(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of the log without their times."""
    timing_keys = ("seconds", "tokens_per_second", "mfu")
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timing_keys} for line in lines]


def is_reported(ended: Ended) -> bool:
    """Return whether a run reported an error in at most three lines.

    A run that only lost a row of the log may exit with 0. One that could not write anything reports
    that its folder cannot be written to, and exits with 2.
    """
    if "Traceback" in "".join(ended.lines) or len(ended.lines) > 3:
        return False
    if ended.code == 2:
        return "cannot be written to" in ended.lines[0]
    return ended.code == 0 or (ended.code == EXIT_IO and bool(ended.lines))


def checkpoint_problems(folder: Path, hit: str) -> list[str]:
    """Return damaged checkpoints, and whether the one before the interrupted save is missing."""
    checkpoints = [
        path for path in sorted(folder.glob("checkpoint-*")) if NAME.fullmatch(path.name)
    ]
    problems = [f"{path.name}: {line}" for path in checkpoints for line in verify(path)]
    during = re.search(r"\.partial-checkpoint-(\d+)", hit)
    older = int(during[1]) - 1 if during else 0
    if older and folder / f"checkpoint-{older}" not in checkpoints:
        names = [path.name for path in checkpoints]
        problems.append(f"checkpoint-{older} is missing; there are {names}")
    return problems


def differences(
    folder: Path, whole: Path, *, compare_log: bool, without: Set[str] = frozenset()
) -> list[str]:
    """Compare the end of an interrupted run with that of an uninterrupted one.

    An extra checkpoint is allowed, because a crash may come before an old one is deleted. Those in
    `without` may be missing, because the run reported that it could not write them.
    """
    actual, expected = (
        {str(path.relative_to(top)) for path in top.rglob("*")} for top in (folder, whole)
    )
    expected = {path for path in expected if path.split("/")[0] not in without}
    extra = sorted(path for path in actual - expected if not NAME.fullmatch(path.split("/")[0]))
    problems = [f"not removed: {extra}"] if extra else []
    problems += [f"missing: {sorted(expected - actual)}"] if expected - actual else []
    problems += [] if weights(folder) == weights(whole) else ["the weights differ"]
    has_other_log = compare_log and rows(folder) != rows(whole)
    return problems + (["the logs differ"] if has_other_log else [])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Make the bench that all tests of this module use."""
    bench = Bench(tmp_path_factory.mktemp("faults"))
    yield bench
    for server in itertools.chain(*bench.started.values()):
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
    problems, tried = bench.sweep("python", fault, **options)
    assert problems == []
    assert tried > 20


ERRORS = [
    pytest.param(kind, lasts, id=f"{kind} {'and after it' if lasts else 'once'}")
    for kind, lasts in itertools.product(("ENOSPC", "EIO"), (False, True))
]


@pytest.mark.promise("71", "73")
@pytest.mark.parametrize(("level", "step"), [("python", 8), ("native", 16)])
@pytest.mark.parametrize(("fault", "lasts"), ERRORS)
def test_an_error_at_any_call_of_a_run_is_reported_and_loses_nothing(
    fault: str, lasts: bool, level: str, step: int, bench: Bench
) -> None:
    start = 1 + (["ENOSPC", "EIO"].index(fault) + 2 * lasts) * step // 4
    numbers = {} if ALL else {"start": start, "step": step}
    problems, tried = bench.sweep(level, fault, lasts=lasts, **numbers)
    assert problems == []
    assert tried > {"python": 12, "native": 8}[level]


@pytest.mark.promise("T2")
def test_a_crash_at_any_native_call_of_a_run_loses_nothing(bench: Bench) -> None:
    problems, tried = bench.sweep("native", "crash", step=1 if ALL else 3)
    assert problems == []
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
    if shutil.which("strace") is None:  # CI has only Python, gcc and git
        pytest.skip("needs strace")
    case = bench.case(f"strace-{calls.split(',')[0]}-{name.replace('/', '-')}", level="strace")
    trace = bench.path / f"{Path(case['folder']).name}.trace"
    case["strace"] = [
        *("-o", str(trace), "-P", f"{case['folder']}/{name}"),
        *("-e", f"trace={calls}", "-e", f"inject={calls}:{fault}:when=1"),
    ]
    server = bench.servers("python")[0]
    ended = server.run(case)
    if ended.code == UNTRACED:  # as in most containers
        pytest.skip("ptrace is not permitted")
    assert ended.code == -signal.SIGKILL if fault == KILL else is_reported(ended)
    for _ in range(100):  # strace may end a moment after the run
        if re.search("INJECTED|SIGKILL", trace.read_text()):
            break
        time.sleep(0.05)
    assert re.search("INJECTED|SIGKILL", trace.read_text())
    assert bench.run_again(server, case, name, compare_log=fault == KILL) == []


LIMITED = "import resource, runpy; resource.setrlimit(resource.{}, ({}, {})); "
RUN = "runpy.run_module('hf_lm.run', run_name='__main__', alter_sys=True)"


def command(bench: Bench, name: str, *, limit: tuple[str, int] | None = None) -> list[str]:
    """Return the command of a run in a new interpreter."""
    arguments = bench.arguments(bench.path / name)
    if limit is None:
        return [sys.executable, "-m", "hf_lm.run", *arguments]
    return [sys.executable, "-c", LIMITED.format(limit[0], limit[1], limit[1]) + RUN, *arguments]


def complete(bench: Bench, name: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run in a new interpreter; `variables` changes the environment, and None removes one."""
    changes = {"OMP_NUM_THREADS": "1", **options.pop("variables", {})}
    environment = {k: v for k, v in {**os.environ, **changes}.items() if v is not None}
    bench.servers("python")  # their runs have prepared the text
    line = options.pop("line", command(bench, name))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 120}
    return subprocess.run(line, env=environment, check=False, **{**streams, **options})


@pytest.mark.promise("T12")
@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "optimizer.safetensors"])
def test_a_file_above_the_size_limit_is_reported_and_loses_nothing(name: str, bench: Bench) -> None:
    bench.servers("python")
    size = (bench.whole / "checkpoint-3" / name).stat().st_size
    line = command(bench, f"fsize-{name}", limit=("RLIMIT_FSIZE", size - 1))
    done = complete(bench, f"fsize-{name}", line=line)
    assert done.returncode == EXIT_IO, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "File too large" in done.stderr
    case = bench.case(f"fsize-{name}")
    assert bench.run_again(bench.servers("python")[0], case, "", compare_log=False) == []


@pytest.mark.promise("104")
def test_sixty_four_open_files_are_enough(bench: Bench) -> None:
    done = complete(bench, "files", line=command(bench, "files", limit=("RLIMIT_NOFILE", 64)))
    assert done.returncode == 0 or len(done.stderr.splitlines()) == 1, done.stderr
    if done.returncode == 0:
        assert differences(bench.path / "files", bench.whole, compare_log=True) == []


@pytest.mark.promise("104")
@pytest.mark.parametrize(
    ("name", "value"), [("HOME", None), ("HOME", "/missing"), ("TMPDIR", "/missing")]
)
def test_a_run_needs_no_home_and_no_temporary_directory(
    name: str, value: str | None, bench: Bench
) -> None:
    folder = f"without-{name}-{value is None}"
    done = complete(bench, folder, variables={name: value})
    assert done.returncode == 0, done.stderr
    assert differences(bench.path / folder, bench.whole, compare_log=True) == []


@pytest.mark.promise("103")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_run_whose_streams_are_closed_trains_to_the_end(closed: str, bench: Bench) -> None:
    folder = f"closed-{closed.replace(' ', '')}"
    line = ["sh", "-c", f'exec "$@" {closed}', "sh", *command(bench, folder)]
    done = complete(bench, folder, line=line)
    assert done.returncode == 0, done.stderr
    assert differences(bench.path / folder, bench.whole, compare_log=True) == []


@pytest.mark.promise("103")
def test_a_run_whose_output_nobody_reads_trains_to_the_end(bench: Bench) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = complete(bench, "unread", stdout=writes)
    finally:
        os.close(writes)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert differences(bench.path / "unread", bench.whole, compare_log=True) == []
