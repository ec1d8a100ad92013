"""What there is to rent: engines that can serve a model, what they cost, and the limits on them."""
