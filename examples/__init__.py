"""Applications that use app_cache, each to be read in one sitting."""
