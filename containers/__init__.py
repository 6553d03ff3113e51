"""The dependency-injector container of app_cache, and how it is put on an application."""
