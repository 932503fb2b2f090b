"""Numbers from arrays, by task: no files, no networks.

All functions take numpy arrays, work in float64 and return Python numbers or arrays. Ties never help: where several
answers score the same, a metric is its expected value over a random order of them, so a constant score is worth exactly
chance.
"""
