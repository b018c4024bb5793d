"""The foreground reconstructor: model, losses, data, training, weights."""
