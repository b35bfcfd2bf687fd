"""The limit: the same bytes over bare mutual-TLS sockets between processes, with nothing else done to them.

One server process with a thread per site, one process per site, TLS 1.3, P-256 certificates on both sides. A round is
every site reading `nbytes` and then writing `nbytes`, as a federated round's broadcast and collect do.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

from benchmarks.certificates import SITES_FOLDER, make_certificates

BLOCK = 1 << 20


def _context(folder: Path, side: int) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(folder / "ca.pem")
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def _receive(connection: ssl.SSLSocket, nbytes: int) -> None:
    block = bytearray(BLOCK)
    left = nbytes
    while left:
        got = connection.recv_into(block, min(BLOCK, left))
        if not got:
            raise ConnectionError(f"closed with {left} of {nbytes} bytes to come")
        left -= got


def _send(connection: ssl.SSLSocket, nbytes: int, block: bytes) -> None:
    left = nbytes
    while left:
        connection.sendall(block[: min(BLOCK, left)])
        left -= min(BLOCK, left)


def site(port: int, folder: Path, nbytes: int, rounds: int) -> None:
    """Be one site: read and write `nbytes` each round."""
    raw = socket.create_connection(("127.0.0.1", port))
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with _context(folder, ssl.PROTOCOL_TLS_CLIENT).wrap_socket(raw) as connection:
        block = bytes(BLOCK)
        for _ in range(rounds):
            _receive(connection, nbytes)
            _send(connection, nbytes, block)


def measure(folder: Path, *, sites: int, nbytes: int, rounds: int) -> list[float]:
    """Return the seconds of each round but the first, in which connections warm up.

    Args:
        folder: empty folder for certificates.
        sites: number of site processes.
        nbytes: bytes each way, site and round.
        rounds: rounds to measure.
    """
    make_certificates(folder, sites)
    listener = socket.create_server(("127.0.0.1", 0), backlog=sites)
    port = listener.getsockname()[1]
    context = _context(folder / "director", ssl.PROTOCOL_TLS_SERVER)
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bare_tls", str(port), str(folder / SITES_FOLDER / f"site-{index}"),
             str(nbytes), str(rounds + 1)]
        )
        for index in range(sites)
    ]  # fmt: skip
    barrier = threading.Barrier(sites + 1)

    def serve(connection: ssl.SSLSocket) -> None:
        block = bytes(BLOCK)
        for _ in range(rounds + 1):
            barrier.wait()
            _send(connection, nbytes, block)
            _receive(connection, nbytes)
            barrier.wait()

    threads = []
    for _ in range(sites):
        raw, _address = listener.accept()
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threads.append(threading.Thread(target=serve, args=(context.wrap_socket(raw, server_side=True),)))
    for thread in threads:
        thread.start()
    seconds = []
    for _ in range(rounds + 1):
        barrier.wait()
        start = time.perf_counter()
        barrier.wait()
        seconds.append(time.perf_counter() - start)
    for thread in threads:
        thread.join()
    for child in children:
        child.wait()
    listener.close()
    return seconds[1:]


if __name__ == "__main__":
    site(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
