"""What the project measures about its bench and itself: `python -m plan_jax benchmark NAME`."""
