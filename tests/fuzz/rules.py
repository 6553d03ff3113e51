"""Let atheris look for bytes that a rule cannot take: ``python -m tests.fuzz.rules``, or ``make fuzz``.

All arguments are libFuzzer's; ``-max_total_time=60`` ends after a minute. What it finds is written to
``build/fuzz``; a file that is given as an argument is tried again.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
"""Inputs to begin with, each for the target that its first byte chooses."""
FOUND = Path("build/fuzz")
"""Where inputs go that reach something new, and those that fail."""


def main(arguments: list[str]) -> None:
    """Fuzz until *arguments* say that it is enough."""
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        sys.exit("atheris is not installed: make fuzz installs it; make test tries the same by hypothesis")
    with atheris.instrument_imports(include=["app_cache.rules"]):
        targets = importlib.import_module("tests.fuzz.targets")
    FOUND.mkdir(parents=True, exist_ok=True)
    named = [argument for argument in arguments if not argument.startswith("-")]
    places = [] if named else [str(FOUND), str(CORPUS)]
    atheris.Setup([sys.argv[0], f"-artifact_prefix={FOUND}/", *arguments, *places], targets.one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
