"""Published serving systems put to the test: what each paper claims, beside what the simulator finds."""
