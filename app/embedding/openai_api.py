"""One request to an OpenAI-compatible embeddings API, through the official SDK."""

import asyncio
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from urllib.parse import urlsplit

import httpx2
import openai
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient, omit

from app.embedding.answers import Answer, read_answer
from app.embedding.faults import Fault, fault_of_status
from app.embedding.values import EmbeddingCredential, EmbeddingModel

MAX_CLIENTS = 256
CONNECT_SECONDS = 10.0
MAX_BYTES_A_NUMBER = 32
"""Room for a number of an embedding as text, with what stands around it; base64 takes six."""
MAX_OTHER_BYTES = 1 << 20
"""Room for all of an answer but its numbers, and for all of an error."""
_PIECE_BYTES = 64 * 1024


class OpenAIEmbeddings:
    """Requests to any number of OpenAI-compatible APIs, over one pool of connections.

    Every credential has its own SDK client; the clients share connections (the key goes with each request) but no
    cookies, which could make one tenant's request look like another's.
    """

    def __init__(self, *, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._connections = DefaultAsyncHttpxClient(
            timeout=openai.Timeout(timeout_seconds, connect=min(CONNECT_SECONDS, timeout_seconds)),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            headers={"Accept-Encoding": "gzip"},
            event_hooks={"response": [_bound_body]},
        )
        self._clients: OrderedDict[EmbeddingCredential, AsyncOpenAI] = OrderedDict()

    async def aclose(self) -> None:
        """Close every connection."""
        self._clients.clear()
        await self._connections.aclose()

    async def request(
        self, texts: Sequence[str], *, model: EmbeddingModel, credential: EmbeddingCredential
    ) -> Answer | Fault:
        """Ask once for the vectors of `texts` (not empty); whatever goes wrong on the way comes back as a value."""
        if fault := _unusable(credential, model=model):
            return fault
        where = f"{model.name} at {credential.host}"
        try:
            async with asyncio.timeout(self._timeout_seconds):
                body = await self._post(texts, model=model, credential=credential)
        except APIStatusError as error:
            return fault_of_status(
                error.status_code,
                error.response.headers,
                error.response.content,
                model=model,
                credential=credential,
                now=datetime.now(UTC),
            )
        except (TimeoutError, openai.APITimeoutError):
            sentence = f"The API for {where} did not answer within {self._timeout_seconds:g} seconds."
            return Fault("passing", sentence)
        except _TooLongError as error:
            return Fault("passing", f"The API for {where} answered more than {error.most_bytes} bytes.")
        except (APIConnectionError, httpx2.HTTPError) as error:  # the latter while a body is read
            reason = type(error.__cause__ or error).__name__
            return Fault("passing", f"The API for {where} cannot be reached or broke off ({reason}).")
        return read_answer(body, texts=len(texts), model=model, credential=credential)

    async def _post(self, texts: Sequence[str], *, model: EmbeddingModel, credential: EmbeddingCredential) -> bytes:
        """The body of a 2xx. Read by us: the SDK's models cost a Python object per number.

        Raises:
            _TooLongError: it is longer than the vectors asked for can be.
            openai.APIError, httpx2.HTTPError: as the SDK.
        """
        # None of OPENAI_ORG_ID and OPENAI_PROJECT_ID, which the SDK adds: they are not this key's.
        headers: dict[str, str | openai.Omit] = {"OpenAI-Organization": omit, "OpenAI-Project": omit}
        if not credential.secret.get_secret_value():
            headers["Authorization"] = omit
        most_bytes = MAX_OTHER_BYTES + MAX_BYTES_A_NUMBER * len(texts) * model.dimensions
        async with self._client(credential).embeddings.with_streaming_response.create(
            input=list(texts),
            model=model.name,
            encoding_format="base64",
            dimensions=model.dimensions if _takes_dimensions(model) else omit,
            extra_headers=headers,
        ) as answer:
            body = bytearray()
            async for piece in answer.iter_bytes():
                body += piece
                if len(body) > most_bytes:
                    raise _TooLongError(most_bytes)
        return bytes(body)

    def _client(self, credential: EmbeddingCredential) -> AsyncOpenAI:
        client = self._clients.pop(credential, None) or AsyncOpenAI(
            api_key=credential.secret.get_secret_value() or "none",
            base_url=credential.base_url,
            http_client=self._connections,
            max_retries=0,
        )
        self._clients[credential] = client
        if len(self._clients) > MAX_CLIENTS:
            self._clients.popitem(last=False)
        return client


class _TooLongError(Exception):
    """An answer longer than `most_bytes`."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(most_bytes)
        self.most_bytes = most_bytes


async def _bound_body(response: httpx2.Response) -> None:
    """Unpack the body ourselves, piece by piece; of an error, which the SDK reads whole, only the beginning."""
    is_gzip = response.headers.pop("content-encoding", "").strip().lower() in {"gzip", "x-gzip"}
    if isinstance(response.stream, httpx2.AsyncByteStream):
        most_bytes = MAX_OTHER_BYTES if response.is_error else None
        response.stream = _Body(response.stream, is_gzip=is_gzip, most_bytes=most_bytes)


class _Body(httpx2.AsyncByteStream):
    """The first bytes of a stream, in whole pieces, unpacked.

    httpx unpacks whatever has come at once, and a KB on the wire can be a MB.
    """

    def __init__(self, stream: httpx2.AsyncByteStream, *, is_gzip: bool, most_bytes: int | None) -> None:
        self._stream = stream
        self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 16) if is_gzip else None  # 16: with gzip's header
        self._most_bytes = most_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for packed in self._stream:
            for piece in self._unpacked(packed):
                yield piece
                size += len(piece)
                if self._most_bytes is not None and size >= self._most_bytes:
                    return

    def _unpacked(self, packed: bytes) -> Iterator[bytes]:
        if self._inflater is None:
            yield packed
            return
        try:
            while piece := self._inflater.decompress(packed, _PIECE_BYTES):
                yield piece
                packed = self._inflater.unconsumed_tail
        except zlib.error as error:
            raise httpx2.DecodingError(str(error)) from error

    async def aclose(self) -> None:
        """Close the stream itself."""
        await self._stream.aclose()


def _takes_dimensions(model: EmbeddingModel) -> bool:
    """Whether the API lets us choose the width; routers put the maker before the name ("openai/…")."""
    return model.name.rpartition("/")[2].startswith("text-embedding-3")


def _unusable(credential: EmbeddingCredential, *, model: EmbeddingModel) -> Fault | None:
    """The fault of a credential that cannot even be sent; HTTP libraries would quote it in their errors."""
    secret = credential.secret.get_secret_value()
    if not _fits_a_header(secret):
        sentence = f"The embedding key for {model.name} holds characters that no key has; enter it again."
        return Fault("lane", sentence, failure="key_rejected")
    try:
        url = urlsplit(credential.base_url)
        usable = (
            url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0 and _fits_a_header(url.netloc)
        )
    except ValueError:
        usable = False
    if not usable:
        sentence = f"The base URL of the embedding key for {model.name} is not an http(s) address; correct it."
        return Fault("lane", sentence, failure="embedding_refused")
    return None


def _fits_a_header(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
