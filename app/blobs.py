"""Uploaded bytes: a local folder or an object store (S3, GCS, Azure), through obstore."""

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.exceptions import NotFoundError as BlobNotFound
from obstore.store import LocalStore, ObjectStore, from_url

from app.errors import Broken, SluiceError, TooLarge, Transient, Unprocessable

_READ_BYTES = 1024 * 1024
_FIRST_BYTES = 4096
_LISTED_AT_ONCE = 1000
_MISSING = "The file's bytes are no longer in the blob store; upload it again."
_NO_ROOM = "The folder for temporary files takes no copy of the blob; it may be full (TMPDIR)."


class BlobsUnavailable(Transient):
    """The blob store does not answer; check STORAGE_URL and its credentials."""


class NoBlobs(BlobsUnavailable):
    """The folder of STORAGE_URL holds nothing at all here; check that its volume is mounted."""

    costs_attempt = False


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """What was learnt of a blob while it was stored."""

    size_bytes: int
    sha256: bytes
    first_bytes: bytes


class _Tap:
    """Passes a stream on while it counts, hashes and limits it."""

    def __init__(self, body: AsyncIterator[bytes], *, max_bytes: int) -> None:
        self._body = body
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self.size_bytes = 0
        self.first_bytes = b""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._body:
            self.size_bytes += len(piece)
            if self.size_bytes > self._max_bytes:
                raise TooLarge(
                    f"The file is larger than this server accepts ({self._max_bytes} bytes).", code="file_too_large"
                )
            self.first_bytes += piece[: max(0, _FIRST_BYTES - len(self.first_bytes))]
            self._hash.update(piece)
            yield piece

    def stored(self) -> StoredBlob:
        return StoredBlob(self.size_bytes, self._hash.digest(), self.first_bytes)


class BlobStore:
    """Blobs by key. A blob that `put` has returned is durable."""

    def __init__(self, store: ObjectStore, folder: Path | None) -> None:
        self._store = store
        self._folder = folder

    @classmethod
    def open(cls, url: str) -> "BlobStore":
        """The store behind `file:///folder`, `s3://bucket/prefix`, `gs://…` or `az://…`.

        Raises:
            Broken: the URL or its credentials cannot be used.
        """
        try:
            if url.startswith("file://"):
                folder = Path(url.removeprefix("file://"))
                folder.mkdir(parents=True, exist_ok=True)
                return cls(LocalStore(folder), folder)
            return cls(from_url(url), None)
        except (ValueError, OSError) as exc:
            raise Broken(f"STORAGE_URL: {exc}") from exc
        except BaseError as exc:  # its text and its traceback quote the URL, and what it may hold of credentials
            wanted = "file:///folder, s3://bucket/prefix, gs://… or az://…"
            raise Broken(f"STORAGE_URL cannot be used ({type(exc).__name__}); expected {wanted}") from None

    async def put(self, key: str, body: AsyncIterator[bytes], *, max_bytes: int) -> StoredBlob:
        """Store a stream under `key`; on any failure nothing is left behind.

        Raises:
            TooLarge: more than `max_bytes`.
            BlobsUnavailable: the store fails.
        """
        tap = _Tap(body, max_bytes=max_bytes)
        try:
            await obstore.put_async(self._store, key, aiter(tap))
            if self._folder is not None:
                await asyncio.to_thread(_make_durable, self._folder / key)
        except (BaseError, OSError) as exc:
            # obstore wraps what the stream raised; a refusal of ours must stay one
            refusal = _find_cause(exc)
            if refusal is not None:
                raise refusal from None
            raise BlobsUnavailable from exc
        return tap.stored()

    async def read(self, key: str) -> AsyncIterator[bytes]:
        """A blob's bytes, in pieces.

        Raises:
            Unprocessable: `blob_missing`.
            NoBlobs: so are all others, in a folder.
            BlobsUnavailable: the store fails.
        """
        try:
            answer = await obstore.get_async(self._store, key)
            async for piece in answer.stream(min_chunk_size=_READ_BYTES):
                yield bytes(piece)
        except (BlobNotFound, FileNotFoundError) as exc:
            raise self._missing() from exc
        except (BaseError, OSError) as exc:
            raise BlobsUnavailable from exc

    @asynccontextmanager
    async def as_local_file(self, key: str) -> AsyncIterator[Path]:
        """A path to the blob's bytes for as long as the block lasts; not to be written to.

        Raises:
            as `read`; also when the blob is deleted while the block reads it, or there is no room for a copy.
        """
        if self._folder is not None:
            original = self._folder / key
            try:
                yield original
            except FileNotFoundError as exc:
                if exc.filename != str(original):
                    raise
                raise self._missing() from exc
            return
        with ExitStack() as stack:
            try:
                # without a name it goes with the process that holds it, however that ends
                unnamed = stack.enter_context(tempfile.TemporaryFile(buffering=0))
                path = Path(f"/proc/self/fd/{unnamed.fileno()}")
                with await asyncio.to_thread(path.open, "wb") as target:
                    async for piece in self.read(key):
                        await asyncio.to_thread(target.write, piece)
            except OSError as exc:
                raise BlobsUnavailable(_NO_ROOM) from exc
            yield path

    def _missing(self) -> Unprocessable | NoBlobs:
        """Why one blob is not there; a volume that is not mounted is no reason to give up a file."""
        if self._folder is not None and not any(self._folder.glob("*")):
            return NoBlobs()
        return Unprocessable("blob_missing", _MISSING)

    async def older_than(self, moment: datetime) -> AsyncIterator[list[str]]:
        """The keys of blobs stored before `moment`, up to a thousand at a time.

        Raises:
            BlobsUnavailable: the store fails.
        """
        try:
            async for page in obstore.list(self._store, chunk_size=_LISTED_AT_ONCE):
                yield [entry["path"] for entry in page if entry["last_modified"] < moment]
        except (BaseError, OSError) as exc:
            raise BlobsUnavailable from exc

    async def delete_unfinished(self, moment: datetime, *, is_ours: Callable[[str], bool]) -> int:
        """Delete what uploads that were cut off before `moment` have left of keys that are ours; how many.

        In a folder these are files that no listing shows. Object stores need a lifecycle rule of their own for
        incomplete multipart uploads.

        Raises:
            BlobsUnavailable: the store fails.
        """
        if self._folder is None:
            return 0
        try:
            return await asyncio.to_thread(_delete_unfinished, self._folder, moment.timestamp(), is_ours)
        except OSError as exc:
            raise BlobsUnavailable from exc

    async def delete(self, key: str) -> None:
        """Delete a blob; its absence is fine.

        Raises:
            BlobsUnavailable: the store fails.
        """
        try:
            await obstore.delete_async(self._store, key)
        except (BlobNotFound, FileNotFoundError):
            return
        except (BaseError, OSError) as exc:
            raise BlobsUnavailable from exc


def _make_durable(path: Path) -> None:
    """Flush a new file and its folder's entry to the disk: obstore renames it into place without fsync."""
    for target in (path, path.parent):
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _delete_unfinished(folder: Path, until: float, is_ours: Callable[[str], bool]) -> int:
    """A folder store writes `key#number` and renames it in the end."""
    count = 0
    for path in folder.rglob("*#*"):
        key, _, number = path.relative_to(folder).as_posix().rpartition("#")
        with suppress(FileNotFoundError):  # it is finished, or gone, meanwhile
            if number.isdecimal() and is_ours(key) and path.stat().st_mtime < until:
                path.unlink()
                count += 1
    return count


def _find_cause(error: BaseException | None) -> SluiceError | None:
    while error is not None:
        if isinstance(error, SluiceError):
            return error
        error = error.__cause__ or error.__context__
    return None
