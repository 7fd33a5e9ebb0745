"""The activation store: zarr v3 for activations, Parquet for items; written once, verified, read at the speed of the disk."""

from thresher.data.store.bfloat16 import register
from thresher.data.store.describe import describe_store, list_stores
from thresher.data.store.export import export_store
from thresher.data.store.head import read_head
from thresher.data.store.ingest import import_store
from thresher.data.store.merge import merge_stores
from thresher.data.store.moments import Moments
from thresher.data.store.reader import Store, open_store
from thresher.data.store.repair import Repair, repair_store
from thresher.data.store.retype import retype_store
from thresher.data.store.schema import Batch, Dtype, HookPointInfo, HookPointSpec, Item, Rows, TokenKind
from thresher.data.store.verify import verify_store
from thresher.data.store.writer import StoreWriter

__all__ = [
    "Batch",
    "Dtype",
    "HookPointInfo",
    "HookPointSpec",
    "Item",
    "Moments",
    "Repair",
    "Rows",
    "Store",
    "StoreWriter",
    "TokenKind",
    "describe_store",
    "export_store",
    "import_store",
    "list_stores",
    "merge_stores",
    "open_store",
    "read_head",
    "repair_store",
    "retype_store",
    "verify_store",
]

register()
