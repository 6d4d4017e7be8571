"""Batched generation: equal to transformers where it can be, and to itself whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from analysis.extraction.sites import find_sites
from analysis.steering.generation import Decoding, Job, choose_tokens, generate, uniforms

MODELS = ("tiny_xglm", "tiny_bloom", "tiny_gpt2", "tiny_neox", "tiny_llama")
PROMPTS = ((2,), (2, 50, 60, 70), (2, 90))
SAMPLED = Decoding(temperature=1.0, max_new_tokens=12)
GREEDY = Decoding(temperature=0.0, max_new_tokens=12)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return request.getfixturevalue(request.param)


def jobs_of(num_seeds: int = 4) -> list[Job]:
    return [Job(prompt, seed) for prompt in PROMPTS for seed in range(num_seeds)]


@pytest.mark.parametrize("model", MODELS, indirect=True)
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_equals_transformers(model: PreTrainedModel, use_cache: bool) -> None:
    ours = generate(model, [Job(p, 0) for p in PROMPTS], GREEDY, end_id=2, use_cache=use_cache)
    for prompt, tokens in zip(PROMPTS, ours, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            pad_token_id=1,
            eos_token_id=2,
        )[0, len(prompt) :].tolist()
        assert tokens == [token for token in theirs if token != 2][: len(tokens)]
        assert len(tokens) == len([token for token in theirs if token not in (1, 2)])


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_a_seed_writes_the_same_whatever_stands_beside_it(model: PreTrainedModel) -> None:
    jobs = jobs_of()
    alone = [generate(model, [job], SAMPLED, end_id=2)[0] for job in jobs]
    assert generate(model, jobs, SAMPLED, end_id=2, batch_size=16) == alone
    assert generate(model, jobs, SAMPLED, end_id=2, batch_size=5, use_cache=False) == alone
    assert generate(model, jobs[::-1], SAMPLED, end_id=2, batch_size=3) == alone[::-1]
    assert len({tuple(tokens) for tokens in alone}) > 8, "seeds differ"


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_forcing_nothing_changes_nothing(model: PreTrainedModel) -> None:
    site = find_sites(model)[0]
    nothing = {site: (torch.empty(0, dtype=torch.long), torch.empty(0))}
    plain = generate(model, jobs_of(), SAMPLED, end_id=2)
    assert generate(model, [Job(j.prompt, j.seed, {}) for j in jobs_of()], SAMPLED, end_id=2) == plain
    assert generate(model, [Job(j.prompt, j.seed, nothing) for j in jobs_of()], SAMPLED, end_id=2) == plain


@pytest.mark.parametrize("model", MODELS, indirect=True)
@pytest.mark.parametrize("positions", ["all", "new"])
@pytest.mark.parametrize("decoding", [SAMPLED, GREEDY], ids=["sampled", "greedy"])
def test_forcings_of_one_batch_do_not_touch_each_other(
    model: PreTrainedModel, positions: str, decoding: Decoding
) -> None:
    sites = find_sites(model)
    strong = {sites[1]: (torch.tensor([0, 3]), torch.tensor([9.0, -9.0]))}
    other = {sites[-1]: (torch.tensor([1]), torch.tensor([20.0]))}
    jobs = [Job(p, s, forcing) for p in PROMPTS for s in range(3) for forcing in (None, strong, other)]
    options = {"end_id": 2, "positions": positions}
    alone = [generate(model, [job], decoding, **options)[0] for job in jobs]  # type: ignore[arg-type]
    for use_cache in (True, False):
        mixed = generate(model, jobs, decoding, batch_size=27, use_cache=use_cache, **options)  # type: ignore[arg-type]
        assert mixed == alone
    plain = [tokens for job, tokens in zip(jobs, alone, strict=True) if job.forcing is None]
    forced = [tokens for job, tokens in zip(jobs, alone, strict=True) if job.forcing is other]
    assert plain != forced


def test_a_model_is_left_as_it_was(tiny_xglm: PreTrainedModel) -> None:
    ids = torch.tensor([[2, 40, 50]])
    before = tiny_xglm(input_ids=ids).logits
    site = find_sites(tiny_xglm)[0]
    state = torch.get_rng_state()
    generate(tiny_xglm, [Job((2,), 1, {site: (torch.tensor([0]), torch.tensor([50.0]))})], SAMPLED, end_id=2)
    assert torch.equal(tiny_xglm(input_ids=ids).logits, before)
    assert torch.equal(torch.get_rng_state(), state), "no global random numbers are drawn"


def test_min_new_tokens_and_end(tiny_xglm: PreTrainedModel) -> None:
    free = generate(tiny_xglm, [Job((2,), s) for s in range(40)], SAMPLED, end_id=77)
    assert all(77 not in tokens for tokens in free)
    long = generate(
        tiny_xglm, [Job((2,), s) for s in range(40)], Decoding(max_new_tokens=9, min_new_tokens=9), end_id=77
    )
    assert {len(tokens) for tokens in long} == {9}


def test_sampling_follows_the_distribution() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(20_000, 1)
    uniform = torch.from_numpy(uniforms(3, 20_000))
    counts = torch.bincount(choose_tokens(logits, uniform, Decoding(temperature=1.0)), minlength=4) / 20_000
    assert counts.tolist() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.015)  # four standard errors
    top_two = choose_tokens(logits, uniform, Decoding(temperature=1.0, top_k=2))
    assert set(top_two.tolist()) == {0, 1}
    nucleus = choose_tokens(logits, uniform, Decoding(temperature=1.0, top_p=0.81))
    assert set(nucleus.tolist()) == {0, 1, 2}, "the token that crosses the border belongs to the nucleus"
    cold = torch.bincount(choose_tokens(logits, uniform, Decoding(temperature=0.5)), minlength=4) / 20_000
    squared = np.array([0.25, 0.09, 0.0225, 0.0025])
    assert cold.tolist() == pytest.approx((squared / squared.sum()).tolist(), abs=0.015)


@pytest.mark.parametrize("vocabulary", [4, 700, 1024])
def test_the_border_of_the_unit_interval_never_reaches_an_impossible_token(vocabulary: int) -> None:
    logits = torch.full((1, vocabulary), -torch.inf)
    logits[0, 2:4] = torch.tensor([0.0, 1.0])
    for uniform, token in ((0.0, 2), (1.0 - 2**-53, 3), (1.0, 3)):
        chosen = choose_tokens(logits, torch.tensor([uniform], dtype=torch.float64), Decoding(temperature=1.0))
        assert chosen.tolist() == [token]


def test_a_large_vocabulary_is_sampled_as_a_running_sum_over_all_of_it_says() -> None:
    logits = torch.randn(8, 5000, generator=torch.Generator().manual_seed(1)) * 3
    uniform = torch.from_numpy(np.stack([uniforms(seed, 1) for seed in range(8)]))[:, 0]
    probabilities = (logits.double() / 0.8).softmax(dim=-1)
    expected = torch.searchsorted(probabilities.cumsum(dim=-1), uniform[:, None], right=True)[:, 0]
    assert torch.equal(choose_tokens(logits, uniform, Decoding(temperature=0.8)), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"min_new_tokens": 99}, "min_new_tokens is 99"),
    ],
)
def test_bad_decoding_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding(**options)


def test_prompts_that_cannot_work_are_named(tiny_xglm: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="a prompt is empty"):
        generate(tiny_xglm, [Job((), 0)], SAMPLED, end_id=2)
    with pytest.raises(ValueError, match="exceed the model's context of 256"):
        generate(tiny_xglm, [Job((2,) * 250, 0)], SAMPLED, end_id=2)
    with pytest.raises(ValueError, match="no texts"):
        generate(tiny_xglm, [], SAMPLED, end_id=2)
