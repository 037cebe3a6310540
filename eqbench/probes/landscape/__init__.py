"""The loss around a network's weights: what the probes of the landscape share."""
