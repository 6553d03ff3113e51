"""The invalidation clock: what was invalidated since an entry's handler began.

An *epoch* counts invalidations, a *stamp* is the epoch at which a tag was last invalidated, a *ban* is an
invalidated pattern, a *floor* stands for everything. An entry carries the epoch read **before** its handler
ran; it is valid if nothing that names it is newer. So a tag of a hundred thousand entries costs one write, and
nothing that was filled from old data survives the invalidation that raced it.

There is one clock for each namespace of a backend, kept by the backend's own means: integers in memory, one
short string and scripts in Redis, random tokens where there is only get and set. What is missing, unreadable or
of another *generation* (life of the clock) is a miss, never a hit.
"""
