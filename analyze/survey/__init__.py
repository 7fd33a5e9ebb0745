"""The rest of the catalogue: measures of spaces, dictionaries and codes that no verdict on a feature needs."""
