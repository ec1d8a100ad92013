"""What a fleet would do: a numba data plane under a SimPy control plane."""
