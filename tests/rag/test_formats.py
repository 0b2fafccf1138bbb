from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pytest
from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from tunesmith.errors import DataError
from tunesmith.rag import formats

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def read(path: Path) -> list[formats.Part]:
    return formats.read(path, path.name)


def pdf(path: Path, pages: list[str], password: str = "") -> Path:
    """A real PDF of one line a page."""
    writer = PdfWriter()
    for text in pages:
        page = writer.add_blank_page(300, 300)
        font = DictionaryObject(
            {
                NameObject("/Type"): NameObject("/Font"),
                NameObject("/Subtype"): NameObject("/Type1"),
                NameObject("/BaseFont"): NameObject("/Helvetica"),
            }
        )
        fonts = DictionaryObject({NameObject("/F1"): writer._add_object(font)})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        content = DecodedStreamObject()
        content.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode())
        page[NameObject("/Contents")] = writer._add_object(content)
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    writer.write(path)
    return path


def docx(path: Path, body: str, head: str = "") -> Path:
    """A .docx as far as a reader of its text looks."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        xml = f'{head}<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>'
        packed.writestr("word/document.xml", xml)
    return path


def test_a_pdf_has_a_text_for_each_page(tmp_path: Path) -> None:
    found = read(pdf(tmp_path / "manual.pdf", ["Turn it off.", "Turn it on."]))
    assert [(part.line, part.title, part.text) for part in found] == [
        (1, "manual", "Turn it off."),
        (2, "manual", "Turn it on."),
    ]


def test_a_docx_gives_its_paragraphs_with_tabs_and_breaks(tmp_path: Path) -> None:
    body = (
        "<w:p><w:r><w:t>One </w:t></w:r><w:r><w:t>line.</w:t></w:r></w:p><w:p/>"
        "<w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t></w:r></w:p>"
        "</w:tc></w:tr></w:tbl>"
    )
    (part,) = read(docx(tmp_path / "letter.docx", body))
    assert (part.title, part.text) == ("letter", "One line.\n\na\tb\nc")


def test_html_gives_what_a_reader_sees(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(
        "<html><head><title>Returns &amp; refunds</title><style>p {}</style></head><body>"
        "<script>steal()</script><h1>Returns</h1><p>Within <b>30</b> days.</p><ul><li>With the\n"
        "receipt</li></ul></body></html>"
    )
    (part,) = read(path)
    assert (part.title, part.text) == (
        "Returns & refunds",
        "Returns\n\nWithin 30 days.\n\nWith the receipt",
    )


def test_markdown_has_a_text_for_each_section_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "guide.md"
    path.write_text("Before.\n\n# Start\n\nDo it.\n```\n# no heading\n```\n## End\nDone.\r\n")
    assert [(part.line, part.title, part.text.strip()) for part in read(path)] == [
        (1, "guide", "Before."),
        (4, "Start", "Do it.\n```\n# no heading\n```"),
        (10, "End", "Done."),
    ]


def test_jsonl_has_text_or_a_question_with_its_answer_and_an_id(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    rows = [
        {"doc_id": "007", "title": "T", "text": "A text."},
        {"faq_id": 3, "question": "Why?", "answer": "So.", "category": "x"},
        {"text": "Bare."},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    assert read(path) == [
        formats.Part(1, "T", "A text.", "007"),
        formats.Part(2, "Why?", "So.", "3", "So."),
        formats.Part(3, "", "Bare."),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "docs.jsonl:1 is not JSON"),
        ("[" * 100_000, "docs.jsonl:1 is not JSON"),
        ('{"body": "x"}', "docs.jsonl:1 is no document"),
        ('{"question": "x"}', "docs.jsonl:1 is no document"),
        ("[1]", "docs.jsonl:1 is no document"),
    ],
)
def test_a_row_that_is_no_document_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=said):
        read(path)


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MOST_BYTES", 100_000)
    inside = "<w:p><w:r><w:t>" + "a" * 200_000 + "</w:t></w:r></w:p>"
    packed = docx(tmp_path / "bomb.docx", inside)
    assert packed.stat().st_size < 10_000
    with pytest.raises(DataError, match=r"bomb\.docx unpacks to too much"):
        read(packed)
    zipped = tmp_path / "bomb.txt"
    zipped.write_bytes(gzip.compress(b"a" * 200_000))
    with pytest.raises(DataError, match=r"bomb\.txt unpacks to more than"):
        read(zipped)
    large = tmp_path / "large.txt"
    large.write_text("a" * 100_001)
    with pytest.raises(DataError, match=r"large\.txt has 100,001 bytes"):
        read(large)
    monkeypatch.setattr(formats, "MOST_PAGES", 2)
    with pytest.raises(DataError, match="has 3 pages"):
        read(pdf(tmp_path / "long.pdf", ["a", "b", "c"]))
    monkeypatch.setattr(formats, "MOST_BYTES", 2_000)
    with pytest.raises(DataError, match=r"wide\.pdf"):
        read(pdf(tmp_path / "wide.pdf", ["word " * 300, "word " * 300]))


def test_entities_that_grow_are_refused(tmp_path: Path) -> None:
    head = '<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    with pytest.raises(DataError, match="entities of its own"):
        read(docx(tmp_path / "x.docx", "<w:p><w:r><w:t>&b;</w:t></w:r></w:p>", head))


@pytest.mark.parametrize("name", ["broken.pdf", "broken.docx"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"%PDF-1.4 nothing more" if name.endswith("pdf") else b"PK nothing more")
    with pytest.raises(DataError, match=rf"{name} cannot be read"):
        read(path)


def test_a_locked_pdf_and_one_without_text_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="locked with a password"):
        read(pdf(tmp_path / "locked.pdf", ["secret"], password="x"))
    with pytest.raises(DataError, match="OCR"):
        read(pdf(tmp_path / "scan.pdf", [""]))


def test_text_is_read_in_utf_8_and_utf_16_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes("für\r\nalle".encode(encoding))
        assert read(path)[0].text == "für\nalle"
    path.write_bytes("für".encode("latin-1"))
    with pytest.raises(DataError, match="not valid UTF-8"):
        read(path)
