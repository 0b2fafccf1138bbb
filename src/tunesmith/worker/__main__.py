"""A worker as a process: `python -m tunesmith.worker [PARENT]`.

It works until SIGTERM or SIGINT, then gives back what it holds. With a parent's id it ends with it.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from tunesmith.errors import TunesmithError
from tunesmith.models.fetch import home
from tunesmith.models.lifetime import die_with_parent
from tunesmith.settings import Settings
from tunesmith.store import Store
from tunesmith.worker.worker import Worker


async def work() -> None:
    """Work on the store of the settings until a signal comes."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with Store.at(home()) as store:
        await Worker(store, home(), Settings.read(home())).run(stop)


def main(arguments: list[str]) -> int:
    """The process edge. Returns the exit code."""
    if arguments:
        die_with_parent(int(arguments[0]))
    try:
        asyncio.run(work())
    except TunesmithError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
