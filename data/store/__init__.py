"""The activation store: zarr v3 for activations, Parquet for items; written once, verified, read at the speed of the disk."""

from thresher.data.store.beside import is_finished, refuse_foreign_store, write_beside
from thresher.data.store.bfloat16 import register
from thresher.data.store.cache import CacheConfig
from thresher.data.store.codecs import Profile
from thresher.data.store.counts import BatchCount, CountLedger, Counts
from thresher.data.store.describe import describe_store, format_bytes, list_stores
from thresher.data.store.export import export_store
from thresher.data.store.head import read_head
from thresher.data.store.ingest import import_store
from thresher.data.store.ingest_pairs import import_pairs
from thresher.data.store.merge import merge_stores
from thresher.data.store.moments import Moments
from thresher.data.store.places import StoreLocation, parse_location
from thresher.data.store.plan import Share
from thresher.data.store.reader import Store, open_store
from thresher.data.store.repair import Repair, repair_store
from thresher.data.store.retype import retype_store
from thresher.data.store.schema import Batch, Dtype, HookPointInfo, HookPointSpec, Item, Rows, TokenKind
from thresher.data.store.unlock import unlock_store
from thresher.data.store.verify import verify_store
from thresher.data.store.writer import StoreWriter

__all__ = [
    "Batch",
    "BatchCount",
    "CacheConfig",
    "CountLedger",
    "Counts",
    "Dtype",
    "HookPointInfo",
    "HookPointSpec",
    "Item",
    "Moments",
    "Profile",
    "Repair",
    "Rows",
    "Share",
    "Store",
    "StoreLocation",
    "StoreWriter",
    "TokenKind",
    "describe_store",
    "export_store",
    "format_bytes",
    "import_pairs",
    "import_store",
    "is_finished",
    "list_stores",
    "merge_stores",
    "open_store",
    "parse_location",
    "read_head",
    "refuse_foreign_store",
    "repair_store",
    "retype_store",
    "unlock_store",
    "verify_store",
    "write_beside",
]

register()
