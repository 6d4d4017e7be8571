"""The languages of the corpus and what each source calls them. A further language is one more line here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

PIVOT = "en"
"""The language that all sources were written in and translated from."""


@dataclass(frozen=True, slots=True)
class Language:
    """One language; an empty code means that the source lacks it."""

    code: str
    """ISO 639-1."""
    name: str
    script: str
    """Key of `filters.SCRIPTS`."""
    gettext: tuple[str, ...]
    """Locale folders of message catalogues; the first that has a message wins."""
    lohelp: str
    """Suffix of the package libreoffice-help-*."""
    handbook: str
    """Folder of the Debian Administrator's Handbook."""
    guide: str
    """Folder of the Debian installation guide."""
    udhr: str
    """File of the Universal Declaration of Human Rights."""


LANGUAGES: dict[str, Language] = {
    language.code: language
    for language in (
        Language("en", "English", "Latin", (), "en-us", "en-US", "en", "eng"),
        Language("de", "German", "Latin", ("de",), "de", "de-DE", "de", "deu_1996"),
        Language("fr", "French", "Latin", ("fr",), "fr", "fr-FR", "fr", "fra"),
        Language("es", "Spanish", "Latin", ("es", "es_ES"), "es", "es-ES", "es", "spa"),
        Language("pt", "Portuguese (Brazil)", "Latin", ("pt_BR",), "pt-br", "pt-BR", "", "por_BR"),
        Language("it", "Italian", "Latin", ("it", "it_IT"), "it", "it-IT", "it", "ita"),
        Language("ru", "Russian", "Cyrillic", ("ru",), "ru", "ru-RU", "ru", "rus"),
        Language("pl", "Polish", "Latin", ("pl",), "pl", "pl-PL", "", "pol"),
        Language("cs", "Czech", "Latin", ("cs",), "cs", "cs-CZ", "cs", "ces"),
        Language("el", "Greek", "Greek", ("el",), "el", "el-GR", "el", "ell_monotonic"),
        Language("tr", "Turkish", "Latin", ("tr",), "tr", "tr-TR", "", "tur"),
        Language("hu", "Hungarian", "Latin", ("hu",), "hu", "", "", "hun"),
        Language("vi", "Vietnamese", "Latin", ("vi",), "vi", "vi-VN", "vi", "vie"),
        Language("id", "Indonesian", "Latin", ("id",), "id", "id-ID", "id", "ind"),
        Language("ar", "Arabic", "Arabic", ("ar",), "", "ar-MA", "", "arb"),
        Language("ja", "Japanese", "Kana", ("ja",), "ja", "ja-JP", "ja", "jpn"),
        Language("ko", "Korean", "Hangul", ("ko",), "ko", "ko-KR", "ko", "kor"),
        Language("zh", "Chinese (simplified)", "Han", ("zh_CN",), "zh-cn", "zh-CN", "zh_CN", "cmn_hans"),
    )
}


def choose_languages(codes: Iterable[str]) -> list[Language]:
    """The named languages (none: all) in the order of the table; the pivot is always among them.

    Raises:
        ValueError: a code that the table lacks.
    """
    wanted: Sequence[str] = list(codes) or list(LANGUAGES)
    for code in wanted:
        if code not in LANGUAGES:
            raise ValueError(f"unknown language {code!r}; the corpus has: {', '.join(LANGUAGES)}")
    return [language for code, language in LANGUAGES.items() if code == PIVOT or code in wanted]
