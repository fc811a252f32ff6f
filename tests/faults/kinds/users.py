"""What users do while their files are on the way."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any
from uuid import uuid4

from tests.faults.fault import faults
from tests.faults.harness import EMBEDDINGS, Harness
from tests.faults.rows import until_written
from tests.faults.uploads import LARGE, texts_of

_BY_KEY = 0.5
_OWN_KEY = "sk-own"
_AT_ONCE = 4
_PROVIDERS = 3
"""Of the harness's stores: one whose vectors come from the provider."""


def cancel_some(harness: Harness) -> None:
    """POST …/cancel of files on their way."""
    cancel(harness, harness.some_ingestions())


def cancel(harness: Harness, ingestions: list[dict[str, Any]]) -> None:
    """POST …/cancel of these, several at once."""

    def one(ingestion: str) -> None:
        answer = harness.ask("POST", f"/v1/ingestions/{ingestion}/cancel")
        if answer.get("status") == "cancelled":
            harness.promises.cancelled.add(ingestion)
        elif not answer:  # it may have been or not
            harness.promises.withdrawn.add(ingestion)

    _at_once(one, [(each["id"],) for each in ingestions])


def delete_some(harness: Harness) -> None:
    """DELETE of files on their way."""
    delete(harness, harness.some_ingestions())


def delete(harness: Harness, ingestions: list[dict[str, Any]]) -> None:
    """DELETE of these files, several at once."""

    def one(file: str) -> None:
        answer = harness.ask("DELETE", f"/v1/files/{file}")
        if answer.get("deleted"):
            harness.promises.deleted.add(file)
            harness.reader.note_deleted(file)
        elif not answer:  # likewise
            harness.promises.may_be_gone.add(file)

    _at_once(one, [(each["file_id"],) for each in ingestions])


def detach_some(harness: Harness) -> None:
    """DELETE of files on their way from one of their stores, which may be the only one."""
    detach(harness, harness.some_ingestions())


def detach(harness: Harness, ingestions: list[dict[str, Any]]) -> None:
    """DELETE of these files from one of their stores, several at once."""

    def one(store: str, file: str) -> None:
        harness.ask("DELETE", f"/v1/vector_stores/{store}/files/{file}")

    harness.promises.detached |= {each["id"] for each in ingestions}
    stores = [harness.dice.choice(each["vector_store_ids"] or harness.stores) for each in ingestions]
    _at_once(one, [(store, each["file_id"]) for store, each in zip(stores, ingestions, strict=True)])


def _at_once(act: Callable[..., None], arguments: list[tuple[str, ...]]) -> None:
    """While a worker sleeps or writes there is no time to do it one after the other."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for done in [threads.submit(act, *each) for each in arguments]:
            done.result()


def attach_again(harness: Harness) -> None:
    """Files on their way are attached once more, in other pieces: the newer ingestion takes the place."""
    chosen = harness.some_ingestions()
    harness.promises.detached |= {each["id"] for each in chosen}
    static = {"max_chunk_size_tokens": harness.dice.choice([200, 400]), "chunk_overlap_tokens": 50}
    body = {
        "file_ids": [each["file_id"] for each in chosen],
        "chunking_strategy": {"type": "static", "static": static},
    }
    for store in harness.dice.sample(harness.stores, 2):
        batch = harness.ask("POST", f"/v1/vector_stores/{store}/file_batches", json=body)
        if batch.get("id"):
            harness.expect_batch(batch["id"], store)


def delete_store(harness: Harness) -> None:
    """DELETE of a store that files are on their way to; another takes its place."""
    number = harness.dice.randrange(len(harness.stores))
    harness.promises.detached |= harness.promises.open_ingestions()
    harness.ask("DELETE", f"/v1/vector_stores/{harness.stores[number]}")
    harness.forget_gone_batches(harness.stores[number])
    harness.stores[number] = harness.new_store(EMBEDDINGS[number])


def withdraw_during_writes(harness: Harness) -> None:
    """Files are cancelled, deleted or detached while Postgres is slow in writing them."""
    harness.postgres_wire.latency_seconds = 0.02
    try:
        harness.upload()
        written = asyncio.run(until_written(harness.postgres.url))
        harness.dice.choice([cancel, cancel, delete, detach])(harness, written)
        harness.took_place = bool(written)
    finally:
        harness.postgres_wire.latency_seconds = 0.0


def revoke_key(harness: Harness) -> None:
    """The user's own embedding key is revoked while files count on it; the server's does not pay for them."""
    key = harness.ask("POST", "/v1/embedding_keys", json={"name": "own", "key": _OWN_KEY})
    harness.promises.may_fail |= {"key_revoked"}
    upload = harness.draw_upload(stores=[harness.stores[_PROVIDERS]])
    batch = harness.send(upload)
    harness.ask("DELETE", f"/v1/embedding_keys/{key.get('id')}")
    texts = list(texts_of(upload).values())

    def check() -> list[str]:
        others = harness.provider.paid_by_others(_OWN_KEY, texts)
        return [f"another key than the user's own has paid for {each[:60]!r}" for each in others[:3]]

    if batch is not None and "id" in key:
        harness.checks.append(check)


def cancel_batch(harness: Harness) -> None:
    """POST …/cancel of a whole batch."""
    store = harness.dice.choice(harness.stores)
    batch = harness.send(harness.draw_upload(LARGE, stores=[store]))
    if batch is not None:
        harness.promises.withdrawn |= set(harness.promises.open_batches[batch])
        answer = harness.ask("POST", f"/v1/vector_stores/{store}/file_batches/{batch}/cancel")
        if answer.get("file_counts", {}).get("in_progress") != 0:
            harness.wrong.append(f"a batch was cancelled and is still at work: {answer}")


def send_twice(harness: Harness) -> None:
    """The same upload at the same time, under one Idempotency-Key, or as an SDK does that was not answered."""
    upload = harness.draw_upload()
    if harness.dice.random() < _BY_KEY:
        headers = [{"Idempotency-Key": (key := uuid4().hex)}, {"Idempotency-Key": key}]
        made: list[str | None] = []
        senders = [Thread(target=lambda each=each: made.append(harness.send(upload, **each))) for each in headers]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
    else:
        made = [harness.send(upload), harness.send(upload, **{"X-Stainless-Retry-Count": "1"})]
    if len(set(made)) != 1:
        harness.wrong.append(f"an upload that was sent twice made {made}")


FAULTS = faults(
    cancel_some, cancel_batch, delete_some, detach_some, attach_again, delete_store, withdraw_during_writes,
    revoke_key, send_twice,
)  # fmt: skip
