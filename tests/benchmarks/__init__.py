"""What a hit costs, and how that grows: ``make bench`` measures it and writes ``docs/performance.md``."""
