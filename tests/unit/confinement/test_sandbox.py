"""The command around a trainer, as a list; `tests/integration/test_confinement.py` runs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from federation.confinement import sandbox as sandboxes
from federation.confinement.interpreter import Interpreter, examine
from federation.confinement.sandbox import Confinement, Sandbox, SandboxMode
from federation.errors import ConfigurationError

SANDBOX = Sandbox(Path("/usr/bin/bwrap"))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    for folder in ("pki", "state/exp/workspace", "state/exp/bundle", "data/private", "code"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pki/key.pem").write_text("secret")
    (tmp_path / "data/key.pem").write_text("secret")
    return tmp_path


def _confinement(site: Path, **changes: object) -> Confinement:
    arguments: dict[str, object] = {
        "interpreter": Interpreter(executable=Path("/usr/bin/python3"), readable=(site / "code",)),
        "workspace": site / "state/exp/workspace",
        "bundle": site / "state/exp/bundle",
    }
    return Confinement(**{**arguments, **changes})  # type: ignore[arg-type]


def _mounts(command: list[str]) -> list[tuple[str, str]]:
    kinds = ("--ro-bind", "--bind", "--tmpfs", "--dev-bind-try")
    return [(word, command[i + 1]) for i, word in enumerate(command) if word in kinds]


def test_shares_nothing_and_dies_with_its_parent(site: Path) -> None:
    command = SANDBOX.command(_confinement(site), ["-m", "federation.trainer"])
    options = command[: command.index("--")]
    assert {"--unshare-all", "--die-with-parent", "--new-session"} <= set(options)
    assert "--share-net" not in options
    assert command[command.index("--") :] == ["--", "/usr/bin/python3", "-m", "federation.trainer"]


def test_only_workspace_and_writable_folders_are_writable(site: Path) -> None:
    exchange = site / "state/exp/exchange"
    exchange.mkdir()
    mounts = _mounts(SANDBOX.command(_confinement(site, writable=(exchange,), readable=(site / "data",)), []))
    assert {path for kind, path in mounts if kind == "--bind"} == {str(site / "state/exp/workspace"), str(exchange)}
    assert ("--ro-bind", str(site / "data")) in mounts
    assert ("--ro-bind", str(site / "state/exp/bundle")) in mounts


def test_what_holds_a_hidden_file_is_covered_and_what_is_deeper_is_mounted_after(site: Path) -> None:
    confinement = _confinement(site, python_path=(site,), hidden=(site / "pki/key.pem", site / "state"))
    mounts = _mounts(SANDBOX.command(confinement, []))
    order = [path for _, path in mounts]
    assert ("--tmpfs", str(site / "pki")) in mounts
    assert ("--tmpfs", str(site / "state")) in mounts
    assert order.index(str(site)) < order.index(str(site / "pki"))
    assert order.index(str(site / "state")) < order.index(str(site / "state/exp/bundle"))


@pytest.mark.parametrize(
    ("readable", "hidden"),
    [
        pytest.param("data", "data/key.pem", id="a key directly inside"),
        pytest.param("pki", "pki", id="the hidden folder itself"),
        pytest.param("pki/key.pem", "pki/key.pem", id="the key itself"),
    ],
)
def test_what_cannot_be_hidden_is_refused_before_anything_starts(site: Path, readable: str, hidden: str) -> None:
    confinement = _confinement(site, readable=(site / readable,), hidden=(site / hidden,))
    with pytest.raises(ConfigurationError, match="list narrower paths"):
        SANDBOX.command(confinement, [])


def test_a_link_does_not_lead_to_what_is_hidden(site: Path) -> None:
    (site / "innocent").symlink_to(site / "pki")
    confinement = _confinement(site, readable=(site / "innocent",), hidden=(site / "pki/key.pem",))
    with pytest.raises(ConfigurationError, match="innocent"):
        SANDBOX.command(confinement, [])


@pytest.mark.parametrize("path", [Path("/no/such/folder"), Path("relative")])
def test_a_path_that_does_not_exist_or_is_relative_is_refused(site: Path, path: Path) -> None:
    with pytest.raises(ConfigurationError, match=str(path)):
        SANDBOX.command(_confinement(site, readable=(path,)), [])


@pytest.mark.parametrize("sandbox", [SANDBOX, Sandbox(None, "off")], ids=["sandboxed", "not sandboxed"])
def test_the_environment_is_made_from_nothing(site: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    environment = sandbox.environment(_confinement(site, threads=3, python_path=(site / "code",)))
    assert "DATABASE_PASSWORD" not in environment
    assert environment["HOME"] == str(site / "state/exp/workspace")
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
    assert environment["PYTHONPATH"] == str(site / "code")


def test_without_a_sandbox_the_interpreter_runs_bare_and_the_weakness_is_described(site: Path) -> None:
    bare = Sandbox.choose(SandboxMode.NONE)
    assert bare.command(_confinement(site), ["x.py"]) == ["/usr/bin/python3", "x.py"]
    assert "sandbox = none" in bare.describe_weakness()
    assert "key files" in bare.describe_weakness()
    assert SANDBOX.describe_weakness() == ""


def test_without_bubblewrap_auto_says_what_is_weaker_and_required_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not installed" in Sandbox.choose(SandboxMode.AUTO).describe_weakness()
    with pytest.raises(ConfigurationError, match="sandbox = required, but bubblewrap"):
        Sandbox.choose(SandboxMode.REQUIRED)


def test_a_bubblewrap_that_does_not_work_counts_as_none_and_its_words_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho No permissions to create new namespace >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ConfigurationError, match="No permissions to create new namespace"):
        Sandbox.choose(SandboxMode.REQUIRED)
    assert not Sandbox.choose(SandboxMode.AUTO).is_confined


def test_our_interpreter_needs_its_packages_but_neither_checkout_nor_home() -> None:
    needed = examine(Path(sys.executable)).readable
    package = Path(sandboxes.__file__).parents[1]
    assert any(package.is_relative_to(path) for path in needed)
    checkout = package.parent
    if (checkout / "pyproject.toml").exists():
        assert checkout not in needed
    assert Path.home() not in needed and Path("/") not in needed


@pytest.mark.parametrize("program", ["/no/such/python", "/usr/bin/true"])
def test_what_is_no_interpreter_is_a_configuration_error(program: str) -> None:
    with pytest.raises(ConfigurationError, match=program):
        examine(Path(program))


def test_an_interpreter_without_federation_is_told_how_to_get_it(tmp_path: Path) -> None:
    # The base interpreter of a virtual environment has none of its packages.
    if sys.prefix == sys.base_prefix:
        pytest.skip("federation is installed for the base interpreter")
    with pytest.raises(ConfigurationError, match="pip install"):
        examine(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")
