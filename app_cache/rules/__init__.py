"""RFC 9111 and its companions as pure functions of values.

Nothing here awaits, logs, or looks at a clock: *now* is an argument. Imports run
messages < structured < directives < freshness, validators, variants, ranges < decisions.
"""
