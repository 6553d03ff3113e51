"""What the application, apart from its cache, takes from the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The variables of this application; those of the cache are `app_cache.CacheSettings`."""

    model_config = SettingsConfigDict(env_prefix="CITIES_", env_ignore_empty=True)

    database: Path = Path(__file__).with_name("cities.sqlite3")
    """``CITIES_DATABASE``: the SQLite file; it is built if it does not exist."""
    admin_token: SecretStr | None = None
    """``CITIES_ADMIN_TOKEN``: who sends it as a bearer token may invalidate; nobody may if it is not given."""
