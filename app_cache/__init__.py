"""Response caching for FastAPI."""
