"""A fleet as a user writes it: fleet.yaml, read with the place of each mistake."""
