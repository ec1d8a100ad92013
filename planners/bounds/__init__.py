"""Rigorous lower bounds: what no fleet of the offered engines, under any router, can cost less than."""
