"""Defines `Files`, an input that stands for a folder or a list of files."""

from __future__ import annotations

import hashlib
import io
import itertools
import mimetypes
import os
import stat
from collections import Counter
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from rlm_dspy.errors import UnreadableDocument
from rlm_dspy.inputs.documents import ARCHIVE, HEAD_BYTES, kind_of, read_document
from rlm_dspy.inputs.file_mapping import ATTACHED_BYTES, PIECE_BYTES, FileMapping, fits
from rlm_dspy.inputs.host_input import HostInput
from rlm_dspy.text import counted, expanded, real_path, sendable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import BinaryIO, Self

    from rlm_dspy.inputs.file_mapping import Piece

_BYTE_ORDER_MARK = "\ufeff"
_MOST_ENTRIES = 200_000
_MOST_PARTS = 1_000
_CUT_WITHIN = 4
"""The maximum bytes of one character in UTF-8."""
_SHOWN_NAMES, _SHOWN_FOLDERS, _SHOWN_KINDS = 6, 12, 8
_SHOWN_CHARS = 80
_UNITS = ("bytes", "KB", "MB", "GB", "TB")


class Files(HostInput, FileMapping):
    """The texts of a folder: a read-only mapping from relative name to text that reads on demand.

    `Files.open` makes one. In the REPL it is such a mapping, too, with `grep`, `glob`, `lines` and `sizes`. The
    host reads the files, below one root and without following links, so that code reaches nothing else; the
    folder may be larger than memory. PDF, Office documents and EPUB are the text that `Text.open` gives.

    Attributes:
        root: The folder that the names are relative to.
        sizes: The bytes of each file by name, as of `open`.
        left_out: How many entries were left out, by reason: links, special files, hidden, unreadable.
        opened: The names of the files that were read.

    Raises:
        FileNotFoundError: From `Files.open`, if a file or folder does not exist.
        ValueError: From `Files.open`, if there is no file, or there are too many; from `files[name]`, if a file is
            not UTF-8.
    """

    usage = (
        "{0}[file] is a text, {0}.lines(file) its lines, {0}.sizes[file] its bytes; {0}.glob('**/*.md') gives "
        "names, {0}.grep(regex, '**/*.md') a list of (file, line number, line); find_passages takes {0} as a text"
    )
    as_text = "files[name]"

    def __init__(self, root: Path, found: dict[str, tuple[int, int]], left_out: dict[str, int]) -> None:
        super().__init__({name: size for name, (size, _) in found.items()}, self.fetch)
        self.root, self.left_out = root, left_out
        self.opened: set[str] = set()
        self._found = found
        self._last_document = ("", b"")

    @classmethod
    def open(
        cls,
        where: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        pattern: str = "**/*",
        *,
        hidden: bool = False,
        max_entries: int = _MOST_ENTRIES,
    ) -> Files:
        """Return the files of a folder, or of a list of files and folders, without reading them.

        Links inside a folder, pipes and devices are left out, and counted in `left_out`.

        Args:
            where: A folder, or a list of files and folders; names are relative to the folder that holds them all.
            pattern: Which names to take: `*.md` (in the folder itself), `docs/*.md`, `**/*.md` (at any depth).
            hidden: Whether to take files and folders whose names begin with a dot.
            max_entries: Maximum number of files and folders to look at.

        Raises:
            FileNotFoundError: If a file or folder does not exist.
            NotADirectoryError: If `where` is one file.
            ValueError: If a path is empty, no file matches, all are pictures, sounds or videos, or there are more
                than `max_entries` entries.
        """
        given = [where] if isinstance(where, str | os.PathLike) else list(where)
        if any(isinstance(path, str) and not path.strip() for path in given):
            raise ValueError('A path is empty. Files.open takes a folder, or a list of files; "." is this folder.')
        paths = [real_path(expanded(path)) for path in given]
        for path in paths:
            if not path.exists():
                raise FileNotFoundError(f"{path} does not exist. Files.open takes a folder, or a list of files.")
        if isinstance(where, str | os.PathLike) and not paths[0].is_dir():
            raise NotADirectoryError(f"{where} is a file. Use Text.open(path), or Files.open([path]) for a list.")
        if not paths:
            raise ValueError("The list of files is empty. Files.open takes a folder, or a list of files.")
        root = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in paths]))
        scan = _Scan(root, hidden, max_entries)
        for path in paths:
            scan.add(path)
        names = sorted(name for name in scan.found if fits(name, pattern))
        if not names:
            reasons = _counts_by_reason(scan.left_out)
            raise ValueError(
                f"{root} has no file that matches {pattern!r}{f' (left out: {reasons})' if reasons else ''}. "
                "'**/*' matches all files, '**/*.md' those of one kind; hidden=True takes hidden ones too."
            )
        if all(map(_is_media, names)):
            raise ValueError(
                f"{root} has no text, only pictures, sounds or videos: {_short(names[0])}, ... Give each as "
                "dspy.Image.from_path(path) or dspy.Audio.from_path(path), to a field of the type "
                "list[dspy.Image] or list[dspy.Audio]."
            )
        return cls(root, {name: scan.found[name] for name in names}, dict(scan.left_out))

    def of_a_run(self) -> Self:
        """Return the same files for a new run, as not yet read."""
        return type(self)(self.root, self._found, self.left_out)

    @property
    def total(self) -> int:
        """The bytes of all files."""
        return sum(self.sizes.values())

    def reader(self, name: str) -> BinaryIO:
        """Open a file; nothing outside of the root, no link and no special file is ever opened.

        Raises:
            KeyError: If it is not one of these files.
            OSError: If it cannot be opened, or is no longer a regular file.
        """
        if name not in self.sizes:
            raise KeyError(f"there is no file {name!r}")
        file = os.fdopen(_opened(self.root, name), "rb", buffering=0)
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise OSError(f"{name} is no longer a regular file")
        self.opened.add(name)
        return file

    def fetch(self, parts: Sequence[tuple[str, int]]) -> list[Piece]:
        """Return pieces of files, up to 4 MB in all; the first that is not the end of its file is the last.

        Args:
            parts: Name and first byte of each.

        Returns:
            The text of each, and the byte where the next one begins, -1 at the end of the file; or None and the
            reason, if a file cannot be read or is not UTF-8.
        """
        pieces: list[Piece] = []
        left = PIECE_BYTES
        for name, start in parts[:_MOST_PARTS]:
            text, after, size = self._piece(str(name), int(start))
            pieces.append((text, after))
            left -= size
            if left <= 0 or (text is not None and after != -1):
                break
        return pieces

    def _piece(self, name: str, start: int) -> tuple[str | None, str | int, int]:
        try:
            with self.reader(name) as file:
                text_file = io.BytesIO(self._text_of(name, file)) if _is_document(file) else file
                text_file.seek(start)
                data = _read(text_file, PIECE_BYTES)
                ends = len(data) < PIECE_BYTES or not text_file.read(1)
        except OSError as error:
            return None, f"{name} cannot be read: {error.strerror or error}", 0
        except UnreadableDocument as error:
            return None, str(error), 0
        cut = len(data) if ends else data.rfind(b"\n") + 1
        try:
            text = data[: cut or len(data)].decode("utf-8")
        except UnicodeDecodeError as error:
            if cut or error.start < len(data) - _CUT_WITHIN:
                return None, not_utf8(name, data[error.start], start + error.start), len(data)
            cut = error.start
            text = data[:cut].decode("utf-8")
        text = text if start else text.removeprefix(_BYTE_ORDER_MARK)
        return text, -1 if ends else start + (cut or len(data)), len(data)

    def _text_of(self, name: str, file: BinaryIO) -> bytes:
        """Return the text of a document in UTF-8, and cache that of the last one for its further pieces."""
        kept, text = self._last_document
        if kept != name:
            file.seek(0)
            text = read_document(file, kind_of(file.read(HEAD_BYTES), name), name).text().encode()
            self._last_document = name, text
        return text

    def whole(self, name: str) -> FileOfFolder | str:
        """Return a file as a text that interpreters attach without a copy; the text of a document as it is.

        Raises:
            KeyError: If there is no such file.
            ValueError: If all files that were attached take too much memory, if the file has grown, or if a
                document cannot be read.
        """
        with self._lock:
            total = self._attached_bytes + (0 if name in self._attached else self.sizes[name])
            if total > ATTACHED_BYTES:
                raise ValueError(f"{name} is too large to be attached beside the other files")
            self._attached_bytes, self._attached[name] = total, ""
        with self.reader(name) as file:
            if _is_document(file):
                return self._text_of(name, file).decode()
            if os.fstat(file.fileno()).st_size > self.sizes[name]:
                raise ValueError(f"{name} has grown since it was listed, and is not attached")
            return FileOfFolder(self, name)

    def spans(self, names: Iterable[str]) -> list[tuple[int, int]]:
        """Return the first and last byte of files within the concatenation of all files, ordered by name."""
        ends = dict(zip(self.sizes, itertools.accumulate(self.sizes.values()), strict=True))
        return [(ends[name] - self.sizes[name], ends[name]) for name in names]

    def digest(self) -> tuple[int, str]:
        """Return the bytes of all files, and the SHA-256 of their names, sizes and times of change."""
        listing = repr(sorted(self._found.items())).encode("utf-8", "surrogatepass")
        return self.total, hashlib.sha256(listing).hexdigest()

    def __repr__(self) -> str:
        return f"Files({counted(len(self), 'file')} of {sendable(self.root.name)}/, {amount(self.total)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Files, (self.root, self._found, self.left_out)

    def stand_in(self) -> dict[str, Any]:
        """Return the arguments of the mapping in the REPL."""
        return {"sizes": self.sizes}

    @property
    def about(self) -> str:
        """The count, sizes, kinds, folders and some names of the files, in at most 2,000 characters."""
        names = list(self.sizes)
        step = max(1, len(names) // _SHOWN_NAMES)
        shown = names if len(names) <= _SHOWN_NAMES else [*names[::step][: _SHOWN_NAMES - 1], names[-1]]
        largest = max(names, key=self.sizes.__getitem__)
        kinds = Counter(PurePosixPath(name).suffix or "(none)" for name in names)
        folders = Counter(name.partition("/")[0] + "/" for name in names if "/" in name)
        parts = [
            f"a read-only mapping from name to text: {counted(len(names), 'file')}, {amount(self.total)}",
            f"by kind: {_most(kinds, _SHOWN_KINDS)}",
            f"folders: {_most(folders, _SHOWN_FOLDERS)}" if folders else "",
            f"largest: {_short(largest)!r}, {amount(self.sizes[largest])}",
            f"names: {', '.join(repr(_short(name)) for name in shown)}{' ...' if len(shown) < len(names) else ''}",
            f"left out: {_counts_by_reason(self.left_out)}" if self.left_out else "",
        ]
        return "; ".join(filter(None, parts))


class FileOfFolder:
    """One file of a `Files`, as a text backed by a file; see `interpreters.host.input_transfer.FileText`."""

    encoding = "utf-8-sig"

    def __init__(self, files: Files, name: str) -> None:
        self.path = files.root / name
        self._files, self._name = files, name

    def reader(self) -> BinaryIO:
        """Open the file."""
        return self._files.reader(self._name)


def amount(size: int) -> str:
    """Return `12 bytes`, `3.4 MB`."""
    value, unit = float(size), 0
    while value >= 1000 and unit < len(_UNITS) - 1:  # noqa: PLR2004 (of the next unit)
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{size:,} bytes"


def not_utf8(name: str, byte: int, at: int) -> str:
    """Return the message for a file that is not text."""
    return f"{name} is not UTF-8 text (byte 0x{byte:02x} at {at:,}); it is binary or in another encoding"


class _Scan:
    """Finds the regular files below a root, without following links."""

    def __init__(self, root: Path, hidden: bool, max_entries: int) -> None:
        self._root, self._hidden, self._most = root, hidden, max_entries
        self._entries = 0
        self.found: dict[str, tuple[int, int]] = {}
        """Size and time of change of each file, by name."""
        self.left_out: Counter[str] = Counter()

    def add(self, path: Path) -> None:
        """Add a file, or all files of a folder."""
        folders = [str(path)]
        if not path.is_dir():
            folders = []
            self._add_file(str(path), path.stat())
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(folder) as entries:
                    folders += [entry.path for entry in entries if self._is_folder(entry)]
            except OSError as error:
                if folder == str(path):
                    raise
                self.left_out[f"unreadable folders ({error.strerror})"] += 1

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        """Take one entry; return whether it is a folder to look into."""
        self._entries += 1
        if self._entries > self._most:
            raise ValueError(
                f"{self._root} has more than {self._most:,} files and folders. Open a folder inside it, or raise "
                "Files.open(..., max_entries=...)."
            )
        if entry.name.startswith(".") and not self._hidden:
            self.left_out["hidden"] += 1
        elif entry.is_symlink():
            self.left_out["links"] += 1
        elif entry.is_dir(follow_symlinks=False):
            return True
        elif not entry.is_file(follow_symlinks=False):
            self.left_out["special files"] += 1
        else:
            with suppress(FileNotFoundError):  # it was just removed
                self._add_file(entry.path, entry.stat(follow_symlinks=False))
        return False

    def _add_file(self, path: str, status: os.stat_result) -> None:
        name = os.path.relpath(path, self._root).replace(os.sep, "/")
        if not stat.S_ISREG(status.st_mode):
            self.left_out["special files"] += 1
        elif sendable(name) != name:
            self.left_out["names that are not UTF-8"] += 1
        else:
            self.found[name] = (status.st_size, status.st_mtime_ns)


def _opened(root: Path, name: str) -> int:
    """Open a file below a folder, one part of its path after the other, without following links."""
    parts = name.split("/")
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    if os.open not in os.supports_dir_fd:
        if any(root.joinpath(*parts[:end]).is_symlink() for end in range(1, len(parts) + 1)):
            raise OSError(f"{name} is a link, or lies behind one")
        return os.open(root / name, flags | getattr(os, "O_BINARY", 0))
    folder = os.open(root, flags | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            inner = os.open(part, flags | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(parts[-1], flags, dir_fd=folder)
    finally:
        os.close(folder)


def _read(file: BinaryIO, size: int) -> bytes:
    """Return up to `size` bytes, fewer only at the end of the file."""
    parts: list[bytes] = []
    while size > 0 and (data := file.read(size)):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def _is_media(name: str) -> bool:
    """Return whether a file is a picture, a sound or a video, by its suffix; SVG is a text."""
    kind = mimetypes.guess_type(name)[0] or ""
    return kind.startswith(("image/", "audio/", "video/")) and kind != "image/svg+xml"


def _is_document(file: BinaryIO) -> bool:
    """Return whether a file is a PDF or an archive, as documents of Office are; HTML counts as text here."""
    head = file.read(HEAD_BYTES)
    file.seek(0)
    return head.startswith((b"%PDF-", *ARCHIVE))


def _most(counts: Counter[str], most: int) -> str:
    shown = [f"{_short(name)} {count:,}" for name, count in counts.most_common(most)]
    return ", ".join([*shown, f"{len(counts) - most:,} others"] if len(counts) > most else shown)


def _counts_by_reason(left_out: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())


def _short(name: str) -> str:
    return name if len(name) <= _SHOWN_CHARS else f"...{name[-_SHOWN_CHARS:]}"
