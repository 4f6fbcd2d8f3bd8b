"""Array work that several rooms need: resample, normalise, filter, crop, components, sliding window."""
