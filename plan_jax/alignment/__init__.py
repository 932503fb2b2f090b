"""Which words belong to which patches: the method's equations, and ways to run them over a whole batch."""
