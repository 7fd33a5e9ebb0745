"""Training straight from a model, without a store between."""
