"""Checks on planner output: what changed, what drifted, what a lock holds."""
