"""The store holds to the suite that it ships."""

from thresher.testing.store import StoreSuite


class TestStore(StoreSuite):
    """The project's own writer and reader."""
