"""Weights of other projects, in and out: the same numbers under their names and under ours."""
