"""Blobs: durable when `put` returns, nothing left behind when it does not."""

import os
import resource
import tempfile
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from app.blobs import BlobStore, BlobsUnavailable, NoBlobs
from app.errors import Broken, TooLarge, Unprocessable


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return BlobStore.open(f"file://{tmp_path / 'blobs'}" if request.param == "file" else "memory:///")


async def read(store: BlobStore, key: str) -> bytes:
    return b"".join([piece async for piece in store.read(key)])


async def test_what_was_put_is_read_and_was_measured_on_the_way(store: BlobStore) -> None:
    stored = await store.put("files/a", pieces(b"one ", b"two", b" three" * 500_000), max_bytes=1 << 30)
    assert await read(store, "files/a") == b"one two" + b" three" * 500_000
    assert stored.size_bytes == 7 + 6 * 500_000
    assert stored.first_bytes.startswith(b"one two three")
    assert len(stored.sha256) == 32
    async with store.as_local_file("files/a") as path:
        assert path.stat().st_size == stored.size_bytes
    assert path.exists() == (store._folder is not None)  # noqa: SLF001 - a copy is gone, the original is not


@pytest.mark.parametrize("parts", [(b"x" * 101,), (b"x" * 60, b"x" * 60), (b"x" * 20_000_000,)])
async def test_more_than_is_allowed_is_refused_and_leaves_nothing(
    store: BlobStore, parts: tuple[bytes, ...]
) -> None:
    with pytest.raises(TooLarge):
        await store.put("files/a", pieces(*parts), max_bytes=100)
    with pytest.raises(Unprocessable):
        await read(store, "files/a")
    if store._folder is not None:  # noqa: SLF001 - looks behind the scenes for leftovers
        assert [path for path in store._folder.rglob("*") if path.is_file()] == []  # noqa: SLF001 - as above


async def test_a_stream_that_breaks_leaves_nothing(store: BlobStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 6_000_000
        raise TooLarge

    with pytest.raises(TooLarge):
        await store.put("files/a", broken(), max_bytes=1 << 30)
    with pytest.raises(Unprocessable):
        await read(store, "files/a")


async def test_what_is_gone_says_so(store: BlobStore) -> None:
    await store.put("files/other", pieces(b"x"), max_bytes=100)
    with pytest.raises(Unprocessable, match="no longer in the blob store"):
        await read(store, "files/none")
    await store.delete("files/none")
    with pytest.raises(Unprocessable) as missing:
        async with store.as_local_file("files/none") as path:
            path.read_bytes()
    assert missing.value.failure == "blob_missing"


async def test_what_else_is_not_found_in_the_meantime_is_no_missing_blob(store: BlobStore, tmp_path: Path) -> None:
    await store.put("files/a", pieces(b"x"), max_bytes=100)
    with pytest.raises(FileNotFoundError):
        async with store.as_local_file("files/a"):
            (tmp_path / "of something else").read_bytes()


@pytest.fixture
def no_room() -> Iterator[None]:
    """No file may grow beyond a megabyte."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_copy_that_finds_no_room_is_tried_again(no_room: None) -> None:
    store = BlobStore.open("memory:///")
    await store.put("files/a", pieces(b"x" * (1 << 21)), max_bytes=1 << 30)
    with pytest.raises(BlobsUnavailable, match="temporary"):
        async with store.as_local_file("files/a"):
            pass


async def test_a_copy_has_no_name_that_a_killed_worker_could_leave_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = BlobStore.open("memory:///")
    await store.put("files/a", pieces(b"x" * 5000), max_bytes=1 << 30)
    async with store.as_local_file("files/a") as path:
        assert list(tmp_path.rglob("*")) == []
        assert path.read_bytes() == b"x" * 5000
        assert path.stat().st_size == 5000
        descriptor = os.open(path, os.O_RDONLY)  # as a parser is given it
    assert os.read(descriptor, 2) == b"xx"
    os.close(descriptor)


async def test_a_folder_that_holds_nothing_may_be_a_volume_that_is_not_mounted(tmp_path: Path) -> None:
    folder = tmp_path / "blobs"
    store = BlobStore.open(f"file://{folder}")
    for remaining in (folder, tmp_path):
        with pytest.raises(NoBlobs, match="volume"):
            await read(store, "files/a")
        with pytest.raises(NoBlobs):
            async with store.as_local_file("files/a") as path:
                path.read_bytes()
        if remaining == folder:
            folder.rmdir()


@pytest.mark.parametrize("url", ["file:///proc/nowhere", "gopher://x", "nonsense"])
def test_a_place_that_cannot_be_used_is_named(url: str) -> None:
    with pytest.raises(Broken, match="STORAGE_URL"):
        BlobStore.open(url)


@pytest.mark.parametrize(
    "url",
    ["gopher://me:hunter2@x", "az://me:hunter2@c/x", "s3://?secret=hunter2", "http://me:hunter2@h:99999/"],
)
def test_credentials_in_the_url_are_not_repeated(url: str) -> None:
    with pytest.raises(Broken) as refused:
        BlobStore.open(url)
    assert "hunter2" not in "".join(traceback.format_exception(refused.value, chain=True))
    assert "hunter2" not in str(refused.value)
