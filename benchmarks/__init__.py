"""Benchmarks: what reunite costs, as ratios against raw SQLite and raw Postgres in the same run."""
