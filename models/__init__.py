"""What one engine step costs: devices, models, engines and their calibrated operators."""
