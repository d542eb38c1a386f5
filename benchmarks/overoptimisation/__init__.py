"""Whether more preference data make a proxy harder to over-optimise, where everything but the data is exact."""
