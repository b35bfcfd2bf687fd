"""Stands in for a trainer in tests of the confinement: tries what hostile experiment code would, and says how it went.

Speaks the trainer's protocol. Each shard to describe is a thing to try: ``factory`` names it, ``options_json`` holds
its arguments, and the description is what came of it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from federation.runtime.framing import BlockingFrames
from federation.v1 import trainer_pb2 as pb


def connect(port: int) -> str:
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    return "connected"


def connect_unix(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
    return "connected"


def read(path: str) -> str:
    return Path(path).read_text(errors="replace")


def listing(path: str) -> str:
    return json.dumps(sorted(os.listdir(path)))


def write(path: str) -> str:
    Path(path).write_text("written by the trainer")
    return "written"


def environment() -> str:
    return json.dumps(dict(os.environ))


def descriptors() -> str:
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    # The listing's own descriptor is in the list, and closed by now.
    return json.dumps({link.name: str(link.readlink()) for link in links if link.is_symlink()})


def importing(module: str) -> str:
    return str(__import__(module).__name__)


def hold(fifo: str) -> str:
    os.write(os.open(fifo, os.O_WRONLY), b"x")
    return "held"


def end_by(number: int) -> str:
    print("last words of the trainer", flush=True)
    os.kill(os.getpid(), number) if os.getpid() != 1 else os._exit(128 + number)
    return "unreachable"


def leave(code: int) -> str:
    os._exit(code)


def hang() -> str:
    signal.pause()
    return "woken"


def garbage(text: str) -> str:
    SOCKET.sendall(text.encode("latin-1"))
    signal.pause()
    return "unreachable"


def deaf() -> str:
    SOCKET.close()
    signal.pause()
    return "unreachable"


def answer(order: pb.TrainerOrder) -> pb.TrainerAnswer:
    if order.WhichOneof("message") == "end":
        return pb.TrainerAnswer(order=order.order, done=pb.OrderDone())
    if order.WhichOneof("message") == "train":
        failed = pb.OrderFailed(error_class="ValueError", traceback="Traceback: patient Smith")
        return pb.TrainerAnswer(order=order.order, failed=failed)
    described = []
    for shard in order.describe.shards:
        result = pb.ShardDescription(name=shard.name)
        arguments: dict[str, Any] = json.loads(shard.options_json or "{}")
        try:
            result.description = globals()[shard.factory](**arguments)[:5000]
        except OSError as error:
            result.error_class, result.error_text = type(error).__name__, str(error)
        described.append(result)
    return pb.TrainerAnswer(order=order.order, described=pb.ShardDescriptions(shards=described))


if __name__ == "__main__":
    SOCKET = socket.socket(fileno=int(sys.argv[sys.argv.index("--socket-fd") + 1]))
    frames = BlockingFrames(SOCKET)
    while (received := frames.receive(pb.TrainerOrder)) is not None:
        frames.send(answer(received))
        if received.WhichOneof("message") == "end":
            break
