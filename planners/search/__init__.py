"""The search for the cheapest fleet: mixes, rehearsals, and the reasons for what was chosen."""
