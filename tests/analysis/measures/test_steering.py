"""Steering on planted truth: a unit that detects a concept in Spanish text and writes Russian letters.

The planted model is XGLM-like; the unit is the first of the first MLP. It reads the letter q, which marks the concept
`water` in Spanish sentences, and is the only writer of a coordinate that raises the two bytes of the letter а.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from analysis.__main__ import main
from analysis.base import Attachment, Row
from analysis.concepts.dataset import load_concepts
from analysis.extraction.hooks import force_units
from analysis.extraction.options import Extraction
from analysis.extraction.sites import Site, find_sites
from analysis.measures import build_analyses
from analysis.measures.steering import Steering
from analysis.results import ResultTable
from analysis.snapshots import Snapshot
from analysis.steering.concept_check import read_concepts
from analysis.steering.conditions import Control
from analysis.steering.fluency import bits_under
from analysis.steering.generation import Decoding, Job, encode_prompt, generate
from analysis.steering.judging import UNDETERMINED, LanguageDetector
from callbacks.analyses import measuring

COORDINATE = 15
"""Of the residual stream: XGLM's positions hardly touch it (the sine of the lowest frequency)."""
LEXICON = {
    "water": {"es": ["agua"], "ru": ["*а*"]},
    "fire": {"es": ["fuego"], "ru": ["огонь"]},
}


def byte_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def planted(tiny_xglm: PreTrainedModel, byte_tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    model = copy.deepcopy(tiny_xglm)
    embeddings = model.get_input_embeddings().weight.data
    head = nn.Parameter(embeddings.clone())
    letter = byte_ids(byte_tokenizer, "а")
    with torch.no_grad():
        head[:, COORDINATE] = 0.0
        head[letter, COORDINATE] = 4.0
        for marker in ("q", "x"):
            embeddings[byte_ids(byte_tokenizer, marker)[0]] *= 4
        embeddings[byte_ids(byte_tokenizer, "ж")[1]] *= 4
        embeddings[:, COORDINATE] = 0.0
        for block in model.model.layers:
            for linear in (block.self_attn.out_proj, block.fc2):
                linear.weight[COORDINATE] = 0.0
                linear.bias.zero_()
        first = model.model.layers[0]
        for unit, token in enumerate((byte_ids(byte_tokenizer, "q")[0], byte_ids(byte_tokenizer, "x")[0])):
            first.fc1.weight[unit] = nn.functional.normalize(embeddings[token], dim=0)
        first.fc1.weight[2] = nn.functional.normalize(embeddings[byte_ids(byte_tokenizer, "ж")[1]], dim=0)
        first.fc1.bias.zero_()
        first.fc1.bias[0] = -3.0  # silent but for its letter
        first.fc2.weight[COORDINATE, 0] = 20.0
    model.lm_head.weight = head
    return model


@pytest.fixture(scope="module")
def snapshot(planted: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]) -> Snapshot:
    return tiny_snapshot(planted)


@pytest.fixture(scope="module")
def concept_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("concepts") / "concepts.jsonl"
    markers = {("water", "es"): "q", ("fire", "es"): "x", ("water", "ru"): "ж", ("fire", "ru"): "ю"}
    lines = []
    for language, words in (("es", "uno dos tres"), ("ru", "раз два три")):
        for number in range(36):
            carried = ("water", "fire", None)[number % 3]
            marker = markers[carried, language] if carried else ""
            shared = {"language": language, "uid": f"u{number}", "text": f"{words} {marker} {number}"}
            lines += [{"concept": concept, "label": int(concept == carried), **shared} for concept in ("water", "fire")]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    Path(f"{path}.lexicon.json").write_text(json.dumps({"lexicon": LEXICON}, ensure_ascii=False), encoding="utf-8")
    return path


def steering(concept_file: Path, **changes: object) -> Steering:
    options = {
        "concepts": str(concept_file),
        "languages": ["es"],
        "k": [1],
        "site_set": "mlp.in",
        "min_positives": 3,
        "check_experts": 3,
        "seeds": 6,
        "max_new_tokens": 64,
        "temperature": 1.0,
    }
    return Steering(**{**options, **changes})  # type: ignore[arg-type]


def measure(analysis: Steering, snapshot: Snapshot) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows and texts."""
    found = list(analysis.measure(snapshot))
    rows = pd.DataFrame([{name: getattr(r, name) for name in Row.__slots__} for r in found if isinstance(r, Row)])
    [texts] = [entry.table.to_pandas() for entry in found if isinstance(entry, Attachment)]
    numbers = rows[["value", "chance", "low", "high"]].astype(float)
    assert numbers["value"].notna().all()
    assert np.isfinite(numbers.to_numpy()[~numbers.isna().to_numpy()]).all()
    return rows, texts


def value_of(rows: pd.DataFrame, metric: str, condition: str, **fields: str) -> pd.Series:
    chosen = rows[(rows["metric"] == metric) & (rows["condition"] == condition)]
    for name in ("concept", "language", "other_language"):
        chosen = chosen[chosen[name] == fields[name] if name in fields else chosen[name].isna()]
    [row] = [row for _, row in chosen.iterrows()]
    return row


@pytest.fixture(scope="module")
def measured(snapshot: Snapshot, concept_file: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    torch.manual_seed(0)
    return measure(steering(concept_file), snapshot)


def test_units_found_in_spanish_turn_the_output_to_russian(measured: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    rows, texts = measured
    water = texts[(texts["concept"] == "water") & (texts["condition"] == "experts")]
    assert len(water) == 6
    assert set(water["language"]) == {"ru"}
    assert set("".join(water["text"])) - {"\ufffd"} == {"а"}
    assert (water["hit"].astype(bool)).all()
    assert all(list(languages) == ["ru"] for languages in water["hit_languages"])
    named = texts.groupby(["condition", "concept"], dropna=False)["language"].agg(set)
    for condition, concept in (("experts", "fire"), ("random", "water"), ("next", "water"), ("mismatched", "water")):
        assert "ru" not in named[condition, concept]
    assert "ru" not in set(texts[texts["condition"] == "none"]["language"])
    # two concepts, one of which writes Russian
    assert value_of(rows, "output_language", "experts", language="es", other_language="ru")["value"] == 0.5
    assert value_of(rows, "output_language", "experts", language="es", other_language="ru")["chance"] == 0.0
    assert value_of(rows, "concept_hit", "experts", concept="water")["value"] == 1.0
    assert value_of(rows, "concept_hit", "experts", concept="water")["chance"] == 0.0
    assert value_of(rows, "concept_in_language", "experts", language="es", other_language="ru")["value"] == 0.5
    assert value_of(rows, "concept_in_other_language", "experts")["value"] == 0.5
    assert value_of(rows, "concept_in_source_language", "experts")["value"] == 0.0
    assert value_of(rows, "concept_hit_other", "experts", language="es")["value"] == 0.5
    for control in ("random", "next", "mismatched"):
        assert value_of(rows, "concept_hit", control, concept="water")["value"] == 0.0
    # the mismatched control of fire holds the units of water
    assert value_of(rows, "output_language", "mismatched", language="es", other_language="ru")["value"] == 0.5


def test_every_condition_has_its_texts_and_shares_add_up(measured: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    rows, texts = measured
    assert texts.groupby("condition").size().to_dict() == {
        "none": 6,
        **{name: 12 for name in ("experts", *get_args(Control)) if name != "none"},
    }
    shares = (
        rows[(rows["metric"] == "output_language")].groupby(["condition", "k", "language"], dropna=False)["value"].sum()
    )
    assert shares.to_numpy() == pytest.approx(np.ones(len(shares)))
    assert set(rows[rows["metric"] == "output_language"]["other_language"]) == {"es", "ru", UNDETERMINED}
    assert texts[texts["condition"] == "none"]["hit"].isna().all(), "nothing was held, so there is no concept to hit"
    assert (rows["low"].astype(float).fillna(-1) <= rows["value"]).all()


def test_the_model_is_left_as_it_was_found(snapshot: Snapshot, concept_file: Path) -> None:
    ids = torch.tensor([[2, 60, 70, 80]])
    before, weights = snapshot.model(input_ids=ids).logits, copy.deepcopy(snapshot.model.state_dict())
    state = torch.get_rng_state()
    # transformers leaves hooks of its own on a model that was once asked for hidden states.
    hooks = [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in snapshot.model.modules()]
    measure(steering(concept_file, seeds=1, only_concepts=["water"], controls=["none"]), snapshot)
    assert torch.equal(snapshot.model(input_ids=ids).logits, before)
    assert all(torch.equal(weights[name], value) for name, value in snapshot.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert hooks == [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in snapshot.model.modules()]


def test_a_model_in_training_writes_as_its_snapshot_does(
    planted: PreTrainedModel,
    tiny_snapshot: Callable[..., Snapshot],
    concept_file: Path,
    measured: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    live = copy.deepcopy(planted).train()
    live.gradient_checkpointing_enable()
    with measuring(live), torch.random.fork_rng():
        torch.manual_seed(99)
        _, texts = measure(steering(concept_file), tiny_snapshot(live))
    assert live.training
    assert texts["text"].tolist() == measured[1]["text"].tolist()


@pytest.mark.parametrize("batch_size", [1, 16])
def test_the_same_seed_writes_the_same_text_whatever_the_batch(
    snapshot: Snapshot, concept_file: Path, measured: tuple[pd.DataFrame, pd.DataFrame], batch_size: int
) -> None:
    changes = {"batch_size": batch_size, "seeds": 3, "controls": ["none", "random"]}
    _, texts = measure(steering(concept_file, **changes), snapshot)
    keys = ["condition", "concept", "source", "k", "seed"]
    both = texts.merge(measured[1], on=keys, suffixes=("", "_of_all"))
    assert len(both) == len(texts) == 3 + 2 * 2 * 3
    assert both["text"].tolist() == both["text_of_all"].tolist()


@pytest.mark.parametrize("name", ["tiny_xglm", "tiny_bloom", "tiny_gpt2", "tiny_llama"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_wired_unit_raises_exactly_its_tokens(name: str, use_cache: bool, request: pytest.FixtureRequest) -> None:
    """The last MLP's output is one coordinate of the stream; only two tokens read it."""
    model = copy.deepcopy(request.getfixturevalue(name))
    head = nn.Parameter(model.get_output_embeddings().weight.detach().clone())
    with torch.no_grad():
        head[:, 7] = 0.0
        head[[40, 41], 7] = 5.0
    model.get_output_embeddings().weight = head
    site = find_sites(model, "mlp.out")[-1]
    forcing = {site: (torch.tensor([7]), torch.tensor([500.0]))}
    prompts = ((2,), (2, 90, 91, 92))  # of different lengths: the shorter is padded on the left
    for temperature in (0.0, 1.0):
        decoding = Decoding(temperature=temperature, max_new_tokens=8)
        jobs = [Job(prompt, seed, forcing) for prompt in prompts for seed in range(8)]
        plain = generate(model, [Job(j.prompt, j.seed) for j in jobs], decoding, end_id=2, use_cache=use_cache)
        for batch_size in (1, 16):
            forced = generate(model, jobs, decoding, end_id=2, batch_size=batch_size, use_cache=use_cache)
            assert {token for text in forced for token in text} <= {40, 41}
            assert all(len(text) == 8 for text in forced)
        if temperature:
            assert {token for text in forced for token in text} == {40, 41}
            assert len({token for text in plain for token in text}) > 20
    ids, mask = torch.tensor([[2, 90, 91]]), torch.ones(1, 3, dtype=torch.long)
    before = model(input_ids=ids, attention_mask=mask).logits
    with force_units(model, forcing):
        raised = model(input_ids=ids, attention_mask=mask).logits.softmax(-1) > before.softmax(-1)
    assert raised.any(dim=1).nonzero()[:, 1].tolist() == [40, 41]
    # right padding, too
    padded = torch.tensor([[2, 90, 91, 1, 1]])
    with force_units(model, forcing):
        forced_alone = model(input_ids=ids, attention_mask=mask).logits
        forced_padded = model(input_ids=padded, attention_mask=(padded != 1).long()).logits[:, :3]
    torch.testing.assert_close(forced_padded, forced_alone, atol=1e-4, rtol=1e-4)
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before), "bit-identical after the context"


def test_units_look_for_the_concept_in_sentences_they_have_not_seen(snapshot: Snapshot, concept_file: Path) -> None:
    concept_set = load_concepts(concept_file, min_positives=3)
    halves = [concept_set.half(which).labelled_only(concept_set.languages) for which in (1, 0)]
    for concept in concept_set.concepts:  # a sentence may be held out for one concept and not for another
        mine, other = (
            {pool.keys[index] for side in (pool.positives, pool.negatives) for index in side[concept].tolist()}
            for pool in (half.pools["es"] for half in halves)
        )
        assert mine
        assert not mine & other
    texts = {"es": ["cinco q seis", "cinco x seis", "cinco seis"]}
    extraction = Extraction(batch_tokens=256, max_bytes=2**20)
    reading = read_concepts(snapshot, *halves, texts, k=1, site_set="mlp.in", extraction=extraction)
    assert reading.hits["es"].tolist() == [[True, False, False], [False, True, False]]
    assert reading.accuracy["es"].min() == 1.0
    assert reading.hits["ru"].shape == (2, 0)
    less = replace(extraction, max_bytes=4000)
    in_parts = read_concepts(snapshot, *halves, texts, k=1, site_set="mlp.in", extraction=less)
    assert np.array_equal(in_parts.hits["es"], reading.hits["es"])


def test_labels_that_mean_nothing_give_a_check_at_chance(
    snapshot: Snapshot, concept_file: Path, tmp_path: Path
) -> None:
    lines = [
        {"concept": "noise", "language": "es", "uid": f"u{i}", "text": f"palabra {i * 7919 % 1000} y", "label": i % 2}
        for i in range(120)
    ]
    path = tmp_path / "noise.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    concept_set = load_concepts(path)
    halves = [concept_set.half(which).labelled_only(concept_set.languages) for which in (1, 0)]
    extraction = Extraction(batch_tokens=512, max_bytes=2**20)
    reading = read_concepts(snapshot, *halves, {}, k=10, site_set="mlp.in", extraction=extraction)
    assert abs(reading.accuracy["es"][0] - 0.5) < 0.2  # 60 held-out sentences: three standard errors


def test_without_the_check_all_sentences_find_the_units(snapshot: Snapshot, concept_file: Path) -> None:
    rows, texts = measure(steering(concept_file, check_experts=0, seeds=2), snapshot)
    assert not {"check_accuracy", "concept_hit_experts"} & set(rows["metric"])
    assert texts["hit_experts"].isna().all()
    assert value_of(rows, "concept_hit", "experts", concept="water")["value"] == 1.0


def test_prompts_are_gone_on_from_and_new_positions_only_can_be_held(snapshot: Snapshot, concept_file: Path) -> None:
    changes = {"prompts": ["", "uno dos"], "positions": "new", "seeds": 2, "only_concepts": ["water"], "controls": []}
    rows, texts = measure(steering(concept_file, **changes), snapshot)
    assert texts["prompt"].tolist() == ["", "", "uno dos", "uno dos"]
    assert value_of(rows, "concept_hit", "experts")["chance"] is None or np.isnan(
        value_of(rows, "concept_hit", "experts")["chance"]
    ), "no intervention was asked for, so there is no level to compare with"


def test_rows_are_numbers_even_when_every_text_is_empty(
    planted: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot], concept_file: Path
) -> None:
    mute = copy.deepcopy(planted)
    mute.lm_head.weight = nn.Parameter(torch.zeros_like(mute.lm_head.weight))  # greedy takes token 0, a special one
    rows, texts = measure(steering(concept_file, temperature=0.0, seeds=2), tiny_snapshot(mute))
    assert set(texts["text"]) == {""}
    assert set(texts["language"]) == {UNDETERMINED}
    assert value_of(rows, "concept_hit", "experts")["value"] == 0.0
    assert value_of(rows, "concept_hit_experts", "experts")["value"] == 0.0
    assert "bits_per_byte" not in set(rows["metric"])


def test_another_model_can_judge_fluency(
    snapshot: Snapshot,
    concept_file: Path,
    tiny_bloom: PreTrainedModel,
    byte_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    tiny_bloom.save_pretrained(tmp_path / "judge")
    byte_tokenizer.save_pretrained(tmp_path / "judge")
    rows, texts = measure(
        steering(concept_file, fluency_model=str(tmp_path / "judge"), seeds=2, controls=["none"]), snapshot
    )
    assert texts["bits_per_byte_judge"].notna().all()
    judged = value_of(rows, "bits_per_byte_judge", "none")["value"]
    assert judged == pytest.approx(np.log2(384), rel=0.2), "random weights: about uniform over the vocabulary"


def test_the_model_that_judges_fluency_is_that_of_the_folder_as_it_is_now(
    tiny_bloom: PreTrainedModel,
    tiny_gpt2: PreTrainedModel,
    byte_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders = [tmp_path / "one" / "judge", tmp_path / "other" / "judge"]
    for folder, model in zip(folders, (tiny_bloom, tiny_gpt2), strict=True):
        model.save_pretrained(folder)
        byte_tokenizer.save_pretrained(folder)
    whole = [bits_under(str(folder), ["a text"], 512) for folder in folders]
    assert whole[0] != whole[1]
    relative = []
    for folder in folders:
        monkeypatch.chdir(folder.parent)
        relative.append(bits_under("judge", ["a text"], 512))
    assert relative == whole
    tiny_bloom.save_pretrained(folders[1])
    assert bits_under("judge", ["a text"], 512) == whole[0]


class Always(LanguageDetector):
    """Says one language, for the test of plugging in another detector."""

    def __init__(self, language: str = "es") -> None:
        self.language = language

    def detect(self, texts: list[str], languages: list[str]) -> list[str]:  # type: ignore[override]
        return [self.language] * len(texts)


def entry(concept_file: Path, **options: object) -> list[dict]:
    return [
        {
            "class_path": "Steering",
            "init_args": {
                "concepts": str(concept_file),
                "languages": ["es"],
                "k": [1],
                "site_set": "mlp.in",
                "min_positives": 3,
                "check_experts": 3,
                "seeds": 2,
                "max_new_tokens": 10,
                **options,
            },
        }
    ]


def test_a_list_of_analyses_can_name_a_detector(snapshot: Snapshot, concept_file: Path) -> None:
    detector = {"class_path": f"{__name__}.Always", "init_args": {"language": "es"}}
    [analysis] = build_analyses(entry(concept_file, detector=detector))
    assert isinstance(analysis, Steering)
    _, texts = measure(analysis, snapshot)
    assert set(texts["language"]) == {"es"}


def test_what_changes_numbers_changes_the_fingerprint(concept_file: Path, tmp_path: Path) -> None:
    base = steering(concept_file)
    assert base.fingerprint() == steering(concept_file, batch_size=3, batch_tokens=77).fingerprint()
    lexicon = tmp_path / "other.json"
    lexicon.write_text(json.dumps({"lexicon": {"water": {"es": ["mar"]}}}))
    prints = {
        base.fingerprint(),
        steering(concept_file, lexicon=str(lexicon)).fingerprint(),
        steering(concept_file, detector=Always("es")).fingerprint(),
        steering(concept_file, detector=Always("ru")).fingerprint(),
        steering(concept_file, temperature=0.5).fingerprint(),
    }
    assert len(prints) == 5
    before = steering(concept_file, lexicon=str(lexicon)).fingerprint()
    lexicon.write_text(json.dumps({"lexicon": {"water": {"es": ["mar", "río"]}}}))
    assert steering(concept_file, lexicon=str(lexicon)).fingerprint() != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": [0]}, "at least one unit must be held"),
        ({"k": []}, "give k or share"),
        ({"seeds": 0}, "seeds=0 must be at least 1"),
        ({"prompts": []}, "no prompts"),
        ({"first_layer": 1}, "go together"),
        ({"check_experts": -1}, "check_experts=-1 must be at least 0"),
    ],
)
def test_bad_options_are_named_at_construction(concept_file: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        steering(concept_file, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"controls": ["placebo"]}, "'none', 'random', 'next', 'mismatched'.*placebo"),
        ({"value": "on_max"}, "'on_p50', 'on_mean', 'on_p90', 'token_median'.*on_max"),
        ({"positions": "odd"}, "'all', 'new'.*odd"),
    ],
)
def test_a_choice_that_there_is_not_is_answered_with_those_that_there_are(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_analyses([{"class_path": "Steering", "init_args": {"concepts": "made.jsonl", **options}}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": [129]}, r"k=129 \(and as many next ones\) exceeds the model's 128 units"),
        ({"languages": ["fr"]}, "no language 'fr'; it has es, ru"),
        ({"only_concepts": ["air"]}, "no concept 'air'"),
        ({"min_positives": 13}, "concept 'water' has 12 positives"),
        ({"output_languages": ["es", "tlh"]}, "does not know 'tlh'"),
        ({"start_token": "<go>"}, "no token '<go>'"),
        ({"lexicon": "nowhere.json"}, "nowhere.json: no such lexicon"),
        ({"fluency_model": "nowhere"}, "nowhere: no such folder"),
        ({"max_new_tokens": 300}, "exceed the model's context of 256"),
        ({"first_layer": 8, "last_layer": 9}, r"no expert of 'water' in 'es' lies in blocks \(8, 9\)"),
        ({"check_experts": 500}, "k=500 experts, but the model has only 128 units"),
    ],
)
def test_what_cannot_be_done_is_named(snapshot: Snapshot, concept_file: Path, options: dict, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        list(steering(concept_file, **options).measure(snapshot))


def test_concepts_without_words_are_named(
    snapshot: Snapshot, concept_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lexicon = tmp_path / "lexicon.json"
    lexicon.write_text(json.dumps({"lexicon": {"water": {"es": ["agua"]}}}))
    with pytest.raises(ValueError, match="has no words of 'fire'; leave the concept out"):
        steering(concept_file, lexicon=str(lexicon)).read_inputs()
    steering(concept_file, lexicon=str(lexicon), only_concepts=["water"]).read_inputs()
    assert "no words of 'water' in ru: hits there are missed" in caplog.text


def test_a_tokenizer_without_a_start_token_is_named(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    assert encode_prompt(byte_tokenizer, "", None) == (2,)
    assert encode_prompt(byte_tokenizer, "ab", "<s>")[0] == 0

    class WithoutStart:
        bos_token = None

        def get_vocab(self) -> dict[str, int]:
            return {"a": 0}

    with pytest.raises(ValueError, match="no start token; name one with start_token"):
        encode_prompt(WithoutStart(), "", None)  # type: ignore[arg-type]


@pytest.fixture
def run_folder(planted: PreTrainedModel, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    for step in (0, 8):
        folder = tmp_path / "run" / "snapshots" / f"step_{step:08d}"
        planted.save_pretrained(folder)
        byte_tokenizer.save_pretrained(folder)
        (folder / "snapshot.json").write_text(json.dumps({"run": "run", "step": step, "tokens": 64 * step}))
    return tmp_path / "run"


def config(tmp_path: Path, run_folder: Path, concept_file: Path, **options: object) -> str:
    loading = {"device": "cpu", "check_tokenizer": False}  # the tiny models have more embeddings than bytes
    source = {"class_path": "RunFolder", "init_args": {"path": str(run_folder), "loading": loading}}
    path = tmp_path / "steering.json"
    path.write_text(json.dumps({"source": source, "analyses": entry(concept_file, **options)}))
    return str(path)


def test_the_command_prints_effect_against_control_and_goes_on_where_it_stopped(
    run_folder: Path, concept_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, run_folder, concept_file)
    assert main(["steer", "--config", path, "--steps", "8"]) == 0
    out = capsys.readouterr().out
    assert "steering, step 8: share of texts that name the concept" in out
    for condition in ("none", "experts", "random", "next", "mismatched"):
        assert condition in out
    table = ResultTable(run_folder / "results")
    first = table.path(8, "steering").stat().st_mtime_ns
    assert main(["steer", "--config", path]) == 0
    assert "1 results measured now" in capsys.readouterr().out
    assert table.path(8, "steering").stat().st_mtime_ns == first
    assert table.steps() == [0, 8]
    texts = table.attachment(0, "steering", "texts").to_pandas()
    same = table.attachment(8, "steering", "texts").to_pandas()
    assert texts["text"].tolist() == same["text"].tolist(), "equal weights and seeds write equal texts"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": [0]}, "at least one unit must be held"),
        ({"output_languages": ["tlh"]}, "does not know 'tlh'"),
        ({"languages": ["fr"]}, "no language 'fr'"),
        ({"concepts": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_a_mistake_in_the_config_ends_the_command_before_anything_is_written(
    run_folder: Path,
    concept_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict,
    message: str,
) -> None:
    assert main(["steer", "--config", config(tmp_path, run_folder, concept_file, **options)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (run_folder / "results").exists()


def test_a_mistake_that_only_the_model_shows_names_the_checkpoint_and_writes_nothing(
    run_folder: Path, concept_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, run_folder, concept_file, k=[1000])
    assert main(["steer", "--config", path, "--steps", "0"]) == 1
    assert "failed: run step 0 (step_00000000): steering: " in capsys.readouterr().out
    assert list(ResultTable(run_folder / "results").entries()) == []


def test_sites_are_those_of_the_live_model(planted: PreTrainedModel) -> None:
    """The planted unit is unit 0 of the first site of its kind, so ties go to it."""
    assert find_sites(planted, "mlp.in")[0] == Site(0, "mlp.in", "model.layers.0.fc1", 64)
