"""Routes: which policy a request meets, and what the endpoint that would run receives.

Imports run parameters < ways, policies < table.
"""
