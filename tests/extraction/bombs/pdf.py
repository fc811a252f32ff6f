import struct
import zlib

from tests.extraction.bombs.values import Bombs


def _pdf(*objects: bytes) -> bytes:
    """Objects 1, 2, …; the first is the catalogue."""
    document, offsets = b"%PDF-1.7\n", []
    for number, each in enumerate(objects, 1):
        offsets.append(len(document))
        document += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    trailer = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(document))
    return document + b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table) + trailer


def _stream(content: bytes, entries: bytes = b"") -> bytes:
    packed = zlib.compress(content, 9)
    return b"<< /Length %d /Filter /FlateDecode %s >>\nstream\n%s\nendstream" % (len(packed), entries, packed)


_CATALOG = b"<< /Type /Catalog /Pages 2 0 R >>"
_FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"


def _page(contents: bytes, resources: bytes = b"/Font << /F1 5 0 R >>") -> bytes:
    return b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents %s /Resources << %s >> >>" % (
        contents,
        resources,
    )


def pdf_with_a_gigapixel_image() -> bytes:
    image = b"/Type /XObject /Subtype /Image /Width 65000 /Height 65000 /ColorSpace /DeviceRGB /BitsPerComponent 8"
    return _pdf(
        _CATALOG,
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        _page(b"4 0 R", b"/XObject << /I 5 0 R >>"),
        _stream(b"q 600 0 0 800 0 0 cm /I Do Q"),
        _stream(bytes(1 << 26), image),
    )


def pdf_whose_pages_share_one_stream() -> bytes:
    shown = b"BT /F1 9 Tf 50 700 Td " + b"(many words again and again) Tj T* " * 20_000 + b"ET"
    count = 4000
    kids = b" ".join(b"%d 0 R" % (6 + number) for number in range(count))
    pages = [_page(b"4 0 R") for _ in range(count)]
    tree = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, count)
    return _pdf(_CATALOG, tree, b"null", _stream(shown), _FONT, *pages)


def pdf_of_a_million_pages() -> bytes:
    kids = b"4 0 R " * 1000
    node = b"<< /Type /Pages /Parent 2 0 R /Kids [%s] /Count 1000 >>" % (b"3 0 R " * 1000)
    return _pdf(
        _CATALOG,
        b"<< /Type /Pages /Kids [%s] /Count 1000000 >>" % kids,
        _page(b"6 0 R"),
        node,
        _FONT,
        _stream(b"BT /F1 9 Tf (page) Tj ET"),
    )


def pdf_whose_pages_go_in_a_circle() -> bytes:
    return _pdf(_CATALOG, b"<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 2 >>")


def pdf_whose_xref_goes_in_a_circle() -> bytes:
    start = b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog /Pages 2 0 R >>\nendobj\n"
    table = b"xref\n0 1\n0000000000 65535 f \ntrailer\n<< /Size 3 /Root 1 0 R /Prev %d >>\nstartxref\n%d\n%%%%EOF\n"
    return start + table % (len(start), len(start))


def pdf_of_two_pages(lines: int) -> bytes:
    """The first one has so many lines of two letters."""
    first = b"BT /F1 9 Tf 50 700 Td " + b"(ab) Tj 0 -9 Td " * lines + b"ET"
    pages = [_page(b"6 0 R"), b"null", _FONT, _stream(first), _page(b"8 0 R"), _stream(b"BT /F1 9 Tf (lamp) Tj ET")]
    return _pdf(_CATALOG, b"<< /Type /Pages /Kids [3 0 R 7 0 R] /Count 2 >>", *pages)


def pdf_with_an_inflating_content() -> bytes:
    shown = b"BT /F1 9 Tf " + b"(x) Tj " * (1 << 24) + b"ET"
    return _pdf(_CATALOG, b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>", _page(b"4 0 R"), _stream(shown), _FONT)


def pdf_packed_many_times() -> bytes:
    content = bytes(1 << 28)
    for _ in range(3):
        content = zlib.compress(content, 9)
    filters = b"/Filter [/FlateDecode /FlateDecode /FlateDecode]"
    stream = b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(content), filters, content)
    return _pdf(_CATALOG, b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>", _page(b"4 0 R"), stream, _FONT)


def pdf_with_a_bomb_for_an_object_stream(count: int = 500_000) -> bytes:
    """Catalogue, pages and font stand in stream 6, behind so many others; only xref stream 7 says so."""
    inside = {1: _CATALOG, 2: b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>", 3: _page(b"4 0 R"), 5: _FONT}
    others = range(8, 8 + count)
    index = b"".join(b"%d %d " % (number, 3 * (number - others.start)) for number in others)
    body = b"[] " * len(others)
    for number, each in inside.items():
        index += b"%d %d " % (number, len(body))
        body += each + b" "
    entries = b"/Type /ObjStm /N %d /First %d" % (len(others) + len(inside), len(index))
    document = b"%PDF-1.7\n"
    places = dict.fromkeys(inside, (2, 6)) | {0: (0, 0)}  # type 2: in a stream, type 1: at an offset
    for number, each in ((4, _stream(b"BT /F1 9 Tf (lamp) Tj ET")), (6, _stream(index + body, entries))):
        places[number] = (1, len(document))
        document += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    places[7] = (1, len(document))
    table = b"".join(struct.pack(">BI", *places[number]) for number in range(8)) + struct.pack(">BI", 2, 6) * len(
        others
    )
    xref = _stream(table, b"/Type /XRef /Size %d /W [1 4 0] /Root 1 0 R" % others.stop)
    return document + b"7 0 obj\n%s\nendobj\nstartxref\n%d\n%%%%EOF\n" % (xref, places[7][1])


def pdf_nested_deeply() -> bytes:
    deep = b"[" * 500_000 + b"]" * 500_000
    return _pdf(_CATALOG, b"<< /Type /Pages /Kids [3 0 R] /Count 1 /X %s >>" % deep, _page(b"4 0 R"))


def pdf_with_forms_that_multiply() -> bytes:
    """Ten forms, each drawing the next one twelve times."""
    forms = []
    for number in range(10):
        links = b"/XObject << /N %d 0 R >> /Font << /F1 5 0 R >>" % (7 + number)
        drawn = b"/N Do " * 12 if number < 9 else b"BT /F1 9 Tf (boom) Tj ET"
        entries = b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << %s >>" % links
        forms.append(_stream(drawn, entries))
    page = _page(b"4 0 R", b"/XObject << /N 6 0 R >>")
    return _pdf(_CATALOG, b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>", page, _stream(b"/N Do"), _FONT, *forms)


BOMBS: Bombs = {
    "pdf": (
        pdf_with_a_gigapixel_image,
        pdf_whose_pages_share_one_stream,
        pdf_of_a_million_pages,
        pdf_whose_pages_go_in_a_circle,
        pdf_whose_xref_goes_in_a_circle,
        pdf_with_an_inflating_content,
        pdf_packed_many_times,
        pdf_with_a_bomb_for_an_object_stream,
        pdf_nested_deeply,
        pdf_with_forms_that_multiply,
    ),
}
