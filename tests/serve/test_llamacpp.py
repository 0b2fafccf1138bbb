from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.chat import Message, SamplingParams
from tunesmith.errors import AdapterError, EngineError
from tunesmith.models.catalog import DEFAULT
from tunesmith.models.generate import Request, Token
from tunesmith.models.load import load
from tunesmith.models.lora import LoRASettings
from tunesmith.serve import engines
from tunesmith.serve.engines import Engine, EngineSpec, hindrances
from tunesmith.serve.wire import Refusal
from tunesmith.testing import CHATML, tiny_model, write_byte_tokenizer

pytest.importorskip("xllamacpp")

from tunesmith.serve.llamacpp_sampler import LlamaSampler, LlamaTemplate, _Reading
from tunesmith.serve.llamacpp_server import slots

USER = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says more than noise, and two adapters of it."""
    place = tmp_path_factory.mktemp("llama")
    folder = tiny_model(place / "model", tie_word_embeddings=True, max_position_embeddings=512)
    tensors = load_file(folder / "model.safetensors")
    draw = torch.Generator().manual_seed(2)
    for weight in tensors.values():
        if weight.ndim > 1:
            weight.copy_(torch.randn(weight.shape, generator=draw) * 0.2)
    # Letters alone are likely: part of a character comes without its log-probability.
    tensors["model.embed_tokens.weight"][94:] *= 0.1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, rslora in (("lora", False), ("rslora", True)):
        write_adapter(folder, place / name, rslora=rslora)
    return place


def write_adapter(folder: Path, out: Path, *, scale: float = 0.2, **settings: Any) -> Path:
    model = load(folder, dtype="float32")
    model.adapters.create("a", LoRASettings(rank=4, alpha=8.0, **settings))
    draw = torch.Generator().manual_seed(3)
    for _, low in model.adapters.lows("a"):
        with torch.no_grad():
            low.b.copy_(torch.randn(low.b.shape, generator=draw) * scale)
    model.adapters.save("a", out, base="tiny", card={"base_weights": model.weights_hash})
    return out


@pytest.fixture(autouse=True)
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_HOME", str(place / "home"))


async def said(engine: Engine, model: str, **asked: Any) -> Any:
    asked = {"temperature": 0, "max_tokens": 24, "logprobs": True, "top_logprobs": 3, **asked}
    client = engine.chat()._client
    return await client.chat.completions.create(model=model, messages=USER, **asked)


async def streamed(engine: Engine, model: str) -> str:
    """The text that comes piece by piece; the end says how many tokens it took."""
    stream = await said(engine, model, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage.completion_tokens > 0
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])


async def refused(engine: Engine) -> None:
    """What llama.cpp cannot do as the local engine does is said, not left out."""
    with pytest.raises(openai.BadRequestError, match="counts the prompt's tokens"):
        await said(engine, "base", frequency_penalty=1.0)
    with pytest.raises(EngineError, match=r"501.*the local engine has them"):
        await engine.chat().score([Message("user", "a")], Message("assistant", "b"))
    with pytest.raises(openai.APIStatusError, match="the local engine has them"):
        await engine.chat()._client.completions.create(
            model="base", prompt="abc", max_tokens=0, echo=True, logprobs=1
        )
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await said(engine, "nobody")
    with pytest.raises(EngineError, match="maximum context length is 512"):
        await engine.chat().complete([Message("user", "x" * 600)], SamplingParams())


async def held(engine: Engine) -> None:
    """Answers that keep to a schema, to calls and to a bias."""
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    form = {"name": "f", "schema": schema, "strict": True}
    asked = {"response_format": {"type": "json_schema", "json_schema": form}}
    answer = await said(engine, "base", **asked)
    assert json.loads(answer.choices[0].message.content)["a"] in ("x", "y")
    function = {"name": "look", "parameters": schema, "strict": True}
    tools = [{"type": "function", "function": function}]
    answer = await said(engine, "base", tools=tools, tool_choice="required", max_tokens=90,
                        parallel_tool_calls=False)  # fmt: skip
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "look"
    assert json.loads(call.function.arguments)["a"] in ("x", "y")
    answer = await said(engine, "base", logit_bias={"65": 100}, max_tokens=3)
    assert len(set(answer.choices[0].message.content)) == 1
    text = await engine.chat()._client.completions.create(
        model="base", prompt="abc", max_tokens=4, temperature=0
    )
    assert text.usage.completion_tokens <= 4


def test_both_engines_answer_alike_with_and_without_adapters(place: Path) -> None:
    spec = EngineSpec(
        place / "model", "base", {"lora": place / "lora"}, dtype="float32", max_rows=4
    )

    async def answers(kind: Any) -> list[Any]:
        spec_of = replace(spec, kind=kind)
        async with await engines.start(spec_of, log=place / f"{kind}.log") as engine:
            await engine.add_adapter("rslora", place / "rslora")
            names = ("base", "lora", "rslora")
            found = await asyncio.gather(*(said(engine, name, n=2) for name in names))
            for name, answer in zip(names, found, strict=True):
                assert await streamed(engine, name) == answer.choices[0].message.content
            drawn = [await said(engine, "base", temperature=1, seed=5) for _ in range(2)]
            assert drawn[0].choices[0].message.content == drawn[1].choices[0].message.content
            text = found[0].choices[0].message.content
            cut = await said(engine, "base", stop=[text[4:6]])
            assert cut.choices[0].message.content == text[: text.index(text[4:6])]
            assert cut.choices[0].finish_reason == "stop"
            await held(engine)
            if kind == "llama.cpp":
                await refused(engine)
            await engine.remove_adapter("lora")
            with pytest.raises(openai.NotFoundError):
                await said(engine, "lora")
        assert engine._process.returncode is not None
        return found

    ours, theirs = asyncio.run(answers("local")), asyncio.run(answers("llama.cpp"))
    texts = [answer.choices[0].message.content for answer in ours]
    assert len(set(texts)) == 3
    for one, other in zip(ours, theirs, strict=True):
        assert one.usage == other.usage
        for choice, same in zip(one.choices, other.choices, strict=True):
            assert choice.message.content == same.message.content
            assert choice.finish_reason == same.finish_reason
            for a, b in zip(choice.logprobs.content, same.logprobs.content, strict=True):
                assert a.token == b.token
                assert a.logprob == pytest.approx(b.logprob, abs=0.02)
                assert [x.logprob for x in a.top_logprobs] == pytest.approx(
                    [x.logprob for x in b.top_logprobs], abs=0.02
                )


@pytest.fixture
def sampler(place: Path) -> Iterator[LlamaSampler]:
    sampler = LlamaSampler(place / "model", max_rows=2)
    yield sampler
    sampler.close()


def request(name: str, *, tokens: int = 8, adapter: str | None = None, **more: Any) -> Request:
    return Request(name, (), (256, *b"hello", 257), tokens, adapter=adapter, **more)


def drain(sampler: LlamaSampler) -> dict[str, list[Any]]:
    """Tokens until nothing is asked any more."""
    out: dict[str, list[Any]] = {}
    until = time.monotonic() + 60
    while not sampler.idle:
        assert time.monotonic() < until
        for token in sampler.step():
            out.setdefault(token.request, []).append(token)
    return out


def test_an_adapter_that_comes_later_does_not_disturb_what_is_answered(
    place: Path, sampler: LlamaSampler
) -> None:
    sampler.submit(request("alone", tokens=300))
    alone = drain(sampler)["alone"]
    sampler.submit(request("again", tokens=300))
    first = sampler._server
    sampler.add_adapter("lora", place / "lora")
    assert sampler._server is not first
    sampler.submit(request("tuned", adapter="lora"))
    sampler.submit(request("plain"))
    found = drain(sampler)
    assert [token.id for token in found["again"]] == [token.id for token in alone]
    assert [token.id for token in found["plain"]] == [token.id for token in alone[:8]]
    assert [token.id for token in found["tuned"]] != [token.id for token in alone[:8]]
    # The same weights under another name are there already.
    held = sampler._server
    sampler.add_adapter("same", place / "lora")
    sampler.remove_adapter("lora")
    assert sampler._server is held
    assert sampler.adapters == ("same",)


def test_a_request_that_is_cancelled_frees_its_row(sampler: LlamaSampler) -> None:
    for name in ("a", "b", "c"):
        sampler.submit(request(name, tokens=400))
    for name in ("a", "b"):
        sampler.cancel(name)
    assert set(drain(sampler)) == {"c"}
    sampler.cancel("nobody")


def test_an_adapter_without_a_form_is_refused_and_the_rest_stays(
    place: Path, sampler: LlamaSampler, tmp_path: Path
) -> None:
    dora = write_adapter(place / "model", tmp_path / "dora", dora=True)
    with pytest.raises(AdapterError, match=r"DoRA has no form in GGUF.*--engine local"):
        sampler.add_adapter("dora", dora)
    assert sampler.adapters == ()
    assert "DoRA" in hindrances(place / "model", dora)["llama.cpp"]
    assert hindrances(place / "model", place / "lora") == {"local": "", "llama.cpp": ""}


def test_penalties_end_a_request_with_a_refusal(sampler: LlamaSampler) -> None:
    sampler.submit(request("a", presence_penalty=1.0))
    (failed,) = drain(sampler)["a"]
    assert isinstance(failed, Refusal)
    assert failed.status == 400


def event(text: bytes, token: int, made: int, logprob: float | None = -1.0) -> dict[str, Any]:
    entry = {"id": token, "logprob": logprob, "bytes": list(text)}
    probabilities = [{**entry, "top_logprobs": [entry]}]
    told = {"tokens": [token], "tokens_predicted": made, "content": text.decode(errors="replace")}
    return {"stop": False, **told, "completion_probabilities": probabilities}


@pytest.fixture
def template(tmp_path: Path) -> LlamaTemplate:
    write_byte_tokenizer(tmp_path, chat_template=CHATML)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64, "eos_token_id": 257}')
    return LlamaTemplate.load(tmp_path)


def test_the_tokens_of_a_character_come_with_its_last_one(template: LlamaTemplate) -> None:
    reading = _Reading(request("a", top_logprobs=1), template, frozenset({256, 257, 258, 259}))
    euro = template.encode("€")
    assert len(euro) == 3
    tokens = [*reading.tokens(event("€".encode(), euro[2], 3))]
    assert [token.id for token in tokens] == list(euro)
    assert [token.logprob for token in tokens] == [-torch.inf, -torch.inf, -1.0]
    assert tokens[2].top == ((euro[2], -1.0),)
    # Bytes that are no character: one token each.
    odd = [*reading.tokens(event(b"\xe2\x28", 8, 5))]
    assert [token.id for token in odd] == template.spelled(b"\xe2\x28", 2)
    assert template.decode([odd[1].id]) == "("
    assert template.decode(template.spelled("é".encode(), 2)) == "é"


@pytest.mark.parametrize(("stop", "finish"), [("eos", "stop"), ("limit", "length")])
def test_a_special_token_ends_the_answer_where_llama_cpp_says_so(
    template: LlamaTemplate, stop: str, finish: str
) -> None:
    reading = _Reading(request("a"), template, frozenset({258}))
    assert [*reading.tokens(event(b"", 258, 1))] == []
    (last,) = reading.tokens({"stop": True, "stop_type": stop, "tokens": []})
    assert (last.id, last.finish) == (258, finish)


def test_an_answer_that_is_cut_inside_a_character_ends(template: LlamaTemplate) -> None:
    reading = _Reading(request("a"), template, frozenset())
    (last,) = reading.tokens({"stop": True, "stop_type": "limit", "tokens": []})
    assert last == Token("a", 257, -torch.inf, (), "length")
    (end,) = _Reading(request("a"), template, frozenset()).tokens(event(b"", 257, 1, None))
    assert (end.finish, end.logprob) == ("stop", -torch.inf)


def test_rows_are_as_many_as_memory_holds() -> None:
    config = {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
    config |= {"num_hidden_layers": 30}
    # 2 x 192 x 30 x 2 bytes a token, 8,192 tokens a row: 180 MiB.
    assert slots(config, 8192, 32, wide=False) == 11
    assert slots(config, 8192, 4, wide=False) == 4
    assert slots(config, 8192 * 64, 4, wide=True) == 1


def test_nothing_is_scored(sampler: LlamaSampler) -> None:
    with pytest.raises(Refusal, match="the local engine has them"):
        sampler.read([])


@pytest.mark.slow
def test_the_default_model_is_served_as_it_was_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tunesmith.models.fetch import resolve

    monkeypatch.delenv("TUNESMITH_HOME")
    folder = resolve(DEFAULT).folder
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path))
    adapters = {
        name: write_adapter(folder, tmp_path / name, scale=0.01, rslora=name == "rslora")
        for name in ("lora", "rslora")
    }
    texts = ("Name three rivers.", "Why is the sky blue?", "What is 17 + 25?", "Say hello.")

    async def first(kind: Any, dtype: str) -> list[tuple[str, float]]:
        spec = EngineSpec(folder, "base", adapters, dtype, 4, kind=kind)
        async with await engines.start(spec, log=tmp_path / "e.log") as engine:
            return [
                (await engine.chat(name).greedy([Message("user", text)], 1))[0]
                for name in ("base", *adapters)
                for text in texts
            ]

    ours = asyncio.run(first("local", "float32"))
    theirs = asyncio.run(first("llama.cpp", "auto"))
    assert [token for token, _ in theirs] == [token for token, _ in ours]
    gaps = [abs(a - b) for (_, a), (_, b) in zip(ours, theirs, strict=True)]
    assert sum(gaps) / len(gaps) < 0.005
    assert max(gaps) < 0.01
