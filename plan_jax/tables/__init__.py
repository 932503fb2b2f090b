"""Tables of results: what they are, how they are printed, and what stands in them."""
