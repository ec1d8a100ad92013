"""The control plane: what decides, written in Python over SimPy, and what only decisions need."""
