"""What the loop predicts."""
