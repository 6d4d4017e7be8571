"""Sources of text, under the names by which YAML calls them, and what is done with several of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from train.data.documents import Document, TextSource
from train.data.hub import HubText
from train.data.local import LocalText

__all__ = ["Document", "HubText", "LocalText", "TextSource", "collect_texts", "resolve_languages", "stream_documents"]


def resolve_languages(sources: Sequence[TextSource], languages: Collection[str] | None) -> tuple[str, ...]:
    """The languages to use, sorted: all that the sources offer, or those asked for.

    Raises:
        ValueError: a language that no source offers, or no source at all.
    """
    offered = {language for source in sources for language in source.languages()}
    if not offered:
        raise ValueError("no text: data.sources is empty")
    if languages is None:
        return tuple(sorted(offered))
    if not languages:
        raise ValueError("data.languages is empty; leave it out to use all languages of the sources")
    if unknown := sorted(set(languages) - offered):
        raise ValueError(f"unknown language {', '.join(unknown)}: the sources offer {', '.join(sorted(offered))}")
    return tuple(sorted(set(languages)))


def stream_documents(sources: Sequence[TextSource], languages: Collection[str]) -> Iterator[Document]:
    """All documents of these languages, source by source and shard by shard."""
    for source in sources:
        for shard in source.shards(languages):
            yield from source.read(shard, languages)


def collect_texts(
    sources: Sequence[TextSource],
    languages: Collection[str],
    split: str,
    max_bytes: int,
    *,
    keep: Callable[[str], bool] = lambda text: True,
) -> dict[str, list[str]]:
    """Texts of a split held in memory, about `max_bytes` bytes of each language at most, in one pass over the text."""
    texts: dict[str, list[str]] = {language: [] for language in sorted(languages)}
    left = dict.fromkeys(texts, max_bytes)
    for source in sources:
        for shard in source.shards(languages):
            wanted = {language for language in languages if left[language] > 0}
            if not wanted or (shard.language and shard.language not in wanted):
                continue
            for document in source.read(shard, wanted):
                if document.split == split and left[document.language] > 0 and keep(document.text):
                    texts[document.language].append(document.text)
                    left[document.language] -= len(document.text.encode())
                    if left[document.language] <= 0 and not any(left[language] > 0 for language in wanted):
                        break
    return texts
