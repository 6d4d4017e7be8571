"""From a snapshot and texts to activations: sites, hooks, one forward loop, pooling."""
