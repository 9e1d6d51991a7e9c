"""`flm demo`: the whole way from text to a trained model, on what a fresh machine has installed."""
