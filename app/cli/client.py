"""A small client of Sluice's own HTTP API, for `sluice ingest`, `sluice search` and the demo."""

import mimetypes
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import httpx

from app.errors import Broken

_FILES_A_REQUEST = 200
_BYTES_A_REQUEST = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that did not become searchable, and why."""

    filename: str
    reason: str


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far an upload's files are."""

    total: int
    in_progress: int
    completed: int


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files that are named or lie below the folders that are named; hidden ones are left out.

    Raises:
        Broken: a path does not exist, or there is no file at all.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise Broken(f"{path} does not exist")
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [each for each in inside if each.is_file() and (each == path or not _is_hidden(each, path))]
    if not found:
        raise Broken("there is no file to ingest in " + ", ".join(str(path) for path in paths))
    return found


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def portions(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Files in groups that make good requests: at most 200 files or some 64 MB."""
    portion: list[Path] = []
    size = 0
    for path in files:
        portion.append(path)
        size += path.stat().st_size
        if len(portion) >= _FILES_A_REQUEST or size >= _BYTES_A_REQUEST:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


class SluiceClient:
    """Calls the API at `base_url`; use as a context manager."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self._base_url = base_url
        self._http = httpx.Client(
            base_url=base_url, headers={"Authorization": f"Bearer {api_key}"}, timeout=httpx.Timeout(300, connect=5)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def find_or_create_store(self, name: str) -> str:
        """The id of the vector store of this name or id; made if there is none of this name."""
        if name.startswith("vs_"):
            found: str = self._call("GET", f"/v1/vector_stores/{name}")["id"]
            return found
        existing = self.find_store(name)
        if existing is not None:
            return existing
        made: str = self._call("POST", "/v1/vector_stores", json={"name": name})["id"]
        return made

    def find_store(self, name: str) -> str | None:
        """The id of the newest vector store of this name, or the id itself if one is given."""
        if name.startswith("vs_"):
            return name
        after: str | None = None
        while True:
            cursor = {"after": after} if after else {}
            page = self._call("GET", "/v1/vector_stores", params={"limit": "100", **cursor})
            for store in page["data"]:
                if store["name"] == name:
                    found: str = store["id"]
                    return found
            if not page["has_more"]:
                return None
            after = page["last_id"]

    def upload(self, files: Sequence[Path], store_id: str) -> tuple[str | None, list[Failure]]:
        """Send files in one request: the batch's id (None if none was accepted), and what was refused."""
        with ExitStack() as stack:
            parts: list[tuple[str, tuple[str, BinaryIO, str]]] = []
            unread: list[Failure] = []
            for path in files:
                try:
                    content = stack.enter_context(path.open("rb"))
                    path.name.encode()
                except (OSError, UnicodeEncodeError) as exc:
                    unread.append(Failure(path.name.encode(errors="replace").decode(), f"cannot be read: {exc}"))
                    continue
                media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
                parts.append(("files", (path.name, content, media_type)))
            if not parts:
                return None, unread
            response = self._send("POST", "/v1/ingestions", files=parts, data={"vector_store_ids": store_id})
        answer = response.json()
        if response.is_error and "rejected" not in answer:
            raise Broken(_reason(response))
        rejected = unread + [
            Failure(each["filename"], each["error"]["message"]) for each in answer.get("rejected", [])
        ]
        return answer.get("id"), rejected

    def progress(self, batch_id: str) -> BatchProgress:
        """How far a batch is."""
        counts = self._call("GET", "/v1/ingestions", params={"batch_id": batch_id, "limit": "1"})["file_counts"]
        return BatchProgress(counts["total"], counts["in_progress"], counts["completed"])

    def failures(self, batch_id: str) -> list[Failure]:
        """The files of a batch that failed or were cancelled, and why."""
        found: list[Failure] = []
        for status in ("failed", "cancelled"):
            parameters = {"batch_id": batch_id, "status": status, "limit": "1000"}
            page = self._call("GET", "/v1/ingestions", params=parameters)
            for each in page["data"]:
                error = each["error"] or {"code": status, "message": f"The ingestion was {status}."}
                found.append(Failure(each["filename"], f"{error['code']}: {error['message']}"))
        return found

    def search(self, store_id: str, query: str, *, limit: int) -> list[dict[str, Any]]:
        """The best chunks of a store for a query."""
        body = {"query": query, "max_num_results": limit}
        found: list[dict[str, Any]] = self._call("POST", f"/v1/vector_stores/{store_id}/search", json=body)["data"]
        return found

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        response = self._send(method, path, **options)
        if response.is_error:
            raise Broken(_reason(response))
        answer: dict[str, Any] = response.json()
        return answer

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **options)
        except httpx.ConnectError as exc:
            raise Broken(f"nobody answers at {self._base_url}: start it with 'sluice up', or pass --url") from exc
        except httpx.HTTPError as exc:
            raise Broken(f"{self._base_url} did not answer properly: {type(exc).__name__}") from exc


def _reason(response: httpx.Response) -> str:
    try:
        return f"{response.status_code}: {response.json()['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} from {response.request.url}"
