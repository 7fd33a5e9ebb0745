"""thresher: activations of vision-language and language models, harvested, sparsely coded, compared across modalities."""

__version__ = "0.1.0"
