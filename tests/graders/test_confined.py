from __future__ import annotations

import os
import re
import socket
import threading
import time
from pathlib import Path

import pytest

from tunesmith.errors import GraderError
from tunesmith.graders import inside
from tunesmith.graders.confined import Limits, Result, require_confinement, run_confined


def _confines() -> bool:
    try:
        require_confinement()
    except GraderError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _confines(), reason="this kernel cannot confine")
QUICK = Limits(seconds=20)


def tried(body: str, limits: Limits = QUICK) -> Result:
    """The result of a function `grade` with this body."""
    return run_confined(
        "def grade():\n" + re.sub("^", "    ", body, flags=re.MULTILINE), (), limits
    )


def refused(body: str) -> None:
    """Whatever the body tries ends as an error of the kernel, not as a value."""
    ended = tried(body)
    assert ended.value is None
    assert ended.error is not None
    assert "PermissionError" in ended.error, ended.error


def test_a_function_gets_its_arguments_and_returns_through_json() -> None:
    ended = run_confined(
        "def grade(sample, item):\n    print('seen')\n    return {'sum': sample['a'] + item['b']}",
        ({"a": 1}, {"b": 2.5}),
    )
    assert (ended.value, ended.error, ended.output) == ({"sum": 3.5}, None, "seen\n")
    assert 0 < ended.seconds < 60
    assert run_confined("def check(a): return a * 2", ["é"], call="check").value == "éé"


def test_the_standard_library_and_a_private_folder_are_there() -> None:
    ended = tried(
        """import collections, dataclasses, datetime, decimal, difflib, fractions, hashlib, math, random
import os, re, sqlite3, statistics, string, tempfile, unittest, zlib
@dataclasses.dataclass
class Point:
    x: int
open("a", "w").write("text")
os.rename("a", "b")
with tempfile.TemporaryFile() as file:
    file.write(b"x" * 100_000)
read = open("b").read()
os.remove("b")
return [Point(1).x, read, os.listdir("."), dict(os.environ).keys() - {"TMPDIR", "LC_CTYPE"} == set()]
"""
    )
    assert ended.error is None
    assert ended.value == [1, "text", [], True]


def test_no_socket_is_opened_not_even_to_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        refused(f"import socket; socket.create_connection(('127.0.0.1', {port}))")
    refused("import socket; socket.socket(socket.AF_UNIX)")
    refused("import socket; socket.socketpair()")


def test_files_of_others_are_neither_read_nor_written(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("secret")
    refused(f"return open({str(secret)!r}).read()")
    refused(f"open({str(secret)!r}, 'w')")
    refused(f"open({str(tmp_path / 'new')!r}, 'w')")
    refused(f"import os; os.chmod({str(secret)!r}, 0)")
    refused(f"import os; os.utime({str(secret)!r})")
    refused(f"import os; os.remove({str(secret)!r})")
    refused(f"import os; os.truncate({str(secret)!r}, 0)")
    refused(f"import os; os.listdir({str(tmp_path)!r})")
    refused(f"import os; os.link({str(secret)!r}, 'mine')")
    refused(f"import os; os.symlink({str(secret)!r}, 'mine')")
    refused("return open('/etc/passwd').read()")
    refused("return open('/proc/self/environ').read()")
    refused(f"return open('/proc/{os.getpid()}/environ').read()")
    refused("import os; os.mkdir('inner')")
    refused(f"open({inside.__file__!r}, 'a')")
    assert secret.read_text() == "secret"
    assert list(tmp_path.iterdir()) == [secret]


def test_nothing_of_an_environment_or_of_open_files_is_inherited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        ended = tried(
            """import os
def there(fd):
    try:
        return os.fstat(fd) is not None
    except OSError:
        return False
return ["API_KEY" in os.environ, sum(map(there, range(1000)))]"""
        )
    assert ended.value == [False, 4], "stdin, stdout, stderr and the result"


def test_no_process_and_no_thread_is_started() -> None:
    refused("import os\nwhile True: os.fork()")
    refused("import subprocess; subprocess.run(['/bin/true'])")
    refused("import os; os.execv('/bin/true', ['true'])")
    ended = tried("import threading; threading.Thread(target=print).start()")
    assert "can't start new thread" in str(ended.error)


def test_no_signal_reaches_another_process() -> None:
    refused("import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
    refused(
        "import os, signal; signal.pidfd_send_signal(os.pidfd_open(os.getppid()), signal.SIGKILL)"
    )
    # A pipe that tells its owner of new data by a signal of choice.
    refused(
        "import fcntl, os\nread, write = os.pipe()\nfcntl.fcntl(read, fcntl.F_SETOWN, os.getppid())"
    )
    refused("import fcntl; fcntl.fcntl(0, fcntl.F_SETSIG, 9)")


def test_limits_are_not_lifted_and_walls_not_taken_down() -> None:
    refused("import os; os.setuid(0)")
    ended = tried(
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    )
    assert "not allowed" in str(ended.error) or "PermissionError" in str(ended.error)
    ended = tried("import resource; return resource.getrlimit(resource.RLIMIT_AS)")
    assert ended.value == [2 << 30, 2 << 30]


@pytest.mark.parametrize(
    "number", [41, 42, 56, 57, 59, 101, 155, 161, 165, 246, 250, 272, 298, 310, 321, 425, 435]
)
def test_calls_that_are_not_listed_fail_by_number_too(number: int) -> None:
    # socket connect clone fork execve ptrace pivot_root chroot mount kexec keyctl unshare
    # perf_event_open process_vm_readv bpf io_uring_setup clone3
    if os.uname().machine != "x86_64":
        pytest.skip("numbers of x86_64")
    for call in (number, number | 0x40000000):
        ended = tried(
            f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
            f"return [libc.syscall({call}, 0, 0, 0, 0, 0), ctypes.get_errno()]"
        )
        assert ended.value == [-1, 13]


def test_memory_ends_at_its_limit() -> None:
    ended = tried("return len(b'x' * (3 << 30))")
    assert "MemoryError" in str(ended.error)


def test_an_endless_loop_ends_at_the_clock_and_so_does_a_sleep() -> None:
    for body in ("while True: pass", "import time; time.sleep(600)"):
        started = time.monotonic()
        ended = tried(body, Limits(seconds=0.5))
        assert ended.error == "it took more than 0.5 seconds"
        assert time.monotonic() - started < 10


def test_a_signal_that_asks_it_to_end_cannot_be_outlived() -> None:
    ended = tried(
        "import signal\nfor number in (2, 15, 24): signal.signal(number, signal.SIG_IGN)\n"
        "while True: pass",
        Limits(seconds=0.5),
    )
    assert ended.error == "it took more than 0.5 seconds"


def test_what_it_prints_is_cut_and_bounded() -> None:
    ended = tried("print('x' * 1_000_000)\nreturn 1")
    assert ended.value == 1
    assert ended.output == "x" * 65_536
    flood = tried("while True: print('x' * 100_000)")
    assert "File too large" in str(flood.error)
    assert len(flood.output) == 65_536


def test_files_are_bounded_each_and_together() -> None:
    assert "File too large" in str(tried("open('a', 'wb').write(bytes(33 << 20))").error)
    ended = tried(
        "import os, time\nfor i in range(4): open(str(i), 'wb').write(os.urandom(1 << 20))\n"
        "time.sleep(10)",
        Limits(seconds=20, disk=2 << 20),
    )
    assert ended.error == "its files took more than 2 MiB"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("raise ValueError('so')", "ValueError: so"),
        ("import os; os._exit(0)", "it ended without a result"),
        ("import sys; sys.exit(0)", "it ended without a result"),
        ("import os; os.closerange(3, 1000); return 1", "Bad file descriptor"),
        ("return object()", "not JSON serializable"),
        ("return grade()", "RecursionError"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os.abort()", "it was ended by SIG"),
        ("return 'x' * 2_000_000", "its result is not JSON"),
    ],
)
def test_every_way_to_end_without_a_value_has_an_error(body: str, error: str) -> None:
    ended = tried(body)
    assert ended.value is None
    assert error in str(ended.error)


def test_a_source_that_does_not_compile_or_lacks_the_function_says_so() -> None:
    assert "SyntaxError" in str(run_confined("def grade(:", ()).error)
    assert run_confined("x = 1", ()).error == "the source defines no function grade"


def test_no_folder_and_no_process_is_left_behind() -> None:
    ended = tried("import os; open('left', 'w').write('x'); return [os.getcwd(), os.getpid()]")
    folder, pid = ended.value
    assert not Path(folder).exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_calls_run_side_by_side() -> None:
    values: list[object] = []
    threads = [
        threading.Thread(target=lambda: values.append(tried("return 1").value)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values == [1] * 8


def test_a_machine_that_cannot_confine_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(GraderError, match="the system is darwin, which needs to be Linux") as error:
        run_confined("def grade(): return 1", ())
    assert "Linux 6.2" in error.value.remedy


def test_a_process_that_reports_no_walls_is_no_result() -> None:
    with pytest.raises(GraderError, match="cannot confine: no wall; expected a kernel"):
        tried(
            f"import os, sys; print('no wall', file=sys.stderr); sys.stderr.flush(); os._exit({inside.UNCONFINED})"
        )
