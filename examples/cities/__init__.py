"""Cities of the world over HTTP: a FastAPI application on SQLite, and what app_cache adds to it.

Start it with ``make demo``, or ``python -m examples.cities``. Read `main` first, then `routes`; the cache is there
and in `admin`, nowhere else.
"""
