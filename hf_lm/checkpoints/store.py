"""Write checkpoints atomically, rotate them, and find the newest valid one.

    .partial-checkpoint-400/   being written; no reader takes it for a checkpoint
    checkpoint-400/            whole: manifest.json lists the size and SHA-256 of every file
    checkpoint-400.bad/        found damaged and set aside
    .trash-checkpoint-300/     about to be deleted

Every file is on the disk before the manifest, the manifest before the name, and the name before an
older checkpoint is deleted: whichever call a crash or a full disk comes at, the older one is whole.
Checkpoints are ordered by step, never by clock.
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
from typing import Any

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
    """The checkpoints in the folder of one run.

    Args:
        folder: of the run.
        limit: how many to keep; None keeps all.
        facts: what every manifest says of the run.
        extra: files of every checkpoint, such as the tokenizer's.
        before_write: what has to be on the disk first, such as the rows of the log.
        on_saved: called with each that is whole, before an older one is deleted.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limit: int | None = None,
        facts: Mapping[str, Any] = MappingProxyType({}),
        extra: Mapping[str, Write] = MappingProxyType({}),
        before_write: Callable[[], None] = lambda: None,
        on_saved: Write = lambda path: None,
    ) -> None:
        self.folder, self.limit, self.facts = folder, limit, facts
        self.extra, self.before_write, self.on_saved = extra, before_write, on_saved

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.folder / f"checkpoint-{step}"

    def steps(self) -> list[int]:
        """Steps with a folder that is named as a checkpoint, in ascending order."""
        names = [entry.name for entry in self.entries() if entry.is_dir(follow_symlinks=False)]
        return sorted(int(name.split("-")[1]) for name in names)

    def entries(self) -> list[os.DirEntry[str]]:
        """What has the name of a checkpoint."""
        if not self.folder.is_dir():
            return []
        return [entry for entry in os.scandir(self.folder) if NAME.fullmatch(entry.name)]

    def write(self, step: int, files: Mapping[str, Write], *, best: int | None = None) -> Path:
        """Write a checkpoint, and delete older ones over the limit.

        Args:
            step: the optimizer steps behind it.
            files: by name; each writes its file at a path.
            best: the step that is never deleted.

        Raises:
            OSError: the disk is full or broken; the checkpoints before are whole.
            ValueError: the name of a file is none that a reader would take.
        """
        files = {**self.extra, **files}
        foreign = [name for name in files if not FILE.fullmatch(name) or name == MANIFEST]
        if foreign:
            raise ValueError(f"not the name of a checkpoint's file: {foreign[0]}")
        final, staging = self.path(step), self.folder / f"{PARTIAL}checkpoint-{step}"
        remove(staging)
        try:
            self.before_write()
            staging.mkdir(parents=True)
            for name, write in files.items():
                write(staging / name)
                fsync(staging / name)
            listed = {name: file_digest(staging / name) for name in files}
            text = manifest_text({"format": FORMAT, "step": step, **self.facts, "files": listed})
            (staging / MANIFEST).write_text(text, encoding="utf-8")
            fsync(staging / MANIFEST)
            fsync(staging)
            if os.path.lexists(final):  # a step taken again, or somebody's own
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
        """A full disk, with what was needed and what there is; any other error as it is."""
        if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return error
        whole = [size_of(self.path(step)) for step in self.steps()]
        needed = max([size_of(staging), *whole])
        free = shutil.disk_usage(self.folder).free + size_of(staging)
        return OSError(
            error.errno,
            f"{error.strerror}: a checkpoint needs about {needed / 1e9:.2g} GB, "
            f"{free / 1e9:.2g} GB are free; the checkpoint before is whole, and the same command "
            "continues from it",
            str(staging),
        )

    def rotate(self, *, written: int, best: int | None) -> None:
        """Delete the oldest over the limit: none but ours, and neither the last nor the best."""
        if self.limit is None:
            return
        ours = [step for step in self.steps() if read_manifest(self.path(step)) is not None]
        kept = {written, best, *sorted(ours, reverse=True)[: self.limit]}
        for step in ours:
            if step not in kept and step < written:
                with suppress(OSError):  # the new one is whole; the next start tries again
                    self.delete(self.path(step))

    def delete(self, path: Path) -> None:
        """Delete a checkpoint: out of its name at once, so that no half of it is ever found."""
        trash = self.folder / f"{TRASH}{path.name}"
        remove(trash)
        path.rename(trash)
        fsync(self.folder)
        remove(trash)

    def remove_leftovers(self) -> None:
        """Delete what a killed run has left half-made or half-deleted; nothing else."""
        if self.folder.is_dir():
            for entry in list(os.scandir(self.folder)):
                kind, dash, rest = entry.name.partition("-")
                if f"{kind}{dash}" in (PARTIAL, TRASH) and NAME.fullmatch(rest):
                    remove(Path(entry.path))

    def latest_valid(self, *, notify: Callable[[str], None] = lambda line: None) -> Path | None:
        """The checkpoint of the highest step that verifies; later ones are named and set aside.

        Raises:
            CheckpointError: there are some, and all are damaged, or links.
            MismatchError: the newest one was written by a newer version.
        """
        damaged: dict[Path, list[str]] = {}
        for step in reversed(self.steps()):
            path = self.path(step)
            check_format(path)
            problems = list(verify(path))
            if not problems:
                for other, lines in damaged.items():
                    notify(f"{other.name} is damaged ({lines[0]}); continuing from step {step}")
                    if os.path.lexists(other / MANIFEST):  # else it never was one of ours
                        self.quarantine(other)
                return path
            damaged[path] = problems
        links = [entry.name for entry in self.entries() if entry.is_symlink()]
        if links and not damaged:
            raise CheckpointError(
                f"{self.folder / links[0]}: is a link; move the checkpoint itself here, or start "
                "anew with --fresh"
            )
        if damaged:
            lines = [f"{path}: {'; '.join(found)}" for path, found in damaged.items()]
            raise CheckpointError([*lines, "no checkpoint is whole; start anew with --fresh"])
        return None

    def quarantine(self, path: Path) -> None:
        """Move what has the name of a checkpoint out of the way."""
        aside, number = path.with_name(f"{path.name}{BAD}"), 1
        while os.path.lexists(aside):
            number += 1
            aside = path.with_name(f"{path.name}{BAD}-{number}")
        path.rename(aside)
