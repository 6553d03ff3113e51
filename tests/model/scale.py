"""How much the random tests try: little in the suite, more when asked.

``APP_CACHE_MODEL_SCALE=50 pytest -o faulthandler_timeout=0 tests/model tests/test_key_properties.py
tests/test_privacy_properties.py`` tries fifty times as much, other things each time, and looks for the least that
fails, which may take minutes; the suite fails at once, with what it was.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

SCALE = int(os.environ.get("APP_CACHE_MODEL_SCALE", "1"))


def trying(examples: int, steps: int = 50) -> settings:
    """Return settings for so many *examples* in the suite, of so many *steps* where there are some."""
    return settings(
        max_examples=examples * SCALE,
        stateful_step_count=steps,
        derandomize=SCALE == 1,
        phases=[*Phase] if SCALE > 1 else [Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
