"""Measures as pure functions: sufficient statistics per chunk, closed forms of their sums. One concept per file."""
