from collections.abc import Awaitable, Callable

import pytest
from pydantic import SecretStr

from app.access.embedding_keys import (
    add_embedding_key,
    open_embedding_key,
    resolve_embedding_key,
    revoke_embedding_key,
)
from app.access.grants import VISIBLE_STORES, require_stores, share_store, unshare_store
from app.access.people import add_member, create_group, remove_member
from app.access.tokens import Principal, authenticate, revoke_token
from app.db import Connection, Pool, transaction
from app.errors import BadRequest, Broken, Forbidden, NotFound, Unauthorized, Unprocessable
from app.ids import new_id
from app.records.pages import PageRequest
from app.records.vector_stores import NewVectorStore, insert_store, list_stores
from app.settings import KeyEncryptionKey
from app.vector.shards import ensure_shard
from tests.conftest import KEK

MakePrincipal = Callable[[str], Awaitable[tuple[Principal, str]]]


async def add_key(conn: Connection, owner: Principal, text: str = "sk-x"):
    return await add_embedding_key(
        conn,
        owner_id=owner.user_id,
        name="n",
        base_url="https://api.example/v1",
        secret=SecretStr(text),
        kek=KeyEncryptionKey(KEK),
    )


async def test_an_api_key_is_kept_only_as_a_hash_and_works_until_revoked(
    pool: Pool, make_principal: MakePrincipal
) -> None:
    ada, text = await make_principal("ada")
    async with transaction(pool) as conn:
        assert (await authenticate(conn, text)).user_name == "ada"
        rows = await conn.fetch("SELECT t::text FROM api_tokens t")
        assert text not in str(rows)
        await revoke_token(conn, ada.token_id)
        with pytest.raises(Unauthorized):
            await authenticate(conn, text)


async def test_keys_resolve_own_then_group_creators_then_the_servers_then_nobody(
    pool: Pool, make_principal: MakePrincipal
) -> None:
    (ada, _), (bob, _), (eve, _) = [await make_principal(name) for name in ("ada", "bob", "eve")]
    async with transaction(pool) as conn:

        async def resolve(who: Principal, *, default: bool = True):
            return await resolve_embedding_key(conn, user_id=who.user_id, server_has_default=default)

        with pytest.raises(BadRequest) as refused:
            await resolve(bob, default=False)
        assert refused.value.code == "no_embedding_key"
        assert await resolve(bob) is None
        adas = await add_key(conn, ada)
        team = await create_group(conn, "team", creator_id=ada.user_id)
        assert await resolve(bob) is None, "a stranger's key is not for bob"
        await add_member(conn, group_id=team.id, user_id=bob.user_id)
        assert await resolve(bob) == adas.id
        bobs = await add_key(conn, bob)
        assert await resolve(bob) == bobs.id
        assert await resolve(ada) == adas.id
        await revoke_embedding_key(conn, owner_id=bob.user_id, key_id=bobs.id)
        assert await resolve(bob) == adas.id
        await remove_member(conn, group_id=team.id, user_id=bob.user_id)
        assert await resolve(bob) is None
        assert await resolve(eve) is None


async def test_a_revoked_key_does_not_open_and_its_ciphertext_is_gone(
    pool: Pool, make_principal: MakePrincipal
) -> None:
    ada, _ = await make_principal("ada")
    kek = KeyEncryptionKey(KEK)
    async with transaction(pool) as conn:
        key = await add_key(conn, ada, "sk-canary")
        assert (await open_embedding_key(conn, key.id, kek)).secret.get_secret_value() == "sk-canary"
        with pytest.raises(Broken):
            await open_embedding_key(conn, key.id, None)
        await revoke_embedding_key(conn, owner_id=ada.user_id, key_id=key.id)
        with pytest.raises(Unprocessable) as refused:
            await open_embedding_key(conn, key.id, kek)
        assert refused.value.failure == "key_revoked"
        assert await conn.fetchval("SELECT sealed FROM embedding_keys") == b""


async def test_only_the_owner_may_revoke(pool: Pool, make_principal: MakePrincipal) -> None:
    (ada, _), (eve, _) = await make_principal("ada"), await make_principal("eve")
    async with transaction(pool) as conn:
        key = await add_key(conn, ada)
        with pytest.raises(NotFound):
            await revoke_embedding_key(conn, owner_id=eve.user_id, key_id=key.id)


async def test_a_store_is_its_owners_and_its_groups(pool: Pool, make_principal: MakePrincipal) -> None:
    (ada, _), (bob, _), (eve, _) = [await make_principal(name) for name in ("ada", "bob", "eve")]
    async with transaction(pool) as conn:
        shard = await ensure_shard(conn, 4)
        store = NewVectorStore(new_id(), "s", {}, "m", 4, shard, None)
        await insert_store(conn, store, owner_id=ada.user_id)
        team = await create_group(conn, "team", creator_id=ada.user_id)
        await add_member(conn, group_id=team.id, user_id=bob.user_id)

        async def visible(who: Principal) -> int:
            page = await list_stores(conn, visible=VISIBLE_STORES, user_id=who.user_id, page=PageRequest())
            return len(page.rows)

        await require_stores(conn, ada, [store.id], write=True)
        with pytest.raises(NotFound):
            await require_stores(conn, bob, [store.id], write=False)
        assert [await visible(who) for who in (ada, bob, eve)] == [1, 0, 0]
        await share_store(conn, store_id=store.id, group_name="team", may_write=False)
        await require_stores(conn, bob, [store.id], write=False)
        with pytest.raises(Forbidden):
            await require_stores(conn, bob, [store.id], write=True)
        await share_store(conn, store_id=store.id, group_name="team", may_write=True)
        await require_stores(conn, bob, [store.id], write=True)
        assert [await visible(who) for who in (ada, bob, eve)] == [1, 1, 0]
        await unshare_store(conn, store_id=store.id, group_name="team")
        with pytest.raises(NotFound):
            await require_stores(conn, bob, [store.id], write=False)
