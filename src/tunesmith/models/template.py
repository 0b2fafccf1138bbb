"""How a model is spoken to: its chat template and tokenizer, without torch.

Training, serving and every check go through this one renderer, so what is trained is what is
served by construction. The template is the model's own (Jinja2, sandboxed as transformers does);
a model that ships none gets the plain one below, and is told so by `fallback`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import jinja2
from tokenizers import Tokenizer

from tunesmith.chat import Message, Tool, answer_text, to_openai, write_tool_calls
from tunesmith.errors import ModelError, RowError
from tunesmith.models.catalog import MODULES
from tunesmith.models.jinja import compiled

PLAIN = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
"""Our template for a model that ships none: roles in brackets, eos after each answer."""

TOOL_PREAMBLE = (
    "You can call functions. To call one, write\n<tool_call>\n"
    '{"name": NAME, "arguments": {...}}\n</tool_call>\nThe functions:\n'
)


class Turns(Protocol):
    """What is rendered: the messages of one conversation and the functions it may call."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turns."""
        ...

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The functions."""
        ...


@dataclass(frozen=True, slots=True)
class Exchange:
    """Turns that come from no row: what a server is asked."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class Chain:
    """Token ids of one path from the root, and which of them are learned."""

    ids: tuple[int, ...]
    trained: tuple[bool, ...]

    @property
    def trained_count(self) -> int:
        """How many tokens carry loss."""
        return sum(self.trained)


@dataclass(frozen=True, slots=True)
class PromptIds:
    """A prompt ready to be continued: `prefix + prompt` are its ids.

    The prefix is everything up to the last turn that is marked `cache`, or else before the first
    content that is not the system's. It depends on this conversation alone, so a row is computed the
    same way whoever shares its batch.
    """

    prefix: tuple[int, ...]
    prompt: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids of the prompt."""
        return self.prefix + self.prompt


class ChatTemplate:
    """Renders conversations of one model to token ids and back.

    Args:
        tokenizer: the model's own, as `tokenizers` reads it.
        source: the Jinja2 template; None takes the plain one.
        specials: named special tokens (`bos_token`, `eos_token`), given to the template.
        stops: ids that end a turn, as the model's generation config says.
        context: longest sequence in tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        source: str | None,
        *,
        specials: dict[str, str],
        stops: Iterable[int],
        context: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.fallback = source is None
        self.context = context
        self._specials = {"bos_token": "", "eos_token": "", **specials}
        if source is None and not tokenizer.encode("").ids:
            self._specials["bos_token"] = ""
        self.source = PLAIN if source is None else source
        """The Jinja2 template in force."""
        self._template = compiled(self.source)
        self.end_of_turn = frozenset(stops) | self._closing_ids()
        if not self.end_of_turn:
            raise ModelError(
                "the tokenizer names no end-of-turn token",
                expected="eos_token in tokenizer_config.json or eos_token_id in config.json",
            )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The template of a model folder (tokenizer.json, tokenizer_config.json, config.json)."""
        if (folder / MODULES).is_file():
            raise ModelError(
                f"{folder.name} is a sentence encoder: it makes vectors and says nothing",
                expected="a language model, to chat with or to tune",
                remedy="Give another --model; the encoder answers POST /v1/embeddings.",
            )
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(
                f"{folder} has no tokenizer.json",
                expected="a fast tokenizer",
                remedy="Save one with AutoTokenizer.from_pretrained(...).save_pretrained(folder).",
            )
        settings = _read_json(folder / "tokenizer_config.json")
        config = _read_json(folder / "config.json")
        config = config.get("text_config", config)
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        specials = {key: _token_text(settings.get(key)) for key in ("bos_token", "eos_token")}
        stops = _stop_ids(_read_json(folder / "generation_config.json"), config)
        eos = tokenizer.token_to_id(specials["eos_token"]) if specials["eos_token"] else None
        if eos is not None:
            stops.add(eos)
        return cls(
            tokenizer,
            _template_source(folder, settings),
            specials=specials,
            stops=stops,
            context=_context(config),
        )

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the template, the tokenizer or the stops do."""
        parts = [self.source, self.tokenizer.to_str(), str(sorted(self.end_of_turn))]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @cached_property
    def supports_tools(self) -> bool:
        """Whether the template itself has a place for function definitions."""
        tool = {"type": "function", "function": {"name": "probe_of_tools", "parameters": {}}}
        try:
            text = self._jinja([{"role": "user", "content": "a"}], [tool], generation=True)
        except (RowError, TypeError):
            return False
        return "probe_of_tools" in text

    def render(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, generation: bool = False
    ) -> str:
        """The conversation as text; with `generation` the header of the next answer follows.

        Raises:
            RowError: the template refuses the row.
        """
        if not self.supports_tools:
            messages, tools = _tools_as_text(messages, tools), ()
        return self._jinja([_plain(message) for message in messages], tools, generation=generation)

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a rendered text; no special tokens are added."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def tokens(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> PromptIds:
        """Ids to be continued by the next answer."""
        ids = self.encode(self.render(messages, tools, generation=True))
        first = next((i for i, item in enumerate(messages) if item.role != "system"), None)
        marked = [place + 1 for place, item in enumerate(messages[:-1]) if item.cache]
        first = marked[-1] if marked else first
        if first is None or not messages[first].content:
            return PromptIds((), ids)
        # Rendered with two other contents, what stays the same is what stands before the content.
        variants = [
            self.render([*messages[:first], replace(messages[first], content=text)], tools)
            for text in ("A", "B")
        ]
        before = self.encode(variants[0][: _shared(*variants)])
        shared = min(_shared(ids, before), len(ids) - 1)
        return PromptIds(ids[:shared], ids[shared:])

    def answer(self, message: Message) -> tuple[int, ...]:
        """Ids of an answer as the model has to write it, end-of-turn token included."""
        chains = self.chains(Exchange((Message("user", "A"), replace(message, weight=None))))
        return tuple(
            token for token, on in zip(chains[0].ids, chains[0].trained, strict=True) if on
        )

    def chains(self, conversation: Turns) -> tuple[Chain, ...]:
        """Ids and loss mask: the assistant's tokens with their end of turn, and nothing else.

        One chain, unless history is not a prefix of what follows (templates that drop thoughts);
        then one a turn, each with its history exactly as it is served.

        Raises:
            RowError: the template refuses the row or loses its answer.
        """
        turns: list[tuple[tuple[int, ...], tuple[int, ...], bool]] = []
        for index, message in enumerate(conversation.messages):
            if message.role == "assistant":
                prompt, answer = self._turn(conversation, index)
                turns.append((prompt, answer, message.weight != 0))
        chains: list[Chain] = []
        ids: tuple[int, ...] = ()
        mask: list[bool] = []
        for prompt, answer, weighted in turns:
            if prompt[: len(ids)] != ids:
                chains.append(Chain(ids, tuple(mask)))
                ids, mask = (), []
            mask += [False] * (len(prompt) - len(ids)) + [weighted] * len(answer)
            ids = prompt + answer
        chains.append(Chain(ids, tuple(mask)))
        return tuple(chain for chain in chains if any(chain.trained))

    def _turn(self, conversation: Turns, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        messages, tools = conversation.messages, conversation.tools
        before = self.render(messages[:index], tools, generation=True)
        whole = self.render(messages[: index + 1], tools)
        if not whole.startswith(before):
            raise RowError(
                f"the chat template writes turn {index + 1} unlike its generation prompt",
                expected="the prompt to be a prefix of the prompt with its answer",
            )
        prompt, joint = self.encode(before), self.encode(whole)
        rest = (
            joint[len(prompt) :]
            if joint[: len(prompt)] == prompt
            else self.encode(whole[len(before) :])
        )
        ends = [place for place, token in enumerate(rest) if token in self.end_of_turn]
        answer = rest[: ends[-1] + 1] if ends else (*rest, min(self.end_of_turn))
        if len(answer) <= 1 and answer_text(messages[index]).strip():
            raise RowError(
                f"the chat template leaves nothing of turn {index + 1}",
                expected="its text in the rendered row",
            )
        return prompt, answer

    def _closing_ids(self) -> frozenset[int]:
        """The special token that the template puts behind an answer, as ids."""
        user, answer = Message("user", "A"), "probe of the end"
        try:
            text = self._jinja(
                [_plain(user), {"role": "assistant", "content": answer}], (), generation=False
            )
        except RowError:
            return frozenset()
        _, found, rest = text.rpartition(answer)
        special = self.tokenizer.get_added_tokens_decoder()
        ids = [id for id, token in special.items() if token.content == rest.strip()]
        return frozenset(ids if found else [])

    def _jinja(
        self, messages: list[dict[str, Any]], tools: Sequence[Tool], *, generation: bool
    ) -> str:
        try:
            return self._template.render(
                messages=messages,
                tools=[dict(tool) for tool in tools] or None,
                add_generation_prompt=generation,
                **self._specials,
            )
        except (jinja2.TemplateError, TypeError, KeyError, AttributeError) as error:
            raise RowError(
                f"the chat template fails on the row: {error}",
                expected="a conversation that this model's template accepts",
            ) from None


def _plain(message: Message) -> dict[str, Any]:
    """The message as templates expect it: tool arguments decoded, absent fields left out."""
    out = to_openai(message)
    out.pop("weight", None)
    out.pop("cache_control", None)
    out["content"] = message.content or ""
    for call in out.get("tool_calls", ()):
        try:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        except json.JSONDecodeError:
            continue
    return out


def _tools_as_text(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Definitions, calls and results written into the text, for templates without a place for them."""
    out: list[Message] = []
    for message in messages:
        if message.role == "tool":
            text = f"<tool_response>\n{message.content or ''}\n</tool_response>"
            out.append(Message("user", text))
        elif message.tool_calls:
            parts = [message.content or "", write_tool_calls(message.tool_calls)]
            text = "\n".join(part for part in parts if part)
            out.append(replace(message, content=text, tool_calls=()))
        else:
            out.append(message)
    if tools:
        listing = "\n".join(
            json.dumps(dict(tool["function"]), ensure_ascii=False) for tool in tools
        )
        preamble = TOOL_PREAMBLE + listing
        if out and out[0].role == "system":
            out[0] = replace(out[0], content=f"{out[0].content or ''}\n\n{preamble}")
        else:
            out.insert(0, Message("system", preamble))
    return out


def _shared(a: Sequence[object], b: Sequence[object]) -> int:
    """How many items both begin with."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((place for place, (x, y) in pairs if x != y), min(len(a), len(b)))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value: Any = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def _token_text(value: object) -> str:
    if isinstance(value, dict):
        return str(value.get("content", ""))
    return value if isinstance(value, str) else ""


def _stop_ids(*configs: dict[str, Any]) -> set[int]:
    stops: set[int] = set()
    for config in configs:
        value = config.get("eos_token_id")
        if isinstance(value, int):
            stops.add(value)
        elif isinstance(value, list):
            stops.update(int(item) for item in value)
    return stops


def _context(config: dict[str, Any]) -> int:
    """Longest sequence that no batch's longest row can change rotary factors for (trap 37)."""
    longest = int(config.get("max_position_embeddings", 2048))
    ropes: dict[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    # One for all layers, or one for each kind of layer.
    for rope in (ropes, *(each for each in ropes.values() if isinstance(each, dict))):
        if rope.get("rope_type", rope.get("type")) in ("longrope", "dynamic"):
            original = rope.get("original_max_position_embeddings")
            original = original or config.get("original_max_position_embeddings") or longest
            longest = min(longest, int(original))
    return longest


def _template_source(folder: Path, settings: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    value = settings.get("chat_template")
    if isinstance(value, list):
        named = {str(item["name"]): str(item["template"]) for item in value}
        return named.get("default")
    return value if isinstance(value, str) else None
