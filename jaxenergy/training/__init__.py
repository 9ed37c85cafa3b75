"""Training: pure compiled steps, the loop that meters them, checkpoints, and stopping cleanly."""
