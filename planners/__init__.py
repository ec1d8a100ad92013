"""Which fleet to run: offers, the cheapest mix with a proven bound, and its rehearsal."""
