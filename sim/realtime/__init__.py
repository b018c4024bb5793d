"""Closed loops in which latency costs: the world moves on while the policy thinks."""
