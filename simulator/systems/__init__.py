"""Published serving systems, each a short composition of what the control plane has."""
