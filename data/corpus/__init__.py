"""The medium corpus: 18 languages of human-translated, aligned text from pinned packages.

The packages carry no training corpus by intent; they carry translated games, help pages and manuals, whose catalogues
and pages hold a key for every segment. Alignment is by that key, never statistical. `python -m data.corpus fetch`
downloads the packages, `python -m data.corpus build` reads them with the standard library and lxml.
"""
