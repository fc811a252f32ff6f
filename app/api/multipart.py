"""multipart/form-data as a stream: each part's bytes are handed on while they arrive, nothing is kept or spooled.

RFC 7578. FastAPI's UploadFile would write every upload to a temporary file first, in the event loop.
"""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Container
from dataclasses import dataclass
from urllib.parse import unquote

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from app.errors import BadRequest, Refused

_PIECE_BYTES = 256 * 1024
_LONGEST_FILENAME = 255


class ClientGone(Refused):
    """The client left before its request was complete."""

    status = 499


@dataclass(frozen=True, slots=True)
class _PartBegins:
    headers: dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class _PartEnds:
    pass


_Event = _PartBegins | _PartEnds | bytes


class _Events:
    """The parser's callbacks as a queue of events."""

    def __init__(self, boundary: bytes) -> None:
        self.queue: deque[_Event] = deque()
        self.is_complete = False
        self._headers: dict[bytes, bytes] = {}
        self._name = bytearray()
        self._value = bytearray()
        self._parser = MultipartParser(
            boundary,
            {
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def feed(self, piece: bytes) -> None:
        try:
            self._parser.write(piece)
        except FormParserError as exc:
            raise BadRequest(f"The multipart body is not well-formed: {exc}.", code="invalid_multipart") from exc

    def _on_header_field(self, piece: bytes, start: int, end: int) -> None:
        self._name += piece[start:end]

    def _on_header_value(self, piece: bytes, start: int, end: int) -> None:
        self._value += piece[start:end]

    def _on_header_end(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def _on_headers_finished(self) -> None:
        self.queue.append(_PartBegins(self._headers))
        self._headers = {}

    def _on_part_data(self, piece: bytes, start: int, end: int) -> None:
        self.queue.append(piece[start:end])

    def _on_part_end(self) -> None:
        self.queue.append(_PartEnds())

    def _on_end(self) -> None:
        self.is_complete = True


class Part:
    """One part, to be read (or left unread) before the next is asked for; `filename` None marks a field."""

    def __init__(self, name: str, filename: str | None, events: AsyncIterator[_Event]) -> None:
        self.name = name
        self.filename = filename
        self._events = events
        self._is_over = False

    async def pieces(self, *, least_bytes: int = _PIECE_BYTES) -> AsyncGenerator[bytes, None]:
        """The part's bytes as they arrive, in pieces of some `least_bytes`; none for an empty part."""
        pending: list[bytes] = []
        size = 0
        while not self._is_over:
            event = await anext(self._events)
            if isinstance(event, bytes):
                pending.append(event)
                size += len(event)
            else:
                self._is_over = True
            if pending and (self._is_over or size >= least_bytes):
                yield b"".join(pending)
                pending, size = [], 0

    async def skip(self) -> None:
        """Pass over what has not been read."""
        while not self._is_over:
            self._is_over = isinstance(await anext(self._events), _PartEnds)

    async def text(self, *, most_bytes: int) -> str:
        """A field's text.

        Raises:
            BadRequest: longer than `most_bytes`, or not UTF-8.
        """
        value = b""
        async for piece in self.pieces(least_bytes=most_bytes):
            value += piece
            if len(value) > most_bytes:
                raise BadRequest(f"The field is longer than {most_bytes} bytes.", param=self.name)
        try:
            return value.decode()
        except UnicodeDecodeError as exc:
            raise BadRequest("The field is not UTF-8 text.", param=self.name) from exc


def refuse_unknown(part: Part, known: Container[str]) -> None:
    """Pass if a field's name is known, before its text is read.

    Raises:
        BadRequest: it is not.
    """
    if part.name not in known:
        raise BadRequest(f"Unknown field '{part.name}'.", param=part.name, code="unknown_parameter")


async def read_parts(request: Request) -> AsyncIterator[Part]:
    """The parts of a multipart request in the order in which they come.

    Raises:
        BadRequest: not multipart/form-data, or broken off, or malformed.
        ClientGone: the client hung up.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise BadRequest("Send this request as multipart/form-data.", code="invalid_multipart")
    stream = _read_events(request, _make_events(boundary))
    async for event in stream:
        if isinstance(event, _PartBegins):
            part = _make_part(event.headers, stream)
            yield part
            await part.skip()


def _make_events(boundary: bytes) -> _Events:
    try:
        return _Events(boundary)
    except FormParserError as exc:
        raise BadRequest(f"The multipart boundary is not valid: {exc}.", code="invalid_multipart") from exc


async def _read_events(request: Request, events: _Events) -> AsyncIterator[_Event]:
    try:
        async for piece in request.stream():
            events.feed(piece)
            while events.queue:
                yield events.queue.popleft()
    except ClientDisconnect as exc:
        raise ClientGone from exc
    if not events.is_complete:
        raise BadRequest("The multipart body ends before its last boundary.", code="invalid_multipart")


def _make_part(headers: dict[bytes, bytes], stream: AsyncIterator[_Event]) -> Part:
    _, options = parse_options_header(headers.get(b"content-disposition"))
    name = options.get(b"name")
    if name is None:
        raise BadRequest("A part of the multipart body has no name.", code="invalid_multipart")
    given = options.get(b"filename")
    # RFC 7578 forbids filename*, some clients send it all the same, and then alone
    extended = _extended_filename(headers.get(b"content-disposition", b"")) if given is None else None
    filename = extended if given is None else given.decode(errors="replace")
    return Part(name.decode(errors="replace"), None if filename is None else clean_filename(filename), stream)


def _extended_filename(disposition: bytes) -> str | None:
    for parameter in disposition.decode("latin-1").split(";"):
        key, _, value = parameter.strip().partition("=")
        if key.lower() == "filename*":
            return unquote(value.strip('"').rpartition("'")[2], errors="replace")
    return None


def clean_filename(given: str) -> str:
    """A name without folders and control characters, of at most 255 characters; the extension is kept."""
    # python-multipart leaves %22, %0D and %0A, as browsers write them (HTML standard, multipart/form-data)
    readable = given.replace("%22", '"').replace("%0D", "").replace("%0A", "")
    last = readable.replace("\\", "/").rpartition("/")[2]
    printable = "".join(letter for letter in last if letter.isprintable()).strip()
    if printable in {"", ".", ".."}:
        return "unnamed"
    if len(printable) <= _LONGEST_FILENAME:
        return printable
    stem, dot, extension = printable.rpartition(".")
    if not dot or len(extension) > 16:  # noqa: PLR2004 - longer than that it is no extension
        return printable[:_LONGEST_FILENAME]
    return stem[: _LONGEST_FILENAME - len(extension) - 1] + dot + extension
