"""Several models, or several regions, that share one budget and one supply."""
