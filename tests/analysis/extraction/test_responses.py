"""The response stream equals a plain loop over texts, in any packing, and refuses what would poison a figure."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from analysis.extraction.hooks import read_sites
from analysis.extraction.options import Extraction, choose_batch_tokens
from analysis.extraction.passes import make_packs
from analysis.extraction.responses import iter_responses
from analysis.extraction.sites import Site, find_sites
from analysis.snapshots import Snapshot

TEXTS = ["a", "water and fire", "der Fluss", "el agua es clara y fría", "水", "once more with feeling", "a b c"]
MODELS = ["tiny_xglm", "tiny_bloom", "tiny_gpt2", "tiny_neox", "tiny_llama"]


def one_by_one(snapshot: Snapshot, sites: tuple[Site, ...], reduce: Callable[[Tensor], Tensor]) -> dict[Site, Tensor]:
    """Each text alone, whole model, no padding: the definition."""
    columns: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for text in TEXTS:
        ids = torch.tensor([snapshot.tokenizer(text)["input_ids"]])
        with torch.no_grad(), read_sites(
            snapshot.model, sites, lambda site, values: columns[site].append(reduce(values[0, 1:]))
        ):  # fmt: skip
            snapshot.model(ids)
    return {site: torch.stack(column, 1) for site, column in columns.items()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pool", ["max", "mean", "last"])
def test_stream_equals_texts_one_by_one(
    name: str, pool: str, request: pytest.FixtureRequest, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    snapshot = tiny_snapshot(request.getfixturevalue(name))
    sites = find_sites(snapshot.model, ["attn.out", "mlp.in", "mlp.act", "resid", "embed"])
    reduce = {"max": lambda t: t.amax(0), "mean": lambda t: t.mean(0), "last": lambda t: t[-1]}[pool]
    expected = one_by_one(snapshot, sites, reduce)
    stream = list(iter_responses(snapshot, TEXTS, sites, Extraction(pool=pool, batch_tokens=48)))
    assert [responses.site for responses in stream] == list(sites)
    for responses in stream:
        assert responses.values.shape == (responses.site.num_units, len(TEXTS))
        torch.testing.assert_close(responses.values, expected[responses.site], rtol=1e-4, atol=1e-5)


def test_packs_and_batches_do_not_change_responses(
    tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tiny_snapshot(tiny_xglm)
    sites = find_sites(tiny_xglm)
    whole = list(iter_responses(snapshot, TEXTS, sites))
    monkeypatch.setattr("analysis.extraction.responses._REORDERED", 2 * len(TEXTS) + 1)  # two units at once
    packed = list(iter_responses(snapshot, TEXTS, sites, Extraction(batch_tokens=1, max_bytes=64 * len(TEXTS) * 4)))
    for one, other in zip(whole, packed, strict=True):
        torch.testing.assert_close(one.values, other.values, rtol=1e-4, atol=1e-5)


def test_head_never_runs_and_body_stops_at_the_last_site(
    tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    model = copy.deepcopy(tiny_xglm)

    def refuse(*_: object) -> None:
        raise AssertionError("must not run")

    for module in (model.lm_head, model.model.layers[1], model.model.layer_norm):
        module.forward = refuse
    first = [site for site in find_sites(model) if site.layer == 0]
    assert len(list(iter_responses(tiny_snapshot(model), TEXTS, first))) == len(first)


def test_responses_held_stay_under_the_bound(
    tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    sites = [Site(layer, "resid", f"layers.{layer}", 100) for layer in range(7)]
    packs = make_packs(sites, 40, 9000, split=False)
    assert [len(pack) for pack in packs] == [2, 2, 2, 1]
    assert [part.site for pack in packs for part in pack] == sites
    for packs in (make_packs(sites, 40, bound, split=True) for bound in (40, 3999, 4001, 12345)):
        covered = [
            (part.site, unit) for pack in packs for part in pack for unit in range(part.first, part.first + part.count)
        ]
        assert covered == [(site, unit) for site in sites for unit in range(100)]
    with pytest.raises(ValueError, match=r"layers\.0 .*4000 bytes; raise max_bytes"):
        make_packs(sites, 40, 3999, split=False)
    with pytest.raises(ValueError, match="no sites"):
        make_packs([], 40, 1, split=False)
    with pytest.raises(ValueError, match="raise max_bytes"):
        list(iter_responses(tiny_snapshot(tiny_xglm), TEXTS, find_sites(tiny_xglm), Extraction(max_bytes=20)))


def test_a_site_may_come_in_parts(tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]) -> None:
    sites = find_sites(tiny_xglm)
    whole = {responses.site: responses.values for responses in iter_responses(tiny_snapshot(tiny_xglm), TEXTS, sites)}
    stream = iter_responses(tiny_snapshot(tiny_xglm), TEXTS, sites, Extraction(max_bytes=50 * len(TEXTS) * 4))
    covered: dict[Site, int] = dict.fromkeys(sites, 0)
    for part in stream:
        assert part.first_unit == covered[part.site]
        covered[part.site] += len(part.values)
        expected = whole[part.site][part.first_unit : covered[part.site]]
        torch.testing.assert_close(part.values, expected, rtol=1e-4, atol=1e-5)
    assert covered == {site: site.num_units for site in sites}


def test_half_precision_storage_is_close_and_refuses_overflow(
    tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    sites = find_sites(tiny_xglm, "residual")
    exact = list(iter_responses(tiny_snapshot(tiny_xglm), TEXTS, sites))
    half = list(iter_responses(tiny_snapshot(tiny_xglm), TEXTS, sites, Extraction(storage="float16")))
    for one, other in zip(exact, half, strict=True):
        assert other.values.dtype == torch.float32
        torch.testing.assert_close(one.values, other.values, rtol=1e-3, atol=1e-4)
    model = copy.deepcopy(tiny_xglm)
    with torch.no_grad():
        model.model.layers[0].fc2.bias += 1e5
    with pytest.raises(ValueError, match=r"infinite.*float16 storage overflows"):
        list(iter_responses(tiny_snapshot(model), TEXTS, find_sites(model, "residual"), Extraction(storage="float16")))


def test_nan_names_site_and_text(tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]) -> None:
    model = copy.deepcopy(tiny_xglm)
    with torch.no_grad():
        model.model.layers[1].fc1.weight[3] = torch.nan
    with pytest.raises(ValueError, match=r"unit 3 of model\.layers\.1\.fc1 to text 0 \('a'\) is NaN"):
        list(iter_responses(tiny_snapshot(model), TEXTS, find_sites(model)))


def test_bad_arguments_are_refused(tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]) -> None:
    snapshot = tiny_snapshot(tiny_xglm)
    sites = find_sites(tiny_xglm)
    with pytest.raises(ValueError, match="text 1"):
        list(iter_responses(snapshot, ["a", "<pad>"], sites))
    with pytest.raises(ValueError, match="choose one of max"):
        list(iter_responses(snapshot, TEXTS, sites, Extraction(pool="sum")))
    with pytest.raises(ValueError, match="choose one of float32"):
        list(iter_responses(snapshot, TEXTS, sites, Extraction(storage="bfloat16")))
    training = copy.deepcopy(tiny_xglm).train()
    with pytest.raises(ValueError, match="training mode"):
        list(iter_responses(tiny_snapshot(training), TEXTS, find_sites(training)))


def test_autocast_around_the_call_does_not_reach_in(
    tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    """Live rows equal post-hoc rows only if the trainer's precision context stays outside."""
    sites = find_sites(tiny_xglm, "residual")
    plain = list(iter_responses(tiny_snapshot(tiny_xglm), TEXTS, sites))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = list(iter_responses(tiny_snapshot(tiny_xglm), TEXTS, sites))
    for one, other in zip(plain, inside, strict=True):
        assert torch.equal(one.values, other.values)


def test_tokens_per_pass_fit_the_width(tiny_xglm: PreTrainedModel) -> None:
    assert choose_batch_tokens(tiny_xglm) == 4096
    model = copy.deepcopy(tiny_xglm)
    for width, expected in ((1024, 512), (4096, 256)):
        model.config.d_model = width
        assert choose_batch_tokens(model) == expected
