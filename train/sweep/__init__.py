"""Many dictionaries trained together on one stream, and compared fairly."""
