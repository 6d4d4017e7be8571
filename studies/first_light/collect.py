"""From finished (or unfinished) runs to the tables that stay in the repository: `results/*.parquet`, a few MB.

    python -m studies.first_light.collect [--runs runs/first_light] [--out studies/first_light/results]

What figures and decisions need is kept, the rest of the results stays with the runs. A run that the tables have and the
folder has not stays in the tables, since the runs of a study need not lie on one machine. Refuses runs that were not
measured as planned (`plan.sha256`). Text is needed for the distances of languages and for lengths only.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.spatial.distance import jensenshannon
from tokenizers import Tokenizer

from analysis.concepts.families import FAMILIES, main_scripts, stratum_of
from analysis.measures.trajectories import find_births
from analysis.preregistration import Planned, check_results, read_plan
from analysis.report.changes import known_clusters, with_own_numbers
from analysis.report.run import RunRecord, read_run
from studies.first_light.lengths import length_imbalance
from studies.first_light.study import LAST, concept_numbers

HERE = Path(__file__).parent
NAME = re.compile(r"(?:(capacity|clone|again)-)?d(\d+)-seed(\d+)")
"""Of a run: which part of the study, its width and its seed."""
RUN = ["part", "width", "run_seed"]
BY_CONCEPT = ("rank_transfer", "causal_transfer", "causal_transfer_random", "causal_own")
"""Metrics whose concepts are kept one by one: intervals are over seeds and concepts."""
BY_LAYER = ("accuracy_shared", "shared_units")
BY_K = ("heldout_shared",)
OVERALL = (
    *("rank_transfer", "shared", "shared_shuffled", "shared_mismatched", "shared_surface", "transfer_gain"),
    *("normalized", "cka_debiased", "mutual_knn", "bits_per_byte", "direction_transfer", "direction_own"),
    *("accuracy_mlp", "heldout_shared"),
)
OF_PART = {"capacity": ("bits_per_byte", "rank_transfer", "rank_ceiling"), "clone": (*OVERALL[:2], "normalized")}
"""What is kept of the runs besides the seeds, overall numbers alone."""
SHARE = 0.03
"""Of units that count as experts, for births."""
COLUMNS = (
    ("part", pa.string()),
    ("width", pa.int32()),
    ("run_seed", pa.int32()),
    ("step", pa.int32()),
    ("tokens", pa.int64()),
    ("metric", pa.string()),
    ("layer", pa.int32()),
    ("condition", pa.string()),
    ("k", pa.int32()),
    ("concept", pa.string()),
    ("language", pa.string()),
    ("other_language", pa.string()),
    ("value", pa.float64()),
    ("chance", pa.float32()),
    ("low", pa.float32()),
    ("high", pa.float32()),
)


def find_runs(folder: Path) -> list[tuple[dict[str, object], RunRecord]]:
    """Part, width and seed of every run that has results, in that order, with what is known of it."""
    found = []
    for path in sorted(folder.glob("*")):
        name = NAME.fullmatch(path.name)
        if name is not None and any((path / "results").glob("step_*/*.parquet")):
            about = dict(zip(RUN, (name[1] or "seeds", int(name[2]), int(name[3])), strict=True))
            found.append((about, read_run(path)))
    return sorted(found, key=lambda entry: tuple(map(str, entry[0].values())))


def prune(frame: pd.DataFrame, part: str = "seeds") -> pd.DataFrame:
    """The rows that tables and figures read of a run."""
    metric = frame["metric"]
    there = {name: frame[name].notna() for name in ("layer", "concept", "k", "language", "other_language")}
    free = frame["seed"].isna() & frame["kind"].isna()

    def rows(names: Sequence[str], *of: str) -> pd.Series:
        """Rows of these metrics that belong to just these columns (and a stratum, perhaps)."""
        kept = free & metric.isin(names)
        for column, given in there.items():
            kept &= given == (column in of)
        return kept

    if part in OF_PART:
        return frame[rows(OF_PART[part])]
    kept = rows(OVERALL) | rows(BY_CONCEPT, "concept") | rows(BY_LAYER, "layer") | rows(BY_K, "k")
    return frame[kept | rows(("rank_transfer",), "language", "other_language")]


def language_distances(concepts: Path, tokenizer: Path, languages: Sequence[str]) -> pd.DataFrame:
    """Of every pair: stratum, script (0 if one is common), family (0 the same branch, 0.5 the same family, else 1), and
    vocabulary: the Jensen-Shannon distance of token frequencies, 0 to 1, in the sentences of the concept file."""
    texts = pd.read_parquet(concepts, columns=["language", "text"]).drop_duplicates()
    encode = Tokenizer.from_file(str(tokenizer))
    scripts, shares = {}, {}
    for language in languages:
        own = texts.loc[texts["language"] == language, "text"].tolist()
        scripts[language] = main_scripts(own)
        counts: np.ndarray = np.zeros(encode.get_vocab_size())
        for encoded in encode.encode_batch(own, add_special_tokens=False):
            np.add.at(counts, encoded.ids, 1)
        shares[language] = counts / counts.sum()
    rows = []
    for one, other in combinations(sorted(languages), 2):
        (family, branch), (family_2, branch_2) = FAMILIES[one], FAMILIES[other]
        kin = 0.0 if (family, branch) == (family_2, branch_2) else 0.5 if family == family_2 else 1.0
        distance = float(jensenshannon(shares[one], shares[other], base=2))
        stratum = stratum_of((one, other), (scripts[one], scripts[other]))
        rows.append((one, other, stratum, float(not scripts[one] & scripts[other]), kin, round(distance, 6)))
    return pd.DataFrame(rows, columns=["language", "other_language", "stratum", "script", "family", "vocabulary"])


def collect(runs: Path, out: Path, plan: Path = HERE / "plan.sha256") -> list[str]:
    """Write the tables of all runs in `runs`, which holds the concept file too; returns a line on each.

    What `out` has of other runs stays.

    Raises:
        FileNotFoundError: no run has results, or no snapshot has the tokenizer.
        ValueError: results that were not planned.
    """
    found = find_runs(runs)
    if not found:
        raise FileNotFoundError(f"{runs}: no run with results; `studies/first_light/run.sh analyses` makes them")
    planned = read_plan(plan)
    here = [tuple(about.values()) for about, _ in found]
    rows, dips, births = ([_of_others(out / f"{name}.parquet", here)] for name in ("rows", "dips", "births"))
    before = rows[0].drop_duplicates(RUN) if len(rows[0]) else rows[0]
    said = [f"kept of runs that are not in {runs}: {len(before)}"] if len(before) else []
    clusters = concept_numbers(out)
    for about, record in found:
        check_results(planned, ((step, name, stamp["settings"]) for step, name, stamp in record.stamps))
        rows.append(prune(record.frame, str(about["part"])).assign(**about))
        for step, name in record.table.entries():
            if name == "language_probe" and record.table.path(step, name, "dip").is_file():
                dips.append(record.table.attachment(step, name, "dip").to_pandas().assign(**about, step=step))
        followed, core = (
            {step for step, name in record.table.entries() if name == which} for which in ("trajectories", "overlap")
        )
        if LAST in followed and followed >= core:  # a birth is a birth only beside every later step
            table = find_births(record.table, SHARE)
            keys = ["language", "other_language", "birth"]
            births.append(table.groupby(keys, dropna=False).size().rename("units").reset_index().assign(**about))
        measured = [step for step, name in record.table.entries() if name == "overlap"]
        if measured:
            clusters |= known_clusters(record, "overlap", measured[-1])
        said.append(f"{record.folder.name}: steps {', '.join(map(str, record.steps))}{_gaps(planned, record)}")
    tables = pd.concat([frame for frame in rows if len(frame)])
    clusters = with_own_numbers(clusters, sorted(set(tables["concept"].dropna())))
    tokenizer = next(iter(sorted(runs.glob("*/snapshots/*/tokenizer.json"))), None)
    if tokenizer is None:
        raise FileNotFoundError(
            f"{runs}: no snapshot has the tokenizer.json, which distances and lengths are made with"
        )
    languages = sorted(set(pd.read_parquet(runs / "concepts.parquet", columns=["language"])["language"]))
    distances = language_distances(runs / "concepts.parquet", tokenizer, languages)
    lengths = length_imbalance(runs / "concepts.parquet", tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    _write(tables, out / "rows.parquet", pa.schema(COLUMNS))
    _write(pd.DataFrame({"concept": list(clusters), "cluster": list(clusters.values())}), out / "concepts.parquet")
    for frames, name in ((dips, "dips"), (births, "births")):
        (out / f"{name}.parquet").unlink(missing_ok=True)
        if there := [frame for frame in frames if len(frame)]:
            _write(pd.concat(there), out / f"{name}.parquet")
    _write(distances, out / "languages.parquet")
    _write(lengths, out / "lengths.parquet")
    return said


def _of_others(path: Path, runs: Sequence[tuple[object, ...]]) -> pd.DataFrame:
    """What a table has of other runs than these."""
    table = pd.read_parquet(path) if path.is_file() else pd.DataFrame(columns=RUN)
    return table[~table.set_index(RUN).index.isin(runs)]


def _gaps(planned: Mapping[str, Sequence[Planned]], record: RunRecord) -> str:
    """What the run has at some of its steps and lacks at others where the plan has it too."""
    entries = set(record.table.entries())
    gaps = []
    for name in sorted({name for _, name in entries}):
        wanted = [step for step in record.steps if any(one.covers(step) for one in planned[name])]
        lacking = [str(step) for step in wanted if (step, name) not in entries]
        gaps += [f"; no {name} at {', '.join(lacking)}"] if lacking else []
    return "".join(gaps)


def _write(frame: pd.DataFrame, path: Path, schema: pa.Schema | None = None) -> None:
    frame = frame.reset_index(drop=True)
    table = pa.Table.from_pandas(frame if schema is None else frame[schema.names], schema, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(None), path, compression="zstd", compression_level=15)


def main() -> int:
    parser = argparse.ArgumentParser(description="copy what the study's tables need out of its runs")
    parser.add_argument("--runs", type=Path, default=Path("runs/first_light"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    try:
        sys.stdout.write("\n".join(collect(options.runs, options.out)) + "\n")
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
