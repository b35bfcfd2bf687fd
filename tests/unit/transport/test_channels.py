from __future__ import annotations

import grpc
import pytest

from federation.errors import ConfigurationError
from federation.transport.channels import open_channel, split_address


@pytest.mark.parametrize(
    ("address", "expected"),
    [("a.example:7000", ("a.example", 7000)), ("127.0.0.1:1", ("127.0.0.1", 1)), ("[::1]:80", ("::1", 80))],
)
def test_splits_host_and_port(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected


@pytest.mark.parametrize("address", ["", "host", ":80", "host:", "host:0", "host:65536", "host:8o", "host:٣"])
def test_refuses_what_is_no_address(address: str) -> None:
    with pytest.raises(ConfigurationError, match="host:port"):
        split_address(address)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.3.2.1", "[::1]"])
async def test_plaintext_may_stay_on_this_machine(host: str) -> None:
    channel = open_channel(f"{host}:7000", server_name="x", tls=None)
    assert isinstance(channel, grpc.aio.Channel)
    await channel.close()


@pytest.mark.parametrize("host", ["10.0.0.1", "director.example.org", "localhost.example.org", "::"])
async def test_plaintext_leaves_no_machine(host: str) -> None:
    with pytest.raises(ConfigurationError, match="loopback"):
        open_channel(f"[{host}]:7000" if ":" in host else f"{host}:7000", server_name="x", tls=None)
