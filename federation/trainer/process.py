"""The trainer process: orders in, answers out, one at a time, until its owner ends it or goes away.

Rules, in order:

1. An order that fails is answered, with the class of the exception and its traceback; the process lives on. The owner
   decides what of that leaves the silo.
2. The end of the socket is the end of the process: there is nobody left to work for.
3. SIGINT is ignored: at a terminal it reaches the whole group, and ending a trainer is its owner's decision.
4. What experiment code prints goes where standard output and error go, which is the trainer's log.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import traceback
from typing import TYPE_CHECKING

from federation.data.loading import ShardError
from federation.errors import MalformedMessageError, PlanError
from federation.runtime.framing import BlockingFrames
from federation.trainer.orders import Orders
from federation.v1 import trainer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_TRACEBACK_BYTES = 64 * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve orders on an inherited socket; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m federation.trainer", description="Started by a collaborator.")
    parser.add_argument("--socket-fd", type=int, required=True, help="inherited stream socket to take orders from")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.dont_write_bytecode = True  # the bundle's folder is read-only, and its content is what was signed
    with socket.socket(fileno=chosen.socket_fd) as sock:
        sock.set_inheritable(False)  # a child the experiment starts must not hold our owner's socket open
        try:
            return serve(BlockingFrames(sock), Orders())
        except MalformedMessageError as error:
            print(f"trainer: the owner's orders cannot be read: {error}", file=sys.stderr)
            return 1
        except ConnectionError:
            return 0  # rule 2, noticed while answering


def serve(frames: BlockingFrames, orders: Orders) -> int:
    """Carry out orders until there are no more; returns the exit code.

    Raises:
        MalformedMessageError: a frame cannot be read.
        OSError: the owner is gone.
    """
    while (order := frames.receive(pb.TrainerOrder)) is not None:
        answer = _carry_out(order, orders)
        answer.order = order.order
        sys.stdout.flush()  # the log is complete up to here when the owner reads the answer
        frames.send(answer)
        if order.WhichOneof("message") == "end":
            break
    return 0


def _carry_out(order: pb.TrainerOrder, orders: Orders) -> pb.TrainerAnswer:
    kind = order.WhichOneof("message")
    try:
        match kind:
            case "describe":
                return pb.TrainerAnswer(described=orders.describe(order.describe))
            case "prepare":
                return pb.TrainerAnswer(prepared=orders.prepare(order.prepare))
            case "train":
                return pb.TrainerAnswer(trained=orders.train(order.train))
            case "evaluate":
                return pb.TrainerAnswer(evaluated=orders.evaluate(order.evaluate))
            case "keep":
                orders.keep(order.keep)
            case "end":
                pass
            case _:
                raise MalformedMessageError("an order without a message")
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        # Experiment code may raise anything; a trainer that dies of it would cost the site its warm model.
        traceback.print_exc()
        sys.stderr.flush()
        return pb.TrainerAnswer(failed=_failure(error, is_permanent=kind == "prepare" or isinstance(error, PlanError)))
    return pb.TrainerAnswer(done=pb.OrderDone())


def _failure(error: BaseException, *, is_permanent: bool) -> pb.OrderFailed:
    text = "".join(traceback.format_exception(error)).encode("utf-8", "replace")
    return pb.OrderFailed(
        # The end of a traceback says what happened; its beginning is our own frames.
        error_class=error.error_class if isinstance(error, ShardError) else type(error).__name__,
        traceback=text[-MAX_TRACEBACK_BYTES:].decode("utf-8", "ignore"),
        permanent=is_permanent,
    )
