from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tunesmith.chat import Message
from tunesmith.errors import AdapterError, ModelError
from tunesmith.models import passes
from tunesmith.models.generate import Request, Sampler, ScoreRequest, Token
from tunesmith.models.load import DType, LoadedModel, load
from tunesmith.models.lora import LoRASettings
from tunesmith.models.template import Chain, Exchange
from tunesmith.models.tree import plant

PREFIX = tuple(range(30, 75))
FAMILIES = (
    *("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3", "gpt_neox"),
    "gpt_oss",
)


def requests(count: int, *, seed: int = 0, adapter: str | None = None) -> list[Request]:
    """Prompts of many lengths, two in three behind one prefix."""
    draw = np.random.default_rng(seed)
    out: list[Request] = []
    for index in range(count):
        prompt = tuple(int(x) for x in draw.integers(0, 256, int(draw.integers(1, 40))))
        prefix = PREFIX if index % 3 else ()
        out.append(Request(f"r{index}", prefix, prompt, max_tokens=10, adapter=adapter))
    return out


def answers(sampler: Sampler, asked: Sequence[Request]) -> dict[str, list[Token]]:
    for request in asked:
        sampler.submit(request)
    out: dict[str, list[Token]] = {request.id: [] for request in asked}
    while not sampler.idle:
        for token in sampler.step():
            out[token.request].append(token)
    return out


def ids(tokens: Sequence[Token]) -> list[int]:
    return [token.id for token in tokens]


def assert_same(ours: Sequence[Token], theirs: Sequence[Token]) -> None:
    assert ids(ours) == ids(theirs)
    assert [t.finish for t in ours] == [t.finish for t in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.logprob == pytest.approx(other.logprob, abs=1e-5)


def alone(folder: Path, request: Request) -> list[Token]:
    """The answer of a sampler that has never seen anything else."""
    return answers(Sampler(load(folder, dtype="float32"), max_rows=1), [request])[request.id]


def with_adapter(folder: Path, out: Path) -> LoadedModel:
    """A model with the trained adapter "a", which is also saved in a folder."""
    model = load(folder, dtype="float32")
    model.adapters.create("a", LoRASettings(rank=4), seed=0)
    torch.manual_seed(0)
    for _, low in model.adapters.lows("a"):
        torch.nn.init.normal_(low.b, std=0.1)
    model.adapters.save("a", out, base="tiny", card={"base_weights": model.weights_hash})
    return model


def assert_greedy(ours: Sequence[Token], folder: Path, prompt: tuple[int, ...]) -> None:
    """Each token is the likeliest one after those before it, as the model's own eager attention
    says in one plain pass over the whole sequence, and has its log-probability."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    whole = torch.tensor([[*prompt, *ids(ours)]])
    with torch.no_grad():
        said = model(whole, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    assert ids(ours) == said.argmax(1).tolist()
    wanted = said.max(1).values.tolist()
    assert [token.logprob for token in ours] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_trap_37_greedy_answers_are_those_of_transformers(
    narrow: Callable[[str], Path], family: str
) -> None:
    folder = narrow(family)
    asked = [replace(item, max_tokens=24) for item in requests(6)]
    ours = answers(Sampler(load(folder, dtype="float32"), max_rows=4), asked)
    for item in asked:
        assert_greedy(ours[item.id], folder, item.prefix + item.prompt)


APART = ("bloom", "nemotron", "gpt_neo", "llama4_text", "lfm2", "falcon_h1", "recurrent_gemma")


@pytest.mark.parametrize("family", APART)
def test_trap_38_a_model_that_cannot_share_answers_and_scores_as_transformers_does(
    apart: Callable[[str], Path], family: str
) -> None:
    """More requests than rows; the last family reads its rows again for every token."""
    folder = apart(family)
    sampler = Sampler(load(folder, dtype="float32"), max_rows=2)
    asked = requests(4)
    ours = answers(sampler, asked)
    for item in asked:
        assert ours[item.id][-1].finish
        assert_greedy(ours[item.id], folder, item.prefix + item.prompt)
    scores = [ScoreRequest(r.prefix, r.prompt, tuple(ids(ours[r.id]))) for r in asked]
    for item, scored in zip(asked, sampler.score(scores), strict=True):
        assert scored == pytest.approx([t.logprob for t in ours[item.id]], abs=1e-4)


def test_trap_18_a_model_that_cannot_share_serves_each_row_through_its_adapter(
    apart: Callable[[str], Path], tmp_path: Path
) -> None:
    model = with_adapter(apart("lfm2"), tmp_path)
    sampler = Sampler(load(apart("lfm2"), dtype="float32"), max_rows=3)
    sampler.add_adapter("a", tmp_path)
    plain, tuned = requests(3), requests(3, adapter="a")
    tuned = [replace(item, id="t" + item.id) for item in tuned]
    got = answers(sampler, [item for pair in zip(plain, tuned, strict=True) for item in pair])
    for item in plain:
        assert_same(got[item.id], alone(apart("lfm2"), item))
        assert ids(got[item.id]) != ids(got["t" + item.id])
    model.adapters.routing.all = "a"
    for item in tuned:
        row = item.prefix + item.prompt + tuple(ids(got[item.id]))
        mask = (False,) * (len(row) - 10) + (True,) * 10
        with torch.no_grad():
            wanted = model.logprobs(plant([Chain(row, mask)])).tolist()
        assert [t.logprob for t in got[item.id]] == pytest.approx(wanted, abs=1e-4)


def test_trap_37_answers_end_where_rotary_factors_would_change(longrope: Path) -> None:
    """A long row and a short one in each other's company; none is taken in that is too long."""
    sampler = Sampler(load(longrope, dtype="float32"), max_rows=4)
    asked = [Request(f"r{n}", PREFIX, tuple(range(n)), max_tokens=40) for n in (3, 10, 18)]
    ours = answers(sampler, asked)
    assert [len(ours[item.id]) for item in asked] == [16, 9, 1]
    for item in asked:
        assert ours[item.id][-1].finish == "length"
        assert_greedy(ours[item.id], longrope, item.prefix + item.prompt)
    with pytest.raises(ModelError, match="a row of 65 tokens"):
        sampler.submit(Request("long", PREFIX, tuple(range(20)), max_tokens=1))
    with pytest.raises(ModelError, match="a row of 65 tokens"):
        sampler.score([ScoreRequest(PREFIX, tuple(range(10)), tuple(range(10)))])


def test_trap_32_a_batch_answers_as_each_alone(tiny: Callable[..., Path]) -> None:
    """More requests than rows, shared and unshared prefixes, one sampler that saw others before."""
    asked = requests(11)
    sampler = Sampler(load(tiny(), dtype="float32"), max_rows=4)
    together = answers(sampler, asked)
    assert all(tokens[-1].finish for tokens in together.values())
    backwards = answers(sampler, asked[::-1])
    for item in asked:
        assert_same(together[item.id], alone(tiny(), item))
        assert_same(backwards[item.id], together[item.id])


def test_trap_32_a_shared_prefix_changes_nothing(tiny: Callable[..., Path]) -> None:
    sampler = Sampler(load(tiny(), dtype="float32"))
    whole = Request("whole", (), (*PREFIX, 5, 6, 7), max_tokens=12)
    split = Request("split", PREFIX, (5, 6, 7), max_tokens=12)
    got = answers(sampler, [whole, split])
    assert_same([replace(t, request="x") for t in got["whole"]], got["split"])


def test_trap_32_neighbours_that_are_cancelled_or_join_late_change_nothing(
    tiny: Callable[..., Path],
) -> None:
    asked = requests(5, seed=1)
    sampler = Sampler(load(tiny(), dtype="float32"), max_rows=3)
    out: dict[str, list[Token]] = {item.id: [] for item in asked}
    for item in asked[:4]:
        sampler.submit(item)
    for step in range(30):
        if step == 2:
            sampler.cancel("r0")
            sampler.cancel("unknown")
            sampler.submit(asked[4])
        if step == 4:
            sampler.cancel("r3")
        for token in sampler.step():
            out[token.request].append(token)
    assert sampler.idle
    assert len(out["r0"]) == 2
    assert len(out["r3"]) < 10
    for name in ("r1", "r2", "r4"):
        request = next(item for item in asked if item.id == name)
        assert_same(out[name], alone(tiny(), request))


def test_trap_34_sampling_many_prompts_holds_no_more_than_a_few(
    tiny: Callable[..., Path], peak_bytes: Callable[[Callable[[], object]], int]
) -> None:
    """Neither logits nor keys are kept for rows that are done."""

    def peak(count: int) -> int:
        sampler = Sampler(load(tiny(), dtype="float32"), max_rows=4)
        asked = [Request(f"r{n}", PREFIX, (n, 7, 9), max_tokens=6) for n in range(count)]
        return peak_bytes(lambda: answers(sampler, asked))

    assert peak(40) <= peak(5) * 1.01


def test_of_those_that_will_fit_the_shortest_join_first(tiny: Callable[..., Path]) -> None:
    """Slots in the order of lengths: neighbours are read together."""
    sampler = Sampler(load(tiny(), dtype="float32"), max_rows=3)
    for name, length in (("long", 40), ("short", 3), ("middle", 20), ("later", 1)):
        sampler.submit(Request(name, (), (5,) * length, max_tokens=1))
    assert [token.request for token in sampler.step()] == ["short", "middle", "long"]
    assert [token.request for token in sampler.step()] == ["later"]


def test_long_prompts_and_answers_outgrow_every_block(tiny: Callable[..., Path]) -> None:
    prompt = tuple(np.random.default_rng(3).integers(0, 256, passes.PREFILL + 70).tolist())
    long = Request("long", (), prompt, max_tokens=140)
    short = Request("short", (), prompt[:3], max_tokens=150)
    model = load(tiny(), dtype="float32")
    got = answers(Sampler(model, max_rows=2), [long, short])
    for item in (long, short):
        tokens = got[item.id]
        row = item.prompt + tuple(ids(tokens))
        mask = (False,) * len(item.prompt) + (True,) * len(tokens)
        with torch.no_grad():
            wanted = model.logprobs(plant([Chain(row, mask)])).tolist()
        assert [t.logprob for t in tokens] == pytest.approx(wanted, abs=1e-4)


def test_scores_are_the_log_probabilities_of_the_trainer(tiny: Callable[..., Path]) -> None:
    model = load(tiny(), dtype="float32")
    sampler = Sampler(model)
    answer = (7, 8, 9, 257)
    split = ScoreRequest(PREFIX, (1, 2), answer)
    whole = ScoreRequest((), (*PREFIX, 1, 2), answer)
    mask = (False,) * (len(PREFIX) + 2) + (True,) * 4
    with torch.no_grad():
        wanted = model.logprobs(plant([Chain((*PREFIX, 1, 2, *answer), mask)])).tolist()
    for scored in sampler.score([split, whole]):
        assert scored == pytest.approx(wanted, abs=1e-5)


def test_trap_18_an_adapter_changes_the_answer_and_scores_as_the_trainer_does(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    model = with_adapter(tiny(), tmp_path)
    served = Sampler(load(tiny(), dtype="float32"))
    served.add_adapter("tuned", tmp_path)
    assert served.adapters == ("tuned",)
    base, tuned = (replace(requests(2)[1], id=name) for name in ("base", "tuned"))
    got = answers(served, [base, replace(tuned, adapter="tuned")])
    assert ids(got["base"]) != ids(got["tuned"])
    assert_same(got["base"], alone(tiny(), base))
    row = tuned.prefix + tuned.prompt + tuple(ids(got["tuned"]))
    mask = (False,) * (len(row) - 10) + (True,) * 10
    model.adapters.routing.all = "a"
    with torch.no_grad():
        wanted = model.logprobs(plant([Chain(row, mask)])).tolist()
    assert [t.logprob for t in got["tuned"]] == pytest.approx(wanted, abs=1e-4)
    score = ScoreRequest(tuned.prefix, tuned.prompt, row[-10:], "tuned")
    assert served.score([score])[0] == pytest.approx(wanted, abs=1e-4)


def test_trap_18_after_sampling_the_trainer_still_goes_through_its_adapter(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    model = with_adapter(tiny(), tmp_path)
    model.adapters.routing.all = "a"
    batch = plant([Chain(PREFIX, (False,) * 40 + (True,) * 5)])
    with torch.no_grad():
        before = model.logprobs(batch)
        answers(Sampler(model), requests(3))
        assert torch.equal(model.logprobs(batch), before)


@pytest.mark.parametrize("whole", [(), ("embed_tokens", "lm_head")], ids=["low", "whole"])
def test_one_batch_mixes_the_base_and_its_adapters(
    tiny: Callable[..., Path], tmp_path: Path, whole: tuple[str, ...]
) -> None:
    model = with_adapter(tiny(), tmp_path)
    if whole:
        model.adapters.create("a", LoRASettings(rank=4, modules_to_save=whole))
        with torch.no_grad():
            for path, copy in model.adapters.copies("a"):
                copy.weight += torch.randn_like(copy.weight) * (0.3 if path in whole else 0.2)
    sampler = Sampler(model, max_rows=8)
    plain, tuned = requests(4), requests(4, adapter="a")
    tuned = [replace(item, id="t" + item.id) for item in tuned]
    mixed = answers(sampler, [item for pair in zip(plain, tuned, strict=True) for item in pair])
    for item in tuned:
        assert_same(answers(sampler, [item])[item.id], mixed[item.id])
    for item in plain:
        assert_same(alone(tiny(), item), mixed[item.id])
    item = tuned[1]
    row = item.prefix + item.prompt + tuple(ids(mixed[item.id]))
    mask = (False,) * (len(row) - 10) + (True,) * 10
    model.adapters.routing.all = "a"
    with torch.no_grad():
        wanted = model.logprobs(plant([Chain(row, mask)])).tolist()
    assert [token.logprob for token in mixed[item.id]] == pytest.approx(wanted, abs=1e-4)


def test_an_adapter_of_the_same_name_replaces_the_first_with_its_prefixes(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    model = with_adapter(tiny(), tmp_path / "one")
    with torch.no_grad():
        for _, low in model.adapters.lows("a"):
            low.b.neg_()
    card = {"base_weights": model.weights_hash}
    model.adapters.save("a", tmp_path / "two", base="tiny", card=card)
    request = Request("r", PREFIX, (1, 2, 3), 10, adapter="x")
    fresh = Sampler(load(tiny(), dtype="float32"))
    fresh.add_adapter("x", tmp_path / "two")
    wanted = answers(fresh, [request])["r"]
    sampler = Sampler(load(tiny(), dtype="float32"))
    sampler.add_adapter("x", tmp_path / "one")
    assert ids(answers(sampler, [request])["r"]) != ids(wanted)
    sampler.add_adapter("x", tmp_path / "two")
    assert_same(answers(sampler, [request])["r"], wanted)


def test_an_adapter_in_use_stays_until_its_requests_are_done(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    sampler = Sampler(with_adapter(tiny(), tmp_path), max_rows=2)
    wanted = requests(4, adapter="a")
    for item in wanted:
        sampler.submit(item)
    sampler.step()
    with pytest.raises(AdapterError, match="answering 4 requests"):
        sampler.remove_adapter("a")
    while not sampler.idle:
        sampler.step()
    sampler.remove_adapter("a")
    assert sampler.adapters == ()


def test_trap_18_an_adapter_of_other_weights_is_refused(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    with_adapter(tiny(), tmp_path)
    with pytest.raises(AdapterError, match="was trained on weights"):
        Sampler(load(tiny(seed=1), dtype="float32")).add_adapter("a", tmp_path)


def test_the_same_seed_draws_the_same_answer_in_any_company(tiny: Callable[..., Path]) -> None:
    sampler = Sampler(load(tiny(), dtype="float32"), max_rows=4)
    warm = [replace(item, temperature=1.0, seed=3) for item in requests(6)]
    first = answers(sampler, warm)
    assert {k: ids(v) for k, v in answers(sampler, warm[::-1]).items()} == {
        k: ids(v) for k, v in first.items()
    }
    other = answers(sampler, [replace(warm[0], seed=4)])
    assert ids(other["r0"]) != ids(first["r0"])
    unseeded = [answers(sampler, [replace(warm[0], seed=None)])["r0"] for _ in range(2)]
    assert ids(unseeded[0]) != ids(unseeded[1])


def test_penalties_are_openais(tiny: Callable[..., Path]) -> None:
    """logit - count * frequency_penalty - (count > 0) * presence_penalty, for sampled tokens."""
    model = load(tiny(), dtype="float32")
    item = replace(requests(1)[0], max_tokens=12, frequency_penalty=0.4, presence_penalty=-2.0)
    free, found = (
        ids(answers(Sampler(model), [asked])["r0"])
        for asked in (replace(item, frequency_penalty=0.0, presence_penalty=0.0), item)
    )
    assert found != free
    row = list(item.prompt)
    for token in found:
        mask = (False,) * len(row)
        with torch.no_grad():
            logits = model.head(model.forest(plant([Chain(tuple(row), mask)])))[-1]
        for old in set(row[len(item.prompt) :]):
            logits[old] -= 0.4 * row[len(item.prompt) :].count(old) - 2.0
        assert token == int(logits.argmax())
        row.append(token)


def test_the_logprob_is_the_models_own_at_any_temperature(tiny: Callable[..., Path]) -> None:
    model = load(tiny(), dtype="float32")
    item = replace(requests(1)[0], temperature=2.0, top_p=0.9, seed=1, top_logprobs=5)
    tokens = answers(Sampler(model), [item])["r0"]
    row = item.prompt + tuple(ids(tokens))
    mask = (False,) * len(item.prompt) + (True,) * len(tokens)
    with torch.no_grad():
        wanted = model.logprobs(plant([Chain(row, mask)])).tolist()
    assert [token.logprob for token in tokens] == pytest.approx(wanted, abs=1e-4)
    for token in tokens:
        assert len(token.top) == 5
        assert sorted(token.top, key=lambda pair: -pair[1]) == list(token.top)
        assert token.logprob <= token.top[0][1]


def test_an_answer_ends_with_the_end_of_turn_the_limit_or_the_context(
    tiny: Callable[..., Path],
) -> None:
    model = load(tiny(), dtype="float32")
    item = requests(2)[1]
    free = answers(Sampler(model), [replace(item, max_tokens=20)])["r1"]
    assert [token.finish for token in free] == [None] * 19 + ["length"]
    third = free[2].id
    first = ids(free).index(third)
    model.template.end_of_turn = frozenset([third])
    stopped = answers(Sampler(model), [replace(item, max_tokens=20)])["r1"]
    assert ids(stopped) == ids(free)[: first + 1]
    assert stopped[-1].finish == "stop"
    model.template.end_of_turn = frozenset([257])
    model.template.context = len(item.prefix) + len(item.prompt) + 4
    full = answers(Sampler(model), [replace(item, max_tokens=20)])["r1"]
    assert len(full) == 4
    assert full[-1].finish == "length"


def test_cached_prefixes_stay_within_their_limit(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "PREFIX_TOKENS", 100)
    sampler = Sampler(load(tiny(), dtype="float32"), max_rows=2)
    asked = [
        Request(f"r{n}", tuple(range(n, n + 45)), (1, 2), max_tokens=6) for n in (0, 1, 2, 3, 0)
    ]
    asked = [replace(item, id=f"{place}") for place, item in enumerate(asked)]
    got = answers(sampler, asked)
    held = sum(prefix.length for prefix in sampler._passes.prefixes.values())
    assert held <= 100
    for item in asked:
        assert_same(got[item.id], alone(tiny(), item))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_trap_18_the_default_model_serves_what_it_trains(default_model: Path, dtype: DType) -> None:
    """Answers behind a long shared prompt, served and trained.

    In bfloat16 the trainer differs from itself by rounding, row alone against forest: serving may
    differ as much and no more.
    """
    model = load(default_model, dtype=dtype)
    system = Message("system", "You answer for a parcel desk. " + "Be brief and kind. " * 20)
    rows = [
        (system, Message("user", f"Where is parcel {n}?"), Message("assistant", f"In van {n * 7}."))
        for n in range(6)
    ]
    asked: list[ScoreRequest] = []
    for row in rows:
        prompt = model.template.prompt(row[:-1])
        asked.append(ScoreRequest(prompt.prefix, prompt.prompt, model.template.answer(row[-1])))
    served = np.concatenate(Sampler(model).score(asked))
    chains = [model.template.chains(Exchange(row))[0] for row in rows]
    batch = plant(chains)
    with torch.no_grad():
        together = model.logprobs(batch, exact=True).numpy()
        alone = [model.logprobs(plant([chain]), exact=True).numpy() for chain in chains]
    together = together[np.argsort(batch.branch[batch.trained], kind="stable")]
    off, noise = np.abs(served - together), np.abs(np.concatenate(alone) - together)
    floor = 1e-4 if dtype == "float32" else 0.02
    assert off.mean() < max(1.5 * noise.mean(), floor)
    assert off.max() < max(1.5 * noise.max(), 10 * floor)


@pytest.mark.slow
def test_trap_37_the_default_model_answers_as_transformers_does(default_model: Path) -> None:
    model = load(default_model, dtype="float32")
    prompts = [
        model.template.prompt([Message("user", said)])
        for said in ("Name three colours.", "What is 12 + 30?", "Say hello in French.")
    ]
    asked = [
        Request(f"r{place}", prompt.prefix, prompt.prompt, max_tokens=20)
        for place, prompt in enumerate(prompts)
    ]
    ours = answers(Sampler(model), asked)
    theirs = AutoModelForCausalLM.from_pretrained(default_model, dtype=torch.float32)
    for item in asked:
        ids_in = torch.tensor([item.prefix + item.prompt])
        out = theirs.generate(
            ids_in, attention_mask=torch.ones_like(ids_in), max_new_tokens=20, do_sample=False
        )
        assert ids(ours[item.id]) == out[0, ids_in.shape[1] :].tolist()
