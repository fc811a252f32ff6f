"""Office documents and books: all of them are ZIP archives."""

import io
import struct
import zipfile
import zlib

from tests.extraction.bombs.values import Bombs

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


BOMBS: Bombs = {
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
}
