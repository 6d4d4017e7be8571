"""Codes of every style name the same language."""

from __future__ import annotations

from babelscope.languages import two_letters


def test_codes_of_every_style_name_the_same_language() -> None:
    codes = ("zh-Hant", "zho_Hans", "cmn", "pt_BR", "jpn_Jpan", "en", "yue_Hant", "qqq_Latn")
    assert [two_letters(code) for code in codes] == ["zh", "zh", "zh", "pt", "ja", "en", "zh", "qqq"]
