"""What was asked, and when: request traces, their statistics and transformations."""
