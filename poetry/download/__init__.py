"""Downloads for `poetry get`: retries, the order of the poems, and their outputs."""
