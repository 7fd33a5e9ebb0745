"""Dictionaries of other libraries: export, import, the Hugging Face hub."""

from thresher.train.exchange.convert import Converted, Format, export_sae, import_sae
from thresher.train.exchange.saebench import SAEBenchSAE, load_saebench, make_saebench

__all__ = ["Converted", "Format", "SAEBenchSAE", "export_sae", "import_sae", "load_saebench", "make_saebench"]
