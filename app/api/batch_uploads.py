"""Reading a batch upload: many files and a few fields in one multipart stream."""

import json
from dataclasses import dataclass, field

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from app.api.multipart import Part, read_parts, refuse_unknown
from app.api.refusals import refused_body
from app.api.uploads import EmptyFile, Uploads
from app.api.wire.ingestions import MOST_STORES_A_REQUEST, BatchUploadFields, RefusedFile
from app.errors import BadRequest, Refused, TooLarge
from app.records.files import NewFile

_FILE_PARTS = frozenset({"files", "files[]", "file", "file[]"})
_STORE_FIELDS = frozenset({"vector_store_ids", "vector_store_ids[]", "vector_store_id"})
_JSON_FIELDS = frozenset({"attributes", "chunking_strategy"})
_FIELDS = _STORE_FIELDS | _JSON_FIELDS
_MOST_FIELD_BYTES = 64 * 1024


@dataclass(slots=True)
class BatchUpload:
    """What a batch upload brought: files whose bytes are stored, in its order, and those that were refused."""

    accepted: list[NewFile] = field(default_factory=list)
    rejected: list[RefusedFile] = field(default_factory=list)
    status: int = BadRequest.status  # of the first refusal: the answer's, if nothing was accepted
    _given: dict[str, object] = field(default_factory=dict)
    _store_ids: dict[str, None] = field(default_factory=dict)  # each once, in their order

    async def add_field(self, part: Part) -> None:
        """Take up a field; `vector_store_ids` may be repeated, or hold several ids with commas between."""
        refuse_unknown(part, _FIELDS)
        value = await part.text(most_bytes=_MOST_FIELD_BYTES)
        if part.name in _JSON_FIELDS:
            self._given[part.name] = _parse_json(part.name, value)
            return
        self._store_ids |= dict.fromkeys(filter(None, map(str.strip, value.split(","))))
        if len(self._store_ids) > MOST_STORES_A_REQUEST:
            raise BadRequest(f"At most {MOST_STORES_A_REQUEST} vector stores a request.", param="vector_store_ids")

    async def add_file(self, part: Part, uploads: Uploads) -> None:
        """Store a file. One that is empty or too long is noted and does not sink the others."""
        try:
            self.accepted.append(await uploads.store(part))
        except (EmptyFile, TooLarge) as exc:
            self._reject(part.filename or "unnamed", exc)

    def fields(self) -> BatchUploadFields:
        """The fields, checked.

        Raises:
            RequestValidationError: names what is wrong.
        """
        given = {**self._given, "vector_store_ids": list(self._store_ids)}
        try:
            return BatchUploadFields.model_validate(given)
        except ValidationError as exc:
            problems = [{**each, "loc": ("body", *each["loc"])} for each in exc.errors()]
            raise RequestValidationError(problems, body=given) from exc

    def content(self) -> list[object]:
        """What makes two batch uploads the same."""
        files = [(new.filename, new.sha256) for new in self.accepted]
        return [self._given, list(self._store_ids), files, [each.filename for each in self.rejected]]

    def _reject(self, filename: str, error: Refused) -> None:
        if not self.rejected:
            self.status = error.status
        self.rejected.append(RefusedFile(filename=filename, error=refused_body(error)["error"]))


def _parse_json(name: str, text: str) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadRequest(f"'{name}' is not valid JSON.", param=name, code="invalid_json") from exc
    return value


async def receive_batch(request: Request, uploads: Uploads, *, most_files: int) -> BatchUpload:
    """Read a batch upload to its end; each file's bytes are stored while they arrive.

    Raises:
        BadRequest: the request is malformed, or has no file, or more than `most_files`.
        ClientGone: it broke off.
    """
    batch = BatchUpload()
    async for part in read_parts(request):
        if part.filename is None:
            await batch.add_field(part)
            continue
        if part.name not in _FILE_PARTS:
            raise BadRequest("Send each file as a part named 'files'.", param=part.name)
        if len(batch.accepted) + len(batch.rejected) >= most_files:
            raise BadRequest(f"At most {most_files} files may be uploaded at once.", code="too_many_files")
        await batch.add_file(part, uploads)
    if not batch.accepted and not batch.rejected:
        raise BadRequest("The upload has no part 'files'.", param="files", code="missing_required_parameter")
    return batch
