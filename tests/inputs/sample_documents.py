"""Makes small documents of every kind, without a library that writes them."""

from __future__ import annotations

import hashlib
import io
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_XML = '<?xml version="1.0" encoding="UTF-8"?>'
_OFFICE = "application/vnd.openxmlformats-officedocument"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_RELATED = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_SLIDES = "http://schemas.openxmlformats.org/presentationml/2006/main"
_DRAWING = "http://schemas.openxmlformats.org/drawingml/2006/main"
_SHEETS = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_BOOK = "urn:oasis:names:tc:opendocument:xmlns:container"


def pdf(*pages: str, password: str = "") -> bytes:
    """Return a PDF with these pages of Latin-1 text, encrypted with a password if there is one."""
    first = 4
    kids = " ".join(f"{first + 2 * number} 0 R" for number in range(len(pages)))
    font = "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
    streams: dict[int, str] = {}
    objects = ["<</Type/Catalog/Pages 2 0 R>>", f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>", font]
    for number, page in enumerate(pages):
        lines = [line.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)") for line in page.split("\n")]
        drawn = "".join(f"({line}) Tj T* " for line in lines) if page else ""
        content = f"BT /F1 10 Tf 12 TL 60 740 Td {drawn}ET"
        about = "/Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Resources<</Font<</F1 3 0 R>>>>"
        objects.append(f"<<{about}/Contents {first + 2 * number + 1} 0 R>>")
        objects.append(f"<</Length {len(content)}>>\nstream\n{{}}\nendstream")
        streams[len(objects)] = content
    trailer = ""
    if password:
        owner = _rc4(hashlib.md5(_padded(password)).digest()[:5], _padded(password))
        key = hashlib.md5(_padded(password) + owner + b"\xff" * 4 + b"id").digest()[:5]
        user = _rc4(key, _padded(""))
        objects.append(f"<</Filter/Standard/V 1/R 2/O<{owner.hex()}>/U<{user.hex()}>/P -1>>")
        trailer = f"/Encrypt {len(objects)} 0 R/ID[<{b'id'.hex()}><{b'id'.hex()}>]"
        for number, content in streams.items():
            of_object = hashlib.md5(key + number.to_bytes(3, "little") + b"\0\0").digest()[:10]
            streams[number] = _rc4(of_object, content.encode("latin-1")).decode("latin-1")
    objects = [
        each.format(streams[number]) if number in streams else each for number, each in enumerate(objects, 1)
    ]
    body, places = "%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        places.append(f"{len(body):010} 00000 n \n")
        body += f"{number} 0 obj\n{each}\nendobj\n"
    size = len(objects) + 1
    table = f"xref\n0 {size}\n0000000000 65535 f \n{''.join(places)}"
    end = f"trailer\n<</Size {size}/Root 1 0 R{trailer}>>\nstartxref\n{len(body)}\n%%EOF\n"
    return f"{body}{table}{end}".encode("latin-1")


def _padded(password: str) -> bytes:
    padding = "28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A"
    return (password.encode() + bytes.fromhex(padding))[:32]


def _rc4(key: bytes, data: bytes) -> bytes:
    state, at = list(range(256)), 0
    for index in range(256):
        at = (at + state[index] + key[index % len(key)]) % 256
        state[index], state[at] = state[at], state[index]
    out, low, at = bytearray(), 0, 0
    for byte in data:
        low = (low + 1) % 256
        at = (at + state[low]) % 256
        state[low], state[at] = state[at], state[low]
        out.append(byte ^ state[(state[low] + state[at]) % 256])
    return bytes(out)


def archive(parts: Mapping[str, str]) -> bytes:
    """Return a ZIP archive of these parts."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as written:
        for name, content in parts.items():
            written.writestr(name, content)
    return file.getvalue()


def parts_of(document: bytes) -> dict[str, str]:
    """Return the parts of a ZIP archive."""
    with zipfile.ZipFile(io.BytesIO(document)) as read:
        return {name: read.read(name).decode() for name in read.namelist()}


def _related(kind: str, targets: Sequence[str]) -> str:
    each = "".join(
        f'<Relationship Id="r{number}" Type="{_RELATED}/{kind}" Target="{target}"/>'
        for number, target in enumerate(targets, 1)
    )
    return f'{_XML}<Relationships xmlns="{_PACKAGE}/relationships">{each}</Relationships>'


def _office(main: str, kind: str, parts: Mapping[str, str], others: Mapping[str, str]) -> bytes:
    """Return an Office document with a main part, and others with their types."""
    types = "".join(
        f'<Override PartName="/{part}" ContentType="{_OFFICE}.{of}+xml"/>'
        for part, of in {main: kind, **others}.items()
    )
    known = (
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="xml" ContentType="application/xml"/>'
    )
    return archive(
        {
            "[Content_Types].xml": f'{_XML}<Types xmlns="{_PACKAGE}/content-types">{known}{types}</Types>',
            "_rels/.rels": _related("officeDocument", [main]),
            **parts,
        }
    )


def docx(body: str) -> bytes:
    """Return a DOCX with this body, in its XML."""
    document = f'{_XML}<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>'
    return _office("word/document.xml", "wordprocessingml.document.main", {"word/document.xml": document}, {})


def paragraph(text: str) -> str:
    """Return a paragraph of a DOCX, or a page break for a form feed."""
    run = '<w:br w:type="page"/>' if text == "\f" else f"<w:t>{text}</w:t>"
    return f"<w:p><w:r>{run}</w:r></w:p>"


def pptx(*slides: str) -> bytes:
    """Return a PPTX with these slides of one line."""
    names = [f"slides/slide{number}.xml" for number in range(1, len(slides) + 1)]
    ids = "".join(f'<p:sldId id="{255 + number}" r:id="r{number}"/>' for number in range(1, len(slides) + 1))
    spaces = f'xmlns:p="{_SLIDES}" xmlns:a="{_DRAWING}" xmlns:r="{_RELATED}"'
    parts = {
        "ppt/presentation.xml": f"{_XML}<p:presentation {spaces}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels": _related("slide", names),
    }
    for name, slide in zip(names, slides, strict=True):
        shape = (
            '<p:sp><p:nvSpPr><p:cNvPr id="2" name="t"/><p:cNvSpPr/><p:nvPr/></p:nvSpPr><p:spPr/>'
            f"<p:txBody><a:bodyPr/><a:p><a:r><a:t>{slide}</a:t></a:r></a:p></p:txBody></p:sp>"
        )
        group = '<p:nvGrpSpPr><p:cNvPr id="1" name=""/><p:cNvGrpSpPr/><p:nvPr/></p:nvGrpSpPr><p:grpSpPr/>'
        tree = f"<p:cSld><p:spTree>{group}{shape}</p:spTree></p:cSld>"
        parts[f"ppt/{name}"] = f"{_XML}<p:sld {spaces}>{tree}</p:sld>"
    others = {f"ppt/{name}": "presentationml.slide" for name in names}
    return _office("ppt/presentation.xml", "presentationml.presentation.main", parts, others)


def xlsx(sheets: Mapping[str, Sequence[Sequence[str | float]]]) -> bytes:
    """Return an XLSX with these sheets, by rows."""
    files = [f"worksheets/sheet{number}.xml" for number in range(1, len(sheets) + 1)]
    listed = "".join(
        f'<sheet name="{name}" sheetId="{number}" r:id="r{number}"/>' for number, name in enumerate(sheets, 1)
    )
    book = f'<workbook xmlns="{_SHEETS}" xmlns:r="{_RELATED}"><sheets>{listed}</sheets></workbook>'
    parts = {"xl/workbook.xml": _XML + book, "xl/_rels/workbook.xml.rels": _related("worksheet", files)}
    for file, rows in zip(files, sheets.values(), strict=True):
        cells = "".join(f"<row>{''.join(map(_cell, row))}</row>" for row in rows)
        parts[f"xl/{file}"] = f'{_XML}<worksheet xmlns="{_SHEETS}"><sheetData>{cells}</sheetData></worksheet>'
    others = {f"xl/{file}": "spreadsheetml.worksheet" for file in files}
    return _office("xl/workbook.xml", "spreadsheetml.sheet.main", parts, others)


def _cell(value: str | float) -> str:
    return f'<c t="inlineStr"><is><t>{value}</t></is></c>' if isinstance(value, str) else f"<c><v>{value}</v></c>"


def epub(*chapters: str) -> bytes:
    """Return an EPUB with these chapters."""
    files = [f"c{number}.xhtml" for number in range(len(chapters))]
    kind = 'media-type="application/xhtml+xml"'
    manifest = "".join(f'<item id="{file}" href="{file}" {kind}/>' for file in files)
    spine = "".join(f'<itemref idref="{file}"/>' for file in files)
    about = '<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>T</dc:title></metadata>'
    root = '<rootfile full-path="b/content.opf" media-type="application/oebps-package+xml"/>'
    container = f'<container version="1.0" xmlns="{_BOOK}"><rootfiles>{root}</rootfiles></container>'
    parts = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": container,
        "b/content.opf": (
            f'{_XML}<package xmlns="http://www.idpf.org/2007/opf" version="3.0">{about}'
            f"<manifest>{manifest}</manifest><spine>{spine}</spine></package>"
        ),
    }
    for file, chapter in zip(files, chapters, strict=True):
        page = f'<html xmlns="http://www.w3.org/1999/xhtml"><body><p>{chapter}</p></body></html>'
        parts[f"b/{file}"] = f"{_XML}{page}"
    return archive(parts)


def html(body: str) -> bytes:
    """Return a page of the web in UTF-8."""
    return f"<!doctype html><html><head><title>T</title></head><body>{body}</body></html>".encode()


SAMPLES: dict[str, Callable[[], bytes]] = {
    "paper.pdf": lambda: pdf("First (page)\nits second line", "Founded by Ada", "The end"),
    "report.docx": lambda: docx("".join(map(paragraph, ["Tides rise", "\f", "Founded by Ada"]))),
    "talk.pptx": lambda: pptx("Tides rise", "Founded by Ada"),
    "book.xlsx": lambda: xlsx({"Sales": [["name", "sum"], ["Ada", 4.5]], "More": [["Founded by Ada"]]}),
    "novel.epub": lambda: epub("Call me Ishmael", "Founded by Ada"),
    "page.html": lambda: html("<h1>Tides</h1><p>Founded by <b>Ada</b></p><script>alert(1)</script>"),
}
"""Documents by name; each says who founded it."""
