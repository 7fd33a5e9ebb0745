"""Conformance suites: what an architecture, an adapter or a store must do, as test classes to subclass."""
