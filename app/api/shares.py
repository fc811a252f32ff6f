"""/v1/vector_stores/{id}/shares: the groups that a vector store is shared with."""

from typing import Annotated

from fastapi import APIRouter, Path

from app.access.grants import Grant, list_grants, require_store_owner, share_store, unshare_store
from app.api.callers import Caller, Parts, VectorStoreId
from app.api.wire.pages import Deleted
from app.api.wire.sharing import ShareAnswer, ShareList, ShareStore
from app.api.wire.values import Name
from app.db import connection, transaction
from app.ids import to_wire

router = APIRouter()

GroupName = Annotated[Name, Path()]


@router.put("/v1/vector_stores/{vector_store_id}/shares/{group_name}")
async def share_with_group(
    caller: Caller, resources: Parts, vector_store_id: VectorStoreId, group_name: GroupName, *, body: ShareStore
) -> ShareAnswer:
    """Share a vector store with a group, for reading or for writing too."""
    async with transaction(resources.pool) as conn:
        await require_store_owner(conn, caller, vector_store_id)
        await share_store(conn, store_id=vector_store_id, group_name=group_name, may_write=body.may_write)
    return ShareAnswer.of(Grant(group_name, body.may_write), to_wire("vs", vector_store_id))


@router.get("/v1/vector_stores/{vector_store_id}/shares")
async def list_shares(caller: Caller, resources: Parts, vector_store_id: VectorStoreId) -> ShareList:
    """Whom a vector store is shared with."""
    async with connection(resources.pool) as conn:
        await require_store_owner(conn, caller, vector_store_id)
        grants = await list_grants(conn, vector_store_id)
    return ShareList(data=[ShareAnswer.of(grant, to_wire("vs", vector_store_id)) for grant in grants])


@router.delete("/v1/vector_stores/{vector_store_id}/shares/{group_name}")
async def unshare_with_group(
    caller: Caller, resources: Parts, vector_store_id: VectorStoreId, group_name: GroupName
) -> Deleted:
    """Stop sharing a vector store with a group."""
    async with transaction(resources.pool) as conn:
        await require_store_owner(conn, caller, vector_store_id)
        await unshare_store(conn, store_id=vector_store_id, group_name=group_name)
    return Deleted(id=group_name, object="vector_store.share.deleted")
