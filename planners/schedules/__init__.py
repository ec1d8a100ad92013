"""Fleets over time: the hours of a week, reserved, autoscaled and spot."""
