"""A simulator of searches over recorded learning curves, for benchmarks/search_policies.py."""
