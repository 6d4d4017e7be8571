"""`make bench`: run every benchmark of this folder and print one table of ratios against the baselines.

A benchmark is a file `bench_*.py` with `run(quick: bool) -> list[dict]`; a row has name, baseline, ours, ratio, unit
and note, both sides measured in the same run, interleaved, medians. `--only NAME` picks some; `--quick` shrinks them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from tests.benchmarks.rows import machine  # noqa: E402


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="smaller inputs, fewer rounds")
    parser.add_argument("--only", nargs="*", default=[], help="names of benchmarks, e.g. expertise probes")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    found = {path.stem.removeprefix("bench_"): path for path in sorted(HERE.glob("bench_*.py"))}
    unknown = set(options.only) - set(found)
    if unknown:
        parser.error(f"unknown benchmark {sorted(unknown)[0]!r}; there are {', '.join(found)}")
    console = Console()
    stamp = {"date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", **machine()}
    console.print(", ".join(f"{key} {value}" for key, value in stamp.items()))
    table = Table(title="Ratios against the baseline, same run")
    for column in ("benchmark", "measure", "baseline", "ours", "ratio", "unit", "note"):
        table.add_column(column, justify="right" if column in ("baseline", "ours", "ratio") else "left")
    rows = []
    failed = 0
    for name in options.only or found:
        started = time.monotonic()
        console.print(f"... {name}")
        try:
            measured = load(found[name]).run(options.quick)
        except Exception as error:
            console.print_exception()
            console.print(f"{name} failed: {error}")
            failed += 1
            continue
        for row in measured:
            rows.append({"benchmark": name, **row, **stamp})
            table.add_row(
                name,
                str(row["name"]),
                *(_short(row.get(key)) for key in ("baseline", "ours")),
                f"{row['ratio']:.4g}x" if row.get("ratio") is not None else "",
                str(row.get("unit", "")),
                str(row.get("note", "")),
            )
        console.print(f"    {time.monotonic() - started:.0f} s")
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1, default=str))
    return 1 if failed else 0


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value if value is not None else "")


if __name__ == "__main__":
    raise SystemExit(main())
