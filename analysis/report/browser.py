"""A page as PDF or PNG, by a Chromium that is installed anyway; nothing is fetched."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SECONDS = 180
PNG_SIZE = (1400, 6000)
"""Width and height of a picture, pixels."""


def find_browser() -> str | None:
    """Path of the first of `NAMES` that is installed."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def render(page: Path, out: Path, size: tuple[int, int] = PNG_SIZE) -> Path:
    """Write `page` as the type that the name of `out` ends with, .pdf or .png (of `size`), with every figure drawn.

    Raises:
        FileNotFoundError: no Chromium is installed.
        ValueError: another type.
        OSError: the browser made no file.
    """
    if out.suffix not in (".pdf", ".png"):
        raise ValueError(f"{out}: a page becomes .pdf or .png")
    browser = find_browser()
    if browser is None:
        raise FileNotFoundError(f"{out.suffix[1:]} needs Chromium or Chrome, of which none is installed")
    out.unlink(missing_ok=True)  # else an older one would pass for what the browser makes now
    kind, view = [f"--print-to-pdf={out.resolve()}", "--no-pdf-header-footer"], "#paper"
    if out.suffix == ".png":
        kind, view = [f"--screenshot={out.resolve()}", f"--window-size={size[0]},{size[1]}"], "#all"
    with tempfile.TemporaryDirectory() as folder:
        command = [browser, *FLAGS, f"--user-data-dir={folder}", "--virtual-time-budget=30000", *kind]
        try:
            done = subprocess.run([*command, f"{page.resolve().as_uri()}{view}"], capture_output=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise OSError(f"{browser}: no {out.name} within {SECONDS} s") from None
    if not out.is_file():
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise OSError(f"{browser} made no {out.name}: {' '.join(last)}")
    return out
