from __future__ import annotations

import socket
import threading
import tracemalloc
from typing import Any

import httpx

HEAD = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
WHOLE = HEAD + FILE + b"{}\n\r\n--b--\r\n"
FORM = "multipart/form-data; boundary=b"


def post(served: Any, body: bytes, kind: str | None = FORM) -> httpx.Response:
    headers = {} if kind is None else {"content-type": kind}
    return httpx.post(f"{served.url}/v1/files", content=body, headers=headers)


def test_the_whole_form_is_taken_in_pieces_of_any_size(served: Any) -> None:
    for size in (1, 7, 64):
        pieces = (WHOLE[at : at + size] for at in range(0, len(WHOLE), size))
        answer = httpx.post(
            f"{served.url}/v1/files", content=pieces, headers={"content-type": FORM}
        )
        assert answer.status_code == 200
        assert answer.json()["bytes"] == 3


REFUSED = [
    (WHOLE[:-6], FORM),
    (WHOLE[:60], FORM),
    (b"", FORM),
    (b"not a form", FORM),
    (WHOLE, "multipart/form-data"),
    (WHOLE, "multipart/form-data; boundary="),
    (WHOLE, "multipart/form-data; boundary=" + "b" * 300),
    (WHOLE, "application/json"),
    (WHOLE, None),
    (HEAD + b"--b--\r\n", FORM),
    (FILE + b"{}\n\r\n--b--\r\n", FORM),
    (HEAD + FILE + b"{}\r\n" + FILE + b"{}\r\n--b--\r\n", FORM),
    (HEAD + HEAD + FILE + b"{}\r\n--b--\r\n", FORM),
    (HEAD + FILE + b"\r\n--b--\r\n", FORM),
    (WHOLE.replace(b'; filename="a.jsonl"', b""), FORM),
    (WHOLE.replace(b"a.jsonl", b"\xff.jsonl"), FORM),
    (WHOLE.replace(b"a.jsonl", b"a\x00.jsonl"), FORM),
    (WHOLE.replace(b"a.jsonl", b"a" * 10_000_000), FORM),
    (WHOLE.replace(b"fine-tune", b"f" * 10_000), FORM),
    (WHOLE.replace(b"fine-tune", b"\xff\xfe"), FORM),
    (WHOLE.replace(b"fine-tune", b"fine-tune-results"), FORM),
    (WHOLE.replace(b'"purpose"', b'"purpose[x]"'), FORM),
    (WHOLE.replace(b'"purpose"', b'"expires_after[seconds]"'), FORM),
    (WHOLE.replace(b'"purpose"', b'"other"'), FORM),
    (WHOLE.replace(b"form-data", b"attachment"), FORM),
    (WHOLE.replace(b'; name="file"', b""), FORM),
    (b"--b\r\n\r\n" + WHOLE, FORM),
    (WHOLE.replace(b"Content-Disposition", b"X" * 9_000), FORM),
]


def test_what_is_no_such_form_is_refused_and_leaves_nothing(served: Any) -> None:
    for body, kind in REFUSED:
        answer = post(served, body, kind)
        assert answer.status_code == 400, (body[:200], answer.text)
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert list((served.home / "files").iterdir()) == []
    served.alive()


def test_a_wrong_content_length_harms_nobody(served: Any) -> None:
    for length in (b"9999", b"20", b"-1", b"x"):
        said = send_raw(served, length)
        assert said == b"" or said.startswith(b"HTTP/1.1 4")
    served.alive()
    assert list((served.home / "files").iterdir()) == []


def send_raw(served: Any, length: bytes) -> bytes:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
            + FORM.encode()
            + b"\r\nContent-Length: "
            + length
            + b"\r\n\r\n"
            + WHOLE
        )
        raw.shutdown(socket.SHUT_WR)
        return raw.recv(65_536)


def test_a_large_file_is_never_in_memory(served: Any) -> None:
    size = 48 * 2**20

    def body() -> Any:
        yield HEAD + FILE
        for _ in range(size // 2**16):
            yield b"x" * 2**16
        yield b"\r\n--b--\r\n"

    tracemalloc.start()
    try:
        answer = httpx.post(
            f"{served.url}/v1/files", content=body(), headers={"content-type": FORM}, timeout=60
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.json()["bytes"] == size
    assert peak < 12 * 2**20


def test_a_slow_client_holds_up_nobody(served: Any) -> None:
    begun, over = threading.Event(), threading.Event()

    def body() -> Any:
        yield HEAD + FILE
        begun.set()
        over.wait(20)
        yield b"{}\n\r\n--b--\r\n"

    slow = threading.Thread(
        target=lambda: httpx.post(
            f"{served.url}/v1/files", content=body(), headers={"content-type": FORM}, timeout=30
        )
    )
    slow.start()
    begun.wait(20)
    assert post(served, WHOLE).status_code == 200
    over.set()
    slow.join()
    assert len(served.sdk().files.list().data) == 2
