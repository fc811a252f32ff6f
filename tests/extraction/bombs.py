"""Small files that are much to read: each is made here, none is committed."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable

_W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_S = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_R = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_OFFICE = "application/vnd.openxmlformats-officedocument."


def _zip(parts: dict[str, bytes | str]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return packed.getvalue()


def _package(kind: str, main: str, body: bytes | str, **others: bytes | str) -> bytes:
    types = (
        f'<Types xmlns="{_PACKAGE}/content-types"><Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Default Extension="xml" '
        f'ContentType="application/xml"/><Override PartName="/{main}" ContentType="{_OFFICE}{kind}"/></Types>'
    )
    links = (
        f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="r1" '
        f'Type="{_R}/officeDocument" Target="{main}"/></Relationships>'
    )
    return _zip({"[Content_Types].xml": types, "_rels/.rels": links, main: body, **others})


def _docx(body: str, before: str = "") -> bytes:
    document = f'<?xml version="1.0"?>{before}<w:document xmlns:w="{_W}"><w:body>{body}</w:body></w:document>'
    return _package("wordprocessingml.document.main+xml", "word/document.xml", document)


def _xlsx(sheet: str, strings: str = "") -> bytes:
    book = (
        f'<workbook xmlns="{_S}" xmlns:r="{_R}"><sheets><sheet name="a" sheetId="1" r:id="r1"/></sheets></workbook>'
    )
    links = (
        f'<Relationships xmlns="{_PACKAGE}/relationships">'
        f'<Relationship Id="r1" Type="{_R}/worksheet" Target="worksheets/sheet1.xml"/>'
        f'<Relationship Id="r2" Type="{_R}/sharedStrings" Target="sharedStrings.xml"/></Relationships>'
    )
    others = {
        "xl/_rels/workbook.xml.rels": links,
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{_S}"><sheetData>{sheet}</sheetData></worksheet>',
        "xl/sharedStrings.xml": f'<sst xmlns="{_S}">{strings}</sst>',
    }
    return _package("spreadsheetml.sheet.main+xml", "xl/workbook.xml", book, **others)


def _odt(body: str, kind: str = "text") -> bytes:
    namespaces = " ".join(
        f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"' for name in ("office", "text", "table")
    )
    content = f"<office:document-content {namespaces}><office:body>{body}</office:body></office:document-content>"
    manifest = '<manifest:manifest xmlns:manifest="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0"/>'
    return _zip(
        {
            "mimetype": f"application/vnd.oasis.opendocument.{kind}",
            "META-INF/manifest.xml": manifest,
            "content.xml": content,
        }
    )


def _epub(pages: dict[str, str], spine: list[str]) -> bytes:
    items = "".join(f'<item id="{n}" href="{n}.xhtml" media-type="application/xhtml+xml"/>' for n in pages)
    order = "".join(f'<itemref idref="{name}"/>' for name in spine)
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0"><rootfiles>'
        '<rootfile full-path="p.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
    )
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata/>'
        f"<manifest>{items}</manifest><spine>{order}</spine></package>"
    )
    parts: dict[str, bytes | str] = {"mimetype": "application/epub+zip", "META-INF/container.xml": container}
    return _zip({**parts, "p.opf": package, **{f"{name}.xhtml": page for name, page in pages.items()}})


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


def pdf_with_a_bomb_for_an_object_stream() -> bytes:
    count = 500_000
    index = b" ".join(b"%d %d" % (10 + number, number * 3) for number in range(count))
    body = index + b" " + b"[] " * count
    entries = b"/Type /ObjStm /N %d /First %d" % (count, len(index) + 1)
    return _pdf(
        _CATALOG, b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>", _page(b"4 0 R"), _stream(body, entries), _FONT
    )


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


def docx_with_a_wide_gridspan() -> bytes:
    cell = '<w:tc><w:tcPr><w:gridSpan w:val="2000000000"/></w:tcPr><w:p><w:r><w:t>x</w:t></w:r></w:p></w:tc>'
    return _docx(f"<w:tbl><w:tr>{cell}</w:tr><w:tr>{cell}</w:tr></w:tbl>")


def docx_with_laughing_entities() -> bytes:
    entities = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
    return _docx("<w:p><w:r><w:t>&a11;</w:t></w:r></w:p>", f"<!DOCTYPE d [{entities}]>")


def docx_with_quadratic_entities() -> bytes:
    entity = f'<!DOCTYPE d [<!ENTITY a "{"x" * 100_000}">]>'
    return _docx(f"<w:p><w:r><w:t>{'&a;' * 30_000}</w:t></w:r></w:p>", entity)


def docx_with_an_external_entity() -> bytes:
    return _docx("<w:p><w:r><w:t>&e;</w:t></w:r></w:p>", '<!DOCTYPE d [<!ENTITY e SYSTEM "file:///etc/passwd">]>')


def docx_nested_deeply() -> bytes:
    return _docx(
        "<w:tbl><w:tr><w:tc>" * 50_000 + "<w:p><w:r><w:t>x</w:t></w:r></w:p>" + "</w:tc></w:tr></w:tbl>" * 50_000
    )


def docx_that_inflates() -> bytes:
    return _docx("<w:p><w:r><w:t>word </w:t></w:r></w:p>" * 8_000_000)


def docx_with_a_lying_directory() -> bytes:
    """It declares that its main part has one byte."""
    honest = _docx("<w:p><w:r><w:t>word </w:t></w:r></w:p>" * 4_000_000)
    at = honest.rfind(b"PK\x01\x02")
    return honest[: at + 24] + struct.pack("<I", 1) + honest[at + 28 :]


def zip_of_many_parts() -> bytes:
    parts: dict[str, bytes | str] = {f"word/{number}.xml": "" for number in range(60_000)}
    return _zip({"[Content_Types].xml": "<Types/>", "word/document.xml": "<d/>", **parts})


def zip_whose_parts_overlap() -> bytes:
    """Fifield's: many entries of the directory lead to one packed kernel."""
    kernel = bytes(1 << 24)
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packed.compress(kernel) + packed.flush()
    crc, count = zlib.crc32(kernel), 400
    name = b"word/document.xml"
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 8, 0, 0, crc, len(data), len(kernel), len(name), 0)
    body = local + name + data
    directory = b"".join(
        struct.pack(
            "<4s6H3I5H2I",
            b"PK\x01\x02",
            20,
            20,
            0,
            8,
            0,
            0,
            crc,
            len(data),
            len(kernel),
            len(name),
            0,
            0,
            0,
            0,
            0,
            0,
        )
        + name
        for _ in range(count)
    )
    return (
        body + directory + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), 0)
    )


def zip_in_a_zip_in_a_zip() -> bytes:
    content: bytes = bytes(1 << 24)
    for level in range(6):
        content = _zip({f"word/{level}-{copy}.docx": content for copy in range(8)})
    return content


def xlsx_with_a_far_cell() -> bytes:
    return _xlsx('<row r="1048576"><c r="XFD1048576"><v>1</v></c></row><row r="1"><c r="A1"><v>1</v></c></row>')


def xlsx_of_far_cells() -> bytes:
    rows = "".join(f'<row r="{n * 1000}"><c r="XFD{n * 1000}"><v>1</v></c></row>' for n in range(1, 1000))
    return _xlsx(rows)


def xlsx_with_a_shared_string() -> bytes:
    """Each of 20,000 cells shows the same 32,000 characters: 655 million in all."""
    cells = "".join(f'<row r="{n}"><c r="A{n}" t="s"><v>0</v></c></row>' for n in range(1, 20_001))
    return _xlsx(cells, f"<si><t>{'shared ' * 4600}</t></si>")


def xlsx_of_many_empty_rows() -> bytes:
    return _xlsx("<row><c><v>1</v></c></row>" * 1_500_000)


def ods_with_repeated_cells() -> bytes:
    cell = '<table:table-cell table:number-columns-repeated="2147483647"><text:p>x</text:p></table:table-cell>'
    row = f'<table:table-row table:number-rows-repeated="2147483647">{cell}</table:table-row>'
    return _odt(f"<office:spreadsheet><table:table>{row}</table:table></office:spreadsheet>", "spreadsheet")


def odt_with_many_spaces() -> bytes:
    return _odt('<office:text><text:p>a<text:s text:c="2147483647"/>b</text:p></office:text>')


def epub_whose_spine_repeats() -> bytes:
    page = f"<html><body><p>{'again and again ' * 4000}</p></body></html>"
    return _epub({"a": page}, ["a"] * 20_000)


def mail_in_mail() -> bytes:
    mail = b"Subject: inside\r\n\r\nthe innermost\r\n"
    for level in range(3000):
        mail = b"Subject: %d\r\nMIME-Version: 1.0\r\nContent-Type: message/rfc822\r\n\r\n" % level + mail
    return mail


def mail_of_many_parts() -> bytes:
    head = b"Subject: many\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    return head + b"--b\r\nContent-Type: text/plain\r\n\r\npart\r\n" * 200_000 + b"--b--\r\n"


def mail_nested_in_parts() -> bytes:
    head = b"Subject: deep\r\nMIME-Version: 1.0\r\n"
    opened = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (level, level) for level in range(5000)
    )
    return head + opened + b"Content-Type: text/plain\r\n\r\ndeep\r\n"


def html_nested_deeply() -> bytes:
    return b"<html><body>" + b"<div><b><table><tr><td>" * 60_000 + b"deep"


def html_of_many_attributes() -> bytes:
    return b"<html><body><p " + b" ".join(b"a%d=1" % n for n in range(300_000)) + b">text</p></body></html>"


def rtf_nested_deeply() -> bytes:
    return b"{\\rtf1 " + b"{\\b " * 500_000 + b"deep" + b"}" * 500_000 + b"}"


def rtf_with_a_huge_binary() -> bytes:
    return b"{\\rtf1 {\\pict\\bin2147483647 xx} text}"


def text_without_a_space() -> bytes:
    return b"x" * 4_000_000


def text_of_one_line() -> bytes:
    return ("ein wort und noch eines, " * 160_000).encode()


def text_of_combining_marks() -> bytes:
    return ("a" + "\u0301" * 300_000).encode()


def text_of_lone_surrogates() -> bytes:
    return ("before \ud800\udfff\x00 after " * 20_000).encode("utf-8", "surrogatepass")


def text_of_utf_16_without_a_mark() -> bytes:
    return ("Zwei Bytes je Zeichen. " * 20_000).encode("utf-16-le")


def json_nested_deeply() -> bytes:
    return b"[" * 2_000_000


def csv_of_one_row() -> bytes:
    return b"a,b," * 1_000_000


Make = Callable[[], bytes]
BOMBS: dict[str, tuple[str, Make]] = {
    make.__name__: (suffix, make)
    for suffix, makes in {
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
        "docx": (
            docx_with_a_wide_gridspan,
            docx_with_laughing_entities,
            docx_with_quadratic_entities,
            docx_with_an_external_entity,
            docx_nested_deeply,
            docx_that_inflates,
            docx_with_a_lying_directory,
            zip_of_many_parts,
            zip_whose_parts_overlap,
            zip_in_a_zip_in_a_zip,
        ),
        "xlsx": (xlsx_with_a_far_cell, xlsx_of_far_cells, xlsx_with_a_shared_string, xlsx_of_many_empty_rows),
        "ods": (ods_with_repeated_cells,),
        "odt": (odt_with_many_spaces,),
        "epub": (epub_whose_spine_repeats,),
        "eml": (mail_in_mail, mail_of_many_parts, mail_nested_in_parts),
        "html": (html_nested_deeply, html_of_many_attributes),
        "rtf": (rtf_nested_deeply, rtf_with_a_huge_binary),
        "txt": (
            text_without_a_space,
            text_of_one_line,
            text_of_combining_marks,
            text_of_lone_surrogates,
            text_of_utf_16_without_a_mark,
        ),
        "json": (json_nested_deeply,),
        "csv": (csv_of_one_row,),
    }.items()
    for make in makes
}
