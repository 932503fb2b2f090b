"""Compiling for hardware that is not here: memory, work and traffic of a step before a machine is rented."""
