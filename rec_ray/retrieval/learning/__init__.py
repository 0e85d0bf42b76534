"""The learner: losses, negatives, optimizer, gradients, prefetch."""
