"""Fetching for `poetry get`: retries, order, and where the poems are written."""
