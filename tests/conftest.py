"""What every test shares: no hub, one torch thread a process, and the way to the shared data."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Read by torch when it is first imported. Tiny models gain nothing from a second thread, and
# threads that wait for each other on a busy machine make a test fifty times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

SHARED = Path(os.environ.get("TUNESMITH_SHARED", Path(__file__).parents[2] / "shared"))
USER_HOME = os.environ.get("TUNESMITH_HOME")
QWEN = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
NARROW: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen2": QWEN,
    "qwen3": QWEN,
    "gemma2": {"head_dim": 12, "sliding_window": 16},
    "gemma3_text": {
        "head_dim": 12,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mistral": {"sliding_window": 16},
    "phi3": {"sliding_window": 16},
    "gpt_neox": {},
    "granite": {},
    "cohere2": {"sliding_window": 16},
    "olmo3": {"sliding_window": 16},
    "gpt_oss": {
        "head_dim": 12,
        "sliding_window": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
"""Settings by family: a window of 16 tokens, in one layer of two at least, where it can have one."""
APART: dict[str, dict[str, object]] = {
    # The registered function is ignored.
    "bloom": {},
    # Keyword arguments are dropped before attention.
    "stablelm": {"partial_rotary_factor": 0.5, "head_dim": 12},
    "nemotron": {},
    # Attention is looked up among the family's own, by its name.
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]],
        **{"num_layers": 2, "num_heads": 4, "window_size": 16},
    },
    # Masks of their own, windows that are no sliding ones.
    "mpt": {"d_model": 48, "n_heads": 4, "n_layers": 2},
    "doge": {"head_dim": 12},
    "llama4_text": {
        **{"head_dim": 12, "attention_chunk_size": 16, "intermediate_size_mlp": 96},
        "num_local_experts": 4,
    },
    # State beside attention; the last one keeps nothing that goes in again.
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "falcon_h1": {
        **{"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
        "mamba_chunk_size": 16,
    },
    "recurrent_gemma": {
        "block_types": ["recurrent", "attention"],
        **{"lru_width": 48, "head_dim": 12, "attention_window_size": 16},
    },
}
"""Settings of families that a forest cannot run."""
LONGROPE: dict[str, object] = {
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
        "long_factor": [2.0, 4.0, 6.0, 8.0, 10.0, 12.0],
        "original_max_position_embeddings": 64,
        "partial_rotary_factor": 1.0,
    },
}
"""A Phi-3 whose rotary factors change when the longest row of a batch passes 64 tokens."""


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """The path of a file of the shared data; skips with the reason when it is not there."""

    def find(name: str) -> Path:
        path = SHARED / "data" / name
        if not path.exists():
            pytest.skip(f"{name}: no shared data beside the repository (set TUNESMITH_SHARED)")
        return path

    return find


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of tiny random models, each made once a session: tiny("llama", hidden_size=32).

    Their weights are ten times the usual size, so that attention is sharp and mistakes show.
    """
    made: dict[str, Path] = {}

    def make(family: str = "llama", **settings: object) -> Path:
        values = {"initializer_range": 0.2, **settings}
        key = json.dumps([family, values], sort_keys=True)
        if key not in made:
            from tunesmith.testing import tiny_model

            made[key] = tiny_model(tmp_path_factory.mktemp(family), family=family, **values)
        return made[key]

    return make


@pytest.fixture(scope="session")
def narrow(tiny: Callable[..., Path]) -> Callable[[str], Path]:
    """Tiny models by family, with windows that a test's rows are longer than."""
    return lambda family: tiny(family, **NARROW[family])


@pytest.fixture(scope="session")
def apart(tiny: Callable[..., Path]) -> Callable[[str], Path]:
    """Tiny models by family that are computed row by row."""
    return lambda family: tiny(family, **APART[family])


@pytest.fixture(scope="session")
def longrope(tiny: Callable[..., Path]) -> Path:
    """A tiny Phi-3 with one set of rotary factors up to 64 tokens and another beyond."""
    return tiny("phi3", **LONGROPE)


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The folder of the default model."""
    from tunesmith.models.catalog import DEFAULT

    return _fetched(DEFAULT)


@pytest.fixture(scope="session")
def sentence_encoder() -> Path:
    """The folder of the catalogue's sentence encoder."""
    from tunesmith.models.catalog import ENCODER

    return _fetched(ENCODER)


def _fetched(name: str) -> Path:
    """A model's folder in the user's own home; tests download nothing."""
    from tunesmith.models.fetch import home, resolve

    with pytest.MonkeyPatch.context() as patch:
        if USER_HOME is None:
            patch.delenv("TUNESMITH_HOME", raising=False)
        else:
            patch.setenv("TUNESMITH_HOME", USER_HOME)
        if not (home() / "models" / name).is_dir():
            pytest.skip(
                f"{name} is not here: type `tunesmith models pull {name}`, as make test does"
            )
        return resolve(name).folder


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests never see the user's models, runs or database."""
    if "TUNESMITH_TEST_HOME" not in os.environ:
        monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="session")
def _postgresql() -> Generator[str | None]:
    """A real server, started for the first test that asks; None where there is none to start."""
    from tunesmith.testing import postgresql

    try:
        with postgresql() as url:
            yield url
    except FileNotFoundError:
        yield None


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, once of each kind."""
    import sqlalchemy as sa

    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'tunesmith.db'}"
    url = request.getfixturevalue("_postgresql")
    if url is None:
        pytest.skip("no PostgreSQL server is installed here")
    name = f"test_{uuid.uuid4().hex}"
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{url.rpartition('/')[0]}/{name}"


@pytest.fixture(scope="session")
def peak_bytes() -> Callable[[Callable[[], object]], int]:
    """Most bytes that tensors made by a call held at once, above what was there before."""
    import weakref

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.now = self.peak = 0
            self.seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            before = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if _tensor(x)}
            out = func(*args, **(kwargs or {}))
            for made in filter(_tensor, tree_leaves(out)):
                storage = made.untyped_storage()
                if storage not in self.seen and id(storage) not in before:
                    self.seen.add(storage)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.gone, storage.nbytes())
            self.peak = max(self.peak, self.now)
            return out

        def gone(self, size: int) -> None:
            self.now -= size

    def _tensor(value: object) -> bool:
        return isinstance(value, torch.Tensor)

    def measure(call: Callable[[], object]) -> int:
        with Watch() as watch:
            call()
        return watch.peak

    return measure


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of 32 tokens as sentence-transformers saves one, its tokenizer set to cut at 8."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*specials, *letters, *(f"##{letter}" for letter in letters), "parcel", "##ed"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    parts = [
        {"type": f"sentence_transformers.models.{part}"} for part in ("Transformer", "Pooling")
    ]
    (folder / "1_Pooling").mkdir()
    for name, value in {
        "modules.json": parts,
        "1_Pooling/config.json": {
            "pooling_mode_mean_tokens": True,
            "pooling_mode_cls_token": False,
        },
        "sentence_bert_config.json": {"max_seq_length": 32},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "[PAD]",
        },
    }.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return folder


class Theirs:
    """An OpenAI-compatible server of somebody else, on loopback.

    `script(body, number)` gives the text of an answer, whose tokens are words, or a whole answer as
    (status, headers, body); None closes the connection.
    """

    def __init__(self) -> None:
        import threading
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

        self.script: Callable[[dict[str, Any], int], Any] = lambda body, number: "yes"
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.seen.append(body)
                    outer.keys.append(self.headers["Authorization"])
                    number = len(outer.seen)
                outer.answer(self, outer.script(body, number), body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self._thread.start()

    def answer(self, request: Any, said: Any, body: dict[str, Any]) -> None:
        if said is None:
            request.close_connection = True
            return
        if isinstance(said, str):
            words = sum(len((m["content"] or "").split()) for m in body["messages"])
            said = 200, {}, completion(said, words, len(said.split()))
        status, headers, value = said
        text = json.dumps(value).encode()
        request.send_response(status)
        for name, content in {**headers, "Content-Length": str(len(text))}.items():
            request.send_header(name, content)
        request.send_header("Content-Type", "application/json")
        request.end_headers()
        request.wfile.write(text)

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


def completion(text: str | None, tokens_in: int, tokens_out: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        **{"id": "c", "object": "chat.completion", "created": 1, "model": "large"},
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {
            "prompt_tokens": tokens_in,
            "completion_tokens": tokens_out,
            "total_tokens": tokens_in + tokens_out,
        },
    }


@pytest.fixture
def theirs() -> Generator[Theirs]:
    """A server of somebody else."""
    server = Theirs()
    yield server
    server.close()
