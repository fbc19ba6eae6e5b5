"""Runs in forks of a process that has imported everything, with a fault at one call that writes.

    python faults.py ARGUMENTS   the arguments of a first run, which tells what there is to import;
                                 then a case in JSON on a line in, its end on a line out

A fault is "crash", "power" (all that no fsync has secured is undone), "contents" (names are kept,
and what no fsync has secured of files is lost), or the name of an error of the system.
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
SECONDS = 60  # that a run may take
PR_SET_PTRACER = 0x59616D61  # prctl(2)
Inode = tuple[int, int]


def inode_of(path: str | int) -> Inode | None:
    """What is at a path or descriptor, under whatever name; None if nothing is."""
    try:
        found = os.fstat(path) if isinstance(path, int) else os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Change(NamedTuple):
    """A change of names that no fsync of their folder has secured.

    Attributes:
        folder: where the name is.
        name: what was made, moved there or removed.
        source: where it was moved from, if it was.
        before: what the name stood for, if for anything.
        saved: where that is kept, if it is a file.
    """

    folder: Inode
    name: str
    source: tuple[Inode, str] | None
    before: Inode | None
    saved: str | None


class Disk:
    """What of a folder would be lost if power went now: contents of files, and changes of names.

    Args:
        folder: of the run, whose own name is taken for secure.
        aside: for files that are replaced or deleted, should they come back.
    """

    def __init__(self, folder: str, aside: str) -> None:
        self.folder, self.aside = folder, aside
        self.secured: dict[Inode, int] = {}  # lengths, of files that may be longer by now
        self.changes: list[Change] = []
        self.made: list[str] = []  # files whose inodes are still to be seen
        self.returned: dict[Inode, str] = {}  # folders that came back, as others

    def see(self) -> None:
        """Look at the files that were about to be made."""
        for path in [*self.made]:
            if found := inode_of(path):
                self.secured.setdefault(found, 0)
                self.made.remove(path)

    def open(self, path: str, flags: int) -> None:
        """A file is about to be opened for writing."""
        if found := inode_of(path):
            self.secured.setdefault(found, Path(path).stat().st_size if flags & os.O_APPEND else 0)
        else:
            self.change(path)
            self.made.append(path)

    def change(self, path: str, *, source: str | None = None) -> None:
        """A name is about to be made, removed, or given to what has another now."""
        folder, came, saved = inode_of(str(Path(path).parent)), None, None
        if folder is None or path == self.folder:
            return
        before = inode_of(path)
        if before and not Path(path).is_dir():
            saved = f"{self.aside}/{len(self.changes)}-{before[1]}"
            os.link(path, saved, follow_symlinks=False)
        if source:
            came = (inode_of(str(Path(source).parent)) or folder, Path(source).name)
        self.changes.append(Change(folder, Path(path).name, came, before, saved))

    def sync(self, handle: int) -> None:
        """A file or folder was secured."""
        found = inode_of(handle)
        if found:
            self.secured.pop(found, None)
            self.changes = [change for change in self.changes if change.folder != found]

    def lose(self, *, names: bool) -> None:
        """Leave what had to be there."""
        for path in [*Path(self.folder).rglob("*")]:
            length = self.secured.get(inode_of(str(path)) or (0, 0))
            if length is not None and path.is_file():
                os.truncate(path, min(length, path.stat().st_size))
        for change in reversed(self.changes) if names else ():
            self.undo(change)

    def undo(self, change: Change) -> None:
        """Give a name back to what it stood for."""
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
        """The name that a folder has now."""
        for path, _, _ in os.walk(self.folder):
            if inode_of(path) == inode:
                return path
        return self.returned.get(inode)


class Faults:
    """Counts the calls of this process that change a folder, and does something at one of them.

    Args:
        case: the folder; the fault, the number of the call, of which calls it passes by, and
            whether it lasts.
        tell: takes the call that was hit.
    """

    def __init__(self, case: dict[str, Any], tell: Callable[[str], None]) -> None:
        self.folder, self.tell, self.calls = case["folder"], tell, 0
        self.fault, self.number, self.lasts = case["fault"], case["number"], case["lasts"]
        self.passes = case["passes"]
        self.disk = Disk(case["folder"], case["aside"])
        self.lock, self.own = threading.RLock(), threading.local()

    def watch(self) -> None:
        """From now on."""
        import safetensors.torch

        sys.addaudithook(self.hear)
        os.fsync = self.wrapped(os.fsync, lambda handle: f"/proc/self/fd/{handle}")
        module: Any = safetensors.torch
        module.serialize_file = self.wrapped(module.serialize_file, lambda tensors, path: path)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Of a call that is about to be made; an error from here is the call's."""
        if getattr(self.own, "busy", False) or event not in HEARD:
            return
        paths, flags = HEARD[event](*arguments)
        if flags & WRITES and self.holds(paths[-1]):
            with self.lock:
                self.count(event, paths[-1])
                self.note(event, paths, flags)

    def holds(self, path: str) -> bool:
        """Whether something is in the folder, or is the folder."""
        return path == self.folder or path.startswith(f"{self.folder}/")

    def note(self, event: str, paths: list[str], flags: int) -> None:
        """Keep what would be lost."""
        self.own.busy = True
        self.disk.see()
        if event == "open":
            self.disk.open(paths[0], flags)
        elif event != "os.mkdir" or not inode_of(paths[0]):
            self.disk.change(paths[-1], source=paths[0] if len(paths) > 1 else None)
        self.own.busy = False

    def wrapped(self, call: Callable[..., Any], path_of: Callable[..., Any]) -> Callable[..., Any]:
        """A call that tells nobody of itself: fsync, and how safetensors writes a file."""

        def counting(*arguments: Any, **options: Any) -> Any:
            path = os.path.realpath(path_of(*arguments))
            if not self.holds(path):
                return call(*arguments, **options)
            with self.lock:
                self.count(call.__name__, path)
                self.own.busy = True
                self.disk.see()
                if call.__name__ != "fsync":
                    self.disk.open(path, WRITES)
                done = call(*arguments, **options)
                if call.__name__ == "fsync":
                    self.disk.sync(arguments[0])
                self.own.busy = False
            return done

        return counting

    def count(self, call: str, path: str) -> None:
        """One more call, and the fault if it is the one."""
        if call in self.passes:
            return
        self.calls += 1
        if self.calls == self.number:
            self.tell(f"{call} {path} {place()}")
        if self.calls == self.number or (self.lasts and self.calls > self.number > 0):
            self.own.busy = True
            self.happen(call, path)

    def happen(self, call: str, path: str) -> None:
        """The fault."""
        if self.fault in ("power", "contents"):
            self.disk.see()
            self.disk.lose(names=self.fault == "power")
        if not hasattr(errno, self.fault):
            os._exit(CRASH)
        self.own.busy = False
        error = OSError(getattr(errno, self.fault), os.strerror(getattr(errno, self.fault)), path)
        if call == "serialize_file":
            from safetensors import SafetensorError

            number, reason = error.errno, error.strerror
            raise SafetensorError(
                f"Error while serializing: I/O error: {reason} (os error {number})"
            )
        raise error


def at(path: Any, folder: int = -1) -> str:
    """The absolute path of something in an open folder, or here."""
    if isinstance(path, int):
        return ""  # was opened before
    base = f"/proc/self/fd/{folder}" if folder >= 0 else "."
    return str(Path(base).resolve() / os.fsdecode(path))


# Events of Python's audit hooks, to paths and flags of opening.
HEARD: dict[str, Callable[..., tuple[list[str], int]]] = {
    "open": lambda path, mode, flags: ([at(path)], flags),
    "os.rename": lambda a, b, at_a, at_b: ([at(a, at_a), at(b, at_b)], WRITES),
    "os.remove": lambda path, folder: ([at(path, folder)], WRITES),
    "os.rmdir": lambda path, folder: ([at(path, folder)], WRITES),
    "os.mkdir": lambda path, mode, folder: ([at(path, folder)], WRITES),
}


def place() -> str:
    """The lines of hf_lm that a call came from."""
    found = [frame for frame in traceback.extract_stack() if "/hf_lm/" in frame.filename]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(found[-4:]))


def watch(case: dict[str, Any], hits: int) -> None:
    """Have a fault at a call that Python makes."""

    def tell(hit: str) -> None:
        os.write(hits, hit.encode())

    Faults(case, tell).watch()


def preload(case: dict[str, Any], hits: int) -> None:
    """Have a fault at a call into the C library; faults.c is preloaded."""
    number, folder = getattr(errno, case["fault"], 0), case["folder"].encode()
    ctypes.CDLL(None).faults_arm(case["number"], number, case["lasts"], folder, hits)


def trace(case: dict[str, Any], hits: int) -> None:
    """Have a fault at a system call; strace says in a file of its own which it was."""
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(-1))  # any: here a child its parent
    command = ["strace", "-f", "-p", str(os.getpid()), *case["strace"]]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while "TracerPid:\t0\n" in Path("/proc/self/status").read_text():
        if tracer.poll() is not None:
            os._exit(UNTRACED)
        time.sleep(0.01)


ARM = {"none": lambda case, hits: None, "python": watch, "native": preload, "strace": trace}


def run(case: dict[str, Any], hits: int) -> int:
    """A whole run in this process, as the command is."""
    import torch

    from hf_lm.run import main

    signal.alarm(SECONDS)
    for handle, path in enumerate(case["prints"], 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), handle)
    torch.set_num_threads(1)
    ARM[case["level"]](case, hits)
    return main(case["arguments"])


def forked(work: Callable[[int], int]) -> tuple[int, str]:
    """Do something in a fork; its exit code, and what it told."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os._exit(ended(work, writes))
    os.close(writes)
    with os.fdopen(reads) as file:
        safe_error_message = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), safe_error_message


def ended(work: Callable[[int], int], safe_error_message: int) -> int:
    """Do something, and what an interpreter does at its end but to take all modules apart."""
    try:
        code = work(safe_error_message)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # pyrefly: ignore[missing-attribute]
    atexit._run_exitfuncs()
    with suppress(OSError):
        sys.stdout.flush()
    return code


def learn(arguments: list[str], safe_error_message: int) -> int:
    """A run without a fault; tells what it has imported."""
    case = {"arguments": arguments, "level": "none", "prints": [os.devnull, os.devnull]}
    code = run(case, safe_error_message)
    names = [name for name in sys.modules if not name.startswith("__")]
    with os.fdopen(safe_error_message, "w") as file:
        json.dump(names, file)
    return code


def spare_time() -> None:
    """Have done what each run would do for half a second, and what has to do with no file."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from hf_lm.planning import hardware as machine

    machine.measured_flops = lambda kind, dtype: 1e9
    get_checkpoint_conversion_mapping("gpt2")
    gc.collect()
    gc.freeze()


def serve(arguments: list[str]) -> None:
    """A case on a line in, its end on a line out, until there are no more."""
    importlib.import_module("hf_lm.workflows.train")  # most of it
    code, names = forked(lambda safe_error_message: learn(arguments, safe_error_message))
    for name in json.loads(names):
        with suppress(Exception):
            importlib.import_module(name)
    spare_time()
    sys.stdout.write(f"{code}\n")
    sys.stdout.flush()
    while line := sys.stdin.readline():
        case = json.loads(line)
        code, hit = forked(lambda hits, case=case: run(case, hits))
        sys.stdout.write(json.dumps({"code": code, "hit": hit}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(sys.argv[1:])
