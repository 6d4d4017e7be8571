"""Are two runs the same, bit for bit? Weights of every snapshot, and every row of every analysis.

    python tests/benchmarks/same_results.py runs/before runs/after

Run folders or bare result folders. Weights are compared by the SHA-256 of the file, rows by all their columns, numbers
exactly. Attachments (experts, generated texts) count too. Ends with 0 if all is equal, 1 if anything differs, 2 if
there was nothing to compare.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pyarrow.parquet as pq


def weights(run: Path) -> dict[str, str]:
    """SHA-256 of every weight file, by its place in the run."""
    files = sorted((run / "snapshots").glob("step_*/*.safetensors"))
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def tables(run: Path) -> dict[str, Path]:
    """Every stored table, by step and file name."""
    root = run / "results" if (run / "results").is_dir() else run
    return {f"{path.parent.name}/{path.name}": path for path in sorted(root.glob("step_*/*.parquet"))}


def filled(path: Path) -> list[str]:
    """Each row as text: its columns that hold anything, by name (a column added later is empty in older tables)."""
    rows = pq.read_table(path).to_pylist()
    return [repr(sorted((key, value) for key, value in row.items() if value is not None)) for row in rows]


def differing_rows(one: Path, other: Path) -> int:
    """Rows that differ in any column, and rows that only one side has."""
    left, right = filled(one), filled(other)
    return sum(a != b for a, b in zip(left, right, strict=False)) + abs(len(left) - len(right))


def main(arguments: list[str]) -> int:
    """Compare; see the module's docstring."""
    if len(arguments) != 2 or not all(Path(name).is_dir() for name in arguments):
        print(
            "usage: python tests/benchmarks/same_results.py RUN OTHER_RUN   (two folders that exist)", file=sys.stderr
        )
        return 2
    one, other = (Path(name) for name in arguments)
    differences, rows = [], 0
    left, right = weights(one), weights(other)
    for name in sorted({*left, *right}):
        if left.get(name) != right.get(name):
            differences.append(f"weights {name}: {left.get(name, 'missing')[:12]} != {right.get(name, 'missing')[:12]}")
    before, after = tables(one), tables(other)
    for name in sorted({*before, *after}):
        if name not in before or name not in after:
            differences.append(f"table {name}: only in {one if name in before else other}")
            continue
        rows += pq.read_metadata(before[name]).num_rows
        if wrong := differing_rows(before[name], after[name]):
            differences.append(f"table {name}: {wrong} rows differ")
    if not left and not before:
        print("nothing to compare: neither snapshots nor results")
        return 2
    print("\n".join(differences))
    print(f"{len(left)} weight files, {len(before)} tables, {rows} rows compared: {len(differences)} differences")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
