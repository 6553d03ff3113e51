"""What `make` says on a machine where something is missing; nothing here installs anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.http_server import listening_socket

ROOT = Path(__file__).parents[2]
TOOLS = ("basename", "env", "grep", "make", "mkdir", "rm", "sh", "tail", "touch")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run make with the variables *environ* alone."""
    program = shutil.which("make") or "make"
    return subprocess.run(
        [program, *arguments],
        cwd=ROOT,
        env={"PYTHONUTF8": "1", "PATH": os.environ["PATH"], **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def make_here(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run make with the environment of these tests, as if it had been made a moment ago."""
    stamps = [option for name in (".demo", ".dev") for option in ("-o", f"{sys.prefix}/{name}")]
    return make(f"VENV={sys.prefix}", *stamps, *arguments, **environ)


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A PATH with what the Makefile needs but for Python."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None, tool
        (directory / tool).symlink_to(found)
    return directory


def python_that(directory: Path, name: str, script: str) -> None:
    """Put a program called *name* into *directory* that is this Python, after the lines of *script*."""
    program = directory / name
    program.write_text(f'#!/bin/sh\n{script}\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)


def test_help_names_every_target() -> None:
    """``make`` alone says what there is."""
    said = make().stdout

    assert all(
        f"make {target} " in said for target in ("demo", "test", "coverage", "soak", "bench", "lint", "clean")
    )


def test_demo_serves_what_it_proves(tmp_path: Path) -> None:
    """``make demo ARGS=--once`` ends well, with a table of requests."""
    done = make_here("demo", "PORT=0", "ARGS=--once", CITIES_DATABASE=str(tmp_path / "cities.sqlite3"))

    assert (done.returncode, done.stderr) == (0, "")
    assert "app-cache; hit; ttl=" in done.stdout


def test_demo_on_a_taken_port() -> None:
    """A port that is taken is one sentence, and no traceback."""
    with listening_socket() as taken:
        port = taken.getsockname()[1]
        done = make_here("demo", f"PORT={port}")

    assert done.returncode != 0
    assert sentences(done) == [f"Port {port} is taken: choose another, such as PORT=8001."]


@pytest.mark.parametrize("target", ["demo", "test"])
def test_no_python(bare_path: Path, tmp_path: Path, target: str) -> None:
    """A machine without Python is told so in one sentence."""
    done = make(target, f"VENV={tmp_path}/venv", PATH=str(bare_path))

    assert done.returncode != 0
    assert [said.partition(":")[0] for said in sentences(done)] == ["No Python of version 3.11 or newer was found"]


def test_python_that_is_too_old(bare_path: Path, tmp_path: Path) -> None:
    """A Python that is too old, or does not run, is passed over, and refused where it is asked for."""
    python_that(bare_path, "python3", "exit 1")

    found = make("demo", f"VENV={tmp_path}/venv", PATH=str(bare_path))
    named = make("demo", f"VENV={tmp_path}/venv", "PYTHON=python3", PATH=str(bare_path))

    assert [said.partition(":")[0] for said in sentences(found)] == [
        "No Python of version 3.11 or newer was found"
    ]
    assert sentences(named) == ["PYTHON=python3 is not a Python of version 3.11 or newer that runs here."]


def test_python_without_venv(bare_path: Path, tmp_path: Path) -> None:
    """A Python that cannot make environments is told so, with the package that is missing."""
    python_that(bare_path, "python3", 'case "$*" in *ensurepip*) exit 1 ;; esac')

    said = sentences(make("demo", f"VENV={tmp_path}/venv", PATH=str(bare_path)))

    assert len(said) == 1
    assert said[0].startswith("python3 lacks the modules venv and ensurepip")
    assert "python3-venv" in said[0]


def test_no_network(bare_path: Path, tmp_path: Path) -> None:
    """Where pip reaches nothing, that is one sentence."""
    python_that(bare_path, "python3", ":")
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0"}

    done = make("demo", f"VENV={tmp_path}/venv", PATH=str(bare_path), HOME=str(tmp_path), **nowhere)

    assert done.returncode != 0
    assert [said.partition(":")[0] for said in sentences(done)] == ["pip cannot get the packages"]


def sentences(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return what was said on stderr, but for make's own line."""
    return [line for line in done.stderr.splitlines() if not line.startswith("make")]
