"""A model's folder on disk: what it holds (``folder``), what must not be in it (``source``), how it is written (``stock``)."""
