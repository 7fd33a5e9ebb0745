"""The sharedness battery: per feature the gates activation, pairing, meaning, causal and robustness, and one class."""
