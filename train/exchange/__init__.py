"""Dictionaries of other libraries: export, import, the Hugging Face hub."""

from thresher.train.exchange.convert import Converted, Format, export_sae, import_sae
from thresher.train.exchange.plain import Kind, RowShape
from thresher.train.exchange.saebench import SAEBenchSAE, load_saebench, make_saebench
from thresher.train.exchange.single import Stated

__all__ = [
    "Converted",
    "Format",
    "Kind",
    "RowShape",
    "SAEBenchSAE",
    "Stated",
    "export_sae",
    "import_sae",
    "load_saebench",
    "make_saebench",
]
