"""TCP ports for servers that a test starts by number."""

import os
import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actionzoo.files.locks import try_lock

_PORTS = range(20_000, 30_000)  # below the ports that the kernel gives to clients (ip_local_port_range)


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port on which no program listens, and which no other test of this machine reserves until the block ends."""
    folder = Path(tempfile.gettempdir()) / f"actionzoo-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for port in random.sample(_PORTS, len(_PORTS)):
        with (folder / str(port)).open("w") as file:
            if try_lock(file) and _is_free(port):
                yield port
                return
    raise AssertionError(f"no free port in {_PORTS}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
