"""From volumes to the network's input: fingerprint, plan, prepared arrays."""
