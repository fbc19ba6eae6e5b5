"""Write checkpoints atomically, rotate them, and find the newest valid one.

    .partial-checkpoint-400/   being written; never read as a checkpoint
    checkpoint-400/            complete: manifest.json lists the size and SHA-256 of every file
    checkpoint-400.bad/        found damaged and moved out of the way
    .trash-checkpoint-300/     about to be deleted

The files are on the disk before the manifest, the manifest before the directory gets its name, and
the name before an older checkpoint is deleted. So whenever a crash or a full disk interrupts, an
older checkpoint is valid. Checkpoints are ordered by step, never by time.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from hf_lm.checkpoints.manifest import (
    FILE,
    FORMAT,
    MANIFEST,
    check_format,
    file_digest,
    manifest_text,
    read_manifest,
    verify,
)
from hf_lm.errors import CheckpointError
from hf_lm.system.files import Write, fsync, remove, size_of

PARTIAL, TRASH, BAD = ".partial-", ".trash-", ".bad"

NAME = re.compile(r"checkpoint-(0|[1-9][0-9]{0,17})")


class CheckpointStore:
    """The checkpoints in the directory of a run.

    Args:
        folder: the directory of the run.
        limit: the number of checkpoints to keep; None keeps all.
        provenance: fields of every manifest that describe the run.
        extra: files of every checkpoint, such as the tokenizer's.
        before_write: called before each write, for example to flush the log to the disk.
        on_saved: called with each new checkpoint, before an older one is deleted.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limit: int | None = None,
        provenance: Mapping[str, object] = MappingProxyType({}),
        extra: Mapping[str, Write] = MappingProxyType({}),
        before_write: Callable[[], None] = lambda: None,
        on_saved: Write = lambda path: None,
    ) -> None:
        self.folder, self.limit, self.provenance = folder, limit, provenance
        self.extra, self.before_write, self.on_saved = extra, before_write, on_saved

    def path(self, step: int) -> Path:
        """Return the path of the checkpoint of a step, whether it exists or not."""
        return self.folder / f"checkpoint-{step}"

    def steps(self) -> list[int]:
        """Return the steps of the directories with the name of a checkpoint, in ascending order."""
        names = [entry.name for entry in self.entries() if entry.is_dir(follow_symlinks=False)]
        return sorted(int(name.split("-")[1]) for name in names)

    def entries(self) -> list[os.DirEntry[str]]:
        """Return the files, directories and links that have the name of a checkpoint."""
        if not self.folder.is_dir():
            return []
        return [entry for entry in os.scandir(self.folder) if NAME.fullmatch(entry.name)]

    def write(self, step: int, files: Mapping[str, Write], *, best: int | None = None) -> Path:
        """Write a checkpoint, and delete older ones over the limit.

        Args:
            step: the number of optimizer steps.
            files: by name; each function writes its file to a path.
            best: the step whose checkpoint is never deleted.

        Returns:
            The path of the checkpoint.

        Raises:
            OSError: the disk is full or broken; the earlier checkpoints are valid.
            ValueError: a file has a name that cannot be in a checkpoint.
        """
        files = {**self.extra, **files}
        invalid = [name for name in files if not FILE.fullmatch(name) or name == MANIFEST]
        if invalid:
            raise ValueError(f"not the name of a checkpoint's file: {invalid[0]}")
        final, staging = self.path(step), self.folder / f"{PARTIAL}checkpoint-{step}"
        remove(staging)
        try:
            self.before_write()
            staging.mkdir(parents=True)
            for name, write in files.items():
                write(staging / name)
                fsync(staging / name)
            listed = {name: file_digest(staging / name) for name in files}
            manifest = {"format": FORMAT, "step": step, **self.provenance, "files": listed}
            (staging / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")
            fsync(staging / MANIFEST)
            fsync(staging)
            if os.path.lexists(final):  # the step was repeated, or a user made the directory
                self.quarantine(final)
            staging.rename(final)
            fsync(self.folder)
        except BaseException as error:
            failed = self.with_disk_usage(error, staging)
            remove(staging)
            raise failed from None
        self.on_saved(final)
        self.rotate(written=step, best=best)
        return final

    def with_disk_usage(self, error: BaseException, staging: Path) -> BaseException:
        """Add the space needed and the space free to the error of a full disk."""
        if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return error
        sizes = [size_of(self.path(step)) for step in self.steps()]
        needed = max([size_of(staging), *sizes])
        free = shutil.disk_usage(self.folder).free + size_of(staging)
        return OSError(
            error.errno,
            f"{error.strerror}: a checkpoint needs about {needed / 1e9:.2g} GB, "
            f"{free / 1e9:.2g} GB are free; the checkpoint before is valid, and the same command "
            "continues from it",
            str(staging),
        )

    def rotate(self, *, written: int, best: int | None) -> None:
        """Delete the oldest checkpoints over the limit, but only those that we wrote.

        Args:
            written: the step of the newest checkpoint, which stays.
            best: the step of the best checkpoint, which stays.
        """
        if self.limit is None:
            return
        ours = [step for step in self.steps() if read_manifest(self.path(step)) is not None]
        kept = {written, best, *sorted(ours, reverse=True)[: self.limit]}
        for step in ours:
            if step not in kept and step < written:
                with suppress(OSError):  # the new one is valid; the next start tries again
                    self.delete(self.path(step))

    def delete(self, path: Path) -> None:
        """Delete a checkpoint; it is renamed first, so that no partial one is ever found."""
        trash = self.folder / f"{TRASH}{path.name}"
        remove(trash)
        path.rename(trash)
        fsync(self.folder)
        remove(trash)

    def remove_leftovers(self) -> None:
        """Delete the partly written and partly deleted checkpoints of a killed run."""
        if self.folder.is_dir():
            for entry in list(os.scandir(self.folder)):
                kind, dash, rest = entry.name.partition("-")
                if f"{kind}{dash}" in (PARTIAL, TRASH) and NAME.fullmatch(rest):
                    remove(Path(entry.path))

    def latest_valid(self, *, notify: Callable[[str], None] = lambda line: None) -> Path | None:
        """Find the valid checkpoint of the highest step, and quarantine damaged later ones.

        Args:
            notify: called with a line for each damaged checkpoint.

        Returns:
            Its path; None if there is no checkpoint at all.

        Raises:
            CheckpointError: there are checkpoints, and all are damaged or links.
            MismatchError: a newer version of hf_lm wrote the newest one.
        """
        damaged: dict[Path, list[str]] = {}
        for step in reversed(self.steps()):
            path = self.path(step)
            check_format(path)
            problems = list(verify(path))
            if not problems:
                for later, lines in damaged.items():
                    notify(f"{later.name} is damaged ({lines[0]}); continuing from step {step}")
                    if os.path.lexists(later / MANIFEST):  # otherwise we did not write it
                        self.quarantine(later)
                return path
            damaged[path] = problems
        links = [entry.name for entry in self.entries() if entry.is_symlink()]
        if links and not damaged:
            raise CheckpointError(
                f"{self.folder / links[0]}: is a link; move the checkpoint itself here, or start "
                "over with --fresh"
            )
        if damaged:
            lines = [f"{path}: {'; '.join(problems)}" for path, problems in damaged.items()]
            raise CheckpointError([*lines, "no checkpoint is valid; start over with --fresh"])
        return None

    def quarantine(self, path: Path) -> None:
        """Rename a damaged checkpoint, or whatever has its name, to NAME.bad."""
        aside, number = path.with_name(f"{path.name}{BAD}"), 1
        while os.path.lexists(aside):
            number += 1
            aside = path.with_name(f"{path.name}{BAD}-{number}")
        path.rename(aside)
