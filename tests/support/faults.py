"""Run recipes as forks of a process with all imports done, with a fault at one call that writes.

    python faults.py ARGUMENTS

A first run with these arguments finds which modules to import. After it, the process reads one case
per line of stdin, in JSON, and writes one result per line of stdout.

A fault is "crash", "power" (everything that was not fsynced is undone), "contents" (names are kept,
but file contents that were not fsynced are lost), or the name of an errno.
"""

import atexit
import ctypes
import errno
import gc
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CRASH, UNTRACED = 137, 99
SECONDS = 60  # limit of a run
PR_SET_PTRACER = 0x59616D61  # prctl(2)
Inode = tuple[int, int]


def inode_of(path: str | int) -> Inode | None:
    """Return the device and inode of a path or descriptor, or None if it does not exist."""
    try:
        status = os.fstat(path) if isinstance(path, int) else os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class Change(NamedTuple):
    """A change of a name in a folder that was not fsynced since.

    Attributes:
        folder: the folder of the name.
        name: the name that was created, moved to or removed.
        source: the folder and name that it was moved from, if it was moved.
        before: the inode that the name stood for, if any.
        saved: a hard link to that inode, if it is a file.
    """

    folder: Inode
    name: str
    source: tuple[Inode, str] | None
    before: Inode | None
    saved: str | None


class Disk:
    """A record of the contents and names in a folder that a loss of power would undo.

    Args:
        folder: the folder of a run; its own name counts as fsynced.
        aside: a folder for hard links to files that are replaced or deleted.
    """

    def __init__(self, folder: str, aside: str) -> None:
        self.folder, self.aside = folder, aside
        self.secured: dict[Inode, int] = {}  # fsynced lengths of files
        self.changes: list[Change] = []
        self.made: list[str] = []  # files that are about to be created, and have no inode yet
        self.returned: dict[Inode, str] = {}  # folders that were restored under a new inode

    def see(self) -> None:
        """Look up the inodes of files that have been created since."""
        for path in [*self.made]:
            if inode := inode_of(path):
                self.secured.setdefault(inode, 0)
                self.made.remove(path)

    def open(self, path: str, flags: int) -> None:
        """Record that a file is about to be opened for writing."""
        if inode := inode_of(path):
            self.secured.setdefault(inode, Path(path).stat().st_size if flags & os.O_APPEND else 0)
        else:
            self.change(path)
            self.made.append(path)

    def change(self, path: str, *, source: str | None = None) -> None:
        """Record that a name is about to be created, removed or moved to."""
        folder, moved_from, saved = inode_of(str(Path(path).parent)), None, None
        if folder is None or path == self.folder:
            return
        before = inode_of(path)
        if before and not Path(path).is_dir():
            saved = f"{self.aside}/{len(self.changes)}-{before[1]}"
            os.link(path, saved, follow_symlinks=False)
        if source:
            moved_from = (inode_of(str(Path(source).parent)) or folder, Path(source).name)
        self.changes.append(Change(folder, Path(path).name, moved_from, before, saved))

    def sync(self, handle: int) -> None:
        """Record that a file or folder was fsynced."""
        inode = inode_of(handle)
        if inode:
            self.secured.pop(inode, None)
            self.changes = [change for change in self.changes if change.folder != inode]

    def lose(self, *, names: bool) -> None:
        """Undo everything that was not fsynced; changes of names only if `names` is true."""
        for path in [*Path(self.folder).rglob("*")]:
            length = self.secured.get(inode_of(str(path)) or (0, 0))
            if length is not None and path.is_file():
                os.truncate(path, min(length, path.stat().st_size))
        for change in reversed(self.changes) if names else ():
            self.undo(change)

    def undo(self, change: Change) -> None:
        """Undo the change of a name."""
        folder = self.where(change.folder)
        if folder is None:
            return
        path = Path(folder, change.name)
        if change.source:
            with suppress(FileNotFoundError):
                path.rename(Path(self.where(change.source[0]) or folder, change.source[1]))
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if change.saved:
            Path(change.saved).rename(path)
        elif change.before:
            path.mkdir()
            self.returned[change.before] = str(path)

    def where(self, inode: Inode) -> str | None:
        """Return the current path of a folder."""
        for path, _, _ in os.walk(self.folder):
            if inode_of(path) == inode:
                return path
        return self.returned.get(inode)


class Faults:
    """Counts the calls of this process that change a folder, and makes a fault at one of them.

    Args:
        case: "folder", "fault", "number" of the call, names of calls that do not count ("passes"),
            and whether all later calls fail, too ("lasts").
        tell: called with the call that has the fault.
    """

    def __init__(self, case: dict[str, Any], tell: Callable[[str], None]) -> None:
        self.folder, self.tell, self.calls = case["folder"], tell, 0
        self.fault, self.number, self.lasts = case["fault"], case["number"], case["lasts"]
        self.passes = case["passes"]
        self.disk = Disk(case["folder"], case["aside"])
        self.lock, self.state = threading.RLock(), threading.local()

    def watch(self) -> None:
        """Start counting."""
        import safetensors.torch

        sys.addaudithook(self.hear)
        os.fsync = self.wrapped(os.fsync, lambda handle: f"/proc/self/fd/{handle}")
        module: Any = safetensors.torch
        module.serialize_file = self.wrapped(module.serialize_file, lambda tensors, path: path)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Handle an audit event, before its call; an error raised here is raised by the call."""
        if getattr(self.state, "busy", False) or event not in HEARD:
            return
        paths, flags = HEARD[event](*arguments)
        if flags & WRITES and self.holds(paths[-1]):
            with self.lock:
                self.count(event, paths[-1])
                self.note(event, paths, flags)

    def holds(self, path: str) -> bool:
        """Return whether a path is the folder or is in it."""
        return path == self.folder or path.startswith(f"{self.folder}/")

    def note(self, event: str, paths: list[str], flags: int) -> None:
        """Record what the call changes."""
        self.state.busy = True
        self.disk.see()
        if event == "open":
            self.disk.open(paths[0], flags)
        elif event != "os.mkdir" or not inode_of(paths[0]):
            self.disk.change(paths[-1], source=paths[0] if len(paths) > 1 else None)
        self.state.busy = False

    def wrapped(self, call: Callable[..., Any], path_of: Callable[..., Any]) -> Callable[..., Any]:
        """Count a call that has no audit event: fsync, or the write of a safetensors file."""

        def counting(*arguments: Any, **options: Any) -> Any:
            path = os.path.realpath(path_of(*arguments))
            if not self.holds(path):
                return call(*arguments, **options)
            with self.lock:
                self.count(call.__name__, path)
                self.state.busy = True
                self.disk.see()
                if call.__name__ != "fsync":
                    self.disk.open(path, WRITES)
                result = call(*arguments, **options)
                if call.__name__ == "fsync":
                    self.disk.sync(arguments[0])
                self.state.busy = False
            return result

        return counting

    def count(self, call: str, path: str) -> None:
        """Count a call, and make the fault if it is the right one."""
        if call in self.passes:
            return
        self.calls += 1
        if self.calls == self.number:
            self.tell(f"{call} {path} {call_site()}")
        if self.calls == self.number or (self.lasts and self.calls > self.number > 0):
            self.state.busy = True
            self.happen(call, path)

    def happen(self, call: str, path: str) -> None:
        """Make the fault: end the process or raise an error."""
        if self.fault in ("power", "contents"):
            self.disk.see()
            self.disk.lose(names=self.fault == "power")
        if not hasattr(errno, self.fault):
            os._exit(CRASH)
        self.state.busy = False
        error = OSError(getattr(errno, self.fault), os.strerror(getattr(errno, self.fault)), path)
        if call == "serialize_file":
            from safetensors import SafetensorError

            number, reason = error.errno, error.strerror
            raise SafetensorError(
                f"Error while serializing: I/O error: {reason} (os error {number})"
            )
        raise error


def at(path: Any, folder: int = -1) -> str:
    """Return the absolute path of a name in an open folder or in the working directory."""
    if isinstance(path, int):
        return ""  # a descriptor, whose path was counted when it was opened
    base = f"/proc/self/fd/{folder}" if folder >= 0 else "."
    return str(Path(base).resolve() / os.fsdecode(path))


# Audit events of Python: how to get the paths and the open flags from their arguments.
HEARD: dict[str, Callable[..., tuple[list[str], int]]] = {
    "open": lambda path, mode, flags: ([at(path)], flags),
    "os.rename": lambda a, b, at_a, at_b: ([at(a, at_a), at(b, at_b)], WRITES),
    "os.remove": lambda path, folder: ([at(path, folder)], WRITES),
    "os.rmdir": lambda path, folder: ([at(path, folder)], WRITES),
    "os.mkdir": lambda path, mode, folder: ([at(path, folder)], WRITES),
}


def call_site() -> str:
    """Return the lines of hf_lm that a call came from."""
    frames = [frame for frame in traceback.extract_stack() if "/hf_lm/" in frame.filename]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames[-4:]))


def watch(case: dict[str, Any], hits: int) -> None:
    """Make a fault at a call that Python makes."""

    def tell(hit: str) -> None:
        os.write(hits, hit.encode())

    Faults(case, tell).watch()


def preload(case: dict[str, Any], hits: int) -> None:
    """Make a fault at a call into the C library; faults.c is preloaded."""
    number, folder = getattr(errno, case["fault"], 0), case["folder"].encode()
    ctypes.CDLL(None).faults_arm(case["number"], number, case["lasts"], folder, hits)


def trace(case: dict[str, Any], hits: int) -> None:
    """Make a fault at a system call with strace, which writes the call to a file."""
    # Allow any process to trace this one; strace is its child.
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(-1))
    command = ["strace", "-f", "-p", str(os.getpid()), *case["strace"]]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while "TracerPid:\t0\n" in Path("/proc/self/status").read_text():
        if tracer.poll() is not None:
            os._exit(UNTRACED)
        time.sleep(0.01)


ARM = {"none": lambda case, hits: None, "python": watch, "native": preload, "strace": trace}


def run(case: dict[str, Any], hits: int) -> int:
    """Run a recipe in this process, as the command does."""
    import torch

    from hf_lm.run import main

    signal.alarm(SECONDS)
    for handle, path in enumerate(case["prints"], 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), handle)
    torch.set_num_threads(1)
    ARM[case["level"]](case, hits)
    return main(case["arguments"])


def forked(work: Callable[[int], int]) -> tuple[int, str]:
    """Call a function in a fork; return its exit code, and what it wrote to the pipe."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os._exit(run_and_shut_down(work, writes))
    os.close(writes)
    with os.fdopen(reads) as file:
        written = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), written


def run_and_shut_down(work: Callable[[int], int], pipe: int) -> int:
    """Call a function, then shut down as an interpreter does, without destroying modules."""
    try:
        code = work(pipe)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # pyrefly: ignore[missing-attribute]
    atexit._run_exitfuncs()
    with suppress(OSError):
        sys.stdout.flush()
    return code


def list_imports(arguments: list[str], pipe: int) -> int:
    """Run without a fault, and write the names of all imported modules to a pipe."""
    case = {"arguments": arguments, "level": "none", "prints": [os.devnull, os.devnull]}
    code = run(case, pipe)
    names = [name for name in sys.modules if not name.startswith("__")]
    with os.fdopen(pipe, "w") as file:
        json.dump(names, file)
    return code


def warm_up() -> None:
    """Do once what takes each run half a second and touches no file of it."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from hf_lm.planning import hardware

    hardware.measured_flops = lambda kind, dtype: 1e9
    get_checkpoint_conversion_mapping("gpt2")
    gc.collect()
    gc.freeze()


def serve(arguments: list[str]) -> None:
    """Run the case on each line of stdin, and write its result as a line of stdout."""
    importlib.import_module("hf_lm.workflows.train")  # imports most modules
    code, names = forked(lambda pipe: list_imports(arguments, pipe))
    for name in json.loads(names):
        with suppress(Exception):
            importlib.import_module(name)
    warm_up()
    sys.stdout.write(f"{code}\n")
    sys.stdout.flush()
    while line := sys.stdin.readline():
        case = json.loads(line)
        code, hit = forked(lambda hits, case=case: run(case, hits))
        sys.stdout.write(json.dumps({"code": code, "hit": hit}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(sys.argv[1:])
