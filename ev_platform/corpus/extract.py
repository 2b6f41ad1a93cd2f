"""Text and metadata from fetched bytes: trafilatura for HTML, pymupdf4llm for PDF; both give Markdown."""

from __future__ import annotations

import contextlib
import io
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urljoin, urlsplit

import polars as pl
from tqdm import tqdm

from ev_platform.corpus.language import detect_language
from ev_platform.corpus.privacy import mask_personal_data
from ev_platform.records import Document, schema_of, to_frame
from ev_platform.storage import Store, short_id

# A page with less text than this after the first is a picture of text: nothing can be learned from it without OCR.
MIN_CHARS_PER_PDF = 20


@dataclass
class _Extracted:
    text: str = ""
    page_offsets: list[int] = field(default_factory=list)
    title: str | None = None
    author: str | None = None
    publisher: str | None = None
    published_on: str | None = None
    modified_on: str | None = None
    licence: str | None = None
    language: str | None = None
    canonical: str | None = None
    drop_reason: str | None = None
    drop_detail: str | None = None


def normalise(text: str) -> str:
    """Return text in Unicode NFC with plain spaces and line breaks and no trailing blanks.

    U+2028, U+2029, form feeds and their like become line breaks, zero-width characters go, typographic ligatures of
    PDFs become letters.
    """
    text = unicodedata.normalize("NFC", text).replace("\u2029", "\n\n").replace("\r\n", "\n")
    text = re.sub("[\r\x0b\x0c\x85\u2028]", "\n", text)
    text = re.sub(r"[\u00a0\u2000-\u200a\u202f\u3000\t]", " ", text)
    text = re.sub(r"[\u200b-\u200d\u2060\ufeff\u00ad]|[\x00-\x08\x0b-\x1f\x7f]", "", text)
    text = re.sub("[\ufb00-\ufb06]", lambda ligature: unicodedata.normalize("NFKC", ligature[0]), text)
    text = re.sub(r"[ ]+(?=\n|$)", "", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def extract_documents(bodies: pl.DataFrame, store: Store, previous: pl.DataFrame | None = None) -> pl.DataFrame:
    """Extract one document from each fetched body.

    Args:
        bodies: Rows of `raw_pages` and `raw_pdfs`.
        store: Holds the bytes.
        previous: Documents of an earlier run of this same code; a body whose bytes are in it is not extracted again.

    Returns:
        One `documents` row for each body; rows without text carry a `drop_reason`.
    """
    done: dict[tuple[str, str | None], dict[str, Any]] = {}
    if previous is not None:
        done = {(row["fetched_url"], row["content_sha256"]): row for row in previous.iter_rows(named=True)}
    rows: list[Document] = []
    for body in tqdm(
        bodies.sort("url").iter_rows(named=True), total=bodies.height, desc="extract", unit="doc", disable=None
    ):
        known = done.get((body["url"], body["content_sha256"]))
        if known is not None and body["content_sha256"]:
            fresh = {"fetched_at": body["fetched_at"], "robots": body["robots"]}
            fresh |= {name: body[name] for name in ("licence", "publisher") if known[name] == "unknown"}
            rows.append(Document(**{**known, **fresh}))
        else:
            rows.append(_document(body, store))
    return to_frame("documents", rows) if rows else pl.DataFrame(schema=schema_of("documents"))


def _document(body: dict[str, Any], store: Store) -> Document:
    got = _Extracted(drop_reason=body["drop_reason"], drop_detail=body["drop_detail"])
    if body["path"] and not body["drop_reason"]:
        data = (store.root / body["path"]).read_bytes()
        try:
            got = _read_pdf(data) if body["kind"] == "pdf" else _read_html(data, body["final_url"])
        except Exception as error:  # one bad file is set aside with its reason, never stops a run
            got = _Extracted(drop_reason="extraction_failed", drop_detail=f"{type(error).__name__}: {error}"[:300])
    got.text, offsets, n_masked = _mask(got.text, got.page_offsets)
    language, language_score = detect_language(got.text) if got.text else (None, None)
    url = got.canonical or body["url"]
    fetched_at: datetime = body["fetched_at"]
    return Document(
        document_id=short_id("doc", url, got.text if got.text else body["url"]),
        url=url,
        fetched_url=body["url"],
        kind=body["kind"],
        title=got.title or (PurePosixPath(urlsplit(url).path).stem or None),
        author=got.author,
        publisher=got.publisher or body["publisher"],
        published_on=got.published_on,
        modified_on=got.modified_on,
        licence=got.licence or body["licence"],
        language_declared=got.language,
        language=language,
        language_score=language_score,
        robots=body["robots"],
        content_sha256=body["content_sha256"],
        fetched_at=fetched_at,
        text=got.text,
        page_offsets=offsets,
        n_chars=len(got.text),
        n_masked=n_masked,
        drop_reason=got.drop_reason,
        drop_detail=got.drop_detail,
    )


def _mask(text: str, page_offsets: list[int]) -> tuple[str, list[int], int]:
    """Mask personal data page by page, so that the pages' offsets stay true."""
    if not page_offsets:
        masked, n = mask_personal_data(text)
        return masked, [], n
    parts, offsets, at, total = [], [], 0, 0
    for start, end in pairwise([*page_offsets, len(text)]):
        part, n = mask_personal_data(text[start:end])
        offsets.append(at)
        parts.append(part)
        at += len(part)
        total += n
    return "".join(parts), offsets, total


def _read_html(data: bytes, url: str) -> _Extracted:
    import trafilatura
    from trafilatura.utils import load_html

    tree = load_html(data)
    if tree is None:
        return _Extracted(drop_reason="not_html", drop_detail="no HTML tree could be built")
    text = trafilatura.extract(
        tree, url=url, output_format="markdown", include_tables=True, include_comments=False, include_formatting=True
    )
    meta = trafilatura.extract_metadata(tree, default_url=url)
    declared = (tree.get("lang") or "")[:2].lower() or None
    canonical = _canonical(tree.xpath("//link[@rel='canonical']/@href"), url)
    got = _Extracted(
        text=normalise(text or ""),
        title=meta.title,
        author=meta.author,
        # trafilatura falls back to the host name, which is no declaration.
        publisher=meta.sitename if meta.sitename and meta.sitename not in (meta.url or url) else None,
        published_on=meta.date,
        modified_on=_first(tree.xpath("//meta[@property='article:modified_time']/@content")),
        licence=_licence(_first(tree.xpath("//link[@rel='license']/@href")) or meta.license),
        language=declared,
        canonical=canonical,
    )
    if not got.text:
        got.drop_reason, got.drop_detail = "no_text", "no main text found in the page"
    return got


def _canonical(hrefs: Iterable[str], url: str) -> str | None:
    # A canonical link to another site is advertising at best; only the page's own host may rename it.
    target = urljoin(url, _first(hrefs) or "")
    return target if _first(hrefs) and urlsplit(target).netloc == urlsplit(url).netloc else None


def _first(values: Iterable[str]) -> str | None:
    return next(iter(values), None) or None


def _licence(declared: str | None) -> str | None:
    """Turn a Creative Commons address or name into its SPDX id; leave anything else as it stands."""
    if not declared:
        return None
    name = re.sub(r"[\s_]+", "-", declared.strip())
    found = re.search(r"(?:licenses/|\bCC-)(by(?:-nc)?(?:-sa|-nd)?)[/-](\d\.\d)", name, re.IGNORECASE)
    if found:
        return f"CC-{found[1].upper()}-{found[2]}"
    return "CC0-1.0" if re.search(r"publicdomain/zero|\bCC0\b", name, re.IGNORECASE) else declared.strip()[:200]


def _read_pdf(data: bytes) -> _Extracted:
    import pymupdf

    # The layout parser prints to stdout; a run's output is for the person who started it.
    with contextlib.redirect_stdout(io.StringIO()):
        import pymupdf4llm

        try:
            document = pymupdf.open(stream=data, filetype="pdf")
        except Exception as error:  # the library raises many types for a broken file
            return _Extracted(drop_reason="broken_pdf", drop_detail=str(error)[:300])
        with document:
            if document.needs_pass:
                return _Extracted(drop_reason="encrypted_pdf", drop_detail="a password is needed to open it")
            if not document.is_pdf:
                kind = (document.metadata or {}).get("format")
                return _Extracted(drop_reason="broken_pdf", drop_detail=f"the file is {kind}, not PDF")
            # ISO 32000-1, 7.5.5: the last line is %%EOF. Where it is missing, pymupdf repairs what it finds, and the
            # pages whose bytes did not come are silently empty.
            if document.is_repaired and b"%%EOF" not in data[-1024:]:
                return _Extracted(drop_reason="truncated_pdf", drop_detail=f"{len(data)} bytes without the end mark")
            if document.page_count == 0:
                return _Extracted(drop_reason="broken_pdf", drop_detail="the file opens but has no pages")
            n_chars = sum(len(str(page.get_text()).strip()) for page in document)
            if n_chars < MIN_CHARS_PER_PDF:
                return _Extracted(
                    drop_reason="image_only_pdf", drop_detail=f"{n_chars} characters on {document.page_count} pages"
                )
            pages = pymupdf4llm.to_markdown(
                document, page_chunks=True, header=False, footer=False, show_progress=False, use_ocr=False
            )
            meta = document.metadata or {}
            texts = [normalise(_plain(page["text"])) for page in pages]  # type: ignore[index]
    if not any(texts):
        return _Extracted(drop_reason="no_text", drop_detail="the layout parser found no text")
    offsets, parts, at = [], [], 0
    for text in texts:
        offsets.append(at)
        parts.append(text)
        at += len(text) + 2
    return _Extracted(
        text="\n\n".join(parts),
        page_offsets=offsets,
        title=(meta.get("title") or "").strip() or None,
        author=(meta.get("author") or "").strip() or None,
        published_on=_pdf_date(meta.get("creationDate")),
        modified_on=_pdf_date(meta.get("modDate")),
    )


def _plain(markdown: str) -> str:
    """Drop what PDF layout adds and no reader needs: bold marks, picture placeholders, breaks inside table cells."""
    markdown = re.sub(r"^\*\*==>.*?<==\*\*$|^==>.*?<==$", "", markdown, flags=re.MULTILINE)
    markdown = markdown.replace("<br>", " ").replace("**", "")
    return re.sub(r"^#+\s*$", "", markdown, flags=re.MULTILINE)


def _pdf_date(value: str | None) -> str | None:
    # ISO 32000-1, 7.9.4: D:YYYYMMDDHHmmSS
    found = re.match(r"D?:?(\d{4})(\d{2})(\d{2})", value or "")
    return "-".join(found.groups()) if found else None
