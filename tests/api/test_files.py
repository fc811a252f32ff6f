import asyncio
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import openai
import pytest

from app.db import Pool
from app.settings import Settings
from tests.api.conftest import MakePrincipal, Person, person, serving
from tests.support.proxy import Proxy

BOUNDARY = "limit"


def multipart(*parts: tuple[str, str | None, bytes]) -> bytes:
    """(name, filename, content) parts in exactly this order."""
    lines = []
    for name, filename, content in parts:
        disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
        lines.append(f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n")
    return b"".join(lines) + f"--{BOUNDARY}--\r\n".encode()


MULTIPART = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


async def test_an_upload_comes_back_byte_for_byte(ada: Person):
    content = bytes(range(256)) * 4099 + b"\r\n--" + b"limit"  # larger than a piece, with boundaries' look-alikes
    made = await ada.openai.files.create(file=("noise.bin", content), purpose="assistants")
    assert (made.filename, made.bytes, made.status) == ("noise.bin", len(content), "processed")
    read = await ada.openai.files.content(made.id)
    assert read.content == content


async def test_the_download_names_the_file(ada: Person):
    made = await ada.openai.files.create(file=("Jahresübersicht 2026.txt", b"text"), purpose="assistants")
    answer = await ada.http.get(f"/v1/files/{made.id}/content")
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''Jahres%C3%BCbersicht%202026.txt"
    assert answer.headers["content-length"] == "4"


async def test_the_purpose_may_follow_the_file(ada: Person):
    body = multipart(("file", "a.txt", b"hello"), ("purpose", None, b"user_data"))
    answer = await ada.http.post("/v1/files", content=body, headers=MULTIPART)
    assert answer.status_code == 200
    assert answer.json()["purpose"] == "user_data"


async def test_an_upload_may_expire(ada: Person):
    made = await ada.openai.files.create(
        file=("a.txt", b"hello"), purpose="assistants", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.expires_at is not None
    assert 3590 <= made.expires_at - made.created_at <= 3610


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\ada\\cv.pdf", "cv.pdf"),
        ("a\x07b.txt", "ab.txt"),
        ("..", "unnamed"),
        ("", "unnamed"),
        ("x" * 400 + ".pdf", "x" * 251 + ".pdf"),
        ("grüße 你好.md", "grüße 你好.md"),
    ],
)
async def test_a_filename_is_cleaned(ada: Person, given: str, kept: str):
    body = multipart(("purpose", None, b"assistants"), ("file", given, b"hello"))
    answer = await ada.http.post("/v1/files", content=body, headers=MULTIPART)
    assert answer.json()["filename"] == kept


async def test_an_empty_file_is_refused_and_leaves_nothing(ada: Person, blob_names: Callable[[], list[str]]):
    with pytest.raises(openai.BadRequestError) as refused:
        await ada.openai.files.create(file=("empty.txt", b""), purpose="assistants")
    assert (refused.value.code, refused.value.param) == ("empty_file", "file")
    assert blob_names() == []


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ([("file", "a.txt", b"hello")], "purpose"),
        ([("file", "a.txt", b"hello"), ("purpose", None, b"world domination")], "purpose"),
        ([("file", "a.txt", b"x"), ("purpose", None, b"assistants"), ("colour", None, b"red")], "colour"),
        ([("purpose", None, b"assistants")], "file"),
        ([("purpose", None, b"assistants"), ("file", None, b"not a file")], "file"),
        ([("file", "a.txt", b"x"), ("file", "b.txt", b"y"), ("purpose", None, b"assistants")], "file"),
        (
            [
                ("file", "a.txt", b"x"),
                ("purpose", None, b"assistants"),
                ("expires_after[anchor]", None, b"created_at"),
                ("expires_after[seconds]", None, b"5"),
            ],
            "expires_after.seconds",
        ),
        ([("file", "a.txt", b"x"), ("purpose", None, b"\xff\xfe")], "purpose"),
        ([("file", "a.txt", b"x"), ("purpose", None, b"x" * 70_000)], "purpose"),
    ],
)
async def test_a_wrong_upload_is_refused_by_name_and_leaves_nothing(
    ada: Person, blob_names: Callable[[], list[str]], parts: list[tuple[str, str | None, bytes]], param: str
):
    answer = await ada.http.post("/v1/files", content=multipart(*parts), headers=MULTIPART)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert blob_names() == []


STORES = b",".join(b"vs_%032d" % number for number in range(101))


@pytest.mark.parametrize(
    ("path", "name", "text", "message"),
    [
        ("/v1/files", b"colour", b"", b"Unknown field 'colour'"),
        ("/v1/files", b"expires_after[colour]", b"", b"Unknown field 'expires_after[colour]'"),
        ("/v1/files", b"purpose", b"x" * 5000, b"longer than 4096 bytes"),
        ("/v1/ingestions", b"colour", b"", b"Unknown field 'colour'"),
        ("/v1/ingestions", b"vector_store_ids", STORES + b"\r\n--limit\r\n", b"At most 100 vector stores"),
    ],
)
async def test_a_wrong_field_is_refused_before_the_rest_has_come(  # noqa: PLR0917 - one case
    ada: Person, path: str, name: bytes, text: bytes, message: bytes
):
    body = b'--limit\r\nContent-Disposition: form-data; name="' + name + b'"\r\n\r\n' + text
    head = (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {ada.api_key}\r\n"
        f"Content-Type: multipart/form-data; boundary=limit\r\nContent-Length: 1000000\r\n\r\n"
    )
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(ada.http.base_url.host, ada.http.base_url.port)
        writer.write(head.encode() + body)
        try:
            answer = await reader.readuntil(b'"error":') + await reader.readuntil(b"}")
        finally:
            writer.close()
            await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert message in answer


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"whatever"),
        (f"multipart/form-data; boundary={'b' * 1000}", b"whatever"),
        (MULTIPART["Content-Type"], b"not multipart at all"),
        (MULTIPART["Content-Type"], multipart(("file", "a.txt", b"hello"))[:-8]),
        (MULTIPART["Content-Type"], b"--limit\r\nContent-Type: text/plain\r\n\r\nnameless\r\n--limit--\r\n"),
        (MULTIPART["Content-Type"], b""),
    ],
)
async def test_what_is_not_multipart_is_refused(
    ada: Person, blob_names: Callable[[], list[str]], content_type: str, body: bytes
):
    answer = await ada.http.post("/v1/files", content=body, headers={"Content-Type": content_type})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_multipart"
    assert blob_names() == []


async def test_an_upload_that_breaks_off_leaves_nothing(
    url: str, ada: Person, blob_names: Callable[[], list[str]], pool: Pool
):
    host, port = url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ada.api_key}\r\nContent-Length: 9999999\r\n"
    )
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    content_type = f"Content-Type: {MULTIPART['Content-Type']}\r\n\r\n"
    writer.write((head + content_type + part).encode() + b"x" * 1_000_000)
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await ada.http.get("/healthz")
    metrics = ""
    while 'route="/v1/files",status="499"' not in metrics:  # the server has noticed and is done with it
        metrics = (await ada.http.get("/metrics")).text
    assert blob_names() == []
    assert await pool.fetchval("SELECT count(*) FROM files") == 0


async def test_files_are_listed_newest_first_page_by_page(ada: Person):
    made = [(await ada.openai.files.create(file=(f"{n}.txt", b"x"), purpose="assistants")).id for n in range(5)]
    seen = [file.id async for file in ada.openai.files.list(limit=2)]
    assert seen == sorted(made, reverse=True)
    assert [file.id async for file in ada.openai.files.list(limit=2, order="asc")] == sorted(made)


async def test_pages_can_be_turned_back(ada: Person):
    made = sorted(
        [(await ada.openai.files.create(file=(f"{n}.txt", b"x"), purpose="assistants")).id for n in range(5)]
    )
    parameters = {"order": "asc", "limit": 2, "before": made[4]}
    page = (await ada.http.get("/v1/files", params=parameters)).json()
    assert [file["id"] for file in page["data"]] == made[2:4]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (made[2], made[3], True)


async def test_files_are_listed_by_purpose(ada: Person):
    await ada.openai.files.create(file=("a.txt", b"x"), purpose="assistants")
    wanted = await ada.openai.files.create(file=("b.txt", b"x"), purpose="user_data")
    assert [file.id async for file in ada.openai.files.list(purpose="user_data")] == [wanted.id]


async def test_a_deleted_file_is_gone_with_its_bytes(ada: Person, blob_names: Callable[[], list[str]]):
    made = await ada.openai.files.create(file=("a.txt", b"x"), purpose="assistants")
    assert (await ada.openai.files.delete(made.id)).deleted
    assert blob_names() == []
    with pytest.raises(openai.NotFoundError):
        await ada.openai.files.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        await ada.openai.files.delete(made.id)


async def test_nobody_sees_the_files_of_others(ada: Person, bob: Person):
    made = await ada.openai.files.create(file=("a.txt", b"x"), purpose="assistants")
    assert [file async for file in bob.openai.files.list()] == []
    with pytest.raises(openai.NotFoundError):
        await bob.openai.files.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        await bob.openai.files.content(made.id)
    with pytest.raises(openai.NotFoundError):
        await bob.openai.files.delete(made.id)
    assert (await ada.openai.files.retrieve(made.id)).id == made.id


WAITS_AT_COMMIT = """
    CREATE FUNCTION wait_at_commit() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER wait_at_commit AFTER INSERT ON files
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_at_commit();
"""


async def test_an_upload_whose_commit_takes_effect_after_its_connection_broke_keeps_its_bytes(
    settings: Settings, pool: Pool, make_principal: MakePrincipal
):
    await pool.execute(WAITS_AT_COMMIT)
    place = urlsplit(settings.database_url)
    with Proxy(f"{parse_qs(place.query)['host'][0]}/.s.PGSQL.5432") as wire:
        far = f"postgresql://postgres@127.0.0.1:{wire.port}{place.path}"
        async with (
            serving(settings.model_copy(update={"database_url": far})) as url,
            person(url, *await make_principal("ada")) as ada,
            pool.acquire() as conn,
            asyncio.timeout(20),
        ):
            await conn.execute("SELECT pg_advisory_lock(4711)")
            content = ("a.txt", b"the bytes of a file")
            uploading = asyncio.create_task(ada.openai.files.create(file=content, purpose="assistants"))
            while not await conn.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted AND objid = 4711"):
                await asyncio.sleep(0.01)
            wire.reset()
            with pytest.raises(openai.InternalServerError):
                await uploading
            await conn.execute("SELECT pg_advisory_unlock(4711)")
            made = await ada.openai.files.create(
                file=content, purpose="assistants", extra_headers={"X-Stainless-Retry-Count": "1"}
            )
            assert [file.id async for file in ada.openai.files.list()] == [made.id]
            assert (await ada.openai.files.content(made.id)).content == content[1]


async def test_a_deletion_does_not_wait_for_long_with_a_connection_in_hand(ada: Person, pool: Pool):
    made = await ada.openai.files.create(file=("a.txt", b"x"), purpose="assistants")
    async with pool.acquire() as conn, conn.transaction(), asyncio.timeout(20):
        await conn.execute("SELECT FROM files FOR UPDATE")
        with pytest.raises(openai.InternalServerError) as refused:
            await ada.openai.files.delete(made.id)
    assert (refused.value.status_code, refused.value.code) == (503, "locked")
    assert (await ada.openai.files.delete(made.id)).deleted


async def test_a_file_whose_bytes_are_lost_is_a_clear_error(ada: Person, settings):
    made = await ada.openai.files.create(file=("a.txt", b"x"), purpose="assistants")
    (settings.storage_path / "files" / made.id.removeprefix("file_")).unlink()
    answer = await ada.http.get(f"/v1/files/{made.id}/content")
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "blob_missing"
